"""The agent's settings: one frozen value, read once from an optional TOML file.

Everything has a default. What the fleet decides (window length, record policy, credit) is
not here: it comes signed, and is kept with the state. What is said here of records can only
let less leave than the fleet asks for (`agent.leaving`).
"""

import dataclasses
import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agent.maintenance import parse_windows, parse_zone
from skerry.errors import NotFoundError, UsageError
from skerry.ids import check_id
from skerry.toml import MAX_TOML_BYTES, from_toml
from skerry.wire import MAX_INPUT_BYTES

__all__ = ["AgentConfig", "Layout", "load_config"]

MAX_PORT: Final = 65_535
RECORDS: Final = ("none", "sampled", "all")  # each lets more leave than the one before
ALWAYS: Final = frozenset({"prediction", "confidence", "latency_us"})


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """Settings of one agent; sizes in bytes, times in seconds."""

    http_host: str = "127.0.0.1"
    http_port: int = 8450  # 0: any free one
    http_socket: str = ""  # path of a Unix socket for the same requests; empty: none
    broker_url: str = ""  # mqtt://host:port; empty: as the fleet said at enrolment
    fleet_url: str = ""  # of the fleet's device listener; empty: as the token said
    poll_s: float = 0.2  # new records are looked for so often
    batch_max_bytes: int = 48_000  # of one telemetry message
    upload_max_bytes_s: int = 128 << 10  # of telemetry; 0: as fast as the fleet's credit allows
    resend_s: float = 20.0  # a batch without an answer goes out again after so long, at first
    reconnect_base_s: float = 0.5
    reconnect_cap_s: float = 300.0
    keepalive_s: int = 60
    health_s: float = 30.0
    news_s: float = 900.0  # the fleet is asked for news of the catalog so often
    threads: int = 1  # of onnxruntime, per operator
    segment_bytes: int = 1 << 20
    spool_max_bytes: int = 256 << 20
    max_body_bytes: int = 16 << 20  # of one request
    start_timeout_s: float = 60.0  # of a serving process, until its models are warm
    drain_s: float = 10.0
    smoke_timeout_s: float = 120.0
    smoke_memory_mb: int = 0  # limit of a smoke run, 0 for half of the machine's
    measure_variants: bool = True  # also those after the first that fits: one may be faster here
    measure_max_bytes: int = 64 << 20  # larger ones are only fetched where the others fail
    verify_timeout_s: float = 60.0
    mirrors: tuple[str, ...] = ()  # addresses that have bundles too, tried before the fleet
    download_timeout_s: float = 30.0  # without a byte
    download_max_bytes_s: int = 0  # of all downloads together; 0: as fast as it goes
    download_min_bytes_s: int = 1024  # slower over download_slow_s is given up; 0: never
    download_slow_s: float = 60.0
    download_max_bytes: int = 4 << 30  # of one file
    patches: bool = True  # of files that are here already, where a release comes with them
    patch_timeout_s: float = 300.0  # to make a file of one
    disk_reserve_bytes: int = 64 << 20  # free space that a download leaves
    consent: str = "auto"  # ask: every activation waits for `skerry-agent approve`
    update_windows: str = ""  # when a release may be activated; empty: at any time
    time_zone: str = ""  # of the windows, such as Europe/Berlin; empty: the system's
    log_level: str = "info"
    remote_config: bool = True  # the fleet may set what `agent.orders` lists
    remote_logs: bool = True  # the fleet may read the newest lines of the log, redacted
    feedback_slots: tuple[str, ...] = ()  # whose predictions get labels later; "*": every slot's
    feedback_predictions: int = 65_536  # held for their labels, 64 bytes of disk each
    feedback_hold_s: float = 604_800.0  # for so long
    records: str = (
        "all"  # the most that leaves: none, sampled or all; the fleet asks for none at first
    )
    sample_rate: float = 1.0  # the largest share of them, where sampled
    record_features: bool = True  # records may have them
    record_inputs: bool = False  # records may have the raw inputs, where the fleet asks for them
    input_max_bytes: int = 65_536  # of one record; larger inputs are left out, and that is said
    withheld: tuple[str, ...] = ()  # features and inputs that never leave: name, slot/name or *
    hashed: tuple[str, ...] = ()  # features of which only keyed hashes leave

    def __post_init__(self) -> None:
        if not 0 <= self.http_port <= MAX_PORT:
            raise UsageError(f"expected http_port of 0 to {MAX_PORT}, got {self.http_port}")
        if not 4_096 <= self.batch_max_bytes <= 96_000:
            raise UsageError(
                f"expected batch_max_bytes of 4096 to 96000, got {self.batch_max_bytes}"
            )
        for name in ("poll_s", "resend_s", "reconnect_base_s", "reconnect_cap_s", "keepalive_s",
                     "health_s", "news_s", "threads", "start_timeout_s", "drain_s", "smoke_timeout_s",
                     "verify_timeout_s", "download_timeout_s", "download_slow_s", "download_max_bytes", "patch_timeout_s"):  # fmt: skip
            if getattr(self, name) <= 0:
                raise UsageError(f"expected {name} above 0, got {getattr(self, name)}")
        if 0 < self.upload_max_bytes_s < 1024 or self.upload_max_bytes_s < 0:
            raise UsageError(
                f"expected upload_max_bytes_s of 0 or at least 1024, got {self.upload_max_bytes_s}"
            )
        slowest, fastest = self.download_min_bytes_s, self.download_max_bytes_s
        if slowest < 0 or fastest < 0 or 0 < fastest < 2 * slowest:
            raise UsageError(
                f"expected download_max_bytes_s of 0 or at least twice download_min_bytes_s, "
                f"got {fastest} and {slowest}"
            )
        if not 16 <= self.feedback_predictions <= 1 << 24:
            raise UsageError(
                f"expected feedback_predictions of 16 to {1 << 24}, got {self.feedback_predictions}"
            )
        if not 1.0 <= self.feedback_hold_s <= 1e9:
            raise UsageError(f"expected feedback_hold_s of 1 to 1e9, got {self.feedback_hold_s}")
        self._check_leaving()
        for slot in self.feedback_slots:
            if slot != "*":
                check_id(str(slot), "feedback slot")
        for url in map(str, self.mirrors):
            if not url.startswith(("http://", "https://")):
                raise UsageError(f"expected mirrors at http or https addresses, got {url!r}")
        if self.consent not in {"auto", "ask"}:
            raise UsageError(f"expected consent auto or ask, got {self.consent!r}")
        _ = parse_windows(self.update_windows), parse_zone(self.time_zone)
        if self.log_level not in {"debug", "info", "warning", "error"}:
            raise UsageError(
                f"expected log_level debug, info, warning or error, got {self.log_level!r}"
            )

    def _check_leaving(self) -> None:
        if self.records not in RECORDS:
            raise UsageError(f"expected records none, sampled or all, got {self.records!r}")
        if not 0.0 <= self.sample_rate <= 1.0:
            raise UsageError(f"expected sample_rate of 0 to 1, got {self.sample_rate}")
        if not 0 <= self.input_max_bytes <= MAX_INPUT_BYTES:
            raise UsageError(
                f"expected input_max_bytes of 0 to {MAX_INPUT_BYTES}, got {self.input_max_bytes}"
            )
        for setting in ("withheld", "hashed"):
            for name in getattr(self, setting):
                if not isinstance(name, str) or not name:
                    raise UsageError(f"expected names in {setting}, got {name!r}")
                if name.rpartition("/")[2] in ALWAYS:
                    raise UsageError(
                        f"{setting} takes features and inputs, and {name!r} is what a prediction "
                        f'is; set records = "none" to keep predictions on the device'
                    )


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things lie in an agent's state directory."""

    root: Path

    @property
    def identity(self) -> Path:
        """Keys, certificates and trusted roots, from enrolment."""
        return self.root / "identity"

    @property
    def database(self) -> Path:
        """What must outlive a crash."""
        return self.root / "state.db"

    @property
    def tuf(self) -> Path:
        """Metadata of catalog and director, as last verified."""
        return self.root / "tuf"

    @property
    def slots(self) -> Path:
        """Bundles, by digest."""
        return self.root / "slots"

    @property
    def prepacked(self) -> Path:
        """Models as they are laid out for this CPU."""
        return self.root / "prepacked"

    @property
    def spool(self) -> Path:
        """Segments, by boot."""
        return self.root / "spool"

    @property
    def feedback(self) -> Path:
        """Predictions that are held for labels that come later."""
        return self.root / "feedback"

    @property
    def hash_key(self) -> Path:
        """The key of what leaves hashed; it stays here."""
        return self.root / "hash.key"

    @property
    def status(self) -> Path:
        """What a look from outside sees; not needed to go on."""
        return self.root / "status.json"

    @property
    def consent(self) -> Path:
        """What people at the device have approved or deferred."""
        return self.root / "consent.json"

    @property
    def last_good(self) -> Path:
        """What to go on with if the database is lost."""
        return self.root / "last-good"

    @property
    def measured(self) -> Path:
        """What variants did here; losing it costs measuring again."""
        return self.root / "measured.json"

    @property
    def taken_back(self) -> Path:
        """The wish that slots go back to what they ran before."""
        return self.root / "taken-back.json"

    @property
    def logs(self) -> Path:
        """What was logged, in lines of JSON."""
        return self.root / "logs" / "agent.jsonl"

    @property
    def lock(self) -> Path:
        """Held by the one control process of this directory."""
        return self.root / "lock"


