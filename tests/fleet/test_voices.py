"""What is new, what is repeated, and when there must be two machines: laws of `fleet.voices`."""

import itertools
import random
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.voices import MAX_BOOTS, MAX_FORMER, Said, Verdict, Voice, hear, start_over
from skerry.canonical import from_msgpack, to_msgpack

FRESH, REPEATED, LATE, FORK = Verdict.FRESH, Verdict.REPEATED, Verdict.LATE, Verdict.FORK


class Fleet:
    """What the fleet knows of one device, and the acks that it has sent."""

    def __init__(self) -> None:
        self.voice = Voice()
        self._marks = itertools.count(1)

    def hears(self, *said: Said) -> list[Verdict]:
        verdicts = []
        for one in said:
            self.voice, verdict = hear(self.voice, one, f"mark-{next(self._marks)}")
            # as it is stored, and loaded by a fleet that was started again
            self.voice = from_msgpack(to_msgpack(self.voice), Voice)
            verdicts.append(verdict)
        return verdicts


@dataclass
class Process:
    """One run of an agent: it numbers what it says, and repeats the latest mark it has heard."""

    boot: str
    seq: int = 0
    mark: str = ""
    said: list[Said] = field(default_factory=list)

    def hello(self) -> Said:
        return self.says(is_hello=True)

    def says(self, *, is_hello: bool = False, content: bytes = b"") -> Said:
        self.seq += 1
        content = content or f"{self.boot}-{self.seq}".encode()
        self.said.append(Said(self.boot, self.seq, content, self.mark, is_hello))
        return self.said[-1]


def test_an_honest_device_is_heard_through_its_restarts() -> None:
    fleet = Fleet()
    for boot in ("a", "b", "c"):
        process = Process(boot)
        assert fleet.hears(process.hello()) == [FRESH]
        process.mark = fleet.voice.mark
        assert fleet.hears(process.says(), process.hello(), process.says()) == [FRESH] * 3


def test_a_repeated_message_is_told_from_a_new_one() -> None:
    fleet, a, b = Fleet(), Process("a"), Process("b")
    said = [a.hello(), a.says(), a.says()]
    assert fleet.hears(said[0], said[2]) == [FRESH, FRESH]
    assert fleet.hears(*said) == [REPEATED] * 3  # also the one that was overtaken
    assert fleet.hears(b.hello()) == [FRESH]
    assert fleet.hears(*said) == [REPEATED] * 3
    assert fleet.hears(b.says()) == [FRESH]


def test_a_message_held_back_is_late_and_changes_nothing() -> None:
    fleet, a, b = Fleet(), Process("a"), Process("b")
    fleet.hears(a.hello())
    a.mark = fleet.voice.mark
    held = a.says()
    fleet.hears(b.hello())
    assert fleet.hears(held, held) == [LATE, REPEATED]
    b.mark = fleet.voice.mark
    assert fleet.hears(b.says()) == [FRESH]
    assert fleet.voice.present == "b"


def test_a_hello_held_back_for_a_whole_boot_is_overruled_by_the_next_mark() -> None:
    fleet, old, present = Fleet(), Process("old"), Process("present")
    held = [old.hello(), old.says()]
    fleet.hears(present.hello())
    present.mark = fleet.voice.mark
    assert fleet.hears(held[0]) == [FRESH]  # nobody can tell, once
    assert fleet.hears(present.says()) == [LATE]  # the ack of the old one is under way
    present.mark = fleet.voice.mark
    assert fleet.hears(present.says(), held[1], present.says()) == [FRESH, LATE, FRESH]
    assert fleet.voice.strangers == 1


def test_two_machines_that_take_turns_are_a_fork() -> None:
    fleet, a, b = Fleet(), Process("a"), Process("b")
    for one in (a, b, a):
        assert fleet.hears(one.hello()) != [FORK]
        one.mark = fleet.voice.mark
    assert fleet.hears(b.says()) == [FRESH]  # present; that a lives is not shown yet
    assert fleet.hears(a.says()) == [FORK]
    assert "boots b and a speak in turn" in fleet.voice.fork
    assert fleet.hears(a.hello(), b.hello(), Process("c").hello()) == [FORK] * 3


def test_one_number_with_two_contents_is_a_fork() -> None:
    fleet, a = Fleet(), Process("a")
    fleet.hears(a.hello(), a.says())
    twin = Process("a", seq=1)
    assert fleet.hears(twin.says(content=b"another")) == [FORK]
    assert "number 2 of boot a" in fleet.voice.fork


