"""What a fleet process holds while it runs: its data directory, its ports, its secrets."""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator

from fleet.config import FleetConfig
from skerry.errors import ConflictError, NotFoundError, RefusedError, SkerryError, UsageError

__all__ = ["bound", "cannot_listen", "only_one", "read_key_file", "read_token"]


@contextlib.contextmanager
def bound(host: str, port: int, whom: str) -> Iterator[socket.socket]:
    """Hold a listening socket; port 0 picks a free one.

    Raises:
        ConflictError: the port is in use.
        RefusedError: it is not ours to listen on.
        UsageError: the address is none of this machine.
    """
    try:
        listening = socket.create_server((host, port), backlog=512)
    except OSError as error:
        raise cannot_listen(error, host, port, whom) from None
    with listening:
        yield listening


def cannot_listen(error: OSError, host: str, port: int, whom: str) -> SkerryError:
    """Return what to tell people when a port could not be listened on."""
    if error.errno == errno.EADDRINUSE:
        return ConflictError(
            f"expected port {port} of {host} to be free for {whom}, and it is in use; "
            "stop what listens there, or choose another port (0 picks a free one)"
        )
    if isinstance(error, PermissionError):
        return RefusedError(
            f"expected to be allowed to listen on port {port} of {host} for {whom}; "
            "choose a port above 1023"
        )
    # a name that cannot be looked up has a number of its own kind, with its own words
    why = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
    return UsageError(
        f"expected an address of this machine to listen on for {whom}, got {host}: {why}; "
        "127.0.0.1 is this machine alone, 0.0.0.0 every address of it"
    )


@contextlib.contextmanager
def only_one(config: FleetConfig) -> Iterator[None]:
    """Hold the data directory: two services on one SQLite file would fight over devices.

    Raises:
        ConflictError: another service holds it.
    """
    with (config.data / "run.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConflictError(
                f"expected no running fleet on {config.data}, found one; "
                f"its addresses are in {config.run_file}"
            ) from None
        yield


def read_token(config: FleetConfig) -> str:
    """Return the operators' token.

    Raises:
        NotFoundError: there is none.
    """
    try:
        return config.admin_token_file.read_text().strip()
    except FileNotFoundError:
        raise NotFoundError(
            f"expected the operators' token in {config.admin_token_file}; "
            f"make a fleet with: skerry fleet init --data {config.data}"
        ) from None


def read_key_file(config: FleetConfig, name: str) -> bytes:
    """Return a file that the key ceremony made.

    Raises:
        NotFoundError: the ceremony has not been.
    """
    try:
        return (config.keys_dir / name).read_bytes()
    except FileNotFoundError:
        raise NotFoundError(
            f"expected {config.keys_dir / name}; hold the key ceremony with: "
            f"skerry keys ceremony --data {config.data} --out KEYS --publisher NAME"
        ) from None
