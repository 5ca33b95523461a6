"""What leaves the device: what the fleet asks for, less what the device keeps back."""

import itertools
import math
import os
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from agent.config import AgentConfig, load_config
from agent.leaving import MAX_ITEM_BYTES, Gate, narrowed
from agent.orders import ALLOWED
from agent.outbox import Outbox
from agent.segments import CountPlan, Header
from agent.spooler import Spooler
from skerry.canonical import to_msgpack
from skerry.counting import count_numeric, quantile_spec
from skerry.errors import UsageError
from skerry.records import Aside, Context, Item, Prediction, RawInput, SketchWindow, Skip
from skerry.sketch import NumericSpec
from skerry.wire import MAX_INPUT_BYTES, MAX_MESSAGE_BYTES, Policy, policy_fault
from tests.fakes.records import write, writer

ALL = Policy(version=1, records="all")
CONTEXT = Context("reader", "reader", "1.0.0", "sha256:" + "0" * 64, "fp32")
NAMES = ["age", "pay", "light"]
INPUTS = ["row", "row", "image"]
SPEC: NumericSpec = quantile_spec(np.arange(50.0))
COUNTS = count_numeric(np.arange(3.0), SPEC)
ROW = RawInput("row", "FP32", [1, 2], b"\x00" * 8)
IMAGE = RawInput("image", "UINT8", [1, 100], b"\x01" * 100)


def header(inputs: list[str] = INPUTS, names: list[str] = NAMES) -> Header:
    plan = CountPlan(names, [], dict.fromkeys(names, SPEC), inputs)
    return Header("boot-a", 1, "os-1", 1.0, [CONTEXT], [plan])


def prediction(id: str = "a", aside: Aside | None = None, n: int = 3) -> Prediction:
    return Prediction(id, 1.0, 0, 1, 0.5, 100, [41.0, 1234.5, 0.25][:n], aside)


def window() -> SketchWindow:
    columns = dict.fromkeys(["prediction", "confidence", "latency_us", *NAMES], COUNTS)
    return SketchWindow(0, 0.0, 1.0, 3, 0, columns, {"boot-a": (1, 3)})


def leaves(item: Item, policy: Policy = ALL, of: Header | None = None, **own: Any) -> Any:
    key: Path | None = own.pop("key", None)
    return Gate(AgentConfig(**own), key).leaving(to_msgpack(item), of or header(), policy)


# --- which records --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "own", "leave"),
    [
        (fleet, device, min(fleet, device, key=["none", "sampled", "all"].index))
        for fleet, device in itertools.product(["none", "sampled", "all"], repeat=2)
    ],
)
def test_the_lesser_of_both_policies_holds(
    asked: Literal["none", "sampled", "all"], own: str, leave: str
) -> None:
    policy = Policy(version=1, records=asked, sample_rate=0.5)
    gate = Gate(AgentConfig(records=own, sample_rate=0.5))
    ids = [f"request-{n}" for n in range(400)]
    left = {
        id for id in ids if gate.leaving(to_msgpack(prediction(id)), header(), policy) != Skip(1)
    }
    by_hash = {id for id in ids if zlib.crc32(id.encode()) / 2**32 < 0.5}
    assert left == {"none": set(), "sampled": by_hash, "all": set(ids)}[leave]
    assert 150 < len(by_hash) < 250


def test_a_smaller_share_of_the_device_lies_in_the_fleets() -> None:
    half = Policy(version=1, records="sampled", sample_rate=0.5)
    tenth = AgentConfig(records="sampled", sample_rate=0.1)
    assert narrowed(half, tenth).sample_rate == 0.1
    assert narrowed(ALL, tenth).sample_rate == 0.1
    assert narrowed(half, AgentConfig()).sample_rate == 0.5
    # a share that is not in force takes nothing
    assert narrowed(half, AgentConfig(records="all", sample_rate=0.1)).sample_rate == 0.5
    for n in range(300):
        if leaves(prediction(f"r-{n}"), ALL, records="sampled", sample_rate=0.1) != Skip(1):
            assert leaves(prediction(f"r-{n}"), half) != Skip(1)


