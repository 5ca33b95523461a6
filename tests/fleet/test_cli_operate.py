"""Every command of an operator against a real server: what comes out where, and the exit code."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from fleet import cli_operate, schema
from fleet.client import FleetClient
from skerry.errors import FormatError, NotFoundError, UnreachableError, UsageError
from skerry.states import DeviceState
from tests.fakes.backend import HOSTILE, TOKEN, FakeBackend, listening, seed, with_commands
from tests.fakes.releases import readable_bundle
from tests.fakes.trusted import TrustedFleet, make_fleet

ROLLOUT = "reader-1-1-0-abc"
PLAN = """
model = "reader"
model_version = "1.2.0"
publisher = "acme"
slot = "reader"
start_at = 2000-01-01T00:00:00Z
[[stages]]
name = "canary"
count = 1
[[stages]]
name = "rest"
"""


class Operator:
    """Somebody at a terminal, with a token and a fleet's address."""

    def __init__(self, url: str) -> None:
        self.url = url

    def run(self, *words: str | Path, **environment: str) -> Result:
        command: click.Command = getattr(cli_operate, str(words[0]))
        env = {"SKERRY_FLEET": self.url, "SKERRY_TOKEN": TOKEN} | environment
        return CliRunner().invoke(command, [str(word) for word in words[1:]], env=env)

    def json(self, *words: str | Path) -> Any:
        done = self.run(*words, "--json")
        assert done.exit_code == 0, done.stderr
        return json.loads(done.stdout)

    def fails(self, exit_code: int, *words: str | Path, **environment: str) -> str:
        done = self.run(*words, **environment)
        assert (done.exit_code, done.stdout) == (exit_code, ""), done.output
        assert done.stderr.count("\n") == 1, done.stderr
        return done.stderr


@pytest.fixture(scope="module")
def trusted(tmp_path_factory: pytest.TempPathFactory) -> TrustedFleet:
    now = datetime.now(UTC)
    made = make_fleet(tmp_path_factory.mktemp("trust"), now=now)
    made.publish(readable_bundle("1.2.0"), now=now)
    return made


@pytest.fixture
def backend(tmp_path: Path, trusted: TrustedFleet) -> Iterator[FakeBackend]:
    made = with_commands(seed(tmp_path), trusted)
    yield made
    made.store.close()


@pytest.fixture
def operator(backend: FakeBackend) -> Iterator[Operator]:
    with listening(backend) as url:
        yield Operator(url)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(PLAN)
    return path


def at_once() -> datetime:
    return datetime.now(UTC)


# --- looking ----------------------------------------------------------------------------


def test_lists_are_json_on_stdout(operator: Operator) -> None:
    assert {m["model_version"] for m in operator.json("models", "list")} == {"1.1.0", "1.2.0"}
    assert [r["rollout_id"] for r in operator.json("rollout", "list")] == [ROLLOUT]
    first, second = operator.json("devices", "list")
    assert (first["device_id"], second["connected"]) == ("harbour-01", False)
    assert operator.json("alerts", "list")[0]["kind"] == "drift"


@pytest.mark.parametrize(
    ("words", "cells"),
    [
        ("models list", ("reader", "1.2.0", "fp32-cpu")),
        ("rollout list", (ROLLOUT, "running", HOSTILE)),
        (f"rollout show {ROLLOUT}", ("reader 1.1.0: running", "stage all: pending (1 committed)")),
        ("devices list", ("harbour-01", "accepted", "site=harbour", "accepted, silent", "never")),
        ("devices show harbour-01", ("device_id", "harbour-01", "site: harbour", "20")),
        ("drift show reader", ("harbour-01", "drift", HOSTILE)),
        ("alerts list", ("alert-1", "open", HOSTILE)),
        ("policy show", ("window_s", "records")),
    ],
)
def test_tables_have_a_line_a_row_in_a_pipe(
    operator: Operator, words: str, cells: tuple[str, ...]
) -> None:
    done = operator.run(*words.split())
    assert (done.exit_code, done.stderr) == (0, "")
    for cell in cells:
        assert cell in done.stdout


