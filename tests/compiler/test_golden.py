"""The golden set covers the classes, stays small, and tolerates what was measured."""

import numpy as np
import pytest

from compiler.golden import choose_samples, make_golden
from compiler.ports import Port, Ports
from compiler.runtime import Outputs
from skerry.canonical import from_msgpack
from skerry.errors import RefusedError
from skerry.manifest import Golden, PredictionSpec
from skerry.reading import read_predictions

ARGMAX = PredictionSpec("y", "argmax")


def outputs(n: int = 200, classes: int = 5) -> Outputs:
    rng = np.random.default_rng(5)
    return {"y": rng.dirichlet(np.full(classes, 0.3), n).astype(np.float32)}


def golden(rows: np.ndarray, reference: Outputs, *others: Outputs) -> tuple[Golden, bytes]:
    ports = Ports((Port("x", "x", rows.dtype, (-1, *rows.shape[1:])),))
    data = make_golden(ports, {"x": rows}, reference, others, ARGMAX)
    return from_msgpack(data, Golden, limit=5 << 20), data


ROWS = np.random.default_rng(6).normal(size=(200, 3)).astype(np.float32)


def test_every_predicted_class_is_covered_by_sure_and_unsure_rows() -> None:
    output = outputs()["y"]
    chosen = choose_samples(output, ARGMAX, 48)
    classes, confidence = read_predictions(output, "argmax")
    assert set(classes[chosen]) == set(classes)
    for c in range(5):
        mine = confidence[chosen][classes[chosen] == c]
        assert mine.min() == confidence[classes == c].min()
        assert mine.max() == confidence[classes == c].max()


def test_a_tight_budget_still_covers_every_class() -> None:
    output = outputs()["y"]
    chosen = choose_samples(output, ARGMAX, 5)
    assert len(set(output[chosen].argmax(axis=1))) == 5


def test_it_holds_the_inputs_and_fp32s_outputs_bit_by_bit() -> None:
    reference = outputs()
    found, _ = golden(ROWS, reference)
    x, y = found.inputs[0], found.outputs[0]
    chosen = choose_samples(reference["y"], ARGMAX, 48)
    assert (x.name, x.datatype, x.shape) == ("x", "FP32", [len(chosen), 3])
    assert x.data == ROWS[chosen].astype("<f4").tobytes()
    assert y.data == reference["y"][chosen].astype("<f4").tobytes()


def test_tolerance_comes_from_the_variants_that_ship() -> None:
    reference = outputs()
    exact, _ = golden(ROWS, reference)
    shifted = {"y": reference["y"] + np.float32(0.01)}
    loose, _ = golden(ROWS, reference, shifted)
    assert exact.atol < 0.001
    assert 0.02 <= loose.atol < 0.03
    assert loose.max_disagree == exact.max_disagree == pytest.approx(1 / 15)


def test_rows_on_which_variants_differ_raise_what_may_differ() -> None:
    reference = outputs()
    flipped = {"y": reference["y"][:, ::-1].copy()}
    found, _ = golden(ROWS, reference, flipped)
    assert found.max_disagree > 0.5


def test_it_stays_below_its_bound_and_takes_fewer_rows_of_large_inputs() -> None:
    rows = np.zeros((200, 100, 100), np.float32)
    found, data = golden(rows, outputs())
    assert len(data) <= 256 * 1024
    assert found.inputs[0].shape[0] == 6


def test_one_large_row_is_taken_and_a_huge_one_refused() -> None:
    found, _ = golden(np.zeros((200, 300, 300), np.float32), outputs())
    assert found.inputs[0].shape[0] == 1
    with pytest.raises(RefusedError, match="one sample has"):
        golden(np.broadcast_to(np.float32(0), (200, 1100, 1100)), outputs())
