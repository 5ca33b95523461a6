"""What a fleet process holds while it runs: its data directory, its ports, its secrets."""

import contextlib
import fcntl
import socket
from collections.abc import Iterator

from fleet.config import FleetConfig
from skerry.errors import ConflictError, NotFoundError, RefusedError

__all__ = ["bound", "only_one", "read_key_file", "read_token"]


@contextlib.contextmanager
def bound(host: str, port: int, whom: str) -> Iterator[socket.socket]:
    """Hold a listening socket; port 0 picks a free one.

    Raises:
        RefusedError: the port is in use, or not ours to listen on.
    """
    try:
        listening = socket.create_server((host, port), backlog=512)
    except OSError as error:
        raise RefusedError(
            f"expected port {port} of {host} to be free for {whom}: {error.strerror}; "
            "stop what listens there, or choose another port (0 picks a free one)"
        ) from None
    with listening:
        yield listening


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
