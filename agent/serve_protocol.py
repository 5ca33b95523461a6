"""What control and serve say to each other over one socket pair.

    control                         serve
    starts it                ->     loads and warms every model
                             <-     Ready            (or Failed, then it exits with code 1)
    Accept                   ->     opens its spool, recovers dead boots, accepts connections
                             <-     Stats            about twice a second, a sign of life
    MirrorTo               ->     shows requests to a shadow, or no more
    Settings                 ->     window length and raw inputs, from the next prediction on
    Drain                    ->     stops accepting, answers what is open, closes windows
                             <-     Drained          then it exits with code 0

A frame is a 4-byte big-endian length and that many bytes of MessagePack. When the
pair ends, control is gone: serve drains by itself. A serve whose event loop stands
still for `hang_s` seconds is ended by the kernel (SIGALRM).
"""

import struct
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, Generic, TypeVar

import msgspec

from skerry.canonical import to_msgpack
from skerry.errors import FormatError

__all__ = [
    "Accept",
    "Drain",
    "Drained",
    "Failed",
    "FeedbackSettings",
    "Frames",
    "FromServe",
    "InputSettings",
    "MirrorTo",
    "Ready",
    "Sample",
    "SampleTensor",
    "ServeConfig",
    "ServeSlot",
    "Settings",
    "SlotStats",
    "SmokeResult",
    "Stats",
    "ToServe",
    "frame",
    "frames_from_control",
    "frames_from_serve",
    "serve_command",
    "serve_environment",
    "shadow_command",
    "smoke_command",
]

MAX_FRAME_BYTES: Final = 1 << 20
_LENGTH: Final = struct.Struct(">I")


class ServeSlot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model to serve: which release it is, and where its verified files are."""

    slot: str
    model: str
    model_version: str
    bundle: str  # digest of the OCI manifest
    variant: str  # id of the variant that `model_file` is
    model_file: str
    manifest_file: str
    baseline_file: str


class FeedbackSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which predictions are held for labels that come later."""

    folder: str = ""
    slots: list[str] = []  # whose; ``*`` is every one's
    predictions: int = 65_536  # at most so many
    hold_s: float = 604_800.0


class InputSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of which predictions the raw inputs are recorded."""

    share: float = 0.0  # chosen by the request id; 0: of none
    max_bytes: int = 0  # of one record
    withheld: list[str] = []  # features and inputs that are kept out of it


class ServeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that a serve process is told at its start, as a JSON file.

    The record policy is not here but for raw inputs: every prediction is recorded, control
    decides what leaves the device.
    """

    device_id: str
    spool_dir: str
    slots: list[ServeSlot]
    window_s: float = 60.0
    threads: int = 1  # of onnxruntime, per operator
    cache_dir: str = ""  # where models lie prepacked
    segment_bytes: int = 1 << 20
    spool_max_bytes: int = 256 << 20  # beyond it predictions are answered and counted, not recorded
    sync_s: float = 0.2  # records are power-safe after so many seconds, or 32 records; 0 is never
    recent_ids: int = 16_384  # request ids remembered, so that a retry counts once
    max_body_bytes: int = 16 << 20
    max_queue: int = 128  # requests that may wait; the next is answered 429
    max_wait_s: float = 10.0  # for an answer; a request that waited longer is answered 504
    max_connections: int = 256
    drain_s: float = 10.0
    hang_s: float = 30.0
    feedback: FeedbackSettings = FeedbackSettings()
    inputs: InputSettings = InputSettings()
    version: str = ""  # of the agent, for who asks
    status_file: str = ""  # which control writes: for ``/metrics``


class Accept(msgspec.Struct, frozen=True, tag="accept"):
    """Open the spool and start to accept connections."""


class Drain(msgspec.Struct, frozen=True, tag="drain"):
    """Accept no more, answer what is open, close the windows, exit."""


class MirrorTo(msgspec.Struct, frozen=True, tag="mirror"):
    """Show a share of one slot's requests to a shadow; to none where `path` is empty."""

    slot: str
    path: str = ""  # of the shadow's socket
    share: float = 0.0


class SampleTensor(msgspec.Struct, frozen=True, array_like=True):
    """One input of a request, raw."""

    name: str
    datatype: str
    shape: list[int]
    data: bytes


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """One live request and its answer, as serve shows it to a shadow: MessagePack behind a length."""

    inputs: list[SampleTensor]
    predictions: list[int]  # by row
    confidences: list[float]
    skipped: int = 0  # requests since the last sample that there was no room for


