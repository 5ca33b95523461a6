"""What goes wrong for a newcomer, with the real commands: one clear message, its exit code, nothing lost."""

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from skerry.bundle import read_bundle

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "digits"
PHRASE = "correct horse battery"
OWN = ("SKERRY_FLEET", "SKERRY_TOKEN", "SKERRY_KEY_PASSPHRASE", "SKERRY_NATS_SERVER")
ANY_PORTS = ("--port", "0", "--device-port", "0", "--broker-port", "0")


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    def refused(self, code: int, *words: str) -> None:
        """It ended with this exit code and one message of one line, which has these words."""
        assert self.code == code, self.err
        assert self.out == ""
        assert self.err.count("\n") == 1, self.err
        assert [word for word in words if word not in self.err] == [], self.err


def command(program: str, *arguments: object) -> list[str]:
    # -P: the folder that a newcomer stands in is not where modules come from
    return [sys.executable, "-P", "-m", program, *map(str, arguments)]


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in OWN}
    return kept | {"PYTHONPATH": str(ROOT)} | more


def run(program: str, *arguments: object, cwd: Path | None = None, **more: str) -> Done:
    done = subprocess.run(
        command(program, *arguments),
        env=environment(**more), cwd=cwd, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr)


def skerry(*arguments: object, cwd: Path | None = None, **more: str) -> Done:
    return run("skerry", *arguments, cwd=cwd, **more)


def agent(*arguments: object) -> Done:
    return run("agent", *arguments)


def must(done: Done) -> str:
    assert done.code == 0, done.err
    return done.out


def until(what: str, ready: Callable[[], Any], timeout_s: float = 30.0) -> Any:
    end = time.monotonic() + timeout_s
    while not (found := ready()):
        assert time.monotonic() < end, f"expected {what} within {timeout_s} s"
        time.sleep(0.02)
    return found


@dataclass(slots=True)
class Town:
    """A fleet that can be started and stopped, a bundle, and what a publisher signed."""

    root: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def bundle(self) -> Path:
        return self.root / "reader-1.0.0.skerry"

    @property
    def signed(self) -> Path:
        return self.root / "signed.json"

    @property
    def key(self) -> Path:
        return self.root / "keys" / "publisher-acme.pem"

    @property
    def info(self) -> Any:
        return json.loads((self.data / "run.json").read_bytes())

    def make(self) -> None:
        must(skerry("fleet", "init", "--data", self.data))
        must(
            skerry(
                "keys", "ceremony", "--data", self.data, "--out", self.root / "keys",
                "--publisher", "acme", SKERRY_KEY_PASSPHRASE=PHRASE,
            )
        )  # fmt: skip
        must(skerry("build", EXAMPLES / "reader-1.0.0.toml", "--out", self.root))
        must(self.sign(self.bundle, self.signed))
        ports = [str(free_port()) for _ in range(3)]
        (self.data / "fleet.toml").write_text(
            'fleet_id = "main"\n'
            f"port = {ports[0]}\ndevice_port = {ports[1]}\nbroker_port = {ports[2]}\n"
        )

    def sign(self, bundle: Path, out: Path, **more: str) -> Done:
        return skerry(
            "sign", bundle, "--publisher", "acme", "--key", self.key, "--out", out,
            **{"SKERRY_KEY_PASSPHRASE": PHRASE, **more},
        )  # fmt: skip

    def start(self) -> None:
        with (self.root / "fleet.log").open("ab") as log:
            self.process = subprocess.Popen(
                command("skerry", "fleet", "run", "--data", self.data),
                env=environment(), stdout=log, stderr=log,
            )  # fmt: skip
        until("a running fleet", (self.data / "run.json").exists)

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        assert self.process.wait(20) == 0

    def ask(self, *arguments: object) -> Done:
        """Run an operator's command against this fleet."""
        fleet = ("--fleet", self.info["api_url"], "--token-file", self.data / "admin.token")
        return skerry(*arguments, *fleet)

    def token(self, device: str) -> str:
        return must(self.ask("devices", "preauthorize", device)).strip()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    made = Town(tmp_path_factory.mktemp("town"))
    made.make()
    made.start()
    yield made
    made.stop()


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


