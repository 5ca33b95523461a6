"""What of a record leaves the device: one gate, behind which nothing else reads records.

The fleet's signed policy says what it wants. The device's own settings can only take from that:

    records       the lesser of the two: none, sampled, all
    sample_rate   the smaller; a share is chosen by the request id, so the smaller lies in the larger
    features      only where both let them
    inputs        only where both ask for them; the device's setting is off unless it was turned on
    withheld      what either names leaves in no form: not in records, not in windows
    hashed        what either names leaves as keyed hashes in records, and not in windows

A name is that of a feature or of an input, by itself, behind a slot (``reader/age``), or ``*`` for
all. An input's name holds for every feature made of it. A raw input leaves only where all that is
made of it may leave as it is. What cannot be told apart stays here.
"""

import hashlib
import logging
import os
import secrets
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from agent.config import ALWAYS, RECORDS, AgentConfig
from agent.durable import fsync_dir
from agent.names import is_named
from agent.segments import CountPlan, Header
from agent.serve_protocol import InputSettings
from skerry.canonical import to_msgpack
from skerry.records import Aside, Item, Prediction, SketchWindow, Skip, in_sample
from skerry.wire import Policy

__all__ = ["MAX_ITEM_BYTES", "Gate", "input_settings", "leaving_bytes", "narrowed"]

log = logging.getLogger(__name__)

MAX_ITEM_BYTES: Final = 96 << 10  # a larger record would not pass as a message
SMALL_BYTES: Final = 4096
KEY_BYTES: Final = 32
HASH_BYTES: Final = 6  # 48 bits, which a float64 holds exactly
_DECODER: Final = msgspec.msgpack.Decoder(Item)
NO_PLAN: Final = CountPlan([], [], {})
_NAN: Final = float("nan")


def narrowed(policy: Policy, config: AgentConfig) -> Policy:
    """Return a policy of the fleet with what the device's own settings take from it."""
    return msgspec.structs.replace(
        policy,
        records=min(policy.records, config.records, key=RECORDS.index),
        sample_rate=min(
            policy.sample_rate if policy.records == "sampled" else 1.0,
            config.sample_rate if config.records == "sampled" else 1.0,
        ),
        features=policy.features and config.record_features,
        inputs=policy.inputs and config.record_inputs,
        input_max_bytes=min(policy.input_max_bytes, config.input_max_bytes),
        withheld=sorted({*policy.withheld, *config.withheld}),
        hashed=sorted({*policy.hashed, *config.hashed}),
    )


def input_settings(policy: Policy, config: AgentConfig) -> InputSettings:
    """Return of which predictions serve records the raw inputs: of those that may leave with them."""
    asked = narrowed(policy, config)
    if not asked.inputs or asked.records == "none":
        return InputSettings()
    share = asked.sample_rate if asked.records == "sampled" else 1.0
    return InputSettings(share, asked.input_max_bytes, sorted({*asked.withheld, *asked.hashed}))


def leaving_bytes(item: Item, payload: bytes) -> int:
    """Return about how many bytes a record takes in a message, of which it came as `payload`."""
    if isinstance(item, Skip):
        return 8
    # raw inputs that stay here do not count
    return len(payload) if len(payload) < SMALL_BYTES else len(to_msgpack(item))


class Gate:
    """Lets records leave as policy and settings allow.

    Args:
        config: the device's settings.
        key_file: where the key of hashes lies, and is made when it is first needed.
    """

    def __init__(self, config: AgentConfig | None = None, key_file: Path | None = None) -> None:
        self._config = config or AgentConfig()
        self._key_file = key_file
        self._key = b""
        self._asked: Policy | None = None
        self._policy = Policy(version=0)
        self._header: Header | None = None  # of the segment to which the redactions belong
        self._redactions: dict[int, _Redaction] = {}  # by the position of a context

    def leaving(self, payload: bytes, header: Header, policy: Policy) -> Item:
        """Return a record as it leaves the device; a `Skip` where it does not.

        Args:
            payload: the record as it lies in its segment.
            header: of the segment.
            policy: of the fleet.
        """
        if policy is not self._asked:
            self._asked, self._policy = policy, narrowed(policy, self._config)
            self._redactions.clear()
        try:
            item: Item = _DECODER.decode(payload)
        except (msgspec.DecodeError, RecursionError, ValueError):  # ValueError: no UTF-8
            return Skip(1)  # its crc is right and its form is not: the writer was newer
        if isinstance(item, Prediction):
            item = self._prediction(item, header)
        elif isinstance(item, SketchWindow) and (self._policy.withheld or self._policy.hashed):
            item = self._redaction(item.ctx, header).window(item)
        return item if leaving_bytes(item, payload) <= MAX_ITEM_BYTES else Skip(1)

    def _prediction(self, item: Prediction, header: Header) -> Item:
        policy = self._policy
        if policy.records == "none":
            return Skip(1)
        if policy.records == "sampled" and not in_sample(item.id, policy.sample_rate):
            return Skip(1)
        features = item.features
        withheld: list[int] = []
        hashed: list[int] = []
        plain = not (policy.withheld or policy.hashed)
        if not policy.features:
            features = []
        elif not plain:
            features, withheld, hashed = self._redaction(item.ctx, header).features(features)
        aside = item.aside
        if aside is not None and not policy.inputs:
            aside = None
        elif aside is not None and aside.inputs:
            size = sum(len(tensor.data) for tensor in aside.inputs)
            if size > policy.input_max_bytes:
                aside = Aside(left_out_bytes=aside.left_out_bytes + size)
            elif not plain:
                may_leave = self._redaction(item.ctx, header).may_leave
                aside = Aside([t for t in aside.inputs if may_leave(t.name)], aside.left_out_bytes)
        if withheld or hashed:
            aside = aside or Aside()
            aside = Aside(aside.inputs, aside.left_out_bytes, withheld, hashed)
        if features is item.features and aside is item.aside:
            return item
        return msgspec.structs.replace(item, features=features, aside=aside)

    def _redaction(self, ctx: int, header: Header) -> "_Redaction":
        if header is not self._header:
            self._header = header
            self._redactions.clear()
        found = self._redactions.get(ctx)
        if found is None:
            known = 0 <= ctx < min(len(header.contexts), len(header.plans))
            slot, plan = (header.contexts[ctx].slot, header.plans[ctx]) if known else ("", NO_PLAN)
            found = self._redactions[ctx] = _Redaction(slot, plan, self._policy, self._hash_key)
        return found

    def _hash_key(self) -> bytes:
        """Return the key of this device's hashes, empty if none can be kept."""
        if not self._key and self._key_file is not None:
            try:
                self._key = _read_or_make(self._key_file)
            except OSError as error:
                log.warning("no key for hashes, their features are withheld: %s", error)
        return self._key


