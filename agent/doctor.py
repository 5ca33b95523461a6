"""Looks for what keeps a device from serving, updating or reporting, and says what to do.

Works beside a running agent and without one, and changes nothing.
"""

import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from agent.config import AgentConfig, Layout
from agent.identity import load_identity
from agent.inventory import take_inventory
from agent.mqtt import parse_broker_url
from agent.names import nobodys
from agent.room import used_bytes
from agent.slots import Slots
from agent.status import collect
from skerry.errors import NotFoundError, SkerryError
from skerry.profile import hw_class

__all__ = ["Finding", "examine", "tell"]

REACH_S: Final = 3.0
CLOCK_S: Final = 60
SOON_S: Final = 7 * 86400.0
FULL: Final = 0.8  # of the outbox's quota
LITTLE_MEMORY_MB: Final = 128
HOT_C: Final = 85.0
MIB: Final = 1 << 20
THERMAL: Final = Path("/sys/class/thermal")
Parts = Iterator["Finding"]


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that was looked at."""

    what: str
    state: str  # ok, warning, bad
    words: str
    remedy: str = ""


def examine(layout: Layout, config: AgentConfig) -> list[Finding]:
    """Look at everything; what cannot be looked at is a finding too."""
    parts: tuple[Callable[[Layout, AgentConfig], Parts], ...] = (
        _identity, _rights, _agent, _reach, _clock, _disk, _outbox, _leaving, _machine,
    )  # fmt: skip
    found: list[Finding] = []
    try:
        load_identity(layout.identity)
    except NotFoundError as error:
        found.append(Finding("identity", "bad", str(error)))
        parts = (_rights, _disk, _machine)
    for part in parts:
        try:
            found += part(layout, config)
        except SkerryError as error:
            found.append(Finding(part.__name__.strip("_"), "bad", str(error)))
        except OSError as error:
            words = f"cannot be looked at: {error}"
            found.append(
                Finding(part.__name__.strip("_"), "bad", words, "run this as the agent's user")
            )
    return found


def tell(findings: list[Finding]) -> str:
    """Return findings as lines for people."""
    signs = {"ok": "ok  ", "warning": "warn", "bad": "BAD "}
    lines = []
    for finding in findings:
        lines.append(f"{signs[finding.state]}  {finding.what:<12} {finding.words}")
        if finding.remedy:
            lines.append(f"{'':19}-> {finding.remedy}")
    return "\n".join(lines)


def _identity(layout: Layout, _: AgentConfig) -> Parts:
    record = load_identity(layout.identity).record
    yield Finding("identity", "ok", f"{record.device_id} of fleet {record.fleet_id}")
    ends = collect(layout)["certificate_expires"]
    left = None if ends is None else ends - time.time()
    again = "skerry-agent enroll --again, with a new token of an operator"
    if left is None or left <= 0:
        words = "cannot be read" if left is None else "has expired; broker and fleet refuse it"
        yield Finding("certificate", "bad", words, again)
    elif left < SOON_S:
        words = f"expires in {left / 86400:.1f} days, and was not renewed yet"
        yield Finding("certificate", "warning", words, "see that the agent reaches its fleet")
    else:
        yield Finding("certificate", "ok", f"good for {left / 86400:.0f} days")


def _rights(layout: Layout, _: AgentConfig) -> Parts:
    about = layout.root.stat()
    if about.st_mode & 0o077:
        words = f"{layout.root} may be read by others (mode {about.st_mode & 0o777:o})"
        yield Finding("rights", "bad", words, f"chmod 700 {layout.root}")
    elif about.st_uid != os.geteuid():
        words = f"{layout.root} is another user's (uid {about.st_uid})"
        yield Finding("rights", "warning", words, "run this as that user")
    else:
        yield Finding("rights", "ok", f"{layout.root} is this user's alone")


def _agent(layout: Layout, _: AgentConfig) -> Parts:
    found: dict[str, Any] = collect(layout)
    if not found["running"]:
        yield Finding("agent", "bad", "is not running", "skerry-agent run, or its service")
        return
    yield Finding("agent", "ok", f"running, pid {found['control_pid']}")
    if not found["connected"]:
        yield Finding(
            "broker", "bad", "not connected", "see `reach` below, and `skerry-agent logs`"
        )
    if found["slots"] and found["serve_pid"] is None:
        yield Finding("serving", "bad", "no process serves", "see `skerry-agent logs`")
    if found["serve_restarts"]:
        words = f"the serving process ended by itself {found['serve_restarts']} times"
        yield Finding("serving", "warning", words, "see `skerry-agent logs` for the reason")
    if found["stale"]:
        words = (
            f"no fresh metadata of {' and '.join(found['stale'])} ({found['trust_code'] or 'none'})"
        )
        yield Finding("trust", "warning", words, "see that the agent reaches its fleet")


def _reach(layout: Layout, config: AgentConfig) -> Parts:
    record = load_identity(layout.identity).record
    fleet = urlsplit(config.fleet_url or record.fleet_url)
    broker = parse_broker_url(config.broker_url or record.broker_url)
    places = {
        "fleet": (fleet.hostname or "", fleet.port or (443 if fleet.scheme == "https" else 80)),
        "broker": (broker.host, broker.port),
    }
    for name, (host, port) in places.items():
        try:
            socket.create_connection((host, port), REACH_S).close()
        except OSError as error:
            words = f"{name} at {host}:{port} does not answer: {error}"
            yield Finding("reach", "bad", words, "check the network, its name service and firewall")
        else:
            yield Finding("reach", "ok", f"{name} at {host}:{port} answers")


def _clock(layout: Layout, _: AgentConfig) -> Parts:
    off = collect(layout)["clock_off_s"]
    if abs(off) > CLOCK_S:
        side = "ahead of" if off > 0 else "behind"
        words = f"{abs(off)} s {side} the fleet's"
        yield Finding("clock", "warning", words, "set it, and keep it by NTP")
    else:
        yield Finding("clock", "ok", f"{time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime())}")


def _disk(layout: Layout, config: AgentConfig) -> Parts:
    free = shutil.disk_usage(layout.root).free
    words = f"{free // MIB:,} MiB free at {layout.root}"
    if free < config.disk_reserve_bytes:
        need = config.disk_reserve_bytes // MIB
        words += f", less than the {need:,} MiB that downloads leave"
        yield Finding("disk", "bad", words, "make room; no release can be fetched until then")
    else:
        yield Finding("disk", "ok", words)


def _outbox(layout: Layout, config: AgentConfig) -> Parts:
    used, quota = used_bytes(layout.spool), config.spool_max_bytes
    records = collect(layout)["outbox_records"]
    words = f"{records:,} records wait, {used / MIB:.1f} of {quota / MIB:.0f} MiB"
    if used > FULL * quota:
        remedy = "see that the agent reaches its fleet; what does not fit is counted, not kept"
        yield Finding("outbox", "warning", words, remedy)
    else:
        yield Finding("outbox", "ok", words)


def _leaving(layout: Layout, config: AgentConfig) -> Parts:
    names = (*config.withheld, *config.hashed)
    running = {name: slot["bundle"] for name, slot in collect(layout)["slots"].items()}
    if not names or not any(running.values()):
        return
    kept = Slots(layout.slots)
    own = {}
    for slot, bundle in running.items():
        if bundle:
            manifest = kept.manifest(bundle)
            features = [feature.name for feature in manifest.features]
            own[slot] = features + [tensor.name for tensor in manifest.inputs]
    if strange := nobodys(names, own):
        known = sorted({name for has in own.values() for name in has})
        words = f"no model in service has {', '.join(strange)}, which the settings keep back"
        remedy = f"correct withheld and hashed if it was meant to be one of {', '.join(known)}"
        yield Finding("leaving", "warning", words[:500], remedy[:500])
    else:
        yield Finding("leaving", "ok", f"{len(names)} names are kept back, and all of them exist")


def _machine(layout: Layout, _: AgentConfig) -> Parts:
    inventory = take_inventory(layout.root)
    words = f"{hw_class(inventory)}, {inventory.cpus} CPUs, {inventory.memory_mb:,} MiB"
    yield Finding("hardware", "ok", words)
    if inventory.onnxruntime:
        providers = ", ".join(inventory.providers)
        more = f", extensions {inventory.extensions}" if inventory.extensions else ""
        yield Finding("onnxruntime", "ok", f"{inventory.onnxruntime} ({providers}){more}")
    else:
        yield Finding("onnxruntime", "bad", "is not installed", "pip install onnxruntime")
    left = _available_mb()
    if left is not None and left < LITTLE_MEMORY_MB:
        words = f"{left:,} MiB left: another serving process starts at every update"
        yield Finding("memory", "warning", words, "end what is not needed, or take smaller models")
    hot = max(_temperatures(), default=None)
    if hot is not None:
        state = "warning" if hot > HOT_C else "ok"
        remedy = "cool it: a hot processor runs slower" if hot > HOT_C else ""
        yield Finding("temperature", state, f"{hot:.0f} degrees Celsius at most", remedy)


def _available_mb() -> int | None:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) >> 10
    return None


def _temperatures() -> Iterator[float]:
    for file in THERMAL.glob("thermal_zone*/temp"):
        try:
            yield int(file.read_text()) / 1000
        except (OSError, ValueError):
            continue