def test_settings_only_ever_take_away() -> None:
    policies = [
        Policy(1, records=records, sample_rate=rate, features=f, inputs=i, withheld=w, hashed=h)
        for records in ("none", "sampled", "all")
        for rate, f, i in itertools.product((0.0, 1.0), (False, True), (False, True))
        for w, h in (([], []), (["age"], ["pay"]))
    ]  # fmt: skip
    configs = [
        AgentConfig(records=r, sample_rate=rate, record_features=f, record_inputs=i,
                    input_max_bytes=size, withheld=w, hashed=h)
        for r in ("none", "sampled", "all")
        for rate, f, i in itertools.product((0.0, 1.0), (False, True), (False, True))
        for size, w, h in ((0, (), ()), (65_536, ("*",), ()), (65_536, (), ("light",)))
    ]  # fmt: skip
    full = prediction(aside=Aside([ROW, IMAGE]))
    for policy in policies:
        wanted = leaves(full, policy, record_inputs=True)
        for config in configs:
            got = Gate(config).leaving(to_msgpack(full), header(), policy)
            if isinstance(wanted, Skip):
                assert got == Skip(1)
            elif not isinstance(got, Skip):
                plain = {(i, v) for i, v in enumerate(got.features) if not math.isnan(v)}
                assert plain <= set(enumerate(wanted.features))
                inputs = got.aside.inputs if got.aside else []
                assert all(tensor in (wanted.aside or Aside()).inputs for tensor in inputs)


def test_without_settings_all_is_as_the_fleet_says() -> None:
    assert leaves(prediction()) == prediction()
    assert leaves(window()) == window()
    assert leaves(prediction(), Policy(version=1)) == Skip(1)  # none, until a fleet asks
    asked = Policy(1, records="sampled", sample_rate=0.3, withheld=["a"], hashed=["b"])
    assert narrowed(asked, AgentConfig()) == asked


def test_the_fleet_cannot_set_them_by_a_command() -> None:
    privacy = {"records", "sample_rate", "record_features", "record_inputs", "input_max_bytes",
               "withheld", "hashed"}  # fmt: skip
    assert privacy <= set(AgentConfig.__dataclass_fields__)
    assert not privacy & set(ALLOWED)


# --- redaction ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["age", "reader/age"])
def test_what_is_withheld_leaves_neither_in_records_nor_in_windows(name: str) -> None:
    for own, policy in (
        ({"withheld": (name,)}, ALL),
        ({}, Policy(1, records="all", withheld=[name])),
    ):
        item = leaves(prediction(), policy, **own)
        assert math.isnan(item.features[0])
        assert item.features[1:] == [1234.5, 0.25]
        assert item.aside == Aside(withheld=[0])
        left = leaves(window(), policy, **own)
        assert set(left.columns) == {"prediction", "confidence", "latency_us", "pay", "light"}
        assert (left.n, left.covers) == (3, {"boot-a": (1, 3)})


def test_windows_keep_it_back_also_where_no_record_leaves() -> None:
    assert "age" not in leaves(window(), Policy(version=1), withheld=("age",)).columns


def test_an_inputs_name_holds_for_all_that_is_made_of_it() -> None:
    item = leaves(prediction(), withheld=("row",))
    assert item.aside.withheld == [0, 1]
    assert item.features[2] == 0.25
    assert set(leaves(window(), withheld=("row",)).columns) & set(NAMES) == {"light"}


def test_another_slots_name_takes_nothing() -> None:
    assert leaves(prediction(), withheld=("scales/age", "weight")) == prediction()
    assert leaves(window(), withheld=("scales/age", "weight")) == window()


@pytest.mark.parametrize("name", ["*", "reader/*"])
def test_a_star_is_everything(name: str) -> None:
    item = leaves(prediction(), withheld=(name,))
    assert all(map(math.isnan, item.features))
    assert set(leaves(window(), withheld=(name,)).columns) == {
        "prediction", "confidence", "latency_us"
    }  # fmt: skip


def test_without_features_none_leave() -> None:
    assert leaves(prediction(), record_features=False).features == []
    assert leaves(prediction(), Policy(1, records="all", features=False)).features == []


