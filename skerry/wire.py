"""What fleet and devices say to each other, both ways signed.

Every message is ``[payload, key id, signature]`` in MessagePack: Ed25519 over a
domain string and the exact payload bytes. The payload is an envelope with one
typed body. Upward, `boot` and `seq` name a message for ever: `boot` is new and
random at each start of the process that numbers, `seq` counts from 1. Downward,
`desired` and `policy` apply only if their `version` is higher than the last one,
`cmd` runs at most once by its `id`, and `ack` may be repeated or reordered.

    device                                    fleet
    hello      after every connect      ->    answers with desired, if it differs; the time
    reported   whole state, versioned   ->    ack.reported
    telemetry  a run of records, packed ->    stored once, committed, then ack.upto
    result     of a command, by id      ->    ack.results

Unknown keys are ignored, so that either side may be newer; a breaking change is a
new topic root. `open_up` and `open_down` refuse: what passed them has its type, its
signature, and came from whom it says.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal, TypeVar

import msgspec

from skerry.canonical import from_msgpack, to_msgpack
from skerry.errors import FormatError, TrustError
from skerry.keys import PublicKey, Signer
from skerry.packing import pack, unpack
from skerry.profile import Inventory
from skerry.records import Context, Item, Loss, Prediction, SketchWindow, Skip, width
from skerry.trials import Shadow, ShadowReport, Trial

__all__ = [
    "MAX_INPUT_BYTES",
    "MAX_MESSAGE_BYTES",
    "Ack",
    "AssignmentReport",
    "Batch",
    "Cmd",
    "Context",
    "Desired",
    "Down",
    "Health",
    "Hello",
    "Item",
    "LiveStats",
    "Loss",
    "Policy",
    "Prediction",
    "Probation",
    "ReleaseRef",
    "Reported",
    "Result",
    "SketchWindow",
    "Skip",
    "SlotDesired",
    "Step",
    "Up",
    "open_down",
    "open_up",
    "peek_up",
    "policy_fault",
    "seal_down",
    "seal_up",
    "signed_by",
]

VERSION: Final = 1
MAX_INPUT_BYTES: Final = 64 << 10  # of one record: with the rest of it, it must pass as a message
MAX_POLICY_NAMES: Final = 256
MAX_NAME: Final = 128  # characters
_POLICY_BOUNDS: Final = (
    ("window_s", 1.0, 86400.0),
    ("sample_rate", 0.0, 1.0),
    ("spread_s", 0.0, 86400.0),
    ("input_max_bytes", 0, MAX_INPUT_BYTES),
)
MAX_MESSAGE_BYTES: Final = 128 * 1024
UP_DOMAIN: Final = b"skerry/v1/up\x00"
DOWN_DOMAIN: Final = b"skerry/v1/down\x00"

# --- upward -------------------------------------------------------------------


class ReleaseRef(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which model runs in a slot: the bundle by digest, and the variant chosen."""

    model: str
    model_version: str
    bundle: str
    variant: str
    since: float = 0.0  # Unix seconds


class Step(msgspec.Struct, frozen=True, array_like=True):
    """One step of an assignment: the state entered, and when (Unix seconds)."""

    state: str
    at: float


class LiveStats(msgspec.Struct, frozen=True, omit_defaults=True):
    """What probation measured on live traffic."""

    answered: int = 0
    errors: int = 0
    p50_us: float | None = None
    p99_us: float | None = None
    seconds: float = 0.0


class AssignmentReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where one assignment stands, with every step since it was notified."""

    assignment_id: str
    slot: str
    state: str
    path: list[Step]
    variant: str | None = None
    phase: str | None = None  # of a failure: the state in which it happened
    code: str | None = None
    message: str | None = None
    effect: str | None = None
    live: LiveStats | None = None
    trials: list[Trial] = []  # what the golden set showed of each variant that was tried
    shadow: ShadowReport | None = None


class Hello(msgspec.Struct, frozen=True, omit_defaults=True):
    """Said after every connect: what the device holds and knows."""

    agent: str
    desired_version: int
    reported_version: int
    os_boot: str = ""
    outbox_records: int = 0
    outbox_bytes: int = 0
    nonce: bytes = b""  # fresh and random; the ack of this hello repeats it beside the time
    again: bool = False  # in the middle of a connection, to be told the time anew


class Reported(msgspec.Struct, frozen=True, omit_defaults=True):
    """The device's whole reported state; a higher version replaces a lower one."""

    version: int
    slots: dict[str, ReleaseRef]
    assignments: list[AssignmentReport]
    inventory: Inventory
    desired_version: int = 0


class Batch(msgspec.Struct, frozen=True):
    """A run of records of one boot, numbered from `first`; a `Skip` takes several numbers."""

    first: int
    contexts: list[Context]
    items: list[Item]
    dropped_before: int = 0  # every seq below this is gone on the device

    @property
    def last(self) -> int:
        """The seq of the last record, ``first - 1`` where there is none."""
        return self.first - 1 + sum(width(item) for item in self.items)


