"""Labels that come later, against a real serve process: joined once, and never lost."""

import itertools
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.feedback import JoinPlan, read_label
from agent.held import Held, held_key
from agent.labels import Label, Labels, count_labels
from agent.segments import DONE, Header, boots, settled_upto
from agent.serve_protocol import FeedbackSettings
from agent.spool import Spool
from skerry.canonical import to_msgpack
from skerry.errors import UnreachableError, UsageError
from skerry.feedback import ErrorSketch, check_errors
from skerry.io.client import Client
from skerry.records import Context, Errors
from skerry.sketch import big_to_int
from tests.fakes.records import CONTEXT, die, writer
from tests.fakes.serving import (
    CLASSES,
    Release,
    Serve,
    eventually,
    images,
    items,
    linear_release,
    listen,
    value_release,
)


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Release]:
    root = tmp_path_factory.mktemp("releases")
    return {
        "reader": linear_release(root / "reader"),
        "better": linear_release(root / "better", version="1.1.0", seed=1),
        "table": value_release(root / "table", "table"),
    }


def serving(
    folder: Path,
    listener: socket.socket,
    *served: Release,
    slots: Sequence[str] = ("*",),
    window_s: float = 1.0,
) -> Serve:
    feedback = FeedbackSettings(str(folder / "feedback"), list(slots))
    return Serve(folder, listener, *served, feedback=feedback, window_s=window_s)


@pytest.fixture
def serve(tmp_path: Path, releases: dict[str, Release]) -> Iterator[Serve]:
    both = releases["reader"], releases["table"]
    with listen() as listener, serving(tmp_path, listener, *both) as process:
        yield process.start()


def say(url: str, body: Any, model: str = "reader") -> tuple[int, dict[str, Any]]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{url}/v2/models/{model}/feedback", data=data)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def sketches(spool: Path) -> list[tuple[Context, ErrorSketch]]:
    found = [item for _, _, item in items(spool) if isinstance(item, Errors)]
    return [(e.contexts[s.ctx], s) for e in found for s in e.sketches]


def test_a_label_is_joined_once_and_sketched_by_the_window_of_the_prediction(
    serve: Serve, releases: dict[str, Release]
) -> None:
    before = time.time()
    with Client(serve.url) as client:
        rows = images(20)
        said = [
            int(
                client.predict("reader", {"image": row[None]}, id=f"p{i}")
                .outputs["scores"]
                .argmax()
            )
            for i, row in enumerate(rows)
        ]
        after = time.time()
        time.sleep(1.2)  # the windows of the predictions are closed and written by now
        wrong = [(c + 1) % 3 if i < 5 else c for i, c in enumerate(said)]
        for i, label in enumerate(wrong):
            assert client.feedback("reader", f"p{i}", label) == "joined"
        for i, label in enumerate(wrong):
            assert client.feedback("reader", f"p{i}", CLASSES[label]) == "duplicate"
        assert client.feedback("reader", "p0", said[0]) == "conflict"
        assert client.feedback("reader", "nobody", 1) == "unknown"
        metrics = urllib.request.urlopen(f"{serve.url}/metrics").read().decode()
    assert 'skerry_feedback_total{status="joined"} 20' in metrics
    assert 'skerry_feedback_total{status="duplicate"} 20' in metrics
    eventually(lambda: sum(s.n for _, s in sketches(serve.spool)) == 20)
    for context, sketch in sketches(serve.spool):
        assert context.bundle == releases["reader"].slot.bundle
        assert before - 1.0 <= sketch.start <= after
        check_errors(sketch)
    assert sum(s.correct for _, s in sketches(serve.spool)) == 15
    cells: Counter[tuple[int, int]] = Counter()
    for _, sketch in sketches(serve.spool):
        triples = zip(*(iter(sketch.confusion),) * 3, strict=True)
        cells.update({(said, was): n for said, was, n in triples})
    assert cells == Counter(zip(said, wrong, strict=True))
    assert serve.drain() == 0
    assert settled_upto(serve.spool / boots(serve.spool)[0]) == DONE
    assert sum(s.n for _, s in sketches(serve.spool)) == 20