def test_hashes_are_equal_for_equal_values_and_on_one_device(tmp_path: Path) -> None:
    one, two = tmp_path / "one.key", tmp_path / "two.key"
    first = leaves(prediction(), hashed=("pay",), key=one)
    assert first.aside == Aside(hashed=[1])
    assert (first.features[0], first.features[2]) == (41.0, 0.25)
    hashed = first.features[1]
    assert hashed != 1234.5
    assert hashed == int(hashed) < 2**48
    assert leaves(prediction("b"), hashed=("pay",), key=one).features[1] == hashed
    assert leaves(prediction(), hashed=("pay",), key=two).features[1] != hashed
    other = prediction()
    other.features[1] = 1234.6
    assert leaves(other, hashed=("pay",), key=one).features[1] != hashed
    assert "pay" not in leaves(window(), hashed=("pay",), key=one).columns
    assert one.stat().st_mode & 0o777 == 0o600
    assert len(one.read_bytes()) == 32


def test_hashes_of_zeros_and_of_missing_values_are_each_one(tmp_path: Path) -> None:
    def of(value: float) -> float:
        item = prediction()
        item.features[0] = value
        left = leaves(item, hashed=("age",), key=tmp_path / "k")
        return float(left.features[0])

    assert of(0.0) == of(-0.0)
    assert of(math.nan) == of(-math.nan)
    assert len({of(0.0), of(math.nan), of(math.inf)}) == 3


@pytest.mark.parametrize("key", [None, Path("/proc/no/such/place")])
def test_without_a_key_what_would_be_hashed_is_withheld(key: Path | None) -> None:
    item = leaves(prediction(), hashed=("pay",), key=key)
    assert math.isnan(item.features[1])
    assert item.aside == Aside(withheld=[1])


def test_a_spoilt_key_is_made_anew(tmp_path: Path) -> None:
    key = tmp_path / "k"
    key.write_bytes(b"short")
    assert leaves(prediction(), hashed=("pay",), key=key).aside == Aside(hashed=[1])
    assert len(key.read_bytes()) == 32


def test_equal_values_of_two_features_have_two_hashes(tmp_path: Path) -> None:
    item = prediction()
    item.features[0] = item.features[1]
    left = leaves(item, hashed=("row",), key=tmp_path / "k")
    assert left.features[0] != left.features[1]


def test_one_gate_follows_policies_and_segments(tmp_path: Path) -> None:
    gate = Gate(AgentConfig(withheld=("age",)), tmp_path / "k")
    item = to_msgpack(prediction())

    def left(of: Header, policy: Policy) -> Any:
        return gate.leaving(item, of, policy)

    one, other = header(), header(names=["light", "pay", "age"])
    assert left(one, ALL).aside == Aside(withheld=[0])
    assert left(other, ALL).aside == Aside(withheld=[2])
    assert left(one, ALL).aside == Aside(withheld=[0])
    assert left(one, Policy(2, records="all", hashed=["pay"])).aside == Aside([], 0, [0], [1])
    assert left(one, Policy(3)) == Skip(1)
    assert left(one, ALL).aside == Aside(withheld=[0])


def test_a_record_that_no_message_can_hold_stays_here() -> None:
    assert leaves(prediction("x" * MAX_ITEM_BYTES)) == Skip(1)
    assert leaves(prediction("x" * (MAX_ITEM_BYTES - 200))) != Skip(1)
    big = Aside([RawInput("image", "UINT8", [1, 100_000], b"\x01" * 100_000)])
    assert leaves(prediction(aside=big)) == prediction()  # what stays of it does not count


def test_withheld_goes_before_hashed(tmp_path: Path) -> None:
    item = leaves(prediction(), withheld=("pay",), hashed=("row",), key=tmp_path / "k")
    assert item.aside == Aside(withheld=[1], hashed=[0])


def test_what_cannot_be_told_apart_stays_here() -> None:
    old = header(inputs=[])  # a segment of an agent that did not say what features are made of
    assert leaves(prediction(), of=old) == prediction()
    assert leaves(prediction(), of=old, withheld=("age",)).aside == Aside(withheld=[0])
    item = leaves(prediction(), of=old, withheld=("row",))  # may be an input's name
    assert all(map(math.isnan, item.features))
    assert not set(leaves(window(), of=old, withheld=("row",)).columns) & set(NAMES)
    bare = Header("boot-a", 1, "os-1", 1.0, [CONTEXT], [])
    assert leaves(prediction(), of=bare, withheld=("age",)).features == []
    assert not set(leaves(window(), of=bare, withheld=("age",)).columns) & set(NAMES)
    assert leaves(prediction(n=2), withheld=("light",)).features == []


