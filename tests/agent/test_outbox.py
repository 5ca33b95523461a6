"""The outbox: nothing is forgotten that was not acknowledged, and everything arrives."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.outbox import Outbox, may_forget

BOOTS = ("boot-a", "boot-b")


def send(outbox: Outbox, size: int = 10, now: float = 0.0) -> tuple[str, int, int] | None:
    """Send the next batch of at most `size` records."""
    following = outbox.next_send()
    if following is None:
        return None
    boot, first = following
    last = min(first + size - 1, outbox.cursors[boot].upto)
    outbox.sent(boot, first, last, now)
    return boot, first, last


def test_numbers_leave_in_order_and_older_boots_first() -> None:
    outbox = Outbox()
    outbox.found("boot-a", 1, 15)
    outbox.found("boot-b", 1, 5)
    assert [send(outbox) for _ in range(4)] == [
        ("boot-a", 1, 10), ("boot-a", 11, 15), ("boot-b", 1, 5), None,
    ]  # fmt: skip


def test_no_more_than_credit_is_under_way_and_zero_is_a_pause() -> None:
    outbox = Outbox()
    outbox.found("boot-a", 1, 100)
    outbox.acknowledged({}, 2)
    assert send(outbox)
    assert send(outbox)
    assert send(outbox) is None
    outbox.acknowledged({"boot-a": 10}, 0)
    assert send(outbox) is None
    outbox.acknowledged({}, 8)
    assert send(outbox) == ("boot-a", 21, 30)


def test_the_credit_that_a_fleet_may_give_is_bounded() -> None:
    outbox = Outbox()
    outbox.acknowledged({}, 1 << 40)
    assert outbox.credit == 64


def test_without_an_answer_it_goes_back_to_the_first_number_not_acknowledged() -> None:
    outbox = Outbox(resend_s=20.0)
    outbox.found("boot-a", 1, 30)
    while send(outbox):
        pass
    outbox.acknowledged({"boot-a": 7}, 8)
    assert not outbox.expire(19.9)
    assert outbox.expire(20.0)
    assert send(outbox, now=20.0) == ("boot-a", 8, 17)


def test_each_silence_is_waited_for_longer_until_an_answer_comes() -> None:
    outbox = Outbox(resend_s=10.0)
    outbox.found("boot-a", 1, 10)
    send(outbox, now=0.0)
    assert outbox.expire(10.0)
    send(outbox, now=10.0)
    assert not outbox.expire(25.0)
    assert outbox.expire(30.0)
    send(outbox, size=5, now=30.0)
    outbox.acknowledged({"boot-a": 5}, 8)
    send(outbox, now=31.0)
    assert outbox.expire(41.0)


def test_a_new_connection_begins_from_what_is_acknowledged() -> None:
    outbox = Outbox()
    outbox.found("boot-a", 1, 30)
    while send(outbox):
        pass
    outbox.acknowledged({"boot-a": 12}, 8)
    outbox.connected()
    assert outbox.under_way == 0
    assert send(outbox) == ("boot-a", 13, 22)


def test_an_old_answer_does_not_lower_a_cursor() -> None:
    outbox = Outbox()
    outbox.found("boot-a", 1, 30)
    while send(outbox):
        pass
    assert outbox.acknowledged({"boot-a": 20}, 8)
    assert not outbox.acknowledged({"boot-a": 10}, 8)
    assert outbox.cursors["boot-a"].acked == 20


def test_an_answer_about_records_that_were_never_written_is_not_believed() -> None:
    outbox = Outbox()
    outbox.found("boot-a", 1, 30)
    outbox.acknowledged({"boot-a": 1000, "stranger": 5}, 8)
    assert outbox.cursors["boot-a"].acked == 30
    outbox.found("boot-a", 1, 40)
    assert outbox.next_send() == ("boot-a", 31)


def test_cursors_known_from_before_are_not_sent_again() -> None:
    outbox = Outbox({"boot-a": 25})
    outbox.found("boot-a", 11, 30)
    assert outbox.waiting == 5
    assert outbox.next_send() == ("boot-a", 26)


def test_numbers_that_are_gone_are_jumped() -> None:
    outbox = Outbox()
    outbox.found("boot-a", 1, 10)
    while send(outbox):
        pass
    outbox.found("boot-a", 21, 30)
    assert outbox.next_send() == ("boot-a", 21)
    assert outbox.waiting == 10


def test_only_what_follows_may_be_sent() -> None:
    outbox = Outbox()
    outbox.found("boot-a", 1, 10)
    with pytest.raises(ValueError, match="expected numbers from 1"):
        outbox.sent("boot-a", 3, 5, 0.0)


@pytest.mark.parametrize(
    ("last", "acked", "settled", "newest", "done", "free"),
    [
        (10, 10, 10, False, False, True),
        (10, 9, 10, False, False, False),  # not stored by the fleet
        (10, 10, 9, False, False, False),  # not counted in a written window
        (10, 10, 10, True, False, False),  # still written
        (10, 10, 10, True, True, True),
        (10, 9, 1 << 64, True, True, False),
    ],
)
def test_when_a_segment_may_be_forgotten(
    last: int, acked: int, settled: int, newest: bool, done: bool, free: bool
) -> None:
    assert may_forget(last=last, acked=acked, settled=settled, newest=newest, done=done) is free


class Fleet:
    """Stores once per number, and acknowledges what it has without a gap."""

    def __init__(self) -> None:
        self.upto: dict[str, int] = {}
        self.stored: list[tuple[str, int]] = []

    def take(self, boot: str, first: int, last: int) -> None:
        upto = self.upto.get(boot, 0)
        if first <= upto + 1 and last > upto:
            self.stored += [(boot, seq) for seq in range(upto + 1, last + 1)]
            self.upto[boot] = last


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_whatever_is_lost_repeated_or_late_every_record_is_stored_once(
    data: st.DataObject,
) -> None:
    outbox, fleet = Outbox(resend_s=5.0), Fleet()
    written = dict.fromkeys(BOOTS, 0)
    on_the_way: list[tuple[str, int, int]] = []
    acks: list[dict[str, int]] = []
    now = 0.0
    for _ in range(data.draw(st.integers(0, 60))):
        now += data.draw(st.sampled_from([0.1, 1.0, 6.0]))
        match data.draw(st.sampled_from(["write", "send", "arrive", "lose", "ack", "connect"])):
            case "write":
                boot = data.draw(st.sampled_from(BOOTS))
                written[boot] += data.draw(st.integers(1, 20))
                outbox.found(boot, 1, written[boot])
            case "send":
                outbox.expire(now)
                batch = send(outbox, data.draw(st.integers(1, 9)), now)
                if batch:
                    on_the_way.append(batch)
            case "arrive" if on_the_way:
                fleet.take(*data.draw(st.sampled_from(on_the_way)))
                acks.append(dict(fleet.upto))
            case "lose" if on_the_way:
                on_the_way.remove(data.draw(st.sampled_from(on_the_way)))
            case "ack" if acks:
                outbox.acknowledged(data.draw(st.sampled_from(acks)), data.draw(st.integers(0, 9)))
            case "connect":
                outbox.connected()
        assert outbox.under_way <= max(outbox.credit, 64)
        for boot, cursor in outbox.cursors.items():
            assert cursor.acked <= fleet.upto.get(boot, 0)
            assert cursor.acked < cursor.next <= cursor.upto + 1
    # a good connection at last: everything arrives
    outbox.acknowledged({}, 8)
    outbox.connected()
    while batch := send(outbox, 7, now):
        fleet.take(*batch)
        outbox.acknowledged(fleet.upto, 8)
    assert fleet.stored == list(dict.fromkeys(fleet.stored))
    assert sorted(fleet.stored) == [(b, n) for b in BOOTS for n in range(1, written[b] + 1)]
    assert outbox.waiting == 0
