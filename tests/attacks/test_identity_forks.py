"""A stolen device key used from two places: noticed, shut out, told; and no replay does the same.

Through the fleet's ingest, registry and quarantine on a real database; the last test through the
real service and broker, with two real agents.
"""

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fleet.access import accepted_devices
from fleet.ceremony import perform
from fleet.ingest import Message
from fleet.quarantine import DOUBT, KIND
from fleet.setup import init_fleet
from skerry.profile import Inventory
from skerry.states import DeviceState
from skerry.wire import Reported, UpType
from tests.attacks.centre import DEVICE, Centre, Machine, Process
from tests.attacks.identity import OK, asked
from tests.fakes.listener import DEVICE as LISTENED
from tests.fakes.listener import Listening, utc_now
from tests.fakes.mqtt_device import until
from tests.fakes.trusted import NOW
from tests.fleet.test_service import ROOT, Running, get, post


@pytest.fixture
def centre(tmp_path: Path) -> Iterator[Centre]:
    centre = Centre(tmp_path)
    yield centre
    centre.store.close()


# --- the attack -------------------------------------------------------------------------


def take_turns(centre: Centre, device: Machine) -> None:
    ours, theirs = device.starts(), device.starts()
    for process in (ours, theirs, ours, theirs):
        assert "forked" not in centre.talk(process)
        centre.talk(process, "health")


def sign_a_number_twice(centre: Centre, device: Machine) -> None:
    ours = device.starts()
    centre.talk(ours)
    theirs = Process(ours.signer, ours.boot, seq=ours.seq)
    assert centre.talk(ours, "health") == {}
    centre.hears(theirs.says("hello"))


def run_ahead(centre: Centre, device: Machine) -> None:
    """The thief knows the boot, and goes on with numbers that the device will not reach."""
    ours = device.starts()
    centre.talk(ours)
    theirs = Process(ours.signer, ours.boot, seq=1 << 40, mark=ours.mark)
    assert centre.talk(theirs) == {}
    ours.mark = theirs.mark  # the answer goes to both
    assert centre.hears(ours.says("health")) == {"forked": 1}


def restart_between(centre: Centre, device: Machine) -> None:
    """The fleet ends and begins after every message."""
    ours, theirs = device.starts(), device.starts()
    for process in (ours, theirs, ours, theirs, ours, theirs):
        centre.talk(process)
        centre.store.close()
        centre.start()


@pytest.mark.parametrize(
    "attack", [take_turns, sign_a_number_twice, run_ahead, restart_between]
)  # fmt: skip
def test_row_34_one_key_in_two_places(
    centre: Centre, attack: Callable[[Centre, Machine], None]
) -> None:
    device = centre.enrol()
    assert not centre.is_shut_out()
    attack(centre, device)
    assert centre.is_shut_out()
    before = len(centre.acks), centre.greeted, centre.last_seen
    assert centre.hears(device.starts().says()) == {"not_accepted": 1}
    assert (len(centre.acks), centre.greeted, centre.last_seen) == before
    assert centre.enrol("dev-02")  # and nobody else suffers
    assert accepted_devices(centre.store.database) == ["dev-02"]


# --- positive controls: the same set-up with one machine -----------------------------------


def restarts(centre: Centre, device: Machine, _: random.Random) -> None:
    for _boot in range(3):
        process = device.starts()
        for kind in ("hello", "health", "health", "hello"):
            assert centre.talk(process, kind) == {}


def clock_goes_back(centre: Centre, device: Machine, _: random.Random) -> None:
    for clock in (NOW.timestamp(), 4e9, 0.0, NOW.timestamp() - 1e6):
        process = device.starts(clock)
        assert centre.talk(process) == {}
        process.clock -= 500.0  # also while it runs
        assert centre.talk(process, "health") == {}


def replayed(centre: Centre, device: Machine, rng: random.Random) -> None:
    """The broker repeats all that it has ever heard, in any order, between any two messages."""
    said: list[Message] = []
    for _boot in range(3):
        process = device.starts()
        for kind in ("hello", "health", "hello", "health"):
            assert centre.talk(process, kind) == {}
            said += process.said[-1:]
            seen = centre.last_seen
            again = rng.choices(said, k=5)
            answered = len(centre.acks), centre.greeted
            assert centre.hears(*again) == {"repeated": 5}
            assert (centre.last_seen, len(centre.acks), centre.greeted) == (seen, *answered)