# --- raw inputs -----------------------------------------------------------------------

WITH_INPUTS = Policy(version=1, records="all", inputs=True)
FULL = prediction(aside=Aside([ROW, IMAGE]))


def test_raw_inputs_leave_only_where_both_sides_say_so() -> None:
    assert leaves(FULL, WITH_INPUTS, record_inputs=True) == FULL
    assert leaves(FULL, WITH_INPUTS) == prediction()  # the device has not allowed it
    assert leaves(FULL, ALL, record_inputs=True) == prediction()


def test_inputs_that_are_too_large_are_left_out_and_that_is_said() -> None:
    item = leaves(FULL, WITH_INPUTS, record_inputs=True, input_max_bytes=107)
    assert item == prediction(aside=Aside(left_out_bytes=108))
    assert leaves(FULL, WITH_INPUTS, record_inputs=True, input_max_bytes=108) == FULL
    small = Policy(version=1, records="all", inputs=True, input_max_bytes=100)
    assert leaves(FULL, small, record_inputs=True).aside == Aside(left_out_bytes=108)


@pytest.mark.parametrize("setting", ["withheld", "hashed"])
@pytest.mark.parametrize("name", ["row", "age", "reader/pay"])
def test_an_input_of_which_something_is_kept_back_stays_whole(
    setting: str, name: str, tmp_path: Path
) -> None:
    own = {setting: (name,)}
    item = leaves(FULL, WITH_INPUTS, record_inputs=True, key=tmp_path / "k", **own)
    assert item.aside.inputs == [IMAGE]


def test_an_input_without_features_is_withheld_by_its_name() -> None:
    item = prediction(aside=Aside([RawInput("mask", "BOOL", [1, 1], b"\x01"), IMAGE]))
    left = leaves(item, WITH_INPUTS, record_inputs=True, withheld=("mask",))
    assert [tensor.name for tensor in left.aside.inputs] == ["image"]


def test_every_message_with_the_largest_inputs_can_be_sent(tmp_path: Path) -> None:
    config = AgentConfig(record_inputs=True, batch_max_bytes=96_000)
    asked = Policy(1, records="all", inputs=True, input_max_bytes=MAX_INPUT_BYTES)
    spool = writer(tmp_path, size=1 << 20)
    big = Aside([RawInput("image", "UINT8", [1, MAX_INPUT_BYTES], os.urandom(MAX_INPUT_BYTES))])
    items = [prediction(f"r-{n}", big if n % 3 else None) for n in range(10)]
    write(spool, *items)
    outbox = Outbox()
    spooler = Spooler(tmp_path, outbox, batch_bytes=config.batch_max_bytes, gate=Gate(config))
    spooler.look()
    outbox.credit = 64
    left: list[Item] = []
    while ready := spooler.batch(asked):
        boot, batch = ready
        assert len(to_msgpack(batch)) < min(MAX_MESSAGE_BYTES, MAX_ITEM_BYTES + 4096)
        outbox.sent(boot, batch.first, batch.last, 0.0)
        left += batch.items
    assert left == items
    spool.close()


# --- settings -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('records = "some"', "records none, sampled or all"),
        ("sample_rate = 1.5", "sample_rate of 0 to 1"),
        ("sample_rate = nan", "finite numbers"),
        ("input_max_bytes = 100000", "input_max_bytes of 0 to 65536"),
        ('withheld = "age"', "withheld to be a list"),
        ("withheld = [3]", "names in withheld"),
        ('hashed = [""]', "names in hashed"),
        ('withheld = ["reader/confidence"]', 'records = "none"'),
    ],
)
def test_settings_out_of_form_are_refused(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=says):
        load_config(file)


def test_a_policy_out_of_bounds_is_named() -> None:
    assert policy_fault(WITH_INPUTS) == ""
    assert "input_max_bytes" in policy_fault(Policy(1, input_max_bytes=MAX_INPUT_BYTES + 1))
    assert "withheld" in policy_fault(Policy(1, withheld=["x" * 129]))
    assert "hashed" in policy_fault(Policy(1, hashed=["x"] * 257))
    assert "hashed" in policy_fault(Policy(1, hashed=[""]))
