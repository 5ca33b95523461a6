"""What a device says of itself, and whether a variant can run there.

Devices report; the compiler assumes nothing. `hw_class` is derived from the
inventory: platform and the vector extensions that decide whether int8 results
agree (onnxruntime's U8S8 kernels saturate on x86 without VNNI).
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:  # the verifier of a device knows classes of hardware, and no manifests
    from skerry.manifest import Variant

__all__ = [
    "ANY_CLASS",
    "EXTENSIONS_PACKAGE",
    "DeviceProfile",
    "Inventory",
    "hw_class",
    "incompatibility",
    "parse_requirement",
]

ANY_CLASS: Final = "any"
# the highest opset of ai.onnx by release of onnxruntime, as it says itself when asked for more
MAX_OPSETS: Final = {(1, 32): 28}
EXTENSIONS_PACKAGE: Final = "onnxruntime-extensions"
_REQUIREMENT: Final = re.compile(r"([a-z0-9][a-z0-9.-]{0,62})>=([0-9]{1,4}(?:\.[0-9]{1,4}){0,3})")


class Inventory(msgspec.Struct, frozen=True, omit_defaults=True):
    """Facts that a device reports of itself."""

    agent: str = ""
    platform: str = ""  # linux-x86_64, linux-aarch64
    libc: str = ""
    python: str = ""
    onnxruntime: str = ""
    providers: list[str] = []
    isa: list[str] = []  # of avx2, avx512, vnni, amx, dotprod, i8mm
    cpus: int = 0
    memory_mb: int = 0
    disk_free_mb: int = 0
    extensions: str = ""  # version of onnxruntime-extensions
    memory_free_mb: int = 0  # when it was reported, as the next two
    temperature_c: float | None = None  # of the hottest sensor; None where there is none
    load_1min: float = 0.0  # processes that run or want to


class DeviceProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A description of hardware to compile for (``devices/profiles/*.toml``)."""

    id: str
    platform: str
    providers: list[str]
    isa: list[str]
    memory_mb: int
    description: str = ""
    onnxruntime: str = ""
    threads: int = 1


def hw_class(inventory: Inventory) -> str:
    """Return the class of hardware, such as ``linux-x86_64-vnni`` or ``linux-aarch64``."""
    for flag in ("amx", "vnni", "i8mm", "dotprod", "avx512", "avx2"):
        if flag in inventory.isa:
            return f"{inventory.platform}-{flag}"
    return inventory.platform


def incompatibility(
    variant: "Variant", inventory: Inventory, agent: tuple[int, ...], requires: Sequence[str] = ()
) -> str | None:
    """Return why a variant cannot run on a device, or None if it can.

    Args:
        variant: of a manifest.
        inventory: of the device.
        agent: its version.
        requires: of the manifest.
    """
    mine = hw_class(inventory)
    if not any(c == ANY_CLASS or mine.startswith(c) for c in variant.hw_classes):
        return f"made for {', '.join(variant.hw_classes)}; this device is {mine}"
    if variant.provider not in inventory.providers:
        have = ", ".join(inventory.providers)
        return f"needs {variant.provider}; this device has {have or 'none'}"
    most = _max_opset(inventory.onnxruntime)
    if most is not None and variant.opset > most:
        return f"needs opset {variant.opset}; onnxruntime {inventory.onnxruntime} has {most}"
    if agent < tuple(int(part) for part in variant.min_agent.split(".")):
        return f"needs agent {variant.min_agent} or newer"
    return next(filter(None, (_lack(need, inventory) for need in requires)), None)


def parse_requirement(text: str) -> tuple[str, tuple[int, ...]] | None:
    """Return package and least version of ``package>=1.2``, None for any other text."""
    found = _REQUIREMENT.fullmatch(text)
    return (found[1], tuple(map(int, found[2].split(".")))) if found else None


def _lack(need: str, inventory: Inventory) -> str | None:
    """Return what a device lacks of a requirement."""
    wanted = parse_requirement(need)
    if wanted is None or wanted[0] != EXTENSIONS_PACKAGE:
        return f"needs {need}, which agent {inventory.agent} does not know"
    if not inventory.extensions:
        return f"needs {need}; this device has none: pip install 'skerry[extensions]'"
    have = tuple(int(part) for part in re.findall(r"\d+", inventory.extensions)[: len(wanted[1])])
    return None if have >= wanted[1] else f"needs {need}; this device has {inventory.extensions}"


def _max_opset(onnxruntime: str) -> int | None:
    """Return the highest opset of a release, None if that is not known here: a smoke run tells."""
    parts = onnxruntime.split(".")[:2]
    if len(parts) < 2 or not all(part.isascii() and part.isdecimal() for part in parts):
        return None
    release = (int(parts[0]), int(parts[1]))
    later = [version for version in sorted(MAX_OPSETS) if version >= release]
    return MAX_OPSETS[later[0]] if later else None
