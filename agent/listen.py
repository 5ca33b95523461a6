"""The sockets on which predictions are asked for: TCP, and a Unix socket where one is set.

Both are only bound here: nothing is accepted before the first release serves.
"""

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path
from typing import Final

from skerry.errors import ConflictError, UsageError

__all__ = ["listen", "listen_unix"]

MAX_PATH_BYTES: Final = 107  # of a Unix socket, unix(7)
MODE: Final = 0o660  # for the agent's user and group


def listen(host: str, port: int) -> socket.socket:
    """Return a bound socket; nothing is accepted before the first release serves.

    Raises:
        ConflictError: the port is in use.
        UsageError: the address is none of this machine, or the port not ours to take.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        # only a listening socket shows whether the port is free; the first release listens again
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(listener.getsockname())
            probe.listen(1)
        # who binds an address to be shared may do so until somebody listens there: no more now
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConflictError(
                f"expected port {port} of {host} to be free, and it is in use; "
                "stop what listens there, or choose another with --port (0 picks a free one)"
            ) from None
        raise UsageError(
            f"cannot listen on port {port} of {host}: {error.strerror}; "
            "correct http_host, or choose another port with --port"
        ) from None
    return listener


def listen_unix(path: Path) -> socket.socket:
    """Return a bound Unix socket, for the agent's user and group; one left behind is replaced.

    Raises:
        ConflictError: somebody listens there.
        UsageError: no socket can be made there.
    """
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise UsageError(
            f"expected http_socket of at most {MAX_PATH_BYTES} bytes, got {str(path)!r}; "
            "choose a shorter path, such as /run/skerry/agent.sock"
        )
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _make_room(path)
        listener.bind(str(path))
        path.chmod(MODE)
    except OSError as error:
        listener.close()
        raise UsageError(
            f"cannot make a socket at {path}: {error.strerror}; correct http_socket"
        ) from None
    except ConflictError:
        listener.close()
        raise
    return listener


def _make_room(path: Path) -> None:
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise ConflictError(
            f"expected a socket or nothing at {path}, and something else is there; "
            "move it away, or correct http_socket"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:  # nobody listens: it was left behind
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            return
    raise ConflictError(f"expected nobody to listen at {path}, and somebody does; stop it first")