def load_config(file: Path | None, **overrides: Any) -> AgentConfig:
    """Read the settings.

    Args:
        file: a TOML file, or None for the defaults.
        **overrides: given on the command line; None leaves a setting as it is.

    Raises:
        NotFoundError: no such file.
        UsageError: no TOML, an unknown key, or a value of another type.
    """
    values = _read(file) if file is not None else {}
    where = f"{file}: " if file is not None else ""
    values |= {key: value for key, value in overrides.items() if value is not None}
    fields = {field.name: field for field in dataclasses.fields(AgentConfig)}
    for key, value in values.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1)
            advice = (
                f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(fields))}"
            )
            raise UsageError(f"{where}unknown setting {key!r}; {advice}")
        kind = type(fields[key].default)
        if kind is float and type(value) is int:
            values[key] = float(value)
        elif kind is tuple and type(value) is list:
            values[key] = tuple(value)
        elif type(value) is not kind:
            wanted = "a list" if kind is tuple else kind.__name__
            raise UsageError(f"{where}expected {key} to be {wanted}, got {value!r}")
    return AgentConfig(**values)


def _read(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            return from_toml(stream.read(MAX_TOML_BYTES + 1), str(file))
    except FileNotFoundError:
        raise NotFoundError(
            f"expected settings at {file}, and there is no such file; "
            "leave --config out for the defaults"
        ) from None
