"""The inputs of a model, and the arrays that go into them.

A sample is one entry along the first axis of every array of a data set. Most models
take many samples at once, along a batch axis of their own; some take each by itself
(`batch = false`: sequences, where the first axis is time), and some have inputs that no
data set has, such as the state of a recurrent cell, which start from a constant.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from compiler.recipe import InputNotes
from skerry.errors import UsageError
from skerry.manifest import TensorSpec

__all__ = ["DTYPES", "Arrays", "Port", "Ports", "count"]

BATCH: Final = 32  # samples of one call, where the model leaves it open
CALL_BYTES: Final = 1 << 18  # of inputs in one call: large samples go in smaller batches

Arrays = Mapping[str, NDArray[Any]]  # input -> [n, ...]

DTYPES: Final[dict[str, type[np.generic]]] = {
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "BOOL": np.bool_,
    "BYTES": np.object_,
}


@dataclass(frozen=True, slots=True)
class Port:
    """One input of a model.

    Attributes:
        name: as the model says it.
        array: of the data sets that goes into it.
        columns: arrays of one number a sample that go into it side by side, instead of `array`.
        dtype: of the tensor.
        shape: -1 is open; the first axis is the batch where `batched`.
        batched: whether samples go in along the first axis.
        constant: what goes in always, for an input that no data set has.
    """

    name: str
    array: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    batched: bool = True
    constant: NDArray[Any] | None = None
    columns: tuple[str, ...] = ()

    @classmethod
    def of(cls, spec: TensorSpec, notes: InputNotes | None = None) -> "Port":
        """Return the port of an input.

        Raises:
            UsageError: samples cannot go into it.
        """
        notes = notes or InputNotes()
        kind = DTYPES.get(spec.datatype)
        if kind is None:
            raise UsageError(
                f"expected input {spec.name!r} to be of a plain type, it is {spec.datatype}"
            )
        dtype, shape = np.dtype(kind), tuple(spec.shape)
        array = notes.array or spec.name
        if notes.fill is not None:
            wanted = tuple(notes.shape or (1 if size < 0 else size for size in shape))
            fits = len(wanted) == len(shape) and all(
                have in (-1, want) for have, want in zip(shape, wanted, strict=True)
            )
            if not fits:
                raise UsageError(
                    f"inputs.{spec.name}: expected a shape like {list(shape)}, got {list(wanted)}"
                )
            return cls(spec.name, array, dtype, shape, False, np.full(wanted, notes.fill, dtype))
        if notes.batch and not shape:
            raise UsageError(
                f"expected input {spec.name!r} to have a batch axis, it is a scalar; "
                f"give it a constant with inputs.{spec.name}.fill"
            )
        return cls(spec.name, array, dtype, shape, notes.batch, columns=tuple(notes.columns))

    def pick(self, found: Arrays, where: str) -> NDArray[Any]:
        """Return the samples of this input from the arrays of a data set.

        Raises:
            UsageError: an array is missing, or columns cannot stand side by side.
        """
        names = self.columns or (self.array,)
        for name in names:
            if name not in found:
                raise UsageError(
                    f"expected an array {name!r} in {where}, found {', '.join(sorted(found))}; "
                    f"name another with inputs.{self.name}.array, or several with .columns"
                )
        if not self.columns:
            return found[self.array]
        parts = [found[name] for name in names]
        if any(part.ndim != 1 or part.dtype.kind not in "iufb" for part in parts):
            raise UsageError(f"inputs.{self.name}.columns: expected columns of numbers in {where}")
        if len({len(part) for part in parts}) > 1:
            raise UsageError(
                f"inputs.{self.name}.columns: expected columns of one length in {where}"
            )
        side_by_side = np.stack(parts, axis=1)
        kind = self.dtype.kind
        return side_by_side.astype(self.dtype) if kind == "f" else side_by_side

    def fit(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return samples in the input's type.

        Args:
            values: [n, ...], of a type that converts without loss of kind.

        Raises:
            UsageError: another shape or kind of number.
        """
        wanted = self.shape[1:] if self.batched else self.shape
        got = values.shape[1:]
        fits = len(got) == len(wanted) and all(
            want in (-1, have) for want, have in zip(wanted, got, strict=True)
        )
        text = self.dtype.kind == "O" and values.dtype.kind in "OUS"
        if not fits or not (text or np.can_cast(values.dtype, self.dtype, "same_kind")):
            raise UsageError(
                f"expected samples of {self.dtype} {list(wanted)} for input {self.name!r}, "
                f"got {values.dtype} {list(got)}; prepare the data as the model takes it"
            )
        if text:
            return np.ascontiguousarray(values, dtype=self.dtype)
        with np.errstate(over="ignore"):  # told below
            fitted = np.ascontiguousarray(values, dtype=self.dtype)
        lost = fitted != values if self.dtype.kind in "iu" else np.isinf(fitted) & ~np.isinf(values)
        if self.dtype.kind in "iuf" and values.dtype.kind in "iuf" and lost.any():
            raise UsageError(
                f"expected numbers that {self.dtype} can hold for input {self.name!r}, got "
                f"{values[lost].flat[0]} in sample {np.argwhere(lost)[0][0]}"
            )
        return fitted


