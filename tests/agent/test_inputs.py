"""Raw inputs go into records where they are asked for, and are the first to go."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.config import AgentConfig
from agent.inputs import LOOK_S, Inputs
from agent.leaving import Gate, input_settings
from agent.observe import Observer, RecentIds
from agent.recover import _entries, foreign_contexts
from agent.segments import CountPlan, Header, boots, iter_records, segments
from agent.serve_protocol import InputSettings, Settings, frame, frames_from_control
from agent.spool import Spool, used_bytes
from skerry.canonical import from_msgpack, to_msgpack
from skerry.manifest import FeatureSpec, TensorSpec
from skerry.records import Aside, Context, Prediction, RawInput, in_sample
from skerry.tensors import from_raw
from skerry.wire import Policy

CONTEXT = Context("reader", "reader", "1.0.0", "sha256:" + "0" * 64, "fp32")
NAMES, MADE_OF = ["age", "light"], ["row", "image"]
PLAN = CountPlan(NAMES, [], {}, MADE_OF)
MANIFEST: Any = type(
    "M", (),
    {
        "inputs": [TensorSpec("row", "FP32", [-1, 2]), TensorSpec("image", "UINT8", [-1, 9]), TensorSpec("words", "BYTES", [-1, 1])],
        "features": [FeatureSpec("age", "column.0", "row"), FeatureSpec("light", "mean", "image")],
    },
)  # fmt: skip
ALL = InputSettings(1.0, 1 << 16)


def tensors(n: int = 1) -> dict[str, Any]:
    words = np.array([[f"wörd{i}"] for i in range(n)], object)
    return {
        "row": np.arange(2 * n, dtype=np.float32).reshape(n, 2),
        "image": np.arange(9 * n, dtype=np.uint8).reshape(n, 9),
        "words": words,
    }


class Rig:
    def __init__(self, root: Path, settings: InputSettings, max_bytes: int = 1 << 20) -> None:
        header = Header("boot-a", 1, "os-1", 60.0, [CONTEXT], [PLAN])
        self.spool = Spool(root, header, segment_bytes=32 << 10, max_bytes=max_bytes)
        self.now = 0.0
        models = [("reader", MANIFEST)]
        self.inputs = Inputs(self.spool, models, settings, clock=lambda: self.now)
        self.observer = Observer(self.spool, [PLAN], 60.0, RecentIds(1000))

    def predict(self, id: str, n: int = 1) -> None:
        take = self.inputs.of(0, tensors(n), n)
        if n == 1:
            self.observer.record(
                0, id, at=1.0, prediction=1, confidence=0.5, latency_us=9, features=[0.0, 4.0],
                take=take,
            )  # fmt: skip
        else:
            self.observer.record_table(
                0, id, at=1.0, latency_us=9, table=np.zeros((n, 5)), take=take
            )

    def asides(self) -> dict[str, Aside | None]:
        return {item.id: item.aside for item in recorded(self.spool.root)}


def recorded(root: Path) -> list[Prediction]:
    return [
        from_msgpack(payload, Prediction)
        for boot in boots(root)
        for path in segments(root / boot)
        for _, payload in iter_records(path)
        if payload[1:3] == b"\xa1p"
    ]


def read(aside: Aside | None) -> dict[str, Any]:
    assert aside is not None
    return {t.name: from_raw(t.data, t.datatype, t.shape).tolist() for t in aside.inputs}


def test_without_settings_nothing_is_taken(tmp_path: Path) -> None:
    rig = Rig(tmp_path, InputSettings())
    assert rig.inputs.of(0, tensors(), 1) is None
    rig.predict("a")
    rig.predict("b", 2)
    assert set(rig.asides().values()) == {None}


def test_every_row_has_its_own_part(tmp_path: Path) -> None:
    rig = Rig(tmp_path, ALL)
    rig.predict("one")
    rig.predict("many", 3)
    found = rig.asides()
    assert read(found["one"]) == {
        "row": [[0.0, 1.0]], "image": [list(range(9))], "words": [["wörd0".encode()]]
    }  # fmt: skip
    assert read(found["many#2"])["row"] == [[4.0, 5.0]]
    assert read(found["many#1"])["words"] == [["wörd1".encode()]]
    assert rig.inputs.taken == 4


def test_an_input_that_holds_for_all_rows_goes_with_each(tmp_path: Path) -> None:
    rig = Rig(tmp_path, ALL)
    given = tensors(3) | {"image": tensors(1)["image"]}
    take = rig.inputs.of(0, given, 3)
    assert take is not None
    assert read(take("a#2", 2))["image"] == [list(range(9))]


def test_a_share_is_that_of_the_records(tmp_path: Path) -> None:
    rig = Rig(tmp_path, InputSettings(0.3, 1 << 16))
    for n in range(100):
        rig.predict(f"r-{n}")
    found = rig.asides()
    assert {id for id, aside in found.items() if aside} == {
        id for id in found if in_sample(id, 0.3)
    }
    assert 15 < rig.inputs.taken < 45


def test_what_is_withheld_is_not_even_written(tmp_path: Path) -> None:
    rig = Rig(tmp_path, InputSettings(1.0, 1 << 16, ["age", "reader/words"]))
    rig.predict("a")
    assert set(read(rig.asides()["a"])) == {"image"}
    rig.inputs.set(InputSettings(1.0, 1 << 16, ["*"]))
    assert rig.inputs.of(0, tensors(), 1) is None


@pytest.mark.parametrize(("most", "taken"), [(27, True), (26, False), (16, False), (0, False)])
def test_inputs_above_the_limit_are_left_out_and_that_is_said(
    tmp_path: Path, most: int, taken: bool
) -> None:
    rig = Rig(tmp_path, InputSettings(1.0, most))
    rig.predict("a")
    aside = rig.asides()["a"]
    assert aside is not None
    assert bool(aside.inputs) is taken
    assert (aside.left_out_bytes > most) is not taken
    assert (rig.inputs.taken, rig.inputs.left_out) == (int(taken), int(not taken))
    assert f"skerry_inputs_left_out_total {int(not taken)}\n" in rig.inputs.metrics()


def test_inputs_take_half_of_the_quota_and_no_record_is_lost_for_them(tmp_path: Path) -> None:
    rig = Rig(tmp_path, ALL, max_bytes=512 << 10)
    for n in range(600):  # with all their inputs 560 kB, without 40
        given = tensors() | {"image": np.zeros((1, 800), np.uint8)}
        rig.observer.record(
            0, f"r-{n}", at=1.0, prediction=1, confidence=0.5, latency_us=9, features=[0.0, 4.0],
            take=rig.inputs.of(0, given, 1),
        )  # fmt: skip
        rig.now += LOOK_S / 50
    assert rig.spool.lost_total == 0
    assert rig.inputs.left_out > 200
    assert rig.inputs.taken > 200
    assert len(rig.asides()) == 600
    assert used_bytes(tmp_path) <= (512 << 10) // 2 + (64 << 10)


def test_between_two_looks_at_the_disk_what_was_taken_counts(tmp_path: Path) -> None:
    rig = Rig(tmp_path, ALL, max_bytes=512 << 10)
    for n in range(100):  # 800 kB, at one moment
        take = rig.inputs.of(0, tensors() | {"image": np.zeros((1, 8000), np.uint8)}, 1)
        assert take is not None
        take(f"r-{n}", 0)
    assert 10 < rig.inputs.taken < 32


def test_an_id_that_was_seen_costs_nothing_again(tmp_path: Path) -> None:
    rig = Rig(tmp_path, ALL)
    rig.predict("a")
    rig.predict("a")
    assert rig.inputs.taken == 1


def test_who_rebuilds_counts_holds_no_inputs(tmp_path: Path) -> None:
    rig = Rig(tmp_path, ALL)
    rig.predict("a")
    (path,) = segments(tmp_path / "boot-a")
    ((_, _, item),) = _entries(path)  # all of a boot is held so
    assert isinstance(item, Prediction)
    assert item.aside is None
    assert foreign_contexts(tmp_path)[CONTEXT].inputs == MADE_OF


# --- from policy to serve ---------------------------------------------------------------


def test_serve_records_what_may_leave_and_no_more() -> None:
    asked = Policy(1, records="sampled", sample_rate=0.2, inputs=True, withheld=["age"])
    own = AgentConfig(record_inputs=True, hashed=("pay",), input_max_bytes=100)
    assert input_settings(asked, own) == InputSettings(0.2, 100, ["age", "pay"])
    assert input_settings(asked, AgentConfig()) == InputSettings()
    every = Policy(1, records="all", inputs=True)
    assert input_settings(every, own).share == 1.0
    assert input_settings(every, AgentConfig(record_inputs=True, records="none")).share == 0.0
    assert input_settings(Policy(1, inputs=True), own).share == 0.0
    assert input_settings(Policy(1, records="all"), own).share == 0.0


def test_settings_come_whole_through_the_socket() -> None:
    said = Settings(60.0, InputSettings(0.5, 1000, ["reader/age"]))
    assert frames_from_control().feed(frame(said)) == [said]


def test_what_was_recorded_passes_the_gate(tmp_path: Path) -> None:
    rig = Rig(tmp_path, ALL)
    rig.predict("a")
    (item,) = recorded(tmp_path)
    header = Header("boot-a", 1, "os-1", 60.0, [CONTEXT], [PLAN])
    policy = Policy(1, records="all", inputs=True)
    gate = Gate(AgentConfig(record_inputs=True))
    assert gate.leaving(to_msgpack(item), header, policy) == item
    assert item.aside is not None
    assert isinstance(item.aside.inputs[0], RawInput)
