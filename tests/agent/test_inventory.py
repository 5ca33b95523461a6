"""What a device says of itself."""

from pathlib import Path

import pytest

from agent.inventory import isa_flags, take_inventory, vital_signs
from skerry.profile import hw_class


@pytest.mark.parametrize(
    ("cpuinfo", "isa"),
    [
        ("flags\t\t: fpu sse2 avx2 avx512f avx512_vnni\n", ["avx2", "avx512", "vnni"]),
        ("flags\t\t: fpu avx2 avx_vnni\n", ["avx2", "vnni"]),
        ("flags\t\t: avx2 amx_int8 avx512f\n", ["avx2", "avx512", "amx"]),
        ("Features\t: fp asimd asimddp i8mm\n", ["dotprod", "i8mm"]),
        ("", []),
    ],
)
def test_the_kernels_words_become_ours(cpuinfo: str, isa: list[str]) -> None:
    assert isa_flags(cpuinfo) == isa


def test_this_machine_has_an_inventory(tmp_path: Path) -> None:
    found = take_inventory(tmp_path / "not" / "made" / "yet")
    assert found.platform.startswith("linux-")
    assert found.providers == ["CPUExecutionProvider"]
    assert min(found.cpus, found.memory_mb, found.disk_free_mb) > 0
    assert hw_class(found).startswith(found.platform)


def test_what_changes_is_read_anew_and_sensors_that_sleep_are_left_out(tmp_path: Path) -> None:
    for zone, text in (("0", "41200\n"), ("1", "88500\n"), ("2", "asleep")):
        (tmp_path / f"thermal_zone{zone}").mkdir()
        (tmp_path / f"thermal_zone{zone}" / "temp").write_text(text)
    before = take_inventory(tmp_path)
    now = vital_signs(before, tmp_path, tmp_path)
    assert now.temperature_c == 88.5
    assert 0 < now.memory_free_mb <= now.memory_mb
    assert (now.isa, now.onnxruntime) == (before.isa, before.onnxruntime)
    assert vital_signs(before, tmp_path, tmp_path / "none").temperature_c is None
