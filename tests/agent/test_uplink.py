"""What a device says is signed and said again; what it hears is verified first."""

from pathlib import Path

import pytest

from agent.outbox import Outbox
from agent.spooler import Spooler
from agent.uplink import Uplink, check_desired
from skerry import topics
from skerry.errors import FormatError
from skerry.keys import Signer
from skerry.profile import Inventory
from skerry.wire import (
    Ack,
    Batch,
    Desired,
    Health,
    Hello,
    Policy,
    Reported,
    Result,
    SlotDesired,
    Up,
    UpBody,
    open_up,
    seal_down,
)
from tests.fakes.records import prediction, write, writer

DEVICE, FLEET, SHARDS = "cam-1", "demo", 4
ALL = Policy(version=1, records="all")


class Device:
    """An uplink whose connection can be cut."""

    def __init__(self, root: Path) -> None:
        self.signer, self.fleet = Signer.generate(), Signer.generate()
        self.online = True
        self.said: list[tuple[str, bytes, int]] = []
        self.outbox = Outbox()
        self.uplink = Uplink(
            self.signer,
            device=DEVICE,
            fleet=FLEET,
            shards=SHARDS,
            publish=self.publish,
            outbox=self.outbox,
            spooler=Spooler(root, self.outbox, batch_bytes=48_000),
        )
        self.keys = {self.fleet.key_id: self.fleet.public}

    def publish(self, topic: str, data: bytes, qos: int) -> bool:
        if self.online:
            self.said.append((topic, data, qos))
        return self.online

    def heard(self) -> list[tuple[Up, UpBody]]:
        """What the fleet understands of it."""
        return [
            open_up(data, self.signer.public, device=topics.parse_up(topic, SHARDS).device)
            for topic, data, _ in self.said
        ]


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


def test_everything_is_signed_and_numbered(device: Device) -> None:
    device.uplink.hello(agent="0.1.0", desired=3, reported=2, os_boot="os")
    device.uplink.reported(Reported(2, {}, [], Inventory()), 0.0)
    (first, hello), (second, _) = device.heard()
    assert isinstance(hello, Hello)
    assert hello.desired_version == 3
    assert first.boot == second.boot == device.uplink.boot
    assert (first.seq, second.seq) == (1, 2)


def test_the_mark_of_the_latest_ack_is_repeated_in_all_but_telemetry(
    device: Device, tmp_path: Path
) -> None:
    device.uplink.health(Health())
    device.uplink.mark = "given"
    device.uplink.health(Health())
    device.uplink.result(Result("c-1", ok=True))
    spool = writer(tmp_path)
    write(spool, prediction(1))
    device.uplink._spooler.look()
    device.uplink.telemetry(ALL, 0.0)
    assert [up.mark for up, _ in device.heard()] == ["", "given", "given", ""]
    spool.close()


def test_telemetry_is_numbered_by_its_records(device: Device, tmp_path: Path) -> None:
    spool = writer(tmp_path)
    write(spool, prediction(1))
    write(spool, prediction(2))
    device.uplink._spooler.look()
    assert device.uplink.telemetry(ALL, 0.0) == 1
    ((up, batch),) = device.heard()
    assert isinstance(batch, Batch)
    assert (up.boot, up.seq, batch.last) == ("boot-a", 1, 2)
    spool.close()


def test_a_backlog_leaves_at_its_pace_and_nothing_else_waits(
    device: Device, tmp_path: Path
) -> None:
    spool = writer(tmp_path)
    for number in range(3000):
        write(spool, prediction(number))
    uplink = Uplink(
        device.signer, device=DEVICE, fleet=FLEET, shards=SHARDS, publish=device.publish,
        outbox=device.outbox, spooler=Spooler(tmp_path, device.outbox, batch_bytes=2_000),
        max_bytes_s=1_500,
    )  # fmt: skip
    uplink._spooler.look()
    device.outbox.credit = 64
    said: list[int] = []
    for tenth in range(100):
        before = len(device.said)
        uplink.telemetry(ALL, tenth / 10)
        said.append(sum(len(data) for _, data, _ in device.said[before:]))
    first, rest = sum(said[:1]), sum(said[1:])
    assert 0 < first < 1_500 + 2_000  # a second's worth at once, and what is begun is finished
    assert 1_500 * 9.9 - 2_000 < rest <= 1_500 * 9.9 + 2_000
    uplink.health(Health())
    assert "health" in device.said[-1][0]
    spool.close()


def test_a_batch_that_could_not_be_handed_over_is_not_under_way(
    device: Device, tmp_path: Path
) -> None:
    spool = writer(tmp_path)
    write(spool, prediction(1))
    device.uplink._spooler.look()
    device.online = False
    assert device.uplink.telemetry(ALL, 0.0) == 0
    assert device.outbox.under_way == 0
    device.online = True
    assert device.uplink.telemetry(ALL, 0.0) == 1
    spool.close()


def test_reported_is_said_again_at_growing_intervals(device: Device) -> None:
    state = Reported(1, {}, [], Inventory())
    device.uplink.reported(state, 0.0)
    said_at = []
    for now in range(1, 100):
        before = len(device.said)
        device.uplink.reported_again(lambda: state, float(now))
        if len(device.said) > before:
            said_at.append(now)
    assert said_at == [10, 30, 70]


def test_what_the_fleet_signed_is_opened(device: Device) -> None:
    data = seal_down(device.fleet, dev=DEVICE, type="ack", body=Ack(reported=4))
    opened = device.uplink.open(data, device.keys, 0.0)
    assert opened is not None
    assert opened[1] == Ack(reported=4)


@pytest.mark.parametrize("fault", ["key", "device", "expired", "bytes", "slot"])
def test_anything_else_is_refused_and_counted(device: Device, fault: str) -> None:
    signer = Signer.generate() if fault == "key" else device.fleet
    body = (
        Desired({"../up": SlotDesired("a", "r", "models/a/b@1.0.0", "sha256:" + "0" * 64)}, {})
        if fault == "slot"
        else Desired({}, {})
    )
    data = seal_down(
        signer, dev="cam-2" if fault == "device" else DEVICE, type="desired", body=body, version=1,
        exp=5.0 if fault == "expired" else None,
    )  # fmt: skip
    data = data[:-1] if fault == "bytes" else data
    assert device.uplink.open(data, device.keys, 10.0) is None
    assert device.uplink.refused == 1


def test_a_desired_out_of_form_is_refused() -> None:
    good = SlotDesired("a-1", "r-1", "models/acme/reader@1.0.0", "sha256:" + "0" * 64)
    check_desired(Desired({"reader": good}, {}))
    for slots in (
        {f"slot-{n}": good for n in range(33)},
        {"Reader!": good},
        {"reader": SlotDesired("a-1", "r-1", "models/acme/reader@1.0.0", "md5:0")},
        {"reader": SlotDesired("", "r-1", "models/acme/reader@1.0.0", good.bundle)},
        {"reader": SlotDesired("a-1", "r-1", "m" * 300, good.bundle)},
    ):
        with pytest.raises(FormatError):
            check_desired(Desired(slots, {}))
