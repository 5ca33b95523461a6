"""The evaluation record: timings and facts of the host, beside a bundle and never in it.

A bundle is the same wherever it is built; what was measured while building it is
not. The record names the bundle by digest and can be signed by whoever measured.
"""

import base64
from typing import Final

import msgspec
from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
from securesystemslib.signer import Signature, Signer, SSlibKey

from compiler.host import Host, Tools
from compiler.latency import Verdict
from skerry.canonical import from_json, to_json
from skerry.errors import TrustError
from skerry.io.signers import key_id_of

__all__ = ["ElsewhereRecord", "Record", "VariantRecord", "open_record", "seal_record"]

DOMAIN: Final = b"skerry/v1/evaluation\x00"
MAX_BYTES: Final = 1 << 20


class VariantRecord(msgspec.Struct, frozen=True):
    """What was measured of one variant, shipped or refused."""

    precision: str
    bytes: int
    accuracy: float | None
    agreement: float | None
    drop_interval: tuple[float, float] | None  # of the metric below fp32, 95 %
    latency_ratio: float | None
    latency_interval: tuple[float, float] | None  # 95 %
    latency_us: float | None  # median CPU time of one row
    verdict: Verdict | None
    chosen: bool
    shipped: bool
    reason: str
    sqnr_db: float | None = None
    left_float: list[str] = []


class ElsewhereRecord(msgspec.Struct, frozen=True):
    """What a shipped variant scores on an emulated class of CPU."""

    precision: str
    isa: str
    value: float
    n: int
    agreement: float | None


class Record(msgspec.Struct, frozen=True):
    """What one build measured, and where."""

    bundle: str
    model: str
    model_version: str
    metric: str
    n: int
    variants: list[VariantRecord]
    host: Host
    tools: Tools
    profile: str
    latency_rounds: int
    latency_runs: int
    notes: list[str]
    built_at: str  # RFC 3339
    evaluations: int = 0  # of whole candidates that the search took
    seconds: float = 0.0  # that the build took
    elsewhere: list[ElsewhereRecord] = []


class _Sealed(msgspec.Struct, frozen=True, omit_defaults=True):
    record: Record
    key_id: str = ""
    signature: str = ""  # base64, over the domain string and the record's canonical bytes


def seal_record(record: Record, signer: Signer | None) -> bytes:
    """Return a record as JSON, signed where a key is given."""
    if signer is None:
        return to_json(_Sealed(record))
    key = signer.public_key
    assert isinstance(key, SSlibKey)
    made = bytes.fromhex(signer.sign(DOMAIN + to_json(record)).signature)
    return to_json(_Sealed(record, key_id_of(key), base64.b64encode(made).decode()))


def open_record(data: bytes, key: SSlibKey | None) -> Record:
    """Read a record, verifying its signature where a key is given.

    Raises:
        FormatError: not a record.
        TrustError: unsigned, or signed by another key.
    """
    sealed = from_json(data, _Sealed, limit=MAX_BYTES)
    if key is not None:
        _verify(sealed, key)
    return sealed.record


def _verify(sealed: _Sealed, key: SSlibKey) -> None:
    wanted = key_id_of(key)
    if not sealed.signature:
        raise TrustError(f"expected a record signed by {wanted}, it is not", "unsigned")
    try:
        signature = base64.b64decode(sealed.signature, validate=True)
    except ValueError:
        raise TrustError("the record's signature is no base64") from None
    try:
        key.verify_signature(Signature(key.keyid, signature.hex()), DOMAIN + to_json(sealed.record))
    except (UnverifiedSignatureError, VerificationError):
        raise TrustError(f"expected a record signed by {wanted}, got another signature") from None