def test_a_number_far_ahead_is_a_fork_once_the_other_goes_on() -> None:
    fleet, a = Fleet(), Process("a")
    fleet.hears(a.hello())
    a.mark = fleet.voice.mark
    thief = Process("a", seq=10_000, mark=a.mark)
    assert fleet.hears(thief.hello()) == [FRESH]
    assert fleet.hears(a.says()) == [REPEATED]  # it might have been held back
    a.mark = fleet.voice.mark
    assert fleet.hears(a.says()) == [FORK]


@pytest.mark.parametrize("who", ["a", "b"])
def test_after_an_operator_has_looked_one_machine_goes_on(who: str) -> None:
    fleet, a, b = Fleet(), Process("a"), Process("b")
    for one in (a, b, a, b, a):
        fleet.hears(one.hello())
        one.mark = fleet.voice.mark
    assert fleet.voice.fork
    fleet.voice = start_over(fleet.voice)
    left, gone = (a, b) if who == "a" else (b, a)
    assert fleet.hears(left.hello()) == [FRESH]
    left.mark = fleet.voice.mark
    assert fleet.hears(left.says(), *gone.said) == [FRESH, *[REPEATED] * len(gone.said)]
    assert fleet.hears(gone.hello()) == [LATE]
    gone.mark = left.mark = fleet.voice.mark
    assert FORK in fleet.hears(gone.says(), left.says())  # both are still there


def test_a_mark_that_was_never_given_proves_nothing() -> None:
    """Such as one given before the database was restored from a backup."""
    fleet, a, b = Fleet(), Process("a"), Process("b")
    fleet.hears(a.hello())
    a.mark = b.mark = "given by nobody"
    assert fleet.hears(a.says(), b.hello(), a.says(), b.says()) == [FRESH, FRESH, LATE, FRESH]


def test_what_is_kept_is_bounded() -> None:
    fleet = Fleet()
    for n in range(2 * MAX_FORMER):
        process = Process(f"{n:016x}")
        fleet.hears(process.hello(), *[process.says() for _ in range(3)])
    assert len(fleet.voice.boots) == MAX_BOOTS
    assert len(to_msgpack(fleet.voice)) < 16_384
    for n in range(2 * MAX_FORMER - 1000, 2 * MAX_FORMER):
        assert fleet.hears(Process(f"{n:016x}").hello()) == [REPEATED]


@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 40))
def test_no_broker_makes_a_fork_of_one_machine(seed: int, boots: int, length: int) -> None:
    """It may hold back, repeat, reorder and drop, both ways; it cannot sign."""
    rng = random.Random(seed)
    fleet, carried, acks = Fleet(), [], [""]
    for n in range(boots):
        process = Process(f"boot-{n}")
        for _ in range(rng.randrange(1, length + 1)):
            carried.append(process.says(is_hello=rng.random() < 0.4))
            for said in rng.choices(carried, k=rng.randrange(3)):
                assert fleet.hears(said) != [FORK]
                acks.append(fleet.voice.mark)
            if rng.random() < 0.5:
                process.mark = rng.choice(acks)
    rng.shuffle(carried)
    assert FORK not in fleet.hears(*carried, *carried)
    if rng.random() < 0.3:
        fleet.voice = start_over(fleet.voice)
        assert FORK not in fleet.hears(*carried)


@given(st.lists(st.sampled_from("ab"), max_size=12))
def test_two_machines_that_both_hear_are_found_at_the_third_turn(turns: list[str]) -> None:
    fleet, machines = Fleet(), {"a": Process("a"), "b": Process("b")}
    order = "".join(name for name, _ in itertools.groupby(turns))
    verdicts: list[Verdict] = []
    for name in turns:
        one = machines[name]
        verdicts += fleet.hears(one.hello())
        one.mark = fleet.voice.mark
        verdicts += fleet.hears(one.says())
    assert (FORK in verdicts) == (len(order) >= 3)


def test_a_former_boot_is_known_by_its_name_alone() -> None:
    fleet = Fleet()
    first = Process("first")
    fleet.hears(first.hello())
    for n in range(MAX_BOOTS + 1):
        fleet.hears(Process(f"boot-{n}").hello())
    assert fleet.hears(msgspec.structs.replace(first.hello(), seq=99)) == [REPEATED]
