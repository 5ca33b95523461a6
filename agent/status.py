"""What an agent says of itself to somebody at the machine, without being asked over a socket.

A look from outside reads the small file that control writes, the database and the spool, so
that it works beside a running agent, a hung one and a dead one.
"""

import contextlib
import fcntl
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agent.certificates import validity_of
from agent.config import Layout
from agent.device_state import State, doing
from agent.identity import Identity, load_identity
from agent.renewal import expired_advice
from agent.segments import boots, iter_records, segments
from agent.state import read_state
from agent.status_file import read_status
from skerry.errors import FormatError, NotFoundError

__all__ = ["collect", "describe", "take_lock"]


def take_lock(file: Path) -> int | None:
    """Take the lock of a state directory; None while another control process holds it."""
    fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def collect(layout: Layout) -> dict[str, Any]:
    """Return everything there is to say, as plain values.

    Raises:
        NotFoundError: no agent was enrolled here.
    """
    identity = load_identity(layout.identity)
    record = identity.record
    status = read_status(layout.status)
    state = read_state(layout.database)
    running = _runs(layout.lock)
    alive = status is not None and running
    return {
        "device_id": record.device_id,
        "fleet_id": record.fleet_id,
        "certificate_expires": _expires(identity),
        "running": running,
        "connected": alive and status is not None and status.connected,
        "control_pid": status.control_pid if alive and status else None,
        "serve_pid": status.serve_pid if alive and status else None,
        "http": status.http if status else None,
        "desired_version": state.desired_version if state else 0,
        "reported_version": state.reported_version if state else 0,
        "outbox_records": _waiting(layout.spool, status.acked if status else {}),
        "serve_restarts": status.serve_restarts if status else 0,
        "refused": status.refused if status else 0,
        "stale": status.stale if alive and status else _stale(state),
        "trust_code": status.trust_code if status else "",
        "clock_off_s": status.clock_off_s if alive and status else 0,
        "patched": status.patched if status else 0,
        "patch_failed": status.patch_failed if status else 0,
        "patch_saved_bytes": status.patch_saved_bytes if status else 0,
        "slots": {
            name: {
                "model": slot.current.ref.model if slot.current else None,
                "model_version": slot.current.ref.model_version if slot.current else None,
                "bundle": slot.current.ref.bundle if slot.current else None,
                "variant": slot.current.ref.variant if slot.current else None,
                "doing": doing(slot).value,
                "assignment": slot.work.want.assignment_id if slot.work else None,
                "target": slot.work.want.target if slot.work else None,
                "why": slot.work.note_message if slot.work else "",
            }
            for name, slot in sorted(state.slots.items() if state else ())
        },
    }


def describe(found: dict[str, Any]) -> str:
    """Return the status as lines for people."""
    life = f"running, pid {found['control_pid']}" if found["running"] else "not running"
    link = "connected" if found["connected"] else "not connected"
    lines = [
        f"{found['device_id']} of fleet {found['fleet_id']}: {life}, {link}",
        f"  serves at  {found['http'] or '-'} (pid {found['serve_pid'] or '-'})",
        f"  desired    version {found['desired_version']}",
        f"  outbox     {found['outbox_records']} records not yet acknowledged",
        _certificate(found["device_id"], found["certificate_expires"], time.time()),
    ]
    if found["stale"]:
        why = f" ({found['trust_code']})" if found["trust_code"] else ""
        lines.append(
            f"  trust      stale: no fresh metadata of {' and '.join(found['stale'])}{why}; "
            "updates wait, what serves goes on"
        )
    if found["clock_off_s"]:
        side = "ahead of" if found["clock_off_s"] > 0 else "behind"
        lines.append(f"  clock      {abs(found['clock_off_s'])} s {side} the fleet's; set it right")
    if found["patched"] or found["patch_failed"]:
        lines.append(
            f"  patches    {found['patched']} files made by one, "
            f"{found['patch_saved_bytes']:,} bytes saved; {found['patch_failed']} failed"
        )
    for name, slot in found["slots"].items():
        what = f"{slot['model']} {slot['model_version']}" if slot["model"] else "empty"
        variant = f", variant {slot['variant']}" if slot["variant"] else ""
        busy = f", {slot['doing']} {slot['target']}" if slot["assignment"] else ""
        busy += f": {slot['why']}" if slot["why"] else ""
        lines.append(f"  slot {name}: {what}{variant}{busy}")
    return "\n".join(lines)


def _expires(identity: Identity) -> float | None:
    try:
        return validity_of(identity.device_file).ends
    except FormatError:
        return None


def _certificate(device_id: str, expires: float | None, now: float) -> str:
    if expires is None:
        return "  certificate  cannot be read; enrol again"
    if expires <= now:
        return f"  certificate  {expired_advice(device_id, expires)}"
    return f"  certificate  until {datetime.fromtimestamp(expires, UTC):%Y-%m-%d %H:%M UTC}"


def _stale(state: State | None) -> list[str]:
    if state is None:
        return []
    now = max(time.time(), state.floor.time)
    return sorted(name for name, until in state.until.items() if until <= now)


def _runs(lock: Path) -> bool:
    if not lock.exists():
        return False
    fd = take_lock(lock)
    if fd is None:
        return True
    os.close(fd)
    return False


def _waiting(spool: Path, acked: dict[str, int]) -> int:
    """Count the records on disk that lie above the acknowledged numbers."""
    count = 0
    for boot in boots(spool):
        stored = acked.get(boot, 0)
        for path in segments(spool / boot):
            with contextlib.suppress(NotFoundError, FormatError, OSError):
                count += sum(1 for seq, _ in iter_records(path, stored + 1) if seq > stored)
    return count
