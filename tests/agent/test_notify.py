"""systemd is told what sd_notify(3) says, and nobody where there is none."""

import os
import socket
from pathlib import Path

import pytest

from agent.notify import notify, watchdog_s


@pytest.mark.parametrize("abstract", [False, True])
def test_lines_arrive_as_one_datagram(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool
) -> None:
    name = f"@skerry-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name[1:] if abstract else name)
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        notify("READY=1", "STATUS=serves")
        assert manager.recv(100) == b"READY=1\nSTATUS=serves"


@pytest.mark.parametrize("address", ["", "relative", "/nowhere/at/all"])
def test_without_a_manager_nothing_happens(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify("READY=1")


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [("60000000", "", 30.0), ("60000000", "self", 30.0), ("60000000", "1", None), ("", "", None),
     ("0", "", None), ("x", "", None)],
)  # fmt: skip
def test_half_of_what_the_unit_allows(
    monkeypatch: pytest.MonkeyPatch, usec: str, pid: str, seconds: float | None
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "self" else pid)
    assert watchdog_s() == seconds