def held_back(centre: Centre, device: Machine, rng: random.Random) -> None:
    """The broker holds messages back for as long as it likes, also a whole boot."""
    held: list[Message] = []
    for boot in range(5):
        process = device.starts()
        for kind in ("hello", "health", "health", "hello"):
            if boot == 1 or rng.random() < 0.3:
                held.append(process.says(kind))
            else:
                centre.talk(process, kind)
            if held and rng.random() < 0.3:
                centre.hears(held.pop(rng.randrange(len(held))))
    centre.hears(*rng.sample(held, len(held)))
    last = device.starts()
    assert centre.talk(last) == {}
    assert centre.talk(last, "health") == {}


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("honest", [restarts, clock_goes_back, replayed, held_back])
def test_row_34_one_machine_is_never_shut_out(
    centre: Centre, honest: Callable[[Centre, Machine, random.Random], None], seed: int
) -> None:
    honest(centre, centre.enrol(), random.Random(seed))
    assert not centre.is_shut_out()
    assert "forked" not in centre.refused()


def test_row_34_a_thief_who_never_answers_is_told_of_and_gains_nothing_lasting(
    centre: Centre,
) -> None:
    device = centre.enrol()
    ours = device.starts()
    for _ in range(3):
        assert centre.talk(ours) == {}
        theirs = device.starts()
        assert centre.hears(theirs.says()) == {}
        centre.talk(ours)
        assert centre.talk(ours) == {}
        assert centre.hears(theirs.says(), theirs.says("health")) == {"late": 2}
    assert not centre.is_shut_out()
    (alert,) = centre.store.alerts.live_alerts(DOUBT)
    assert (alert.subject, alert.severity) == (DEVICE, "warning")
    centre.now += timedelta(days=2)
    centre.quarantine.look(centre.now)
    assert centre.store.alerts.live_alerts(DOUBT) == []


def test_row_34_what_a_thief_reported_does_not_outlast_his_key(centre: Centre) -> None:
    thief = centre.enrol()
    process = thief.starts()
    told = Reported((1 << 32) - 1, {}, [], Inventory("0.1.0", "linux-x86_64"))
    assert centre.hears(process.says("reported", told)) == {}
    far = msgspec.structs.replace(told, version=(1 << 63) - 1)
    assert centre.hears(process.says("reported", far)) == {"malformed_reported": 1}
    owner = centre.enrol(again=True).starts()
    first = msgspec.structs.replace(told, version=1)
    assert centre.hears(owner.says("reported", first)) == {}
    assert centre.acks[-1].reported == 1


# --- what an operator does ------------------------------------------------------------------


def test_row_34_an_operator_lets_one_machine_in_again(centre: Centre) -> None:
    device = centre.enrol()
    take_turns(centre, device)
    assert centre.is_shut_out()
    centre.registry.move(DEVICE, DeviceState.ACCEPTED, centre.now)
    centre.quarantine.look(centre.now)
    centre.cut.clear()
    assert not centre.is_shut_out()
    alone = device.starts()
    for kind in ("hello", "health", "hello"):
        assert centre.talk(alone, kind) == {}
    assert not centre.is_shut_out()
    back = device.starts()  # the thief has not gone
    for process in (back, alone, back, alone):
        centre.talk(process)
    assert centre.is_shut_out()


def test_row_34_the_identity_is_given_to_one_machine_anew(centre: Centre) -> None:
    thief = centre.enrol()
    take_turns(centre, thief)
    assert centre.is_shut_out()
    owner = centre.enrol(again=True)
    centre.quarantine.look(centre.now)
    centre.cut.clear()
    assert not centre.is_shut_out()
    process = owner.starts()
    assert centre.talk(process) == {}
    assert centre.hears(thief.starts().says()) == {"unknown_key": 1}
    assert centre.talk(process, "health") == {}
    assert not centre.is_shut_out()


def test_row_34_a_fleet_that_died_halfway_still_tells(centre: Centre) -> None:
    device = centre.enrol()
    centre.registry.quarantine(DEVICE, "two machines with one identity: x", centre.now)
    assert centre.alerts == []
    centre.quarantine.look(centre.now)
    assert centre.is_shut_out()
    assert centre.hears(device.starts().says()) == {"not_accepted": 1}


async def test_row_34_the_listener_refuses_a_device_that_is_shut_out(
    listening: Listening,
) -> None:
    assert await asked(listening, listening.context) == OK
    assert listening.registry.quarantine(LISTENED, "seen twice", utc_now())
    assert await asked(listening, listening.context) == "certificate_refused"
    assert listening.cut == [LISTENED]
    listening.registry.move(LISTENED, DeviceState.ACCEPTED, utc_now())
    assert await asked(listening, listening.context) == OK