class Settings(msgspec.Struct, frozen=True, tag="settings"):
    """What may change while serving."""

    window_s: float
    inputs: InputSettings = InputSettings()


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Every model is loaded and has run once."""

    boot: str
    load_ms: float


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """Serve cannot start; it exits with code 1."""

    message: str


class SlotStats(msgspec.Struct, frozen=True):
    """What one slot did since `Accept`; latencies from the request's last byte to its record."""

    answered: int
    errors: int
    p50_us: float | None = None
    p99_us: float | None = None


class Stats(msgspec.Struct, frozen=True, tag="stats"):
    """A sign of life, with what every slot did since `Accept`."""

    slots: dict[str, SlotStats]
    unrecorded: int = 0  # predictions answered and counted, for which the spool had no room


class Drained(msgspec.Struct, frozen=True, tag="drained"):
    """Nothing is open and every window is written."""


class SmokeResult(msgspec.Struct, frozen=True):
    """What a smoke run found (one JSON line on its standard output)."""

    ok: bool
    code: str  # ok, load_failed, run_failed, golden_mismatch, bad_files
    message: str
    load_ms: float = 0.0
    run_us: float = 0.0  # median of one row
    rows: int = 0
    disagree: float = 0.0  # share of golden rows whose prediction differs
    max_diff: float = 0.0  # largest difference of an output value


ToServe = Accept | Drain | Settings | MirrorTo
FromServe = Ready | Failed | Stats | Drained
M = TypeVar("M")


def frame(message: ToServe | FromServe) -> bytes:
    """Return the bytes of one message, its length in front."""
    body = to_msgpack(message)
    return _LENGTH.pack(len(body)) + body


class Frames(Generic[M]):
    """Bytes in, whole messages out; made by `frames_from_control` and `frames_from_serve`."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[M]) -> None:
        self._decoder = decoder
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[M]:
        """Return the messages that these bytes complete.

        Raises:
            FormatError: a frame that is too long, or not of the expected kind.
        """
        self._buffer += data
        messages: list[M] = []
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > MAX_FRAME_BYTES:
                raise FormatError(f"expected a frame of at most {MAX_FRAME_BYTES} bytes")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                break
            body = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            try:
                messages.append(self._decoder.decode(body))
            except (msgspec.DecodeError, RecursionError, ValueError) as error:
                raise FormatError(f"expected a message of the serve protocol: {error}") from None
        return messages


def frames_from_control() -> Frames[ToServe]:
    """Return a reader of what control says."""
    return Frames(msgspec.msgpack.Decoder(ToServe))


def frames_from_serve() -> Frames[FromServe]:
    """Return a reader of what serve says."""
    return Frames(msgspec.msgpack.Decoder(FromServe))


def serve_command(config_file: Path, *, listen_fds: Iterable[int], control_fd: int) -> list[str]:
    """Return the argument list of a serve process; pass every descriptor on to it."""
    listeners = [word for fd in listen_fds for word in ("--listen-fd", str(fd))]
    return [
        sys.executable, "-m", "agent.serve", str(config_file),
        *listeners, "--control-fd", str(control_fd),
    ]  # fmt: skip


def serve_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a serve process or smoke run: numpy starts no threads of its own."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**environment, **one}


def smoke_command(
    *,
    model: Path,
    manifest: Path,
    golden: Path,
    variant: str,
    cache_dir: Path,
    threads: int = 1,
    memory_mb: int = 0,
    cpu_s: int = 0,
) -> list[str]:
    """Return the argument list of a smoke run; it prints a `SmokeResult`, give it a timeout."""
    return [
        sys.executable, "-m", "agent.smoke", "--model", str(model), "--manifest", str(manifest),
        "--golden", str(golden), "--variant", variant, "--memory-mb", str(memory_mb),
        "--cpu-s", str(cpu_s), "--cache", str(cache_dir), "--threads", str(threads),
    ]  # fmt: skip


def shadow_command(
    *,
    model: Path,
    manifest: Path,
    variant: str,
    socket: Path,
    plan: str,
    cache_dir: Path,
    threads: int,
    memory_mb: int,
) -> list[str]:
    """Return the argument list of a shadow; it says `ready`, and prints `ShadowReport` lines."""
    return [
        sys.executable, "-m", "agent.shadow", "--model", str(model), "--manifest", str(manifest),
        "--variant", variant, "--socket", str(socket), "--plan", plan, "--cache", str(cache_dir),
        "--threads", str(threads), "--memory-mb", str(memory_mb),
    ]  # fmt: skip
