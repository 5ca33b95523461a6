"""What the device says to its fleet, and what it makes of the answers.

Everything is signed. Telemetry goes out as the outbox allows; the reported state and the
results of commands are said again until they are acknowledged; a hello follows every
connect. What comes down is verified before anything else looks at it.
"""

import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

from agent.outbox import Outbox
from agent.spooler import Spooler
from skerry import topics
from skerry.canonical import check_digest
from skerry.errors import FormatError, TrustError, UsageError
from skerry.ids import check_id
from skerry.keys import PublicKey, Signer
from skerry.wire import Ack as AckBody
from skerry.wire import (
    Batch,
    Cmd,
    Desired,
    Down,
    Health,
    Hello,
    Policy,
    Reported,
    Result,
    UpType,
    open_down,
    seal_up,
)

__all__ = ["Uplink", "check_desired"]

log = logging.getLogger(__name__)

MAX_SLOTS: Final = 32
REPORT_AGAIN_S: Final = 10.0
REPORT_AGAIN_CAP_S: Final = 300.0
MAX_BATCHES_A_TURN: Final = 16
BURST_S: Final = 1.0  # of a limited rate may go at once

Publish = Callable[[str, bytes, int], bool]
DownBody = Desired | AckBody | Cmd | Policy


class Uplink:
    """Says and hears for one device.

    Args:
        signer: the report key.
        device: its id.
        fleet: the fleet's id.
        shards: of the fleet.
        publish: hands topic, payload and QoS to the connection; False if it cannot.
        outbox: of the device.
        spooler: of the device.
        max_bytes_s: of telemetry, 0 for no limit; what else is said is small, and waits for nothing.
    """

    def __init__(
        self,
        signer: Signer,
        *,
        device: str,
        fleet: str,
        shards: int,
        publish: Publish,
        outbox: Outbox,
        spooler: Spooler,
        max_bytes_s: int = 0,
    ) -> None:
        self.boot: Final = secrets.token_hex(8)
        self.mark = ""  # of the latest ack; what is said from now on repeats it
        self.refused = 0
        self._signer = signer
        self._device = device
        self._fleet = fleet
        self._shards = shards
        self._publish = publish
        self._outbox = outbox
        self._spooler = spooler
        self._max_bytes_s = max_bytes_s
        self._due = float("-inf")  # when what was said would be within the rate
        self._seq = 0
        self._report_due = 0.0
        self._report_wait_s = REPORT_AGAIN_S
        self.refusals: Counter[str] = Counter()  # by code
        self.refusal = ""  # code of the last one

    def hello(
        self,
        *,
        agent: str,
        desired: int,
        reported: int,
        os_boot: str,
        nonce: bytes = b"",
        again: bool = False,
    ) -> None:
        """Say what the device holds and knows; the fleet answers what it lacks, and the time."""
        self._say(
            "hello",
            Hello(
                agent=agent,
                desired_version=desired,
                reported_version=reported,
                os_boot=os_boot,
                outbox_records=self._outbox.waiting,
                outbox_bytes=self._spooler.size_bytes(),
                nonce=nonce,
                again=again,
            ),
        )

    def reported(self, state: Reported, now: float) -> None:
        """Say the reported state; it will be said again until it is acknowledged.

        Args:
            state: the whole of it.
            now: monotonic seconds.
        """
        self._report_wait_s = REPORT_AGAIN_S
        self._report_due = now + self._report_wait_s
        self._say("reported", state)

    def reported_again(self, state: Callable[[], Reported], now: float) -> None:
        """Say the reported state once more, if its answer is overdue."""
        if now >= self._report_due and self._say("reported", state()):
            self._report_wait_s = min(2 * self._report_wait_s, REPORT_AGAIN_CAP_S)
            self._report_due = now + self._report_wait_s

    def result(self, result: Result) -> None:
        """Say what came of a command."""
        self._say("result", result)

    def health(self, health: Health) -> None:
        """Give a sign of life that may be lost."""
        self._say("health", health, qos=0)

    def telemetry(self, policy: Policy, now: float) -> int:
        """Send what the outbox allows; return how many batches left.

        Args:
            policy: which records may leave.
            now: monotonic seconds.
        """
        for count in range(MAX_BATCHES_A_TURN):
            if self._due > now:
                return count
            ready = self._spooler.batch(policy)
            if ready is None:
                return count
            boot, batch = ready
            size = self._say("telemetry", batch, boot=boot, seq=batch.first)
            if not size:
                return count
            if self._max_bytes_s:
                self._due = max(self._due, now - BURST_S) + size / self._max_bytes_s
            self._outbox.sent(boot, batch.first, batch.last, now)
        return MAX_BATCHES_A_TURN

    def open(
        self, payload: bytes, keys: Mapping[str, PublicKey], now: float
    ) -> tuple[Down, DownBody] | None:
        """Return a verified message of the fleet, or None for one that is refused.

        Args:
            payload: as the broker delivered it.
            keys: the fleet's message keys.
            now: Unix seconds by the device's time.
        """
        try:
            down, body = open_down(payload, keys, device=self._device, now=now)
            if isinstance(body, Desired):
                check_desired(body)
            return down, body
        except (TrustError, FormatError) as error:
            self.refused += 1
            reason = error.code if isinstance(error, TrustError) else "malformed"
            self.refusals[reason] += 1
            self.refusal = reason
            if self.refusals[reason] == 1:
                log.warning("refused a message from the broker (%s): %s", reason, error)
            return None

    def _say(
        self,
        kind: UpType,
        body: Hello | Reported | Batch | Result | Health,
        *,
        boot: str | None = None,
        seq: int | None = None,
        qos: int = 1,
    ) -> int:
        """Return how many bytes were handed to the connection, 0 if it could not take them."""
        if seq is None:
            self._seq += 1
            seq = self._seq
        data = seal_up(
            self._signer,
            dev=self._device,
            boot=boot or self.boot,
            seq=seq,
            ts=time.time(),
            mono=time.monotonic(),
            type=kind,
            body=body,
            mark="" if kind == "telemetry" else self.mark,
        )
        topic = topics.up(self._fleet, self._shards, self._device, kind)
        return len(data) if self._publish(topic, data, qos) else 0


def check_desired(desired: Desired) -> None:
    """Refuse a `desired` with slots, names or digests out of form.

    Raises:
        FormatError: it says which.
    """
    if len(desired.slots) > MAX_SLOTS:
        raise FormatError(f"expected at most {MAX_SLOTS} slots, got {len(desired.slots)}")
    for slot, want in desired.slots.items():
        try:
            check_id(slot, "slot")
            check_digest(want.bundle)
        except UsageError as error:
            raise FormatError(str(error)) from None
        if not 0 < len(want.assignment_id) <= 128 or len(want.target) > 256:
            raise FormatError(f"expected an assignment id and a target in slot {slot}")