# --- a missing file ------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("build", "gone", "--out", "out"),
        ("inspect", "gone"),
        ("rollout", "create", "gone", "--token-file", "token"),
        ("devices", "list", "--token-file", "gone"),
        ("fleet", "run", "--data", "gone"),
        ("demo", "--examples", "gone"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_missing_file_is_named(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "token").write_text("token")
    skerry(*arguments, cwd=tmp_path).refused(3, "expected", "gone")
    assert [path.name for path in tmp_path.iterdir()] == ["token"]


def test_a_missing_file_that_a_recipe_names_is_named(tmp_path: Path) -> None:
    recipe = (EXAMPLES / "reader-1.0.0.toml").read_text()
    (tmp_path / "reader.toml").write_text(recipe.replace("reader-1.0.0.onnx", "gone.onnx"))
    done = skerry("build", tmp_path / "reader.toml", "--out", tmp_path / "out")
    done.refused(3, "model.file", "gone.onnx", "correct the path")
    assert not (tmp_path / "out").exists()


def test_the_demo_outside_the_repository_says_so_before_it_starts_anything(tmp_path: Path) -> None:
    done = skerry("demo", "--headless", cwd=tmp_path)
    done.refused(3, "expected the digits in", "--examples")
    skerry("demo", "--smudge", "harbour-99", cwd=ROOT).refused(2, "harbour-01", "'harbour-99'")


# --- a wrong key ---------------------------------------------------------------------


def test_a_wrong_recipe_key_is_named_with_the_one_that_was_meant(tmp_path: Path) -> None:
    recipe = (EXAMPLES / "reader-1.0.0.toml").read_text()
    (tmp_path / "reader.toml").write_text(recipe.replace("version", "verzion", 1))
    done = skerry("build", tmp_path / "reader.toml", "--out", tmp_path / "out")
    done.refused(2, "reader.toml", "'model.verzion'", "did you mean model.version?")
    assert not (tmp_path / "out").exists()


def test_a_wrong_setting_of_an_agent_or_a_fleet_is_named(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text("http_prot = 8450\n")
    done = agent("run", "--state", tmp_path, "--config", tmp_path / "agent.toml")
    done.refused(2, "agent.toml", "'http_prot'", "did you mean http_port?")
    (tmp_path / "fleet.toml").write_text('fleet_id = "main"\nshard = 2\n')
    done = skerry("fleet", "run", "--data", tmp_path)
    done.refused(2, "fleet.toml", "'shard'", "did you mean shards?")


# --- a port in use -------------------------------------------------------------------


@pytest.fixture(scope="module")
def resting(town: Town, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of a fleet that does not run."""
    data = tmp_path_factory.mktemp("resting") / "data"
    shutil.copytree(town.data, data, ignore=shutil.ignore_patterns("nats", "run.*", "fleet.db*"))
    return data


@pytest.mark.parametrize(
    ("option", "whom"),
    [("--port", "operators"), ("--device-port", "devices"), ("--broker-port", "the broker")],
)
def test_a_port_in_use_is_named_with_who_wanted_it(
    resting: Path, taken: int, option: str, whom: str
) -> None:
    done = skerry("fleet", "run", "--data", resting, *ANY_PORTS, option, taken)
    done.refused(5, f"port {taken} of 127.0.0.1", f"for {whom}", "choose another port")
    assert not (resting / "run.json").exists()


def test_a_host_that_is_none_of_this_machine_is_named(resting: Path) -> None:
    done = skerry("fleet", "run", "--data", resting, *ANY_PORTS, "--host", "192.0.2.1")
    done.refused(2, "192.0.2.1", "for operators", "127.0.0.1")


def test_a_second_fleet_on_one_directory_is_refused_and_the_first_goes_on(town: Town) -> None:
    done = skerry("fleet", "run", "--data", town.data, *ANY_PORTS)
    done.refused(5, "no running fleet", "run.json")
    must(town.ask("devices", "list"))


# --- keys ----------------------------------------------------------------------------


def test_a_fleet_without_its_ceremony_says_how_to_hold_it(tmp_path: Path) -> None:
    must(skerry("fleet", "init", "--data", tmp_path / "new"))
    done = skerry("fleet", "run", "--data", tmp_path / "new", *ANY_PORTS)
    done.refused(3, "skerry keys ceremony --data", "--publisher")
    skerry("fleet", "init", "--data", tmp_path / "new").refused(5, "choose another directory")


def test_the_passphrase_of_other_keys_is_told_apart(town: Town, resting: Path) -> None:
    other = {"SKERRY_KEY_PASSPHRASE": "another passphrase"}
    done = skerry("fleet", "run", "--data", resting, *ANY_PORTS, **other)
    done.refused(7, "SKERRY_KEY_PASSPHRASE", "unset it")
    out = town.root / "never.json"
    town.sign(town.bundle, out, **other).refused(7, "publisher-acme.pem", "passphrase")
    town.sign(town.bundle, out, SKERRY_KEY_PASSPHRASE="").refused(7, "--passphrase-file")
    assert not out.exists()


# --- bundles -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corrupt(town: Town) -> Path:
    """The bundle with one bit of its model turned over."""
    whole = town.bundle.read_bytes()
    with town.bundle.open("rb") as file:
        model = max(read_bundle(file).blobs.values(), key=len)
    at = whole.index(model) + len(model) // 2
    path = town.root / "corrupt.skerry"
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    return path


def test_a_corrupt_bundle_is_refused_wherever_it_comes(town: Town, corrupt: Path) -> None:
    words = ("corrupt.skerry", "damaged", "copy the bundle or build it again")
    skerry("inspect", corrupt).refused(1, *words)
    skerry("verify", corrupt).refused(1, *words)
    before = town.signed.read_bytes()
    town.sign(corrupt, town.signed).refused(1, *words)
    assert town.signed.read_bytes() == before
    town.ask("publish", corrupt, town.signed).refused(1, *words)
    assert json.loads(must(town.ask("models", "list", "--json"))) == []


def test_half_a_bundle_is_refused(town: Town, tmp_path: Path) -> None:
    half = tmp_path / "half.skerry"
    half.write_bytes(town.bundle.read_bytes()[:3000])
    skerry("inspect", half).refused(1, "half.skerry", "copy or build it again")


def test_an_unsigned_bundle_is_refused_and_told_how_to_be_signed(
    town: Town, tmp_path: Path
) -> None:
    skerry("verify", town.bundle).refused(7, "skerry sign")
    town.ask("publish", town.bundle).refused(7, "skerry sign", "--publisher")
    forged = json.loads(town.signed.read_bytes())
    forged["metadata"]["acme"]["signatures"][0]["sig"] = "00" * 64
    (tmp_path / "forged.json").write_text(json.dumps(forged))
    done = town.ask("publish", town.bundle, tmp_path / "forged.json")
    done.refused(7, "signed by its own keys")
    assert json.loads(must(town.ask("models", "list", "--json"))) == []


# --- a broker, or a fleet, that is down ----------------------------------------------


def test_a_broker_that_is_not_there_says_which_variable_named_it(resting: Path) -> None:
    run_it = ("fleet", "run", "--data", resting, *ANY_PORTS)
    done = skerry(*run_it, SKERRY_NATS_SERVER="/nowhere/nats-server")
    done.refused(8, "SKERRY_NATS_SERVER=/nowhere/nats-server", "unset it")
    skerry(*run_it, SKERRY_NATS_SERVER="/bin/false").refused(8, "/bin/false did not start")


def test_a_token_is_good_once_and_not_for_ever_and_not_in_part(town: Town, tmp_path: Path) -> None:
    token = town.token("harbour-01")

    def enroll(state: str, given: str) -> Done:
        return agent("enroll", "--state", tmp_path / state, "--token", given)

    enroll("a", "hello").refused(2, "begins with sk1.", "skerry devices preauthorize")
    enroll("a", token[:-20]).refused(2, "cut short", "copy all of it again")
    must(enroll("a", token))
    enroll("a", token).refused(5, "enrolled already")
    enroll("b", token).refused(4, "spent or expired", "ask for a new token")

    late = town.token("harbour-02")
    with sqlite3.connect(town.data / "fleet.db") as database:
        database.execute("UPDATE tokens SET expires_at = 1 WHERE device = 'harbour-02'")
    enroll("c", late).refused(4, "spent or expired", "ask for a new token")


def test_an_agent_before_its_enrolment_says_how_to_enrol(tmp_path: Path) -> None:
    for name in ("run", "status"):
        agent(name, "--state", tmp_path).refused(3, "skerry-agent enroll --state")


def test_while_the_fleet_is_down_everybody_says_so_and_nothing_is_lost(
    town: Town, tmp_path: Path, taken: int
) -> None:
    ours, theirs = town.token("airport-01"), town.token("airport-02")
    must(agent("enroll", "--state", tmp_path / "one", "--token", ours))
    down = ("--fleet", town.info["api_url"], "--token-file", town.data / "admin.token")
    broker = town.info["broker_url"].partition("://")[2]
    town.stop()
    try:
        for call in (("devices", "list"), ("publish", town.bundle, town.signed)):
            skerry(*call, *down).refused(8, "the fleet at", "running?")
        enrol = ("enroll", "--state", tmp_path / "two", "--token", theirs)
        agent(*enrol).refused(8, "no answer from the fleet", "check that it runs")
        agent("run", "--state", tmp_path / "one", "--port", taken).refused(
            5, f"port {taken} of 127.0.0.1", "--port"
        )
        said = _told_of_the_broker(tmp_path / "one")
    finally:
        town.start()
    assert said.count(f"no connection to the broker at {broker}") == 1
    assert "trying again" in said
    must(agent(*enrol))  # the same token: the try that found nobody did not spend it


def _told_of_the_broker(state: Path) -> str:
    """Run an agent until it says something of the broker, and end it; return what it said."""
    log = state.with_suffix(".log")
    with log.open("wb") as said:
        process = subprocess.Popen(
            command("agent", "run", "--state", state, "--port", "0"),
            env=environment(), stdout=said, stderr=said,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 20
        while "broker" not in log.read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.5)  # it tries on, and says so once
        process.send_signal(signal.SIGTERM)
        process.wait(20)
    finally:
        process.kill()
        process.wait()
    return log.read_text()