def test_one_thing_is_json_too(operator: Operator) -> None:
    assert operator.json("rollout", "show", ROLLOUT)["devices_served"] == ["harbour-01"]
    assert operator.json("devices", "show", "harbour-02")["tags"]["site"] == "harbour"
    assert operator.json("drift", "show", "reader")["devices"][0]["verdict"] == "drift"
    assert operator.json("policy", "show")["records"] in ("none", "sampled", "all")


def test_a_list_of_nothing_says_so_to_people(operator: Operator, backend: FakeBackend) -> None:
    with backend.store.database.write() as connection:
        connection.execute(schema.alerts.delete())
    assert operator.json("alerts", "list") == []
    assert "there are none yet" in operator.run("alerts", "list").stderr
    assert "no look yet" in operator.run("drift", "show", "nothing").stderr


# --- doing ------------------------------------------------------------------------------


def test_a_plan_becomes_a_rollout(operator: Operator, plan: Path) -> None:
    done = operator.run("rollout", "create", plan)
    rollout_id = done.stdout.strip()
    assert done.exit_code == 0
    assert f"skerry rollout watch {rollout_id}" in done.stderr
    shown = operator.json("rollout", "show", rollout_id)
    assert (shown["state"], shown["plan"]["start_at"]) == ("scheduled", 946_684_800.0)
    assert operator.json("rollout", "create", plan)["rollout_id"] != rollout_id


def test_a_rollout_is_aborted_and_put_away(operator: Operator, plan: Path) -> None:
    made = operator.json("rollout", "create", plan)["rollout_id"]
    assert operator.run("rollout", "abort", made).stdout == "aborted\n"
    assert operator.json("rollout", "archive", made)["state"] == "archived"
    assert "resume needs a rollout that is paused" in operator.fails(4, "rollout", "resume", made)


def test_a_plan_that_asks_for_approval_waits_for_it(operator: Operator, plan: Path) -> None:
    plan.write_text("needs_approval = true\n" + PLAN)
    first = operator.json("rollout", "create", plan)["rollout_id"]
    assert operator.run("rollout", "watch", first).exit_code == 1
    assert operator.run("rollout", "approve", first).stdout == "scheduled\n"
    second = operator.json("rollout", "create", plan)["rollout_id"]
    assert operator.run("rollout", "deny", second).stdout == "denied\n"


def test_a_rollout_is_paused_resumed_and_rolled_back(
    operator: Operator, backend: FakeBackend, plan: Path
) -> None:
    made = operator.json("rollout", "create", plan)["rollout_id"]
    backend.engine.tick(datetime.now(UTC))
    assert operator.run("rollout", "pause", made).stdout == "paused\n"
    listed = operator.run("rollout", "list").stdout
    assert "paused (manual)" in listed
    refused = operator.fails(4, "rollout", "skip-stage", made)
    assert "nothing to skip" in refused
    assert operator.run("rollout", "resume", made).stdout == "running\n"
    assert operator.run("rollout", "rollback", made).stdout == "rolling_back\n"


