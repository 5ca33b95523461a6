"""The log is bounded, readable after a crash, and holds no secrets."""

import logging
from pathlib import Path

import pytest

from agent.logs import JsonFile, log_beside, redacted, render, tail
from skerry.errors import UsageError


def logger(file: Path, max_bytes: int = 4096) -> logging.Logger:
    log = logging.Logger("agent.test")  # noqa: LOG001 - of this test alone
    log.addHandler(JsonFile(file, max_bytes))
    return log


def test_two_files_hold_at_most_the_bound_and_the_newest_lines(tmp_path: Path) -> None:
    file = tmp_path / "log" / "agent.jsonl"
    log = logger(file)
    for number in range(500):
        log.info("line %d", number)
    sizes = [path.stat().st_size for path in file.parent.iterdir()]
    assert len(sizes) == 2
    assert max(sizes) <= 4096
    assert [entry["text"] for entry in tail(file, 3)] == ["line 497", "line 498", "line 499"]
    assert file.stat().st_mode & 0o077 == 0


def test_a_torn_line_and_strange_ones_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "agent.jsonl"
    log = logger(file)
    log.warning("good")
    with file.open("ab") as stream:
        stream.write(b'[1]\n{"at": 1}\n\xff\n{"at": 1.0, "level": "info", "na')
    assert [entry["text"] for entry in tail(file, 10)] == ["good"]
    assert render(tail(file, 1)[0]).endswith(" warning agent.test: good")


def test_only_lines_of_a_level_are_shown(tmp_path: Path) -> None:
    file = tmp_path / "agent.jsonl"
    log = logger(file)
    log.info("quiet")
    log.error("loud")
    assert [entry["text"] for entry in tail(file, 10, "warning")] == ["loud"]
    for lines, level in ((0, "info"), (10_001, "info"), (5, "noise")):
        with pytest.raises(UsageError, match="expected"):
            tail(file, lines, level)
    assert tail(tmp_path / "none" / "agent.jsonl", 5) == []


def test_a_text_that_is_no_unicode_is_kept(tmp_path: Path) -> None:
    logger(tmp_path / "agent.jsonl").info("file %s", "a\udce9\nb")
    assert tail(tmp_path / "agent.jsonl", 1)[0]["text"] == "file a\\udce9\nb"


def test_lines_of_both_processes_come_in_their_order(tmp_path: Path) -> None:
    for number, name in enumerate(("agent", "serve", "agent")):
        logger(tmp_path / f"{name}.jsonl").info("line %d", number)
    found = tail(tmp_path / "agent.jsonl", 10)
    assert [entry["text"] for entry in found] == ["line 0", "line 1", "line 2"]


def test_serve_logs_only_into_a_state_directory_that_has_a_log(tmp_path: Path) -> None:
    root = logging.getLogger()
    before = list(root.handlers)
    try:
        log_beside(tmp_path)
        assert root.handlers == before
        (tmp_path / "logs").mkdir()
        log_beside(tmp_path)
        logging.getLogger("agent.serve").warning("a model is slow")
    finally:
        root.handlers[:] = before
    assert [e["text"] for e in tail(tmp_path / "logs" / "agent.jsonl", 5)] == ["a model is slow"]


def test_a_place_that_cannot_be_written_costs_lines_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    logger(tmp_path / "file" / "agent.jsonl").error("lost")


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer hunter2",
        "token=hunter2 and more",
        '{"password": "hunter2"}',
        "mqtts://user:hunter2@broker:8883 refused",
        "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----",
        "enrol with " + "hunter2" * 20,
    ],
)
def test_secrets_are_taken_out(text: str) -> None:
    assert "hunter2" not in redacted(text)


def test_what_is_no_secret_stays() -> None:
    text = "sha256:" + "ab" * 32 + " of models/acme/reader@1.2.0 at https://fleet:8443/v2 is there"
    assert redacted(text) == text
