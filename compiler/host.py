"""Facts of the machine that builds: they go beside a bundle, never into its timings-free bytes."""

import platform
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import onnx
import onnxruntime as ort

from skerry.profile import Inventory, hw_class

__all__ = ["Host", "Tools", "isa_flags", "this_host", "tools"]

# vector extensions that decide how int8 is computed, by the kernel's names for them
FLAGS: Final = {
    "avx2": {"avx2"},
    "avx512": {"avx512f"},
    "vnni": {"avx512_vnni", "avx_vnni"},
    "amx": {"amx_int8"},
    "dotprod": {"asimddp"},
    "i8mm": {"i8mm"},
}


class Tools(msgspec.Struct, frozen=True):
    """Versions of what computes a bundle's bytes."""

    numpy: str
    onnx: str
    onnxruntime: str


class Host(msgspec.Struct, frozen=True):
    """The machine that builds and measures."""

    platform: str  # linux-x86_64
    isa: list[str]
    hw_class: str
    cpu: str
    python: str


def this_host(cpuinfo: Path = Path("/proc/cpuinfo")) -> Host:
    """Return what this machine is."""
    text = cpuinfo.read_text(errors="replace") if cpuinfo.is_file() else ""
    name = f"{platform.system().lower()}-{platform.machine()}"
    isa = isa_flags(text)
    return Host(
        platform=name,
        isa=isa,
        hw_class=hw_class(Inventory(platform=name, isa=isa)),
        cpu=_field(text, "model name") or platform.machine(),
        python=platform.python_version(),
    )


def tools() -> Tools:
    """Return the versions of the libraries at work."""
    return Tools(numpy=np.__version__, onnx=onnx.__version__, onnxruntime=ort.__version__)


def isa_flags(cpuinfo: str) -> list[str]:
    """Return the extensions that ``/proc/cpuinfo`` names, x86 (flags) or Arm (Features)."""
    words = set((_field(cpuinfo, "flags") or _field(cpuinfo, "Features")).split())
    return [name for name, aliases in FLAGS.items() if words & aliases]


def _field(cpuinfo: str, name: str) -> str:
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == name), "")
