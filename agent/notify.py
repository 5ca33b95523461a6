"""What systemd is told: that the agent is ready, alive, and stopping (sd_notify(3)).

Without systemd, every call does nothing.
"""

import contextlib
import os
import socket
from typing import Final

__all__ = ["notify", "watchdog_s"]

USEC: Final = 1_000_000


def notify(*lines: str) -> None:
    """Send assignments such as ``READY=1`` to the service manager; it may have gone meanwhile."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    name = "\0" + address[1:] if address[0] == "@" else address  # @: the abstract namespace
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
    ):
        sock.connect(name)
        sock.sendall("\n".join(lines).encode())


def watchdog_s() -> float | None:
    """Return how often to send ``WATCHDOG=1``, half of what the unit allows; None where none is."""
    usec = os.environ.get("WATCHDOG_USEC", "")
    pid = os.environ.get("WATCHDOG_PID", "")
    if not usec.isdigit() or int(usec) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / USEC / 2
