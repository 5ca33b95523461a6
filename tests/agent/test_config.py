"""Settings: everything has a default, and what is not understood is refused."""

from pathlib import Path

import pytest

from agent.config import AgentConfig, Layout, load_config
from skerry.errors import NotFoundError, UsageError


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "agent.toml"
    file.write_text(text)
    return file


def test_without_a_file_everything_has_its_default() -> None:
    assert load_config(None) == AgentConfig()


def test_a_file_and_the_command_line_are_merged(tmp_path: Path) -> None:
    file = written(tmp_path, 'http_port = 9000\npoll_s = 1\nbroker_url = "mqtt://b:1"\n')
    config = load_config(file, http_port=9001, fleet_url=None)
    assert (config.http_port, config.poll_s, config.broker_url) == (9001, 1.0, "mqtt://b:1")
    assert config.fleet_url == ""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("http_prot = 1", "unknown setting 'http_prot'"),
        ('http_port = "8450"', "http_port to be int"),
        ("http_port = 70000", "0 to 65535"),
        ("poll_s = 0", "poll_s above 0"),
        ("batch_max_bytes = 1000000", "4096 to 96000"),
        ('log_level = "loud"', "log_level"),
        ("= 3", "expected TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        load_config(written(tmp_path, text))


def test_a_missing_file_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"agent\.toml"):
        load_config(tmp_path / "agent.toml")


def test_everything_lies_in_the_state_directory(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    places = [layout.identity, layout.database, layout.tuf, layout.slots, layout.spool,
              layout.status, layout.lock]  # fmt: skip
    assert {place.parent for place in places} == {tmp_path}
    assert len(set(places)) == len(places)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('consent = "maybe"', "consent auto or ask"),
        ('update_windows = "Mo 22:00-23:00"', "days such as"),
        ('time_zone = "Mars"', "time zone"),
        ('mirrors = ["ftp://m"]', "mirrors at http"),
        ('mirrors = "http://m"', "mirrors to be a list"),
        ("download_max_bytes_s = 1500", "twice download_min_bytes_s"),
        ("download_slow_s = 0", "download_slow_s above 0"),
    ],
)
def test_what_is_wrong_about_updates_is_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        load_config(written(tmp_path, text))


def test_mirrors_are_a_list_of_addresses(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, 'mirrors = ["http://a:5000", "https://b"]'))
    assert config.mirrors == ("http://a:5000", "https://b")