def test_watching_tells_each_change_and_ends_with_the_rollout(
    operator: Operator, plan: Path
) -> None:
    made = operator.json("rollout", "create", plan)["rollout_id"]

    def abort_soon() -> None:
        time.sleep(0.3)
        FleetClient(operator.url, TOKEN).post(f"/rollouts/{made}/abort")

    threading.Thread(target=abort_soon).start()
    done = operator.run("rollout", "watch", made, "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["state"] == "aborted"
    assert done.stderr.startswith("scheduled")
    assert "aborted: abort by admin" in done.stderr


def test_a_completed_rollout_is_a_success_to_watch(
    operator: Operator, backend: FakeBackend
) -> None:
    with backend.store.database.write() as connection:
        connection.execute(schema.rollouts.update().values(state="completed", reason="12 of 12"))
    done = operator.run("rollout", "watch", ROLLOUT)
    assert (done.exit_code, done.stdout) == (0, "completed: 12 of 12\n")


def test_a_device_gets_one_token_on_stdout(operator: Operator) -> None:
    done = operator.run("devices", "preauthorize", "harbour-09", "--tag", "site=harbour")
    assert done.exit_code == 0
    assert len(done.stdout.split()) == 1
    assert "skerry-agent enroll" in done.stderr
    assert operator.json("devices", "show", "harbour-09")["tags"] == {"site": "harbour"}
    again = operator.json("devices", "preauthorize", "harbour-10", "--again")
    assert again["device_id"] == "harbour-10"
    assert "key=value" in operator.fails(2, "devices", "preauthorize", "d-1x", "--tag", "site")


def test_devices_are_rejected_and_retired(operator: Operator) -> None:
    assert operator.run("devices", "reject", "harbour-02").stdout == "rejected\n"
    assert "has not enrolled" in operator.fails(4, "devices", "accept", "harbour-02")
    retired = operator.json("devices", "decommission", "harbour-02")
    assert retired["state"] == DeviceState.DECOMMISSIONED
    assert "decommissioned" in operator.fails(4, "devices", "reject", "harbour-02")


def test_a_device_that_is_shut_out_shows_why_until_it_is_accepted(
    operator: Operator, backend: FakeBackend
) -> None:
    backend.commands.quarantine.begin("harbour-01", "boots a and b speak in turn", at_once())
    shown = operator.json("devices", "show", "harbour-01")
    why = "two machines with one identity: boots a and b speak in turn"
    assert (shown["state"], shown["state_reason"]) == (DeviceState.PENDING, why)
    assert why in operator.run("devices", "list").stdout
    assert "harbour-01 is shut out" in operator.run("alerts", "list").stdout
    assert operator.fails(5, "devices", "preauthorize", "harbour-01").count("again")
    assert operator.run("devices", "preauthorize", "harbour-01", "--again").exit_code == 0


def test_an_alert_is_acknowledged(operator: Operator) -> None:
    assert operator.run("alerts", "acknowledge", "alert-1").stdout == "acknowledged\n"
    done = operator.json("alerts", "acknowledge", "alert-1")
    assert (done["state"], done["acknowledged_by"]) == ("acknowledged", "admin")


def test_the_policy_changes_only_in_what_is_given(operator: Operator) -> None:
    before = operator.json("policy", "show")
    after = operator.json("policy", "set", "--window-s", "2")
    assert after == before | {"window_s": 2.0, "version": before["version"] + 1}
    assert operator.run("policy", "set", "--records", "all").stdout.startswith("version ")
    assert "expected something to set" in operator.fails(2, "policy", "set")
    kept_back = (
        "--withheld",
        "age, reader/pay",
        "--hashed",
        "customer",
        "--inputs",
        "--no-features",
    )
    after = operator.json("policy", "set", *kept_back, "--input-max-bytes", "1000")
    assert (after["withheld"], after["hashed"]) == (["age", "reader/pay"], ["customer"])
    assert (after["inputs"], after["features"], after["input_max_bytes"]) == (True, False, 1000)
    assert "customer" in operator.run("policy", "show").stdout
    after = operator.json("policy", "set", "--withheld", "")
    assert (after["withheld"], after["hashed"]) == ([], ["customer"])
    assert "input_max_bytes of 0 to" in operator.fails(
        2, "policy", "set", "--input-max-bytes", "99999"
    )
    assert "window_s of 1 to" in operator.fails(2, "policy", "set", "--window-s", "0.1")


# --- what goes wrong --------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    ["models list", "rollout list", f"rollout show {ROLLOUT}", f"rollout watch {ROLLOUT}",
     f"rollout pause {ROLLOUT}", "devices list", "drift show reader", "alerts list", "policy show"],
)  # fmt: skip
def test_a_fleet_that_does_not_run_is_one_clear_sentence(words: str, tmp_path: Path) -> None:
    said = Operator("http://127.0.0.1:9").fails(8, *words.split())
    assert "does not answer" in said
    assert "skerry fleet run" in said