def test_values_are_counted_by_how_far_they_were_off(serve: Serve) -> None:
    with Client(serve.url) as client:
        answer = client.predict("table", {"position": np.array([0, 1, 2, 3])}, id="batch")
        assert answer.outputs["entry"].tolist() == [0, 1, 2, 3]
        assert client.feedback("table", "batch", [0.5, None, 0, 3]) == ["joined"] * 3
        assert client.feedback("table", "batch#1", 1.25) == "joined"
        assert client.feedback("table", "batch", [0.5, 1.25, 0.0, 3.0]) == ["duplicate"] * 4
        given = np.array([0.5, 1.25, 0.0, 3.0])
        assert client.feedback("table", "batch", given) == ["duplicate"] * 4
        assert client.feedback("table", "batch#3", given[3]) == "duplicate"
        with pytest.raises(UsageError, match="object"):
            client.feedback("table", "batch#3", object())  # type: ignore[arg-type]
    assert serve.drain() == 0
    found = [sketch for _, sketch in sketches(serve.spool)]
    assert sum(s.n for s in found) == 4
    scale = found[0].scale
    assert sum(big_to_int(s.abs_sum) for s in found) == round(2.75 * scale)
    assert sum(big_to_int(s.sq_sum) for s in found) == round((0.25 + 4 + 0.0625) * scale**2)


def test_bad_labels_are_refused_whole(serve: Serve) -> None:
    with Client(serve.url) as client:
        client.predict("reader", {"image": images(1)}, id="one")
        client.predict("table", {"position": np.array([1])}, id="two")
    list_form = {"feedback": [{"id": "one", "label": 1}, {"id": "one", "label": "no such"}]}
    for body, model, text in (
        (b"{", "reader", "JSON"),
        ([], "reader", "JSON"),
        ({"id": "one"}, "reader", "label"),
        ({"id": "", "label": 1}, "reader", "1 to 140"),
        ({"id": "one", "label": 1, "more": 2}, "reader", "more"),
        ({"id": "one", "label": 3}, "reader", "below 3"),
        ({"id": "one", "label": -1}, "reader", "below 3"),
        ({"id": "one", "label": 1.0}, "reader", "below 3"),
        ({"id": "one", "label": True}, "reader", "below 3"),
        ({"id": "one", "label": {}}, "reader", "label"),
        ({"id": "one", "label": None}, "reader", "label"),
        ({"id": "one", "label": [[1]]}, "reader", "list"),
        ({"id": "one#0", "label": [1]}, "reader", "row"),
        ({"id": "two", "label": "one"}, "table", "finite"),
        ({"id": "two", "label": 10**400}, "table", ""),
        (b'{"id": "two", "label": 1e999}', "table", ""),
        (b'{"id":"one","label":' + b"[" * 5000 + b"]" * 5000 + b"}", "reader", ""),
        ({"feedback": []}, "reader", "at least one"),
        (list_form, "reader", "no such"),
    ):
        status, answer = say(serve.url, body, model)
        assert (status, text in answer["error"]) == (400, True), (body, answer)
    assert say(serve.url, {"id": "one", "label": 1}, "nothing")[0] == 404
    many = {"feedback": [{"id": f"x{i}", "label": 1} for i in range(4097)]}
    assert say(serve.url, many)[0] == 413
    # nothing of the refused list was taken
    assert say(serve.url, {"id": "one", "label": 0})[1]["joined"] == 1


def test_a_list_says_what_became_of_each(serve: Serve) -> None:
    with Client(serve.url) as client:
        for name in ("a", "b"):
            client.predict("reader", {"image": images(1)}, id=name)
    given = [("a", 0), ("a", 0), ("a", 1), ("b", 2), ("c", 1)]
    body = {"feedback": [{"id": id, "label": label} for id, label in given]}
    status, answer = say(serve.url, body)
    assert status == 200
    became = [row["status"] for row in answer["results"]]
    assert became == ["joined", "duplicate", "conflict", "joined", "unknown"]
    assert answer["held"] == {"predictions": 65_536, "seconds": 604_800.0}
    assert say(serve.url, {"id": "a", "label": 1})[0] == 409


def test_it_is_off_unless_the_slot_is_named(tmp_path: Path, releases: dict[str, Release]) -> None:
    with listen() as listener:
        served = (releases["reader"], releases["table"])
        with serving(tmp_path, listener, *served, slots=["table-slot"]) as serve:
            serve.start()
            with Client(serve.url) as client:
                client.predict("reader", {"image": images(1)}, id="one")
                client.predict("table", {"position": np.array([1])}, id="two")
                assert client.feedback("table", "two", 1) == "joined"
                with pytest.raises(UsageError, match="feedback_slots"):
                    client.feedback("reader", "one", 1)


