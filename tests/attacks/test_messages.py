"""A broker in the wrong hands: it forges, drops, reorders, repeats and swaps what goes down.

The device refuses and counts; it forgets no data, runs no command, takes no order.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from agent.facts import Verified
from skerry.canonical import to_msgpack
from skerry.keys import Signer
from skerry.wire import (
    Ack,
    Cmd,
    Desired,
    DownBody,
    DownType,
    Policy,
)
from tests.attacks.harness import NEW, OLD, SLOT, Site, committed, cut, flipped, unsigned
from tests.fakes.records import prediction, write, writer


class Hearing:
    """What a device did with messages: what it would forget, run, and hold to."""

    def __init__(self, site: Site) -> None:
        self.site, self.device = site, site.device
        spool = writer(self.device.layout.spool)
        for number in (1, 2, 3):
            write(spool, prediction(number))
        spool.close()
        self.device.control._ship()
        (self.boot,) = self.device.control._outbox.cursors

    @property
    def kept(self) -> int:
        """Records that the device still holds, since nobody has acknowledged them."""
        return self.device.control._outbox.waiting

    @property
    def results(self) -> list[str]:
        """Commands that were run, and whose results wait."""
        return [result.id for result in self.device.database.results()]

    @property
    def window_s(self) -> float:
        return self.device.supervisor.window_s

    def facts(self) -> tuple[object, ...]:
        state = self.device.control._machine.state
        return (self.kept, self.results, self.window_s, state, self.device.serves)

    def body(self, type: DownType) -> tuple[DownBody, dict[str, Any]]:
        """A message with an effect: the device would forget, run, change, or install."""
        match type:
            case "ack":
                return Ack(upto={self.boot: 3}, reported=99, credit=0), {}
            case "cmd":
                return Cmd("c-1", "ping"), {"id": "c-1"}
            case "policy":
                return Policy(version=9, window_s=7.0), {"dev": "all", "version": 9}
            case "desired":
                return Desired({}, {}), {"version": 99}

    def had_effect(self, type: DownType) -> bool:
        match type:
            case "ack":
                return self.kept == 0
            case "cmd":
                return self.results == ["c-1"]
            case "policy":
                return self.window_s == 7.0
            case "desired":
                return self.device.control._machine.state.desired_version == 99


@pytest.fixture
def hearing(site: Site) -> Hearing:
    hearing = Hearing(site)
    assert hearing.kept == 3
    return hearing


DOWN: list[DownType] = ["ack", "cmd", "policy", "desired"]
FORGERIES: dict[str, tuple[str, Callable[[Site, DownType, Any, dict[str, Any]], bytes]]] = {
    "forged by a stranger": (
        "unknown_key",
        lambda site, type, body, rest: site.seal(type, body, signer=Signer.generate(), **rest),
    ),
    "forged by another of the fleet's keys": (
        "unknown_key",
        lambda site, type, body, rest: site.seal(
            type, body, signer=site.trusted.keys.director, **rest
        ),
    ),
    "forged by the device itself": (
        "unknown_key",
        lambda site, type, body, rest: site.seal(type, body, signer=site.device.signer, **rest),
    ),
    "another device's": (
        "wrong_device",
        lambda site, type, body, rest: site.seal(type, body, **(rest | {"dev": "cam-2"})),
    ),
    "expired": (
        "expired",
        lambda site, type, body, rest: site.seal(
            type, body, exp=site.now.timestamp() - 1.0, **rest
        ),
    ),
    "altered": (
        "signature_invalid",
        lambda site, type, body, rest: flipped(site.seal(type, body, **rest)),
    ),
    "unsigned": (
        "signature_invalid",
        lambda site, type, body, rest: unsigned(site.seal(type, body, **rest)),
    ),
    "cut short": ("malformed", lambda site, type, body, rest: cut(site.seal(type, body, **rest))),
}


@pytest.mark.parametrize("forgery", FORGERIES)
@pytest.mark.parametrize("type", DOWN)
async def test_row_26_a_broker_forges_what_goes_down(
    site: Site, hearing: Hearing, type: DownType, forgery: str
) -> None:
    code, forge = FORGERIES[forgery]
    body, rest = hearing.body(type)
    before, count = hearing.facts(), site.device.refused
    site.device.hear(forge(site, type, body, rest))
    assert hearing.facts() == before
    assert site.device.refused == count + 1
    assert code in site.device.refusals
    assert site.device.serves == OLD
    site.device.hear(site.seal(type, body, **rest))
    assert hearing.had_effect(type)
    assert site.device.refused == count + 1


@pytest.mark.parametrize("type", DOWN)
async def test_row_26_a_message_of_one_kind_passed_off_as_another(
    site: Site, hearing: Hearing, type: DownType
) -> None:
    """What a device said itself, sent back to it: other domain, other key."""
    said = [data for _, data in site.device.link.said]
    before, count = hearing.facts(), site.device.refused
    for data in said:
        site.device.hear(data)
    assert hearing.facts() == before
    assert site.device.refused == count + len(said) > count
    body, rest = hearing.body(type)
    site.device.hear(site.seal(type, body, **rest))
    assert hearing.had_effect(type)


async def test_row_26_a_replayed_ack_forgets_nothing_more(site: Site, hearing: Hearing) -> None:
    first = site.seal("ack", Ack(upto={hearing.boot: 1}))
    site.device.hear(first)
    assert hearing.kept == 2
    site.device.hear(first)
    assert hearing.kept == 2
    site.device.hear(site.seal("ack", Ack(upto={"another-boot": 3})))
    assert hearing.kept == 2
    site.device.hear(site.seal("ack", Ack(upto={hearing.boot: 2})))
    assert hearing.kept == 1
    site.device.hear(first)
    assert hearing.kept == 1


async def test_row_26_a_replayed_command_runs_once(site: Site, hearing: Hearing) -> None:
    message = site.seal("cmd", Cmd("c-1", "report"), id="c-1", exp=site.now.timestamp() + 60.0)
    site.device.hear(message)
    said = len(site.device.link.said)
    site.device.hear(message)
    await site.device.restart()
    site.device.hear(message)
    assert len(site.device.link.said) == 0
    assert said > 0
    assert hearing.results == ["c-1"]
    site.device.hear(site.seal("cmd", Cmd("c-2", "report"), id="c-2"))
    assert hearing.results == ["c-1", "c-2"]


async def test_row_26_a_replayed_command_that_is_long_forgotten_has_expired(site: Site) -> None:
    message = site.seal("cmd", Cmd("c-0", "ping"), id="c-0", exp=site.now.timestamp() + 60.0)
    site.device.hear(message)
    for n in range(1, 300):
        site.device.hear(site.seal("cmd", Cmd(f"c-{n}", "ping"), id=f"c-{n}"))
    site.wait(timedelta(minutes=2))
    count = site.device.refused
    site.device.hear(message)
    assert site.device.refused == count + 1
    assert "expired" in site.device.refusals
    assert "c-0" not in [result.id for result in site.device.database.results()]
    assert site.device.serves == OLD


async def test_row_26_a_replayed_policy_changes_nothing(site: Site, hearing: Hearing) -> None:
    old = site.seal("policy", Policy(version=1, window_s=5.0), dev="all")
    site.device.hear(old)
    site.device.hear(site.seal("policy", Policy(version=2, window_s=6.0), dev="all"))
    site.device.hear(old)
    assert hearing.window_s == 6.0
    site.device.hear(site.seal("policy", Policy(version=3, window_s=5.0), dev="all"))
    assert hearing.window_s == 5.0


@pytest.mark.parametrize(
    "odd",
    [
        {"window_s": 0.0}, {"window_s": -1.0}, {"window_s": float("nan")}, {"window_s": 1e300},
        {"spread_s": float("inf")}, {"sample_rate": float("nan")},
    ],
)  # fmt: skip
async def test_row_26_a_policy_that_would_stop_serving_is_refused(
    site: Site, hearing: Hearing, odd: dict[str, float]
) -> None:
    """The serving process divides by the window's length; a stolen message key may sign any."""
    site.device.hear(site.seal("policy", Policy(version=1, window_s=5.0), dev="all"))
    site.device.hear(site.seal("policy", msgspec.structs.replace(Policy(2), **odd), dev="all"))
    assert hearing.window_s == 5.0
    assert "malformed" in site.device.refusals
    site.device.hear(site.seal("policy", Policy(version=2, window_s=6.0), dev="all"))
    assert hearing.window_s == 6.0