class Result(msgspec.Struct, frozen=True, omit_defaults=True):
    """What came of a command."""

    id: str
    ok: bool
    output: str = ""


class Health(msgspec.Struct, frozen=True, omit_defaults=True):
    """A small sign of life that may be lost."""

    outbox_records: int = 0
    outbox_bytes: int = 0
    dropped_records: int = 0
    serve_restarts: int = 0
    uptime_s: float = 0.0
    trust: str = ""  # "stale" without fresh metadata for a week, and the code of what is refused


UpType = Literal["hello", "reported", "telemetry", "result", "health"]


class Up(msgspec.Struct, frozen=True, omit_defaults=True):
    """The envelope of what a device says."""

    v: int
    dev: str
    boot: str
    seq: int
    ts: float  # Unix seconds by the device's clock
    mono: float  # seconds of its monotonic clock
    type: UpType
    body: msgspec.Raw
    exp: float | None = None
    mark: str = ""  # of the latest ack that this process has heard: said after that


# --- downward -----------------------------------------------------------------


class Probation(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a new model must show on live traffic before a device commits it."""

    min_answered: int = 30
    min_seconds: float = 3.0
    timeout_s: float = 120.0  # without enough traffic by then: not committed
    max_error_rate: float = 0.02
    max_p99_ms: float | None = None
    max_latency_ratio: float | None = None  # of p99, to the release before on this device
    max_crashes: int = 2  # of serve, or of the whole agent; one more rolls back


class SlotDesired(msgspec.Struct, frozen=True, omit_defaults=True):
    """What shall run in one slot: which assignment says so, and how to go about it."""

    assignment_id: str
    rollout_id: str
    target: str  # the catalog's target path, models/<publisher>/<model>@<version>
    bundle: str  # digest of the OCI manifest
    attempt: int = 1
    probation: Probation = Probation()
    deadline_s: float = 3600.0  # from notified to an end
    shadow: Shadow | None = None  # first beside what serves; None: not at all


class Desired(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a device shall run: every slot, with the director's signed metadata."""

    slots: dict[str, SlotDesired]
    director: dict[str, bytes]  # metadata file name -> bytes


class Ack(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the fleet has committed: the device may forget it."""

    upto: dict[str, int] = {}  # per boot, every seq up to and including this one
    reported: int = 0  # highest version of `reported` stored
    results: list[str] = []
    credit: int = 8  # batches that may be under way; 0 is a pause
    now: float = 0.0  # the fleet's clock, Unix seconds
    mark: str = ""  # to be repeated, see `Up.mark`
    nonce: bytes = b""  # of the hello that this answers; without it `now` proves nothing


class Cmd(msgspec.Struct, frozen=True, omit_defaults=True):
    """One command, run at most once by its `id`."""

    id: str
    verb: str
    args: dict[str, str] = {}


class Policy(msgspec.Struct, frozen=True, omit_defaults=True):
    """What holds for every device of a fleet; a device's own settings may let less leave."""

    version: int
    window_s: float = 60.0  # length of a sketch window
    records: Literal["none", "sampled", "all"] = "none"
    sample_rate: float = 0.0
    spread_s: float = 0.0  # reconnects are spread over so many seconds
    features: bool = True  # records have them
    inputs: bool = False  # records have the raw inputs too, where the device allows that
    input_max_bytes: int = 32 << 10  # of one record; larger inputs are left out, and that is said
    withheld: list[str] = []  # features and inputs that never leave, by name
    hashed: list[str] = []  # features of which only keyed hashes leave


def policy_fault(policy: Policy) -> str:
    """Return what is out of bounds in a policy, empty if nothing is; serving divides by `window_s`."""
    for name, low, high in _POLICY_BOUNDS:
        value = getattr(policy, name)
        if not low <= value <= high:  # no number is within bounds either
            return f"expected {name} of {low:g} to {high:g}, got {value:g}"
    for name in ("withheld", "hashed"):
        names = getattr(policy, name)
        if len(names) > MAX_POLICY_NAMES or not all(0 < len(n) <= MAX_NAME for n in names):
            return (
                f"expected at most {MAX_POLICY_NAMES} names of 1 to {MAX_NAME} characters in {name}"
            )
    return ""


DownType = Literal["desired", "ack", "cmd", "policy"]


class Down(msgspec.Struct, frozen=True, omit_defaults=True):
    """The envelope of what the fleet says; `dev` is ``all`` for a policy."""

    v: int
    dev: str
    type: DownType
    body: msgspec.Raw
    version: int = 0
    id: str = ""
    exp: float | None = None


# --- sealing and opening --------------------------------------------------------


class _Sealed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    payload: bytes
    key_id: str
    signature: bytes


_UP_BODY: Final[dict[str, Any]] = {
    "hello": Hello,
    "reported": Reported,
    "telemetry": Batch,
    "result": Result,
    "health": Health,
}
_DOWN_BODY: Final[dict[str, Any]] = {
    "desired": Desired,
    "ack": Ack,
    "cmd": Cmd,
    "policy": Policy,
}
UpBody = Hello | Reported | Batch | Result | Health
DownBody = Desired | Ack | Cmd | Policy
Envelope = TypeVar("Envelope", Up, Down)


def seal_up(
    signer: Signer,
    *,
    dev: str,
    boot: str,
    seq: int,
    ts: float,
    mono: float,
    type: UpType,
    body: UpBody,
    exp: float | None = None,
    mark: str = "",
) -> bytes:
    """Return the signed bytes of one upward message."""
    said = to_msgpack(body)
    raw = msgspec.Raw(to_msgpack(pack(said)) if type == "telemetry" else said)
    up = Up(
        v=VERSION, dev=dev, boot=boot, seq=seq, ts=ts, mono=mono, type=type, body=raw, exp=exp,
        mark=mark,
    )  # fmt: skip
    return _seal(signer, UP_DOMAIN, up)


def seal_down(
    signer: Signer,
    *,
    dev: str,
    type: DownType,
    body: DownBody,
    version: int = 0,
    id: str = "",
    exp: float | None = None,
) -> bytes:
    """Return the signed bytes of one downward message."""
    raw = msgspec.Raw(to_msgpack(body))
    down = Down(v=VERSION, dev=dev, type=type, body=raw, version=version, id=id, exp=exp)
    return _seal(signer, DOWN_DOMAIN, down)


def peek_up(data: bytes) -> str:
    """Return the device a message claims to come from, so that its key can be found.

    Raises:
        FormatError: not a message. Nothing about the claim is verified yet.
    """
    return from_msgpack(_unpack(data).payload, Up, limit=MAX_MESSAGE_BYTES).dev


def signed_by(data: bytes) -> str:
    """Return the id of the key that a message names; only `open_up` or `open_down` verify it.

    Raises:
        FormatError: not a message.
    """
    return _unpack(data).key_id


def open_up(data: bytes, key: PublicKey, *, device: str) -> tuple[Up, UpBody]:
    """Verify and decode a message of a device.

    Args:
        data: the bytes received.
        key: the device's report key, from its enrolment.
        device: the device named by the topic.

    Raises:
        FormatError: too large, or not of the promised form.
        TrustError: signed by another key, or speaking for another device.
    """
    up = _open(data, UP_DOMAIN, {key.key_id: key}, Up)
    if up.dev != device:
        raise TrustError(
            f"expected a message of {device}, got one of {up.dev[:64]}", "wrong_device"
        )
    said = bytes(up.body)
    if up.type == "telemetry":
        said = unpack(from_msgpack(said, bytes, limit=MAX_MESSAGE_BYTES), limit=MAX_MESSAGE_BYTES)
    return up, from_msgpack(said, _UP_BODY[up.type], limit=MAX_MESSAGE_BYTES)


def open_down(
    data: bytes, keys: Mapping[str, PublicKey], *, device: str, now: float
) -> tuple[Down, DownBody]:
    """Verify and decode a message of the fleet.

    Args:
        data: the bytes received.
        keys: the message keys that the director root names, by key id.
        device: who is listening; ``all`` is accepted for a policy.
        now: Unix seconds, to judge `exp`.

    Raises:
        FormatError: too large, or not of the promised form.
        TrustError: unknown key, wrong signature, another device's, or expired.
    """
    down = _open(data, DOWN_DOMAIN, keys, Down)
    if down.dev != ("all" if down.type == "policy" else device):
        raise TrustError(f"expected a message for {device}, got {down.dev[:64]}", "wrong_device")
    if down.exp is not None and down.exp < now:
        raise TrustError(f"message expired {now - down.exp:.0f} s ago", "expired")
    body: DownBody = from_msgpack(bytes(down.body), _DOWN_BODY[down.type], limit=MAX_MESSAGE_BYTES)
    if isinstance(body, Policy) and (fault := policy_fault(body)):
        raise FormatError(fault)
    return down, body


def _seal(signer: Signer, domain: bytes, envelope: Up | Down) -> bytes:
    payload = to_msgpack(envelope)
    return to_msgpack(_Sealed(payload, signer.key_id, signer.sign(domain + payload)))


def _unpack(data: bytes) -> _Sealed:
    return from_msgpack(data, _Sealed, limit=MAX_MESSAGE_BYTES)


def _open(
    data: bytes, domain: bytes, keys: Mapping[str, PublicKey], kind: type[Envelope]
) -> Envelope:
    sealed = _unpack(data)
    key = keys.get(sealed.key_id)
    if key is None:
        known = ", ".join(sorted(keys))
        raise TrustError(
            f"expected a signature by {known}, got {sealed.key_id[:32]}", "unknown_key"
        )
    key.verify(domain + sealed.payload, sealed.signature)
    envelope = from_msgpack(sealed.payload, kind, limit=MAX_MESSAGE_BYTES)
    if envelope.v != VERSION:
        raise FormatError(f"expected message version {VERSION}, got {envelope.v}; update this side")
    return envelope