def test_a_new_release_takes_the_labels_of_the_old_ones_predictions(
    tmp_path: Path, releases: dict[str, Release]
) -> None:
    with listen() as listener:
        with serving(tmp_path, listener, releases["reader"]) as serve:
            serve.start()
            with Client(serve.url) as client:
                client.predict("reader", {"image": images(1)}, id="old")
            assert serve.drain() == 0
        with serving(tmp_path, listener, releases["better"]) as serve:
            serve.start()
            with Client(serve.url) as client:
                client.predict("reader", {"image": images(1)}, id="new")
                assert client.feedback("reader", "old", 1) == "joined"
                assert client.feedback("reader", "new", 1) == "joined"
            assert serve.drain() == 0
        versions = {context.model_version: s.n for context, s in sketches(serve.spool)}
        assert versions == {"1.0.0": 1, "1.1.0": 1}


def test_what_was_answered_survives_sigkill_and_is_counted_once(
    tmp_path: Path, releases: dict[str, Release]
) -> None:
    """Killed again and again while labels come in; each is repeated until it is answered."""
    total, url = 400, ""
    joined: Counter[str] = Counter()
    with listen() as listener:
        serve = serving(tmp_path, listener, releases["reader"], window_s=0.2).start()
        url = serve.url
        with Client(url) as client:
            for i in range(total):
                client.predict("reader", {"image": images(1, seed=i)}, id=f"p{i}")
        stop = threading.Event()

        def label() -> None:
            with Client(url, timeout_s=20.0) as client:
                for i in range(total):
                    while True:
                        try:
                            joined[client.feedback("reader", f"p{i}", i % 3)] += 1  # type: ignore[index]
                            break
                        except Exception:
                            time.sleep(0.01)
                    time.sleep(0.005)
            stop.set()

        thread = threading.Thread(target=label)
        thread.start()
        kills = 0
        while not stop.wait(0.3 + 0.17 * (kills % 5)):
            serve.kill()
            kills += 1
            serve = serving(tmp_path, listener, releases["reader"], window_s=0.2).start()
        thread.join()
        serve.kill()
        serve = serving(tmp_path, listener, releases["reader"], window_s=0.2).start()
        with Client(url) as client:
            client.ready()
        assert serve.drain() == 0
    assert kills >= 3
    assert joined["unknown"] == joined["conflict"] == 0
    assert joined["joined"] + joined["duplicate"] == total
    assert sum(s.n for _, s in sketches(serve.spool)) == total
    assert all(settled_upto(serve.spool / boot) == DONE for boot in boots(serve.spool))
    serve.kill()


def test_two_processes_at_once_take_a_label_once(
    tmp_path: Path, releases: dict[str, Release]
) -> None:
    with (
        listen() as one, listen() as other,
        serving(tmp_path, one, releases["reader"]) as first,
        serving(tmp_path, other, releases["better"]) as second,
    ):  # fmt: skip
        first.start()
        with Client(first.url) as here:
            assert here.ready()  # the one that serves so far
        second.start()
        with Client(first.url) as here, Client(second.url) as there:
            for i in range(40):
                (here, there)[i % 2].predict("reader", {"image": images(1)}, id=f"p{i}")
            for i in range(40):
                assert there.feedback("reader", f"p{i}", 1) == "joined"
                assert here.feedback("reader", f"p{i}", 1) == "duplicate"
            first.kill()
            assert {there.feedback("reader", f"p{i}", 1) for i in range(40)} == {"duplicate"}
        assert second.drain() == 0
        versions: Counter[str] = Counter()
        for context, sketch in sketches(second.spool):
            versions[context.model_version] += sketch.n
        assert versions == {"1.0.0": 20, "1.1.0": 20}


@pytest.mark.parametrize("dead", [True, False])
def test_a_label_that_another_process_kept_and_did_not_mark_is_not_taken_again(
    tmp_path: Path, releases: dict[str, Release], dead: bool
) -> None:
    """As where SIGKILL comes between the record and the mark, or the other is just there."""
    with listen() as listener:
        with serving(tmp_path, listener, releases["reader"]) as serve:
            serve.start()
            with Client(serve.url) as client:
                client.predict("reader", {"image": images(1)}, id="old")
            assert serve.drain() == 0
        spool = writer(serve.spool)
        kept = Label(held_key("reader", "old"), CONTEXT, 60.0, 60.0, 3, 0, label=2)
        if dead:
            assert spool.append(to_msgpack(kept))
            die(spool)
        with serving(tmp_path, listener, releases["reader"]) as serve:
            serve.start()
            with Client(serve.url) as client:
                assert client.ready()
                if not dead:
                    assert spool.append(to_msgpack(kept))
                assert client.feedback("reader", "old", 2) == "duplicate"
                assert client.feedback("reader", "old", 1) == "conflict"
            if not dead:
                die(spool)
                eventually(lambda: settled_upto(spool.directory) == DONE)
            assert serve.drain() == 0
    assert [s.n for _, s in sketches(serve.spool)] == [1]


