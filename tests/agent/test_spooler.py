"""The spooler: every record is found, leaves as the policy lets it, and goes when it is stored."""

import os
from pathlib import Path

import pytest

from agent.outbox import Outbox
from agent.segments import segments, settle
from agent.spooler import Spooler
from skerry.canonical import to_msgpack
from skerry.records import Loss, Prediction, Skip
from skerry.wire import Batch, Policy
from tests.fakes.records import CONTEXT, die, prediction, window, write, writer

ALL = Policy(version=1, records="all")
NONE = Policy(version=1, records="none")


class Device:
    """A spool with its outbox, and a fleet that answers by hand."""

    def __init__(self, root: Path, batch_bytes: int = 48_000) -> None:
        self.outbox = Outbox()
        self.spooler = Spooler(root, self.outbox, batch_bytes=batch_bytes)

    def send(self, policy: Policy = ALL) -> list[tuple[str, Batch]]:
        self.spooler.look()
        sent = []
        while ready := self.spooler.batch(policy):
            boot, batch = ready
            self.outbox.sent(boot, batch.first, batch.last, 0.0)
            sent.append(ready)
        return sent

    def store(self, **upto: int) -> None:
        self.outbox.acknowledged({boot.replace("_", "-"): n for boot, n in upto.items()}, 8)


def test_records_leave_in_order_while_the_segment_grows(tmp_path: Path) -> None:
    spool, device = writer(tmp_path), Device(tmp_path)
    assert device.send() == []
    write(spool, prediction(1), prediction(2))
    write(spool, window())
    ((boot, batch),) = device.send()
    assert (boot, batch.first, batch.last) == ("boot-a", 1, 3)
    assert batch.items == [prediction(1), prediction(2), window()]
    assert batch.contexts == [CONTEXT]
    assert device.send() == []
    write(spool, prediction(3))
    ((_, batch),) = device.send()
    assert (batch.first, batch.items) == (4, [prediction(3)])
    spool.close()


def test_a_batch_is_bounded_and_the_next_follows(tmp_path: Path) -> None:
    spool, device = writer(tmp_path, size=1 << 16), Device(tmp_path, batch_bytes=4096)
    write(spool, *(prediction(n, "x" * 100) for n in range(1, 101)))
    batches = [batch for _, batch in device.send()]
    assert len(batches) > 2
    assert all(len(to_msgpack(batch)) < 5000 for batch in batches)
    assert [item for batch in batches for item in batch.items] == [
        prediction(n, "x" * 100) for n in range(1, 101)
    ]
    spool.close()


def test_segments_are_followed_one_after_the_other(tmp_path: Path) -> None:
    spool, device = writer(tmp_path, size=1024), Device(tmp_path)
    for number in range(1, 61):
        write(spool, prediction(number))
    assert len(segments(tmp_path / "boot-a")) > 3
    items = [item for _, batch in device.send() for item in batch.items]
    assert items == [prediction(n) for n in range(1, 61)]
    assert device.outbox.waiting == 60
    spool.close()


def test_the_policy_keeps_predictions_here_and_lets_windows_go(tmp_path: Path) -> None:
    spool, device = writer(tmp_path), Device(tmp_path)
    write(spool, prediction(1), prediction(2), window(), prediction(3))
    ((_, batch),) = device.send(NONE)
    assert batch.items == [Skip(2), window(), Skip(1)]
    assert batch.last == 4
    spool.close()


def test_a_sample_is_the_same_each_time_it_is_sent(tmp_path: Path) -> None:
    spool, device = writer(tmp_path, size=1 << 16), Device(tmp_path)
    write(spool, *(prediction(n) for n in range(1, 401)))
    half = Policy(version=1, records="sampled", sample_rate=0.5)
    first = device.send(half)
    device.outbox.connected()
    assert device.send(half) == first
    kept = sum(isinstance(i, Prediction) for _, batch in first for i in batch.items)
    assert 150 < kept < 250
    spool.close()


def test_a_break_begins_again_from_what_is_stored(tmp_path: Path) -> None:
    spool, device = writer(tmp_path, size=1024), Device(tmp_path)
    for number in range(1, 41):
        write(spool, prediction(number))
    device.send()
    device.store(boot_a=17)
    device.outbox.connected()
    items = [item for _, batch in device.send() for item in batch.items]
    assert items == [prediction(n) for n in range(18, 41)]
    spool.close()


def test_what_is_stored_but_not_counted_is_kept(tmp_path: Path) -> None:
    spool, device = writer(tmp_path, size=1024), Device(tmp_path)
    for number in range(1, 41):
        write(spool, prediction(number))
    before = segments(tmp_path / "boot-a")
    device.send()
    device.store(boot_a=40)
    assert device.spooler.forget() == 0
    spool.settle(40)
    assert device.spooler.forget() == len(before) - 1
    # the one that is still written stays
    assert segments(tmp_path / "boot-a") == before[-1:]
    spool.close()


