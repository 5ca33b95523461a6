"""What this device is: read from the system, without loading anything heavy."""

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path
from typing import Final

import msgspec

from skerry.io.extensions import extensions_library, extensions_version
from skerry.profile import Inventory

__all__ = ["agent_version", "isa_flags", "os_boot_id", "take_inventory", "vital_signs"]

# vector extensions that decide how int8 is computed, by the kernel's names for them
FLAGS: Final = {
    "avx2": {"avx2"},
    "avx512": {"avx512f"},
    "vnni": {"avx512_vnni", "avx_vnni"},
    "amx": {"amx_int8"},
    "dotprod": {"asimddp"},
    "i8mm": {"i8mm"},
}
# what the wheels of each distribution offer; a smoke run shows whether it is so
PROVIDERS: Final = {
    "onnxruntime": ["CPUExecutionProvider"],
    "onnxruntime-gpu": ["CUDAExecutionProvider", "CPUExecutionProvider"],
    "onnxruntime-openvino": ["OpenVINOExecutionProvider", "CPUExecutionProvider"],
}
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def take_inventory(state: Path, cpuinfo: Path = Path("/proc/cpuinfo")) -> Inventory:
    """Return the facts of this device.

    Args:
        state: a directory on the disk whose free space counts; it need not exist yet.
        cpuinfo: the kernel's description of the processor.
    """
    runtime, version = _runtime()
    libc, libc_version = platform.libc_ver()
    return Inventory(
        agent=agent_version(),
        platform=f"{platform.system().lower()}-{platform.machine()}",
        libc=f"{libc}-{libc_version}" if libc else "",
        python=platform.python_version(),
        onnxruntime=version,
        providers=list(PROVIDERS.get(runtime, [])),
        isa=isa_flags(cpuinfo.read_text(errors="replace") if cpuinfo.is_file() else ""),
        cpus=len(os.sched_getaffinity(0)),
        memory_mb=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20,
        disk_free_mb=_disk_free_mb(state),
        extensions=extensions_version() if extensions_library() else "",
    )


def vital_signs(
    inventory: Inventory, state: Path, thermal: Path = Path("/sys/class/thermal")
) -> Inventory:
    """Return an inventory with what changes as it is now; what the machine does not tell stays out.

    Args:
        inventory: what stays.
        state: a directory on the disk whose free space counts.
        thermal: the kernel's sensors.
    """
    meminfo = Path("/proc/meminfo")
    available = _field(meminfo.read_text(), "MemAvailable") if meminfo.is_file() else ""
    heat = [degrees for file in thermal.glob("thermal_zone*/temp") if (degrees := _degrees(file))]
    return msgspec.structs.replace(
        inventory,
        disk_free_mb=_disk_free_mb(state),
        memory_free_mb=int(available.split()[0]) >> 10 if available else 0,
        temperature_c=max(heat, default=None),
        load_1min=round(os.getloadavg()[0], 2),
    )


def agent_version() -> str:
    """Return the version of this program."""
    try:
        return importlib.metadata.version("skerry")
    except importlib.metadata.PackageNotFoundError:
        return "0.0.0"  # run from a source tree that was never installed


def isa_flags(cpuinfo: str) -> list[str]:
    """Return the extensions that ``/proc/cpuinfo`` names, x86 (flags) or Arm (Features)."""
    words = set((_field(cpuinfo, "flags") or _field(cpuinfo, "Features")).split())
    return [name for name, aliases in FLAGS.items() if words & aliases]


def os_boot_id() -> str:
    """Return the id that the machine took at its start."""
    return BOOT_ID.read_text().strip() if BOOT_ID.is_file() else ""


def _runtime() -> tuple[str, str]:
    for name in PROVIDERS:
        try:
            return name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "", ""


def _degrees(file: Path) -> float | None:
    try:
        return round(int(file.read_text()) / 1000.0, 1)
    except (OSError, ValueError):  # a sensor that sleeps
        return None


def _disk_free_mb(state: Path) -> int:
    place = state.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free >> 20


def _field(cpuinfo: str, name: str) -> str:
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == name), "")
