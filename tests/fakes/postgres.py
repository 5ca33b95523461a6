"""A PostgreSQL server of its own in a temporary folder, over a Unix socket."""

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.fakes.programs import find_program


@contextlib.contextmanager
def postgres_server() -> Iterator[str]:
    """The address of an empty database, SQLAlchemy's way."""
    # a socket's path is short, and the server refuses to be root
    root = Path(tempfile.mkdtemp(prefix="skerry-pg-", dir="/tmp"))
    who: dict[str, Any] = {}
    if os.geteuid() == 0:
        account = pwd.getpwnam("postgres")
        shutil.chown(root, account.pw_uid, account.pw_gid)
        who = {"user": account.pw_uid, "group": account.pw_gid, "cwd": root}
    data = root / "data"
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server: subprocess.Popen[bytes] | None = None
    try:
        subprocess.run(
            [str(find_program("initdb")), "-D", str(data), "-U", "skerry", "-A", "trust", "-N"],
            check=True, **quiet, **who,
        )  # fmt: skip
        server = subprocess.Popen(
            [str(find_program("postgres")), "-D", str(data), "-k", str(root),
             "-c", "listen_addresses=", "-c", "fsync=off"],
            **quiet, **who,
        )  # fmt: skip
        until = time.monotonic() + 20
        while not (data / "postmaster.pid").exists() or b"ready" not in _status(data):
            assert server.poll() is None, "PostgreSQL did not start"
            assert time.monotonic() < until, "PostgreSQL is not ready"
            time.sleep(0.05)
        yield f"postgresql+psycopg://skerry@/postgres?host={root}"
    finally:
        if server is not None:
            server.terminate()
            server.wait(10)
        shutil.rmtree(root, ignore_errors=True)


def _status(data: Path) -> bytes:
    # the last line of the pid file says "ready" once connections are taken
    with contextlib.suppress(OSError):
        return (data / "postmaster.pid").read_bytes()
    return b""
