"""What a device says of itself, and whether a variant can run there.

Devices report; the compiler assumes nothing. `hw_class` is derived from the
inventory: platform and the vector extensions that decide whether int8 results
agree (onnxruntime's U8S8 kernels saturate on x86 without VNNI).
"""

from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:  # the verifier of a device knows classes of hardware, and no manifests
    from skerry.manifest import Variant

__all__ = ["ANY_CLASS", "DeviceProfile", "Inventory", "hw_class", "incompatibility"]

ANY_CLASS: Final = "any"
# the highest opset of ai.onnx by release of onnxruntime, as it says itself when asked for more
MAX_OPSETS: Final = {(1, 32): 28}


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


def incompatibility(variant: "Variant", inventory: Inventory, agent: tuple[int, ...]) -> str | None:
    """Return why a variant cannot run on a device, or None if it can."""
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
    return None


def _max_opset(onnxruntime: str) -> int | None:
    """Return the highest opset of a release, None if that is not known here: a smoke run tells."""
    parts = onnxruntime.split(".")[:2]
    if len(parts) < 2 or not all(part.isascii() and part.isdecimal() for part in parts):
        return None
    release = (int(parts[0]), int(parts[1]))
    later = [version for version in sorted(MAX_OPSETS) if version >= release]
    return MAX_OPSETS[later[0]] if later else None