def test_a_wrong_token_is_refused_and_a_missing_one_is_a_usage_error(
    operator: Operator, tmp_path: Path
) -> None:
    assert "admin.token" in operator.fails(4, "devices", "list", SKERRY_TOKEN="wrong")
    assert "--token-file" in operator.fails(2, "devices", "list", SKERRY_TOKEN="")
    assert "plain letters" in operator.fails(2, "devices", "list", SKERRY_TOKEN="a\nb")
    missing = tmp_path / "none.token"
    assert "no such file" in operator.fails(3, "devices", "list", "--token-file", missing)
    given = tmp_path / "admin.token"
    given.write_text(TOKEN + "\n")
    done = operator.run("devices", "list", "--token-file", given, SKERRY_TOKEN="")
    assert done.exit_code == 0


def test_a_plan_that_is_missing_or_wrong_says_which(operator: Operator, plan: Path) -> None:
    assert "no such file" in operator.fails(3, "rollout", "create", plan.with_name("none.toml"))
    assert "Is a directory" in operator.fails(2, "rollout", "create", plan.parent)
    for text, words in (
        ("model = ", "expected TOML"),
        (PLAN + "cuont = 3\n", "cuont"),
        (PLAN.replace("T00:00:00Z", ""), "a time and a zone"),
        (PLAN.replace("count = 1", "count = 0"), "count of stage canary of at least 1"),
    ):
        plan.write_text(text)
        assert words in operator.fails(2, "rollout", "create", plan)


def test_what_is_not_there_is_not_found(operator: Operator, plan: Path) -> None:
    plan.write_text(PLAN.replace("1.2.0", "9.9.9"))
    for words in (
        ("rollout", "show", "none"),
        ("rollout", "show", "../devices"),
        ("rollout", "pause", "none"),
        ("rollout", "create", plan),
        ("devices", "show", "nobody at all"),
        ("devices", "decommission", "nobody"),
        ("alerts", "acknowledge", "none"),
    ):
        operator.fails(3, *words)


def test_an_address_that_is_no_fleets_is_said(operator: Operator) -> None:
    for url in ("fleet.example", "ftp://fleet.example", "http://a b"):
        with pytest.raises(UsageError, match="expected a fleet address"):
            FleetClient(url, TOKEN)
    with pytest.raises(NotFoundError, match="nothing at /nowhere"):
        FleetClient(operator.url + "/nowhere", TOKEN).get("/devices")


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\n\r\nhello", b"HTTP/1.1 500 No\r\n\r\n"])
def test_a_server_of_another_kind_is_told_apart(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        threading.Thread(target=serve).start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(FormatError, match="operators' address"):
            FleetClient(url, TOKEN).get("/devices")


def test_a_server_that_speaks_no_http_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"SSH-2.0-other\r\n")

        threading.Thread(target=serve).start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(UnreachableError, match="does not answer"):
            FleetClient(url, TOKEN).get("/devices")


# --- commands to devices -----------------------------------------------------------------


def test_a_command_waits_for_the_answer_of_the_device(
    operator: Operator, backend: FakeBackend
) -> None:
    def answer() -> None:
        for ok, output in ((True, "pong"), (False, "unknown verb 'dance'")):
            while True:
                with backend.store.database.write() as connection:
                    query = schema.commands.update().where(schema.commands.c.ok.is_(None))
                    done = connection.execute(
                        query.values(ok=int(ok), output=output, finished_at=1.0)
                    )
                if done.rowcount:
                    break
                time.sleep(0.02)

    device = threading.Thread(target=answer)
    device.start()
    assert operator.run("devices", "command", "harbour-01", "ping").stdout == "pong\n"
    assert "unknown verb" in operator.fails(4, "devices", "command", "harbour-01", "dance", "to=x")
    device.join()


def test_a_device_that_does_not_answer_in_time_is_told(operator: Operator) -> None:
    words = ("devices", "command", "harbour-01", "logs", "lines=5", "--wait", "0")
    assert "got none" in operator.fails(8, *words)
    assert operator.fails(2, "devices", "command", "harbour-01", "logs", "lines")
    assert operator.fails(2, "devices", "command", "harbour-01", "rm -rf")
    assert operator.fails(3, "devices", "command", "nobody-01", "ping")
