"""Maintenance windows go by the clock on the wall, whatever that does twice a year."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.maintenance import is_open, next_open, parse_windows, parse_zone
from skerry.errors import UsageError

BERLIN = ZoneInfo("Europe/Berlin")
NIGHTS = parse_windows("Mon-Fri 22:00-05:00; Sat,Sun 00:00-24:00")


def at(text: str, fold: int = 0, zone: ZoneInfo = BERLIN) -> float:
    """Unix seconds of a local time."""
    return datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold).timestamp()


@pytest.mark.parametrize(
    ("when", "open_"),
    [
        ("2026-11-23T21:59:59", False),  # a Monday
        ("2026-11-23T22:00:00", True),
        ("2026-11-24T04:59:59", True),
        ("2026-11-24T05:00:00", False),
        ("2026-11-27T23:00:00", True),  # a Friday, on into Saturday
        ("2026-11-28T12:00:00", True),
        ("2026-11-29T23:59:59", True),
        ("2026-11-30T00:00:00", False),  # Sunday's window ended, Monday's is to come
    ],
)
def test_a_window_belongs_to_the_day_on_which_it_begins(when: str, open_: bool) -> None:
    assert is_open(NIGHTS, at(when), BERLIN) is open_


def test_without_windows_any_time_will_do() -> None:
    assert is_open(parse_windows(" ; "), 0.0, UTC)


def test_the_hour_that_is_left_out_does_not_come() -> None:
    gap = parse_windows("daily 02:15-02:45")
    night = at("2026-03-29T00:00:00")  # clocks go from 02:00 to 03:00
    assert not any(is_open(gap, night + 60 * minute, BERLIN) for minute in range(23 * 60))
    assert next_open(gap, night, BERLIN) == at("2026-03-30T02:15:00")


def test_a_window_around_the_missing_hour_is_an_hour_shorter() -> None:
    window = parse_windows("01:00-04:00")
    night = at("2026-03-29T00:00:00")
    assert sum(is_open(window, night + 60 * m, BERLIN) for m in range(23 * 60)) == 120


def test_the_hour_that_comes_twice_is_open_twice() -> None:
    window = parse_windows("daily 02:15-02:45")
    night = at("2026-10-25T00:00:00")  # clocks go from 03:00 back to 02:00
    assert sum(is_open(window, night + 60 * m, BERLIN) for m in range(25 * 60)) == 60
    assert is_open(window, at("2026-10-25T02:30:00", fold=0), BERLIN)
    assert is_open(window, at("2026-10-25T02:30:00", fold=1), BERLIN)


def test_the_same_moment_is_another_time_of_day_elsewhere() -> None:
    window, moment = parse_windows("22:00-23:00"), at("2026-07-01T22:30:00")
    assert is_open(window, moment, BERLIN)
    assert not is_open(window, moment, UTC)
    assert is_open(window, moment, parse_zone("Europe/Paris"))


@given(
    moment=st.integers(1_767_225_600, 1_798_761_600),
    text=st.sampled_from(["Mon 03:00-03:01", "daily 02:00-03:00", "Sat-Mon 23:30-00:30", "Fri 00:00-24:00"]),
)  # fmt: skip
def test_the_next_opening_is_the_first_open_minute(moment: int, text: str) -> None:
    windows = parse_windows(text)
    opens = next_open(windows, moment, BERLIN)
    assert opens is not None
    assert opens >= moment
    assert is_open(windows, opens, BERLIN)
    assert opens == moment or not is_open(windows, opens - 60, BERLIN)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Mon-Fri", "a window such as"),
        ("Mon-Fri 22-5", "a window such as"),
        ("Mo 22:00-23:00", "days such as"),
        ("Mon-Fry 22:00-23:00", "days such as"),
        ("22:00-22:00", "that differ"),
        ("22:00-24:30", "00:00 to 24:00"),
        ("21:60-23:00", "00:00 to 24:00"),
        ("24:00-01:00", "00:00 to 24:00"),
        ("01:00-02:00;" * 40, "at most 32"),
    ],
)
def test_what_is_no_window_is_named(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_windows(text)


@pytest.mark.parametrize("name", ["Europe/Atlantis", "../etc/passwd", "Mars"])
def test_a_time_zone_that_is_not_known_is_named(name: str) -> None:
    with pytest.raises(UsageError, match="a time zone such as"):
        parse_zone(name)