# --- signs of life ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["hello", "health"])
def test_row_26_a_dead_device_does_not_look_alive(centre: Centre, kind: UpType) -> None:
    device = centre.enrol()
    first, second = device.starts(), device.starts()
    for process in (first, second):
        assert centre.talk(process) == {}
        assert centre.talk(process, kind) == {}
    seen, greeted, acks = centre.last_seen, centre.greeted, len(centre.acks)
    for again in (False, True):  # also by a fleet that was started again
        said = [*first.said, *second.said]
        assert centre.hears(*said) == {"repeated": 4}
        assert (centre.last_seen, centre.greeted, len(centre.acks)) == (seen, greeted, acks)
        if not again:
            centre.store.close()
            centre.start()
    assert centre.talk(second, kind) == {}
    assert centre.last_seen != seen


# --- the order of a revocation ---------------------------------------------------------------


@pytest.mark.parametrize("state", [DeviceState.REJECTED, DeviceState.DECOMMISSIONED, None])
def test_row_33_state_comes_first_then_the_connection(
    centre: Centre, state: DeviceState | None
) -> None:
    """By the time that the broker is told to cut, nothing lets the device in or listens to it."""
    process = centre.enrol().starts()
    assert centre.talk(process) == {}
    centre.look = lambda: (
        centre.store.devices.device_state(DEVICE),
        centre.hears(process.says("health")),
        centre.may_connect(),
        accepted_devices(centre.store.database),
    )
    if state is None:
        centre.quarantine.begin(DEVICE, "seen twice", centre.now)
    else:
        centre.registry.move(DEVICE, state, centre.now)
    after = (state or DeviceState.PENDING, {"not_accepted": 1}, False, [])
    assert (centre.cut, centre.at_cut) == ([DEVICE], [after])


# --- through the real service --------------------------------------------------------------


class Agent:
    """An agent in a process of its own."""

    def __init__(self, state: Path) -> None:
        settings = state.with_suffix(".toml")
        settings.write_text(
            "http_port = 0\nreconnect_base_s = 0.3\nreconnect_cap_s = 0.6\nhealth_s = 0.2\n"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-m", "agent", "run", "--state", state, "--config", settings],
            cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(20)


def is_connected(state: Path) -> bool:
    found: bool = json.loads((state / "status.json").read_text())["connected"]
    return found


def test_row_34_two_real_agents_with_one_identity(tmp_path: Path) -> None:
    ready = tmp_path / "fleet"
    init_fleet(ready, "demo", now=NOW)
    perform(ready, tmp_path / "keys", ("acme",), passphrase=lambda _: b"long enough", now=NOW)
    fleet = Running(ready)
    agents: list[Agent] = []
    try:
        api = fleet.info()["api_url"] + "/api/v1"
        token = (ready / "admin.token").read_text().strip()
        made = post(f"{api}/devices/preauthorize", token, {"device_id": DEVICE, "tags": {}})
        state, copy = tmp_path / "device", tmp_path / "copy"
        enrol = [sys.executable, "-m", "agent", "enroll", "--state", state, "--token"]
        subprocess.run([*enrol, made["token"]], cwd=ROOT, check=True, capture_output=True)
        shutil.copytree(state, copy)

        def fleet_says(path: str) -> Any:
            return json.loads(get(f"{api}/{path}", token))

        def shown() -> Any:
            return fleet_says(f"devices/{DEVICE}")

        for _ in range(3):  # restarts of one machine, each heard of at length
            agents.append(Agent(state))
            at_length = time.time() + 2.0
            until("signs of life", lambda at=at_length: (shown()["last_seen"] or 0) > at, 20.0)
            agents.pop().end()
        assert (shown()["state"], shown()["state_reason"]) == ("accepted", "")
        agents += [Agent(state), Agent(copy)]
        until("the quarantine", lambda: shown()["state"] == "pending", 30.0)
        assert "two machines with one identity" in str(shown()["state_reason"])
        (alert,) = fleet_says("alerts")["items"]
        assert (alert["kind"], alert["subject"]) == (KIND, DEVICE)
        for place in (state, copy):
            until("the cut", lambda place=place: not is_connected(place), 5.0)
        agents.pop().end()  # the copy is taken away
        done = post(f"{api}/devices/{DEVICE}/accepted", token)
        assert (done["state"], done["state_reason"]) == ("accepted", "")
        until("the one that is left", lambda: is_connected(state), 10.0)
        until("a sign of life", lambda: shown()["last_seen"] > done["last_seen"], 10.0)
        assert fleet_says("alerts")["items"][0]["state"] == "closed"
    finally:
        for agent in agents:
            agent.end()
        fleet.end()
