"""MQTT topic names, built and parsed in one place.

    skerry/v1/{fleet}/dn/{device}/desired|cmd|ack     fleet to device
    skerry/v1/{fleet}/dn/all/policy                   fleet to every device
    skerry/v1/{fleet}/up/{shard}/{device}/{kind}      device to fleet
    skerry/v1/{fleet}/presence/{device}               device, and its last will
    skerry/v1/{fleet}/pub/{device}/{stream}           fleet to third parties, after commit

At most seven levels, ids as in `skerry.ids`, so that every broker takes them.
"""

import re
import zlib
from dataclasses import dataclass
from typing import Final

from skerry.errors import FormatError
from skerry.ids import ID_PATTERN, check_id

__all__ = [
    "DOWN_KINDS",
    "UP_KINDS",
    "UpTopic",
    "down",
    "down_filter",
    "parse_up",
    "policy",
    "presence",
    "public",
    "shard_of",
    "up",
    "up_filter",
]

DOWN_KINDS: Final = ("desired", "cmd", "ack")
UP_KINDS: Final = ("hello", "reported", "telemetry", "result", "health")
_UP: Final = re.compile(
    rf"skerry/v1/({ID_PATTERN})/up/([0-9a-f]{{2}})/({ID_PATTERN})/({'|'.join(UP_KINDS)})"
)


@dataclass(frozen=True, slots=True)
class UpTopic:
    """What an upward topic says of its message."""

    fleet: str
    shard: str
    device: str
    kind: str


def shard_of(device: str, shards: int) -> str:
    """Return the shard slot of a device, two hex digits below `shards` (at most 256)."""
    return f"{zlib.crc32(device.encode()) % shards:02x}"


def down(fleet: str, device: str, kind: str) -> str:
    """Return the topic on which the fleet speaks to one device."""
    return f"skerry/v1/{check_id(fleet, 'fleet')}/dn/{check_id(device, 'device id')}/{kind}"


def down_filter(fleet: str, device: str) -> str:
    """Return the one subscription of a device for what is addressed to it."""
    return f"skerry/v1/{check_id(fleet, 'fleet')}/dn/{check_id(device, 'device id')}/#"


def policy(fleet: str) -> str:
    """Return the topic of what holds for every device."""
    return f"skerry/v1/{check_id(fleet, 'fleet')}/dn/all/policy"


def up(fleet: str, shards: int, device: str, kind: str) -> str:
    """Return the topic on which a device speaks to its fleet."""
    return f"skerry/v1/{fleet}/up/{shard_of(device, shards)}/{check_id(device, 'device id')}/{kind}"


def up_filter(fleet: str, shard: str) -> str:
    """Return the subscription of the ingest worker that holds a shard slot."""
    return f"skerry/v1/{fleet}/up/{shard}/#"


def presence(fleet: str, device: str) -> str:
    """Return the topic of a device's presence and last will."""
    return f"skerry/v1/{fleet}/presence/{check_id(device, 'device id')}"


def public(fleet: str, device: str, stream: str) -> str:
    """Return the topic on which third parties read what the fleet has committed."""
    return f"skerry/v1/{fleet}/pub/{check_id(device, 'device id')}/{stream}"


def parse_up(topic: str, shards: int) -> UpTopic:
    """Return the parts of an upward topic.

    Raises:
        FormatError: not such a topic, or a device outside of its own shard.
    """
    match = _UP.fullmatch(topic)
    if match is None:
        raise FormatError(f"expected an upward topic of Skerry, got {topic[:120]!r}")
    parsed = UpTopic(*match.groups())
    if parsed.shard != shard_of(parsed.device, shards):
        raise FormatError(
            f"expected {parsed.device} on shard {shard_of(parsed.device, shards)}, "
            f"got {parsed.shard}"
        )
    return parsed