class _Redaction:
    """What of one context's records stays here.

    A plan that does not say what its features are made of is of an older agent: where a name might
    be an input's, nothing of its rows leaves.
    """

    def __init__(
        self, slot: str, plan: CountPlan, policy: Policy, hash_key: Callable[[], bytes]
    ) -> None:
        names, inputs = plan.features, plan.inputs
        told = plan is not NO_PLAN and len(inputs) == len(names)
        of = inputs if told else names
        hidden = {
            i
            for i, (name, made_of) in enumerate(zip(names, of, strict=True))
            if is_named(policy.withheld, slot, name, made_of)
        }
        blurred = {
            i
            for i, (name, made_of) in enumerate(zip(names, of, strict=True))
            if i not in hidden and is_named(policy.hashed, slot, name, made_of)
        }
        if not told and any(
            given.removeprefix(f"{slot}/") not in names
            for given in (*policy.withheld, *policy.hashed)
        ):
            hidden, blurred = set(range(len(names))), set()
        self._key = hash_key() if blurred else b""
        if blurred and not self._key:
            hidden, blurred = hidden | blurred, set()
        self._names = names
        self._withheld, self._hashed = sorted(hidden), sorted(blurred)
        kept_back = {names[i] for i in hidden | blurred}
        self._columns = {*ALWAYS, *names} - kept_back
        self._told = told
        self._closed = {of[i] for i in hidden | blurred}  # inputs of which something stays here
        self._slot, self._policy = slot, policy

    def may_leave(self, name: str) -> bool:
        """Tell whether a raw input may leave as it is."""
        named = is_named({*self._policy.withheld, *self._policy.hashed}, self._slot, name)
        return self._told and not named and name not in self._closed

    def features(self, values: list[float]) -> tuple[list[float], list[int], list[int]]:
        """Return features as they leave, and the positions of those withheld and hashed."""
        if len(values) != len(self._names):
            return [], [], []  # of a writer that counts otherwise
        if not (self._withheld or self._hashed):
            return values, [], []
        left = list(values)
        for i in self._withheld:
            left[i] = _NAN
        for i in self._hashed:
            left[i] = _hash(self._key, self._names[i], values[i])
        return left, self._withheld, self._hashed

    def window(self, window: SketchWindow) -> SketchWindow:
        """Return a window without the columns that stay here."""
        columns = {name: c for name, c in window.columns.items() if name in self._columns}
        return msgspec.structs.replace(window, columns=columns)


def _hash(key: bytes, name: str, value: float) -> float:
    """Return a number that is the same for the same value of a feature, on this device alone."""
    value = _NAN if value != value else value + 0.0  # one NaN, and -0.0 as 0.0
    mac = hashlib.blake2b(digest_size=HASH_BYTES, key=key)
    mac.update(name.encode() + b"\x00" + struct.pack("<d", value))
    return float(int.from_bytes(mac.digest(), "little"))


def _read_or_make(file: Path) -> bytes:
    """Return the key in a file; a new one where there is none.

    Raises:
        OSError: it can be neither read nor kept.
    """
    try:
        key = file.read_bytes()
        if len(key) == KEY_BYTES:
            return key
        log.warning("%s is no key; making another, hashes change", file)
    except FileNotFoundError:
        pass
    key = secrets.token_bytes(KEY_BYTES)
    beside = file.with_name(f".{file.name}.new")
    beside.unlink(missing_ok=True)
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as stream:
        stream.write(key)
        stream.flush()
        os.fsync(fd)
    beside.replace(file)
    fsync_dir(file.parent)
    return key