def test_what_is_counted_but_not_stored_is_kept(tmp_path: Path) -> None:
    spool, device = writer(tmp_path, size=1024), Device(tmp_path)
    for number in range(1, 41):
        write(spool, prediction(number))
    spool.settle(40)
    device.send()
    assert device.spooler.forget() == 0
    spool.close()


def test_a_dead_boot_goes_when_it_is_stored_and_settled(tmp_path: Path) -> None:
    spool, device = writer(tmp_path), Device(tmp_path)
    write(spool, prediction(1))
    die(spool)
    device.send()
    device.store(boot_a=1)
    device.spooler.forget()
    assert (tmp_path / "boot-a").is_dir()
    settle(tmp_path / "boot-a")
    device.spooler.forget()
    assert not (tmp_path / "boot-a").exists()
    assert device.outbox.cursors == {}


@pytest.mark.parametrize("size", [1 << 16, 512])
def test_what_a_writer_adds_before_it_ends_is_not_forgotten(tmp_path: Path, size: int) -> None:
    spool, device = writer(tmp_path, size=size), Device(tmp_path)
    write(spool, prediction(1), prediction(2))
    device.send()
    device.store(boot_a=2)
    # between two looks: more answers, their window, and the end
    write(spool, *(prediction(n, "x" * 60) for n in range(3, 8)))
    write(spool, window())
    spool.close()
    device.spooler.forget()
    sent = [item for _, batch in device.send() for item in batch.items]
    assert sent == [*(prediction(n, "x" * 60) for n in range(3, 8)), window()]
    device.store(boot_a=8)
    device.spooler.forget()
    assert list(segments(tmp_path / "boot-a")) == []


def test_a_restart_finds_what_was_left(tmp_path: Path) -> None:
    for boot, count in (("boot-b", 3), ("boot-a", 2)):
        spool = writer(tmp_path, boot)
        write(spool, *(prediction(n) for n in range(count)))
        die(spool)
        os.utime(segments(tmp_path / boot)[0], (count, 10 - count))
    device = Device(tmp_path)
    # the older one first, whatever its name
    assert [(boot, batch.last) for boot, batch in device.send()] == [("boot-b", 3), ("boot-a", 2)]


def test_numbers_that_a_disk_lost_are_jumped_and_said(tmp_path: Path) -> None:
    spool, device = writer(tmp_path, size=1024), Device(tmp_path)
    for number in range(1, 61):
        write(spool, prediction(number))
    spool.close()
    first, second, *_ = segments(tmp_path / "boot-a")
    first.unlink()
    (_, batch), *_ = device.send()
    assert batch.first > 1
    assert batch.dropped_before == batch.first
    assert second.exists()


def test_a_gap_in_the_middle_is_jumped_only_when_all_before_it_is_stored(tmp_path: Path) -> None:
    spool, device = writer(tmp_path, size=1024), Device(tmp_path)
    for number in range(1, 61):
        write(spool, prediction(number))
    spool.close()
    paths = segments(tmp_path / "boot-a")
    data = paths[1].read_bytes()
    paths[1].write_bytes(data[:-60] + b"\xff" * 60)
    before = device.send()
    last = before[-1][1].last
    assert last < 60
    assert device.send() == []
    device.store(boot_a=last)
    device.send()
    after = device.send()
    assert after[0][1].first > last + 1
    assert after[-1][1].last == 60
    assert after[0][1].dropped_before == after[0][1].first


def test_a_record_that_cannot_be_read_uses_up_its_number(tmp_path: Path) -> None:
    spool, device = writer(tmp_path), Device(tmp_path)
    write(spool, prediction(1))
    spool.append(b"\xc1 no messagepack")
    write(spool, Loss("boot-x", 3, "power cut"))
    ((_, batch),) = device.send()
    assert batch.items == [prediction(1), Skip(1), Loss("boot-x", 3, "power cut")]
    spool.close()


def test_a_segment_that_was_never_begun_is_removed_with_its_boot(tmp_path: Path) -> None:
    (tmp_path / "boot-a").mkdir()
    (tmp_path / "boot-a" / "00000001.seg").write_bytes(b"\x00" * 100)
    device = Device(tmp_path)
    assert device.send() == []
    device.spooler.forget()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["notes.txt", ".hidden"])
def test_what_is_no_boot_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    device = Device(tmp_path)
    assert device.send() == []
    device.spooler.forget()
    assert (tmp_path / name).exists()