@pytest.mark.parametrize("heard_s", [0.0, 1.2])
def test_a_prediction_and_its_label_of_a_process_that_came_and_went_are_known(
    tmp_path: Path, releases: dict[str, Release], heard_s: float
) -> None:
    """The newer one is killed between record and mark; the older one goes on."""
    with listen() as listener, serving(tmp_path, listener, releases["reader"]) as serve:
        serve.start()
        with Client(serve.url) as client:
            client.predict("reader", {"image": images(1)}, id="first")
            held = Held(
                tmp_path / "feedback" / "held", predictions=65_536, hold_s=1e9, beside=lambda: True
            )
            first = held.find(held_key("reader", "first"), 0.0)
            assert first is not None
            header = Header("boot-a", 1, "os-1", 1.0, [CONTEXT], [])
            spool = Spool(serve.spool, header, segment_bytes=4096, max_bytes=1 << 28)
            time.sleep(1.2)  # the older one has seen that there is another
            key = held_key("reader", "second")
            held.add(
                key, first.context, length_s=1.0, at=time.time(), prediction=0, confidence=1.0
            )  # fmt: skip
            assert spool.append(to_msgpack(Label(key, CONTEXT, 60.0, 60.0, 3, 0, label=2)))
            time.sleep(heard_s)
            die(spool)
            held.close()
            time.sleep(heard_s)
            assert client.feedback("reader", "second", 2) == "duplicate"
            eventually(lambda: settled_upto(spool.directory) == DONE)
        assert serve.drain() == 0
    assert [s.n for _, s in sketches(serve.spool)] == [1]


def test_labels_that_were_counted_and_not_let_go_are_not_counted_again(
    tmp_path: Path, releases: dict[str, Release]
) -> None:
    """As where SIGKILL comes between the sketches and the mark that they are written."""
    spool = writer(tmp_path / "spool")
    labels = Labels(spool, 60.0, sync=lambda: None)
    for i in range(5):
        if i == 3:
            labels.tick(60.0)  # three are counted, two are not
        assert labels.add(label(i), 0.0)
    die(spool)
    assert sum(s.n for _, s in sketches(tmp_path / "spool")) == 3
    with listen() as listener, serving(tmp_path, listener, releases["reader"]) as serve:
        serve.start()
        with Client(serve.url) as client:
            assert client.ready()
        assert serve.drain() == 0
    assert sum(s.n for _, s in sketches(serve.spool)) == 5
    assert settled_upto(spool.directory) == DONE


def test_a_prediction_repeated_after_a_crash_keeps_its_label(
    tmp_path: Path, releases: dict[str, Release]
) -> None:
    with listen() as listener:
        for round in range(3):
            with serving(tmp_path, listener, releases["reader"]) as serve:
                serve.start()
                with Client(serve.url) as client:
                    client.predict("reader", {"image": images(3)}, id="batch")
                    became = client.feedback("reader", "batch", [0, 1, 2])
                    assert became == [("duplicate" if round else "joined")] * 3
        with serving(tmp_path, listener, releases["reader"]) as serve:
            serve.start()
            with Client(serve.url) as client:
                assert client.ready()
            assert serve.drain() == 0
    assert sum(s.n for _, s in sketches(serve.spool)) == 3


def test_without_room_a_label_is_refused_and_may_come_again(
    tmp_path: Path, releases: dict[str, Release]
) -> None:
    with listen() as listener:
        feedback = FeedbackSettings(str(tmp_path / "feedback"), ["*"])
        small = {"segment_bytes": 16_384, "spool_max_bytes": 16_384}
        with Serve(tmp_path, listener, releases["reader"], feedback=feedback, **small) as serve:
            serve.start()
            with Client(serve.url) as client:
                for i in range(200):
                    client.predict("reader", {"image": images(1)}, id=f"p{i}")
                every = [f"p{i}" for i in range(200)]
                with pytest.raises(UnreachableError, match="no room"):
                    _ = [client.feedback("reader", id, 1) for id in every]
        with serving(tmp_path, listener, releases["reader"]) as serve:
            serve.start()
            with Client(serve.url) as client:
                became = Counter(str(client.feedback("reader", f"p{i}", 1)) for i in range(200))
            assert serve.drain() == 0
    assert became["joined"] >= 1
    assert became["joined"] + became["duplicate"] == 200
    assert sum(s.n for _, s in sketches(serve.spool)) == 200


