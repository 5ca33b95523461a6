"""Predictions for files: one JSON line a row, resumed where it was cut off; or for a directory that fills.

Asks the agent on this device, as any application does. A batch's request id is made of the file
and the number of its first row: asked again after a crash, it is counted once. Rows are written
to `OUT.part`, and renamed to `OUT` when all are there.
"""

import contextlib
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from agent.samples import SUFFIXES, batches
from skerry.errors import SkerryError, UnreachableError, UsageError
from skerry.io.client import Answer, Client, ModelInfo
from skerry.reading import NO_CLASS, read_predictions

__all__ = ["Asker", "patiently", "predict_files", "watch"]

T = TypeVar("T")

PART: Final = ".part"
OUT_DIR: Final = "predictions"
FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 5.0
STEADY_S: Final = 1.0  # a file that did not change for so long is whole
DIGITS: Final = 24
TELL_S: Final = 0.2
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Asker:
    """How one model is asked.

    Attributes:
        client: to the agent.
        model: its name.
        info: as the agent describes it.
        rows: of one request.
        patience_s: for an agent that does not answer, or is too busy.
        outputs: whether the model's outputs are written beside the predictions.
    """

    client: Client
    model: str
    info: ModelInfo
    rows: int
    patience_s: float
    outputs: bool = False

    def lines(self, file: Path, key: str, first: int, inputs: Arrays) -> bytes:
        """Return a batch's predictions as JSON lines.

        Args:
            file: where the rows are from.
            key: names the file among all request ids.
            first: number of the batch's first row.
            inputs: of the model.
        """
        answer = self._ask(f"{key}-{first}", inputs)
        reading = self.info.parameters.prediction
        classes, confidence = read_predictions(
            answer.outputs[reading.output], reading.kind, reading.threshold
        )
        names = reading.class_names
        made = []
        for place, (number, value) in enumerate(
            zip(classes.tolist(), confidence.tolist(), strict=True)
        ):
            line: dict[str, Any] = {"file": file.name, "row": first + place}
            if number != NO_CLASS:
                line["prediction"] = number
                if number < len(names):
                    line["class"] = names[number]
            line["confidence" if number != NO_CLASS else "value"] = value
            if self.outputs:
                line["outputs"] = {
                    name: np.asarray(values[place]).tolist()
                    for name, values in answer.outputs.items()
                    if values.dtype.kind != "O"
                }
            line["version"], line["bundle"] = answer.model_version, answer.bundle
            made.append(msgspec.json.encode(line) + b"\n")
        return b"".join(made)

    def _ask(self, id: str, inputs: Arrays) -> Answer:
        return patiently(lambda: self.client.predict(self.model, inputs, id=id), self.patience_s)


def patiently(ask: Callable[[], T], patience_s: float) -> T:
    """Ask again while the agent does not answer or is too busy, at growing intervals."""
    end, pause_s = time.monotonic() + patience_s, FIRST_PAUSE_S
    while True:
        try:
            return ask()
        except UnreachableError:
            if time.monotonic() + pause_s > end:
                raise
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def predict_files(asker: Asker, files: Sequence[Path], out: Path | None, *, again: bool) -> int:
    """Predict every row of the files; return how many.

    Args:
        asker: of the model.
        files: in the order of the output.
        out: where to; None for standard output, which is not resumed.
        again: also if `out` is there already.

    Raises:
        UsageError: `out` is there already.
        SkerryError: a file cannot be read, or the agent does not answer.
    """
    if out is None:
        return _write(asker, files, sys.stdout.buffer, 0)
    if out.exists() and not again:
        raise UsageError(f"{out} is there already; give --again to make it anew")
    part = out.with_name(out.name + PART)
    done = _resume(part, asker, files)
    with part.open("r+b" if part.exists() else "wb") as stream:
        stream.seek(0, os.SEEK_END)
        rows = _write(asker, files, stream, done)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(out)
    _note(part).unlink(missing_ok=True)
    return rows


