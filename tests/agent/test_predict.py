"""Predictions of files, by a real serving process: every row once, whatever comes in between."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import agent.predict
from agent.__main__ import main
from agent.predict import Asker, patiently, predict_files
from agent.samples import batches
from skerry.errors import FormatError, NotFoundError, UnreachableError, UsageError
from skerry.io.client import Client, Port
from tests.fakes.serving import (
    ROOT,
    Release,
    Serve,
    eventually,
    images,
    linear_release,
    listen,
    recorded_ids,
    value_release,
)

TABLE = [Port("x", "FP32", [-1, 3])]
TWO = [Port("a", "FP32", [-1]), Port("b", "INT64", [-1, 1])]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return linear_release(tmp_path_factory.mktemp("release"))


@pytest.fixture
def serve(tmp_path: Path, reader: Release) -> Iterator[Serve]:
    table = value_release(tmp_path / "table", "table")
    with listen() as listener, Serve(tmp_path / "serve", listener, reader, table) as serve:
        yield serve.start()


@pytest.fixture
def asker(serve: Serve) -> Iterator[Asker]:
    with Client(serve.url) as client:
        yield Asker(client, "reader", client.describe("reader"), rows=4, patience_s=1.0)


def save(folder: Path, n: int, seed: int = 0) -> Path:
    file = folder / f"images-{seed}.npy"
    np.save(file, images(n, seed))
    return file


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_every_row_has_a_line_that_says_what_answered(
    tmp_path: Path, asker: Asker, reader: Release, serve: Serve
) -> None:
    out = tmp_path / "out.jsonl"
    files = [save(tmp_path, 10), save(tmp_path, 3, seed=1)]
    assert predict_files(asker, files, out, again=False) == 13
    found = lines(out)
    expected = [*reader.run(images(10)).argmax(1), *reader.run(images(3, 1)).argmax(1)]
    assert [line["prediction"] for line in found] == [int(number) for number in expected]
    assert [line["row"] for line in found] == [*range(10), *range(3)]
    assert {line["class"] for line in found} <= {"low", "middle", "high"}
    assert {(line["version"], line["bundle"]) for line in found} == {("1.0.0", reader.slot.bundle)}
    assert not out.with_name("out.jsonl.part").exists()
    assert len(recorded_ids(serve.spool)) == 13
    with pytest.raises(UsageError, match="--again"):
        predict_files(asker, files, out, again=False)


@pytest.mark.parametrize("torn", [0, 1, 17])
def test_what_was_cut_off_goes_on_and_nothing_is_counted_twice(
    tmp_path: Path, asker: Asker, serve: Serve, monkeypatch: pytest.MonkeyPatch, torn: int
) -> None:
    file, out = save(tmp_path, 11), tmp_path / "out.jsonl"
    asked = 0
    ask = Asker._ask

    def broken(self: Asker, id: str, inputs: Any) -> Any:
        nonlocal asked
        asked += 1
        answer = ask(self, id, inputs)
        if asked == 3:
            raise KeyboardInterrupt  # answered, and not written
        return answer

    monkeypatch.setattr(Asker, "_ask", broken)
    with pytest.raises(KeyboardInterrupt):
        predict_files(asker, [file], out, again=False)
    part = out.with_name("out.jsonl.part")
    assert len(lines(part)) == 8
    with part.open("r+b") as stream:  # as a power cut leaves it
        stream.truncate(part.stat().st_size - torn)
    assert predict_files(asker, [file], out, again=False) == 11
    assert [line["row"] for line in lines(out)] == list(range(11))
    assert asked == (4 if torn == 0 else 5)
    assert set(recorded_ids(serve.spool).values()) == {1}
    assert len(recorded_ids(serve.spool)) == 11
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.jsonl"]


def test_a_part_of_other_files_is_not_gone_on_with(tmp_path: Path, asker: Asker) -> None:
    out = tmp_path / "out.jsonl"
    part = out.with_name("out.jsonl.part")
    part.write_text('{"row": 0}\n' * 50)
    out.with_name("out.jsonl.part.of").write_text("{}")
    assert predict_files(asker, [save(tmp_path, 5)], out, again=False) == 5
    assert len(lines(out)) == 5


def test_an_agent_that_is_not_there_is_waited_for(
    tmp_path: Path, asker: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, failures = asker.client.predict, [UnreachableError("429"), UnreachableError("gone")]

    def sometimes(*args: Any, **named: Any) -> Any:
        if failures:
            raise failures.pop()
        return ask(*args, **named)

    monkeypatch.setattr(asker.client, "predict", sometimes)
    assert predict_files(asker, [save(tmp_path, 2)], tmp_path / "o", again=False) == 2

    def never(*_: Any, **__: Any) -> Any:
        raise UnreachableError("429")

    monkeypatch.setattr(asker.client, "predict", never)
    with pytest.raises(UnreachableError):
        predict_files(asker, [save(tmp_path, 2, 5)], tmp_path / "p", again=False)


# --- the command ----------------------------------------------------------------------------


def test_the_command_writes_to_standard_output(
    tmp_path: Path, serve: Serve, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    file = tmp_path / "t.csv"
    file.write_text("position\n0\n3\n2\n")
    assert main(["predict", "table", str(file), "--url", serve.url, "--outputs"]) == 0
    found = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    assert [line["value"] for line in found] == [0.0, 3.0, 2.0]
    assert [line["outputs"]["entry"] for line in found] == [0.0, 3.0, 2.0]
    assert "prediction" not in found[0]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["reader"], 2, "expected files, or --watch DIR"),
        (["reader", "x.npy", "--watch", "."], 2, "not both"),
        (["reader", "x.npy", "--batch", "0"], 2, "--batch of 1 to 4096"),
        (["unknown", "x.npy"], 3, "expected a model of"),
        (["reader", "missing.npy"], 3, "there is none"),
        (["reader", "--watch", "nowhere"], 3, "expected a directory"),
        (["reader", "x.npy", "--url", "ftp://x"], 2, "expected http://"),
        (["reader", "x.npy", "--url", "http://127.0.0.1:9", "--patience", "0"], 8, "no answer"),
    ],
)
def test_mistakes_are_told_in_one_line(
    serve: Serve, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    url = [] if "--url" in arguments else ["--url", serve.url]
    assert main(["predict", *arguments, *url]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_directory_that_fills_is_predicted_until_the_end(tmp_path: Path, serve: Serve) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    save(folder, 3)
    (folder / "bad.npy").write_bytes(b"no array")
    (folder / "notes.txt").write_text("not for us")
    command = [sys.executable, "-m", "agent", "predict", "reader", "--watch", str(folder)]
    process = subprocess.Popen(
        [*command, "--url", serve.url], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    try:
        results = folder / "predictions"
        eventually(lambda: (results / "images-0.npy.jsonl").exists())
        eventually(lambda: (results / "bad.npy.error").exists())
        assert "cannot be read as .npy" in (results / "bad.npy.error").read_text()
        save(folder, 5, seed=2)
        eventually(lambda: (results / "images-2.npy.jsonl").exists())
        assert len(lines(results / "images-2.npy.jsonl")) == 5
        np.save(folder / "images-0.npy", images(7))  # another one of that name
        eventually(lambda: len(lines(results / "images-0.npy.jsonl")) == 7)
    finally:
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=10)
    assert process.returncode == 0
    assert "images-0.npy: 3 rows" in said
    assert len(list(results.iterdir())) == 3


def test_a_broken_line_to_the_reader_ends_quietly(tmp_path: Path, serve: Serve) -> None:
    file = save(tmp_path, 4000)
    command = [sys.executable, "-m", "agent", "predict", "reader", str(file), "--url", serve.url]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()  # as `head -1` does
        assert process.stderr is not None
        error = process.stderr.read()
        assert process.wait(20) == 1
    assert "Traceback" not in error


# --- files ----------------------------------------------------------------------------------


def test_tables_are_columns_side_by_side_or_by_name(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("u,v,w\n1,2,3\n4,5,6\n7,8,9\n")
    found = list(batches(file, TABLE, 2))
    assert [batch["x"].tolist() for batch in found] == [[[1, 2, 3], [4, 5, 6]], [[7, 8, 9]]]
    assert found[0]["x"].dtype == np.float32
    file.write_text("b,a,ignored\n1,0.5,x\n2,0.25,y\n")
    (batch,) = batches(file, TWO, 8)
    assert batch["a"].tolist() == [0.5, 0.25]
    assert batch["b"].tolist() == [[1], [2]]


def test_parquet_has_columns_too(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    table = pyarrow.table({"x": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]})
    parquet.write_table(table, tmp_path / "t.parquet")
    found = list(batches(tmp_path / "t.parquet", TABLE, 2))
    assert [len(batch["x"]) for batch in found] == [2, 1]
    assert found[1]["x"].tolist() == [[7, 8, 9]]


@pytest.mark.parametrize(
    ("shape", "datatype", "limits", "wanted"),
    [
        ([-1, 1, 2, 3], "FP32", None, (1, 1, 2, 3)),
        ([-1, 3, 2, 3], "FP32", None, (1, 3, 2, 3)),
        ([-1, 2, 3, 3], "UINT8", None, (1, 2, 3, 3)),
        ([-1, -1, -1, 3], "FP32", (0.0, 255.0), (1, 2, 3, 3)),
        ([-1, 2, 3], "FP32", None, (1, 2, 3)),
    ],
)
def test_pictures_come_as_the_model_takes_them(
    tmp_path: Path, shape: list[int], datatype: str, limits: Any, wanted: tuple[int, ...]
) -> None:
    Image.new("RGB", (3, 2), (255, 255, 255)).save(tmp_path / "white.png")
    (batch,) = batches(tmp_path / "white.png", [Port("x", datatype, shape, limits)], 8)
    assert batch["x"].shape == wanted
    assert batch["x"].max() == (255 if limits or datatype == "UINT8" else 1.0)


@pytest.mark.parametrize(
    ("name", "make", "error", "message"),
    [
        ("a.txt", lambda p: p.write_text("x"), UsageError, "expected a file of .npy"),
        ("none.npy", lambda _: None, NotFoundError, "there is none"),
        ("a.npy", lambda p: p.write_bytes(b"x"), FormatError, "cannot be read as .npy"),
        ("a.npy", lambda p: np.save(p, np.zeros((2, 4))), UsageError, r"samples of shape \[3\]"),
        ("a.npy", lambda p: np.save(p, np.zeros(())), UsageError, "as many samples each"),
        ("a.npy", lambda p: np.save(p, np.array([["x"] * 3])), UsageError, "expected FP32"),
        ("a.npz", lambda p: np.savez(p, y=np.zeros((2, 3))), UsageError, "'x' is missing"),
        ("a.csv", lambda p: p.write_text("a,b\n1,2\n"), UsageError, "expected a column for each"),
        ("a.csv", lambda p: p.write_text("a,b,c\n1,2\n"), UsageError, "3 values in row 1, got 2"),
        ("a.csv", lambda p: p.write_text("a,b,c\n1,2,x\n"), UsageError, "FP32 in column 'c'"),
        ("a.parquet", lambda p: p.write_bytes(b"PAR1"), FormatError, "cannot be read as .parquet"),
        ("a.png", lambda p: p.write_bytes(b"x"), UsageError, "takes pictures"),
    ],
)
def test_what_cannot_be_read_is_told(
    tmp_path: Path, name: str, make: Callable[[Path], object], error: type, message: str
) -> None:
    make(tmp_path / name)
    with pytest.raises(error, match=message):
        list(batches(tmp_path / name, TABLE, 8))


def test_what_is_not_installed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (("PIL", "a.png"), ("pyarrow.parquet", "a.parquet")):
        (tmp_path / name).write_bytes(b"x")
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(UsageError, match="pip install"):
            list(batches(tmp_path / name, TABLE, 8))


def test_several_inputs_need_names(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 3)))
    with pytest.raises(UsageError, match="the model takes a, b"):
        list(batches(tmp_path / "a.npy", TWO, 8))


def test_a_busy_agent_is_asked_again(tmp_path: Path, reader: Release) -> None:
    """More askers than the line has places: every row arrives all the same."""
    with listen() as listener, Serve(tmp_path / "s", listener, reader, max_queue=1) as serve:
        serve.start()
        done: list[int] = []

        def ask(number: int) -> None:
            with Client(serve.url) as client:
                info = patiently(lambda: client.describe("reader"), 20.0)
                asker = Asker(client, "reader", info, 4, 20.0)
                file = save(tmp_path, 200, seed=number)
                done.append(predict_files(asker, [file], tmp_path / f"o{number}", again=False))

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert done == [200] * 4
        assert len(recorded_ids(serve.spool)) == 800


def test_the_watch_waits_for_files_to_be_whole(tmp_path: Path, asker: Asker) -> None:
    growing = save(tmp_path, 3)
    os.utime(growing, (time.time() + 60, time.time() + 60))
    looks = iter([False, False, True, True])
    found = list(agent.predict.watch(asker, tmp_path, every_s=0.01, stop=lambda: next(looks)))
    assert found == []