@dataclass(frozen=True, slots=True)
class Ports:
    """All inputs of a model."""

    ports: tuple[Port, ...]

    @classmethod
    def of(
        cls, specs: Sequence[TensorSpec], notes: Mapping[str, InputNotes] | None = None
    ) -> "Ports":
        """Return the ports of a model's inputs.

        Raises:
            UsageError: samples cannot go into one, or the notes name an input that is not there.
        """
        notes = notes or {}
        names = [spec.name for spec in specs]
        for name in notes:
            if name not in names:
                raise UsageError(
                    f"inputs.{name}: the model has no such input; it has {', '.join(names)}"
                )
        ports = tuple(Port.of(spec, notes.get(spec.name)) for spec in specs)
        if not any(port.constant is None for port in ports):
            raise UsageError("expected an input that data goes into; every one has a fill")
        return cls(ports)

    @property
    def fed(self) -> tuple[Port, ...]:
        """The inputs that data goes into."""
        return tuple(port for port in self.ports if port.constant is None)

    @property
    def by_sample(self) -> bool:
        """Whether each sample goes in by itself, without a batch axis."""
        return any(not port.batched for port in self.fed)

    @property
    def fixed(self) -> int:
        """The batch size that the model demands; 0 where it is open."""
        sizes = {port.shape[0] for port in self.fed if port.batched and port.shape[0] > 0}
        if len(sizes) > 1:
            raise UsageError(
                f"expected inputs with one batch size, the model demands {sorted(sizes)}; "
                "give inputs without a batch axis `batch = false`"
            )
        return sizes.pop() if sizes else 0

    def step(self, arrays: Arrays) -> int:
        """Return how many samples go into one call."""
        if self.by_sample:
            return 1
        if self.fixed:
            return self.fixed
        if len(self.fed) < len(self.ports):
            return 1  # a constant may have a batch axis too, and is made for one sample
        n = count(arrays)
        sample = sum(values.nbytes for values in arrays.values()) // max(1, n)
        return max(1, min(BATCH, n, CALL_BYTES // max(1, sample)))

    def fit(self, found: Arrays, where: str) -> dict[str, NDArray[Any]]:
        """Return a data set's samples by input, in the inputs' types.

        Args:
            found: the arrays of a data set.
            where: its name, for messages.

        Raises:
            UsageError: an array is missing, empty, of another shape, or they differ in length.
        """
        fitted: dict[str, NDArray[Any]] = {}
        for port in self.fed:
            values = port.pick(found, where)
            if values.ndim < 1 or len(values) == 0:
                raise UsageError(f"expected samples in {where}, input {port.name!r} gets none")
            fitted[port.name] = port.fit(values)
        lengths = {name: len(values) for name, values in fitted.items()}
        if len(set(lengths.values())) > 1:
            raise UsageError(f"expected arrays of one length in {where}, got {lengths}")
        return fitted

    def call(self, arrays: Arrays, start: int, stop: int) -> tuple[dict[str, NDArray[Any]], int]:
        """Return one call's tensors, and how many samples at their end only fill a fixed batch."""
        missing = 0
        feed: dict[str, NDArray[Any]] = {}
        for port in self.ports:
            if port.constant is not None:
                feed[port.name] = port.constant
                continue
            part = arrays[port.name][start:stop]
            if self.by_sample:
                feed[port.name] = part[:1] if port.batched else part[0]
                continue
            if self.fixed and len(part) < self.fixed:
                missing = self.fixed - len(part)
                part = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)])
            feed[port.name] = part
        return feed, missing


def count(arrays: Arrays) -> int:
    """Return how many samples there are."""
    return len(next(iter(arrays.values())))