# --- the pieces ------------------------------------------------------------------------------


def hold(held: Held, numbers: Iterable[int], model: str = "m") -> None:
    for i in numbers:
        held.add(
            held_key(model, f"p{i}"), b"c" * 8, length_s=60.0, at=float(i), prediction=i,
            confidence=0.5,
        )  # fmt: skip


def kept(held: Held, numbers: Iterable[int]) -> list[int]:
    """Those that are found, each as what it was."""
    found = [(i, held.find(held_key("m", f"p{i}"), 0.0)) for i in numbers]
    assert all(one.prediction == i for i, one in found if one is not None)
    return [i for i, one in found if one is not None]


def test_the_newest_are_held_and_the_file_stays_as_large(tmp_path: Path) -> None:
    path = tmp_path / "held"
    held = Held(path, predictions=1000, hold_s=100.0)
    hold(held, range(1, 1025))
    assert kept(held, range(1, 1025)) == list(range(1, 1025))
    for end in (1025, 5000, 20_000):
        hold(held, range(end - 1024, end))
        assert kept(held, range(1, end)) == list(range(end - 1024, end))
    assert path.stat().st_size == 64 * (1 + 1024)
    key = held_key("m", "p19000")
    assert held.find(key, 19_100.0) is not None
    assert held.find(key, 19_101.0) is None  # too old
    assert held.find(held_key("other", "p19000"), 0.0) is None
    held.close()


@pytest.mark.parametrize("count", [1, 10, 63, 64, 65, 1000])
def test_marks_and_places_are_found_again(tmp_path: Path, count: int) -> None:
    path = tmp_path / "held"
    held = Held(path, predictions=64, hold_s=1e9)
    hold(held, range(count))
    newest = range(max(0, count - 64), count)
    found = held.find(held_key("m", f"p{count - 1}"), 0.0)
    assert found is not None
    assert found.label is None
    held.mark(found, 2.0)
    held.close()
    again = Held(path, predictions=64, hold_s=1e9)
    assert kept(again, range(count)) == list(newest)
    found = again.find(held_key("m", f"p{count - 1}"), 0.0)
    assert found is not None
    assert found.label == 2.0
    hold(again, range(count, count + 10))
    assert kept(again, range(count + 10)) == list(range(max(0, count - 54), count + 10))
    again.close()
    other = Held(path, predictions=128, hold_s=1e9)  # another size begins anew
    assert kept(other, newest) == []
    other.close()


def test_numbers_run_over(tmp_path: Path) -> None:
    held = Held(tmp_path / "held", predictions=64, hold_s=1e9)
    held._next = (1 << 32) - 30
    hold(held, range(50))
    assert kept(held, range(50)) == list(range(50))
    held.close()
    again = Held(tmp_path / "held", predictions=64, hold_s=1e9)
    assert kept(again, range(50)) == list(range(50))
    hold(again, range(50, 100))
    assert kept(again, range(100)) == list(range(36, 100))
    again.close()


def test_two_who_write_at_once_find_each_others(tmp_path: Path) -> None:
    path, there = tmp_path / "held", [True]
    old = Held(path, predictions=1024, hold_s=1e9, beside=lambda: there[0])
    hold(old, range(500))
    new = Held(path, predictions=1024, hold_s=1e9, beside=lambda: there[0])
    hold(new, range(500, 600))
    hold(old, range(600, 650))
    assert kept(new, range(650)) == list(range(600))
    for held in (old, new):
        held.refresh()
        assert kept(held, range(650)) == list(range(650))
    hold(old, range(650, 660))
    there[0] = False
    new.refresh()
    assert kept(new, range(660)) == list(range(660))
    hold(new, range(660, 900))  # the room that was left for the other is not used
    assert kept(new, range(900)) == list(range(900))
    old.close()
    new.close()


