"""What the fleet may ask of a device by a command: a short list, each within bounds.

Commands come signed by the fleet's message key, expire, and run at most once (`agent.control`).

    ping       answers pong
    report     says `reported` again
    config     shows, or sets, a few settings; the device's own file says whether that is allowed
    logs       the newest lines of the log, redacted, within 12 kB
    inventory  what the machine is and has left now
    rollback   takes a slot back to what it ran before

A setting from the fleet outlives restarts and goes before the file's. It never touches addresses,
keys, limits that protect the device, consent or maintenance windows: those are the device's own.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from agent.config import AgentConfig, Layout
from agent.device_state import State
from agent.facts import TakenBack
from agent.inventory import take_inventory, vital_signs
from agent.logs import LEVELS, render, tail
from agent.state import Database
from agent.taking_back import wish_for
from skerry.errors import RefusedError, SkerryError, UsageError
from skerry.wire import Cmd, Result

__all__ = ["ALLOWED", "Orders", "with_remote"]

MAX_OUTPUT: Final = 12_000  # characters; a message has at most 128 kB
MAX_LINES: Final = 200
SETTING: Final = "remote_config"
_FLEET: Final = "the fleet"


@dataclass(frozen=True, slots=True)
class _Bounds:
    least: float
    most: float


# what the fleet may set, and between what
ALLOWED: Final[Mapping[str, _Bounds | tuple[str, ...]]] = {
    "log_level": LEVELS,
    "health_s": _Bounds(5.0, 3600.0),
    "news_s": _Bounds(60.0, 86_400.0),
    "poll_s": _Bounds(0.05, 60.0),
    "download_max_bytes_s": _Bounds(0, 1 << 30),
    "batch_max_bytes": _Bounds(4_096, 96_000),
}
AT_ONCE: Final = frozenset({"log_level", "health_s"})  # the others hold from the next start on


def with_remote(config: AgentConfig, database: Database) -> AgentConfig:
    """Return the settings with what the fleet has set, where the device allows that."""
    kept = database.get(SETTING, dict[str, str]) if config.remote_config else None
    for name, text in (kept or {}).items():
        try:
            config = replace(config, **{name: _value(name, text)})
        except SkerryError as error:  # of an agent with other bounds
            logging.getLogger(__name__).warning("the fleet's setting is left out: %s", error)
    return config


class Orders:
    """Carries commands out.

    Args:
        layout: of the state directory.
        database: of the state directory.
        state: returns the update machine's state.
        report: says `reported` again.
        take_back: takes a wish to the update machine.
        config: the settings that hold.
        apply: takes settings that hold from now on.
    """

    def __init__(
        self,
        layout: Layout,
        database: Database,
        *,
        state: Callable[[], State],
        report: Callable[[], None],
        take_back: Callable[[TakenBack], None],
        config: AgentConfig,
        apply: Callable[[AgentConfig], None],
    ) -> None:
        self._layout, self._database, self._state = layout, database, state
        self._report, self._take_back = report, take_back
        self._config, self._apply = config, apply

    def run(self, command: Cmd) -> Result:
        """Carry one out; what it did not like is its result."""
        try:
            output = self._output(command.verb, command.args)
        except (SkerryError, OSError) as error:
            return Result(command.id, ok=False, output=str(error)[:MAX_OUTPUT])
        return Result(command.id, ok=True, output=output)

    def _output(self, verb: str, args: Mapping[str, str]) -> str:
        match verb:
            case "ping":
                return "pong"
            case "report":
                self._report()
                return ""
            case "config":
                return self._set(args) if args else self._show()
            case "logs":
                return self._logs(args)
            case "inventory":
                root = self._layout.root
                return to_text(msgspec.to_builtins(vital_signs(take_inventory(root), root)))
            case "rollback":
                _known(args, {"slot"})
                wish, line = wish_for(self._state(), args.get("slot", ""), _FLEET)
                self._take_back(wish)
                return line
        raise UsageError(f"unknown verb {verb[:40]!r}")

    def _show(self) -> str:
        return to_text({name: getattr(self._config, name) for name in ALLOWED})

    def _set(self, args: Mapping[str, str]) -> str:
        if not self._config.remote_config:
            raise RefusedError("this device's own settings forbid it (remote_config = false)")
        values = {name: _value(name, text) for name, text in args.items()}  # all or none
        kept = self._database.get(SETTING, dict[str, str]) or {}
        self._database.put(SETTING, {**kept, **args})
        self._config = replace(self._config, **{n: values[n] for n in values if n in AT_ONCE})
        logging.getLogger().setLevel(self._config.log_level.upper())
        self._apply(self._config)
        return to_text({name: "now" if name in AT_ONCE else "at the next start" for name in values})

    def _logs(self, args: Mapping[str, str]) -> str:
        if not self._config.remote_logs:
            raise RefusedError("this device's own settings forbid it (remote_logs = false)")
        _known(args, {"lines", "level"})
        lines = args.get("lines", "50")
        if not lines.isdecimal() or not 1 <= int(lines) <= MAX_LINES:
            raise UsageError(f"expected 1 to {MAX_LINES} lines, got {lines[:20]!r}")
        found = tail(self._layout.logs, int(lines), args.get("level", "info"))
        text = "\n".join(render(entry) for entry in found)
        # the newest are what is wanted
        return text if len(text) <= MAX_OUTPUT else "[...]" + text[5 - MAX_OUTPUT :]


def to_text(values: Mapping[str, Any]) -> str:
    """Return plain values as one line of JSON."""
    return json.dumps(values, sort_keys=True)[:MAX_OUTPUT]


def _known(args: Mapping[str, str], names: set[str]) -> None:
    strange = sorted(set(args) - names)
    if strange:
        raise UsageError(f"expected arguments {', '.join(sorted(names))}, got {strange[0][:40]!r}")


def _value(name: str, text: str) -> Any:
    bounds = ALLOWED.get(name)
    if bounds is None:
        raise RefusedError(
            f"expected one of {', '.join(ALLOWED)}, got {name[:40]!r}; "
            "everything else is set at the device alone"
        )
    if isinstance(bounds, tuple):
        if text not in bounds:
            raise UsageError(f"expected {name} of {', '.join(bounds)}, got {text[:40]!r}")
        return text
    kind = type(getattr(AgentConfig(), name))
    try:
        value = kind(text)
    except ValueError:
        value = float("nan")
    if not bounds.least <= value <= bounds.most:
        raise UsageError(
            f"expected {name} of {bounds.least:g} to {bounds.most:g}, got {text[:40]!r}"
        )
    return value
