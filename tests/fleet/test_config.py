"""The fleet's settings: read once, unknown keys refused, written for a new fleet."""

from pathlib import Path

import pytest

from fleet.config import FleetConfig, load_config, write_config
from skerry.errors import ConflictError, NotFoundError, UsageError


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    config = FleetConfig(
        data=tmp_path / "fleet", fleet_id="demo", port=0, tick_s=0.5, database_url='a"b\\c'
    )
    write_config(config)
    assert load_config(tmp_path / "fleet") == config


def test_the_command_line_comes_before_the_file(tmp_path: Path) -> None:
    write_config(FleetConfig(data=tmp_path, fleet_id="demo", port=9000))
    assert load_config(tmp_path, port=0, host=None).port == 0
    assert load_config(tmp_path).port == 9000


def test_a_second_fleet_in_one_directory_is_a_conflict(tmp_path: Path) -> None:
    config = FleetConfig(data=tmp_path, fleet_id="demo")
    write_config(config)
    with pytest.raises(ConflictError, match="another directory"):
        write_config(config)


def test_no_fleet_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="skerry fleet init"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('fleet_id = "demo"\nprot = 1', "unknown setting 'prot'; did you mean port"),
        ("port = 1", "expected fleet_id"),
        ('fleet_id = "demo"\nport = "http"', "port .* to be int"),
        ('fleet_id = "demo"\nport = 70000', "0 to 65535"),
        ('fleet_id = "demo"\nport = true', "port .* to be int"),
        ('fleet_id = "Demo"', "fleet id"),
        ('fleet_id = "demo"\nshards = 0', "1 to 256 shards"),
        ('fleet_id = "demo"\ntick_s = 0', "tick_s above 0"),
        ("fleet_id = ", "expected TOML"),
        ('fleet_id = "demo"\ndata = "elsewhere"', "unknown setting 'data'"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "fleet.toml").write_text(text)
    with pytest.raises(UsageError, match=message):
        load_config(tmp_path)


def test_whole_seconds_are_seconds(tmp_path: Path) -> None:
    (tmp_path / "fleet.toml").write_text('fleet_id = "demo"\ntick_s = 1')
    assert load_config(tmp_path).tick_s == 1.0