def watch(
    asker: Asker, folder: Path, *, every_s: float, stop: Callable[[], bool]
) -> Iterator[tuple[Path, int | SkerryError]]:
    """Predict every file that comes into a directory, until told to stop.

    Results lie in `folder/predictions`, as does what was wrong with a file, in words. A file is
    taken once it has not changed for a second, and again if it changes later.

    Yields:
        Each file, and how many rows it had, or what was wrong.
    """
    results = folder / OUT_DIR
    results.mkdir(exist_ok=True)
    seen: dict[Path, tuple[int, int]] = {}
    while not stop():
        for file in sorted(folder.iterdir()):
            if file.suffix.lower() not in SUFFIXES or file.name.startswith("."):
                continue
            with contextlib.suppress(OSError):  # it has gone meanwhile
                about = file.stat()
                if time.time() - about.st_mtime < STEADY_S:
                    continue
                now = about.st_size, about.st_mtime_ns
                out, wrong = (results / f"{file.name}{end}" for end in (".jsonl", ".error"))
                told = next((p for p in (out, wrong) if p.exists()), None)
                if seen.get(file) == now or (
                    file not in seen and told and told.stat().st_mtime >= about.st_mtime
                ):
                    continue
                try:
                    rows: int | SkerryError = predict_files(asker, [file], out, again=True)
                    wrong.unlink(missing_ok=True)
                except UnreachableError as error:
                    yield file, error  # the agent's matter; the file is tried again
                    continue
                except SkerryError as error:
                    wrong.write_text(f"{error}\n")
                    part = out.with_name(out.name + PART)
                    for left in (out, part, _note(part)):
                        left.unlink(missing_ok=True)
                    rows = error
                seen[file] = now
                yield file, rows
            if stop():
                return
        time.sleep(every_s)


def _write(asker: Asker, files: Iterable[Path], stream: IO[bytes], done: int) -> int:
    """Write the rows behind the first `done`; return how many there are in all."""
    rows = 0
    tell = _Progress()
    for file in files:
        key = _key(file)
        first = 0
        for inputs in batches(file, asker.info.inputs, asker.rows):
            many = len(next(iter(inputs.values())))
            if rows >= done:
                stream.write(asker.lines(file, key, first, inputs))
                stream.flush()
            rows, first = rows + many, first + many
            tell(rows)
    tell.end()
    return rows


def _resume(part: Path, asker: Asker, files: Sequence[Path]) -> int:
    """Return how many whole rows of these files are there already; cut off what is torn.

    They are whole batches: of one that was half written, the rows are written again.
    """
    about = {
        "files": [[file.name, _key(file)] for file in files if file.exists()],
        "rows": asker.rows,
        "bundle": asker.info.parameters.bundle,
        "outputs": asker.outputs,
    }
    wanted = msgspec.json.encode(about)
    note = _note(part)
    with contextlib.suppress(FileNotFoundError):
        if note.read_bytes() == wanted:
            return _whole_batches(part, asker, files)
    part.unlink(missing_ok=True)
    note.write_bytes(wanted)
    return 0


def _whole_batches(part: Path, asker: Asker, files: Sequence[Path]) -> int:
    lines = part.read_bytes().split(b"\n")[:-1] if part.exists() else []
    done = 0
    for file in files:
        for inputs in batches(file, asker.info.inputs, asker.rows):
            many = len(next(iter(inputs.values())))
            if done + many > len(lines):
                break
            done += many
        else:
            continue
        break
    if part.exists():
        os.truncate(part, sum(len(line) + 1 for line in lines[:done]))
    return done


def _note(part: Path) -> Path:
    """Return the file that says what a part is of."""
    return part.with_name(part.name + ".of")


def _key(file: Path) -> str:
    """Return a name for a file's bytes, of which request ids are made."""
    with contextlib.suppress(OSError), file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:DIGITS]
    return ""


class _Progress:
    """Says on a terminal how many rows are done, and how fast."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._began = self._told = time.monotonic()
        self._rows = 0

    def __call__(self, rows: int) -> None:
        self._rows = rows
        if self._shown and time.monotonic() - self._told >= TELL_S:
            self._told = time.monotonic()
            self._say("\r")

    def end(self) -> None:
        """Say it a last time."""
        if self._shown:
            self._say("\r")
            sys.stderr.write("\n")

    def _say(self, before: str) -> None:
        rate = self._rows / max(time.monotonic() - self._began, 1e-3)
        sys.stderr.write(f"{before}{self._rows:,} rows, {rate:,.0f} a second  ")
        sys.stderr.flush()
