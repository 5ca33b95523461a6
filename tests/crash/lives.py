"""Lives of a pocket device: forked from a warmed process, killed at an instant, or left to its end."""

import contextlib
import os
import select
import signal
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.crash.ledger import Ledger
from tests.crash.pocket import Pocket

PATIENCE_S: Final = 30.0


@dataclass(frozen=True)
class Death:
    """How a life ended."""

    status: int  # as of `os.waitpid`
    phase: str
    done: bool
    seconds: float
    served: bool


def live(
    root: Path,
    ledger: Ledger,
    *,
    seed: int,
    kill_after_s: float | None = None,
    kill: Callable[[int], None] = lambda pid: os.kill(pid, signal.SIGKILL),
    before: Callable[[int], None] | None = None,
    within: Callable[[], None] = lambda: None,
    **settings: Any,
) -> Death:
    """Run one life.

    Args:
        root: the device's directory.
        ledger: takes what it says.
        seed: of what happens when.
        kill_after_s: after how many seconds it dies; None to let it end.
        kill: ends it.
        before: called with the child's pid before it begins.
        within: called in the child before it begins.
        settings: of `Pocket`.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            ours.close()
            theirs.recv(1)
            within()
            Pocket(root, theirs, seed=seed, **settings).live()
            code = 0
        except BaseException:
            if os.environ.get("CRASH_TRACE"):
                traceback.print_exc()
            theirs.send(b"\x92\xa7gave_up\xa5crash")
        finally:
            os._exit(code)
    theirs.close()
    if before is not None:
        before(pid)
    ours.send(b"g")
    begin = time.monotonic()
    end = begin + (PATIENCE_S if kill_after_s is None else kill_after_s)
    ledger.serves = ""
    open_, done = True, False
    while open_ and (left := end - time.monotonic()) > 0:
        if select.select([ours], [], [], left)[0]:
            open_, done = _hear(ours, ledger, done)
    if open_:
        kill(pid)
    _, status = os.waitpid(pid, 0)
    while open_:
        open_, done = _hear(ours, ledger, done)
    ours.close()
    return Death(status, ledger.phase, done, time.monotonic() - begin, bool(ledger.serves))


def _hear(ours: socket.socket, ledger: Ledger, done: bool) -> tuple[bool, bool]:
    try:
        message = ours.recv(1 << 20)
    except ConnectionError:
        return False, done
    if not message:
        return False, done
    reply = ledger.take(message)
    if reply is not None:
        with contextlib.suppress(OSError):  # it died before it could hear it
            ours.send(reply)
    return True, done or message.startswith(b"\x92\xa4done")


def settle(root: Path, ledger: Ledger, *, last: int, seed: int, **settings: Any) -> list[str]:
    """Let a device come to rest and return what is wrong with it."""
    ledger.broken.clear()  # what a fault broke while it lasted is not at issue any more
    death = live(root, ledger, seed=seed, last=last, **settings)
    wrong = ledger.account()
    if not death.done:
        wrong.append(f"bricked: it did not come to rest (in {death.phase}, status {death.status})")
    elif not death.served:
        wrong.append("bricked: nothing serves")
    wrong += [f"no model to serve: {text}" for text in ledger.broken]
    return wrong
