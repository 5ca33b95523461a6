"""Selectors: which devices a rollout is for, and in which order they take their turn.

    all                           every device
    site=north                    one value of one key
    site=north|south              any of several values
    site=north,hw_class=linux-*   every condition holds; ``*`` ends a value that is a prefix
    site=north,id!=dev-7          and not

Keys are the operators' tags, and `id`, `hw_class`, `platform`, `agent` of the device
itself; a device without the key matches only ``!=``. The order is by a hash of seed and
device id: the same for the same seed, another for another, and never the alphabet's,
so that the first canaries are not always the same machines.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from skerry.errors import UsageError

__all__ = ["Candidate", "Condition", "matches", "ordered", "parse", "select"]

MAX_SELECTOR: Final = 4096  # characters
OWN_KEYS: Final = frozenset({"id", "hw_class", "platform", "agent"})
_KEY: Final = re.compile(r"[a-z][a-z0-9_]{0,31}")
_VALUE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\*?|\*")


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a selector can see of a device."""

    device: str
    tags: Mapping[str, str]
    hw_class: str = ""
    platform: str = ""
    agent: str = ""

    def get(self, key: str) -> str | None:
        """Return the value of a key, None where the device has none."""
        own = {"id": self.device, "hw_class": self.hw_class, "platform": self.platform,
               "agent": self.agent}  # fmt: skip
        return own[key] or None if key in own else self.tags.get(key)


@dataclass(frozen=True, slots=True)
class Condition:
    """One ``key=a|b`` or ``key!=a|b`` of a selector."""

    key: str
    values: tuple[str, ...]
    negated: bool = False

    def holds(self, candidate: Candidate) -> bool:
        """Tell whether the device fulfils it."""
        value = candidate.get(self.key)
        found = value is not None and any(
            value.startswith(wanted[:-1]) if wanted.endswith("*") else value == wanted
            for wanted in self.values
        )
        return found != self.negated


def parse(selector: str) -> tuple[Condition, ...]:
    """Return the conditions of a selector; none for ``all``.

    Raises:
        UsageError: not a selector; the message names the part.
    """
    if len(selector) > MAX_SELECTOR:
        raise UsageError(f"expected a selector of at most {MAX_SELECTOR} characters")
    if selector.strip() == "all":
        return ()
    return tuple(_condition(part.strip()) for part in selector.split(","))


def matches(conditions: Iterable[Condition], candidate: Candidate) -> bool:
    """Tell whether a device fulfils every condition."""
    return all(condition.holds(candidate) for condition in conditions)


def ordered(devices: Iterable[str], seed: str) -> list[str]:
    """Return the devices in the order in which they take their turn."""
    return sorted(set(devices), key=lambda d: (hashlib.sha256(f"{seed}\0{d}".encode()).digest(), d))


def select(selector: str, candidates: Iterable[Candidate], seed: str) -> list[str]:
    """Return the ids of the devices that match, in their order.

    Raises:
        UsageError: not a selector.
    """
    conditions = parse(selector)
    return ordered((c.device for c in candidates if matches(conditions, c)), seed)


def _condition(text: str) -> Condition:
    key, equals, values = text.partition("=")
    negated = key.endswith("!")
    key = key.removesuffix("!").strip()
    wanted = tuple(value.strip() for value in values.split("|"))
    if not equals or _KEY.fullmatch(key) is None or not all(map(_VALUE.fullmatch, wanted)):
        raise UsageError(
            f"expected a selector such as all, site=north|south or site=north,id!=dev-7; "
            f"got {text[:80]!r}"
        )
    return Condition(key, wanted, negated)