async def test_row_26_a_replayed_desired_changes_nothing(site: Site) -> None:
    first = site.order(site.publish())
    message = site.desired(site.signed(first), first)
    site.device.hear(message)
    assert await site.device.outcome(first.nonce) == committed()
    second = site.order(site.publish("1.2.0"))
    assert await site.tell(site.signed(second), second) == committed("1.2.0")
    before = site.device.control._machine.state
    site.device.hear(message)
    await site.device.restart()
    site.device.hear(message)
    assert site.device.control._machine.state == before
    assert site.device.serves == "1.2.0"


async def test_row_26_desired_out_of_order_and_twice(site: Site) -> None:
    first, second = site.order(site.publish()), site.order(site.publish("1.2.0"))
    early = site.desired(site.signed(first), first)
    late = site.desired(site.signed(second), second)
    for message in (late, early, late):
        site.device.hear(message)
    assert await site.device.outcome(second.nonce) == committed("1.2.0")
    third = site.order(site.trusted.catalog.release(first.path))
    assert await site.tell(site.signed(third), third) == committed(NEW)


async def test_row_26_a_verified_outcome_cannot_be_sent(site: Site) -> None:
    """Facts of the machine come from its installer alone: bytes of one are no message."""
    before = site.device.control._machine.state
    site.device.hear(to_msgpack({"type": Verified.__name__, "slot": SLOT}))
    assert site.device.control._machine.state == before
    assert await site.install(site.publish()) == committed()