def test_a_spoilt_place_is_no_prediction(tmp_path: Path) -> None:
    path = tmp_path / "held"
    held = Held(path, predictions=16, hold_s=1000.0)
    key = held_key("m", "p")
    held.add(key, b"c" * 8, length_s=60.0, at=1.0, prediction=1, confidence=0.5)
    data = bytearray(path.read_bytes())
    at = data.index(key)
    assert held.find(key, 1.0) is not None
    data[at + 24 : at + 48] = b"\xff" * 24  # NaN all over
    path.write_bytes(data)
    assert held.find(key, 1.0) is None
    held.close()
    Held(path, predictions=16, hold_s=1000.0).close()


def label(i: int, **fields: Any) -> Label:
    given = {"classes": 3, "predicted": i % 3, "label": 0, **fields}
    return Label(f"key-{i}".encode(), CONTEXT, 60.0 * (i % 2), 60.0, **given)


def test_labels_are_let_go_only_when_counted_and_durable(tmp_path: Path) -> None:
    spool = writer(tmp_path)
    synced: list[int] = []
    labels = Labels(spool, 60.0, sync=lambda: synced.append(1))
    assert labels.add(label(0), 0.0)
    assert labels.add(label(1), 1.0)
    spool.settle(spool.next_seq - 1)
    assert settled_upto(spool.directory) == 0
    labels.tick(59.0)
    assert labels.take_sync() is None
    labels.tick(60.0)
    job = labels.take_sync()
    assert job is not None
    assert labels.add(label(2), 61.0)
    job()
    labels.tick(62.0)
    spool.settle(spool.next_seq - 1)
    assert synced == [1]
    assert settled_upto(spool.directory) == 3
    assert labels.close()
    spool.close()
    assert settled_upto(spool.directory) == DONE
    assert sum(s.n for _, s in sketches(tmp_path)) == 3


def test_many_windows_become_several_records_and_no_label_is_in_two(tmp_path: Path) -> None:
    spool = writer(tmp_path, size=1 << 18)
    labels = Labels(spool, 60.0)
    for i in range(600):
        one = label(i, classes=0, predicted=-1, label=-1, value=float(i), truth=0.0, span=10.0,
                    scale=1000)  # fmt: skip
        context = Context("slot-" + "x" * 60, "m", f"{i}", "b" * 70, "fp32")
        assert labels.add(Label(one.key, context, *list(_rest(one))), 0.0)
    assert labels.close()
    found = [item for _, _, item in items(tmp_path) if isinstance(item, Errors)]
    assert len(found) > 1
    assert all(len(to_msgpack(item)) <= 32 << 10 for item in found)
    spans = [item.covers["boot-a"] for item in found]
    assert spans[0][0] == 1
    assert spans[-1][1] == 600
    assert all(a[1] + 1 == b[0] for a, b in itertools.pairwise(spans))
    assert sum(s.n for _, s in sketches(tmp_path)) == 600


def _rest(one: Label) -> Iterator[Any]:
    for name in one.__struct_fields__[2:]:
        yield getattr(one, name)


def test_errors_beyond_all_numbers_are_counted_apart() -> None:
    given = [0.0, 2.5, -1e300, float("nan"), float("inf")]
    rows = [
        (i + 1, Label(b"k", CONTEXT, 0.0, 60.0, 0, -1, -1, value, 0.5, 10.0, 1000))
        for i, value in enumerate(given)
    ]
    (sketch,) = count_labels("boot", rows).sketches
    check_errors(sketch)
    assert sketch.errors is not None
    assert (sketch.errors.nan, sketch.errors.pos_inf, sketch.errors.neg_inf) == (1, 1, 1)
    assert big_to_int(sketch.abs_sum) == 2500


def test_above_64_classes_only_totals_are_kept() -> None:
    rows = [(i + 1, label(i, classes=65)) for i in range(6)]
    for sketch in count_labels("boot", rows).sketches:
        assert sketch.confusion == []
        assert (sketch.n, sketch.correct) == (3, 1)


def test_labels_are_read_as_the_release_has_it() -> None:
    two = JoinPlan(CONTEXT, 2, ["no", "yes"])
    assert [read_label(two, label) for label in ("yes", 0, True, False)] == [1.0, 0.0, 1.0, 0.0]
    open_ended = JoinPlan(CONTEXT, 1 << 31, [])
    assert read_label(open_ended, 70_000) == 70_000.0
    with pytest.raises(UsageError, match="names none"):
        read_label(open_ended, "cat")
