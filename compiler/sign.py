"""Signing: a publisher's TUF role metadata, with one release more.

    models/<publisher>/<model>@<version>   length and sha256 of the bundle's OCI manifest
      custom.release_counter      per model, one higher than the last: what devices compare
      custom.hw_classes           where any of its variants runs
      custom.min_agent            the oldest agent that can run one
      custom.may_fall_back_to     digests of the newest earlier releases of this model

The fleet hands out the current metadata, and the fleet is not trusted: it is signed
again only if this publisher had signed it before, so that nobody can slip a target
into what a publisher signs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import CryptoSigner, SSlibKey
from securesystemslib.signer import Signer as TufSigner
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Metadata, TargetFile, Targets
from tuf.api.serialization import DeserializationError, SerializationError
from tuf.api.serialization.json import JSONSerializer

from skerry.bundle import Bundle
from skerry.canonical import sha256
from skerry.custom import catalog_custom, catalog_target
from skerry.errors import ConflictError, FormatError, TrustError
from skerry.io.signers import add_signature
from skerry.keys import Signer
from skerry.profile import ANY_CLASS
from skerry.trust import CatalogTarget, parse_target, target_path

__all__ = ["Release", "add_release", "parse_targets", "release_of", "verify_signature"]

VALID: Final = timedelta(days=90)
FALL_BACKS: Final = 4
MAX_METADATA_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Release:
    """What a publisher says of one bundle."""

    path: str
    length: int
    sha256: str  # 64 hex digits
    hw_classes: list[str]
    min_agent: str


def release_of(bundle: Bundle, publisher: str) -> Release:
    """Return what is to be signed of a bundle.

    Raises:
        UsageError: the publisher's name has a wrong form.
    """
    manifest = bundle.manifest
    classes = {c for variant in manifest.variants for c in variant.hw_classes}
    agents = [variant.min_agent for variant in manifest.variants]
    return Release(
        path=target_path(publisher, manifest.model, manifest.model_version),
        length=len(bundle.oci),
        sha256=sha256(bundle.oci).removeprefix("sha256:"),
        hw_classes=[ANY_CLASS] if ANY_CLASS in classes else sorted(classes),
        min_agent=min(agents, key=_version),
    )


def add_release(
    current: bytes | None,
    release: Release,
    signer: TufSigner | Signer,
    *,
    now: datetime,
    trusted: Sequence[SSlibKey] = (),
) -> bytes:
    """Return the publisher's metadata with a release added, one version higher, signed.

    A release that is in it already, with the same digest, is signed anew and keeps its
    counter.

    Args:
        current: the publisher's metadata as the fleet has it; None for the first release.
        release: from `release_of`.
        signer: the publisher's key.
        now: aware UTC.
        trusted: further keys of this publisher, where another of them signed last.

    Raises:
        ConflictError: this version was released with another digest.
        FormatError: the current metadata is none.
        TrustError: the current metadata was not signed by this publisher.
    """
    key = CryptoSigner(signer.private_key) if isinstance(signer, Signer) else signer
    if current is None:
        metadata = Metadata(Targets(version=1))
    else:
        metadata = parse_targets(current)
        verify_signature(metadata, [_public(key), *trusted])
        metadata.signed.version += 1
    targets = metadata.signed
    known = [_target(target) for target in targets.targets.values()]
    if any(t.path == release.path and t.sha256 != release.sha256 for t in known):
        raise ConflictError(
            f"{release.path} was released already, with another digest; "
            "give the model a new version"
        )
    if release.path not in targets.targets:
        targets.targets[release.path] = TargetFile(
            release.length,
            {"sha256": release.sha256},
            release.path,
            {"custom": catalog_custom(_next(release, known))},
        )
    targets.expires = (now + VALID).replace(microsecond=0)
    add_signature(metadata, key)
    return metadata.to_bytes(JSONSerializer(compact=True))


def parse_targets(data: bytes) -> Metadata[Targets]:
    """Read targets metadata; nothing about it is verified yet.

    Raises:
        FormatError: not such metadata.
    """
    if len(data) > MAX_METADATA_BYTES:
        raise FormatError(f"expected at most {MAX_METADATA_BYTES} bytes of metadata")
    try:
        metadata = Metadata[Targets].from_bytes(data)
        _ = metadata.signed_bytes  # fractions and half characters parse, and cannot be signed
    except (DeserializationError, SerializationError, RecursionError, ValueError) as error:
        raise FormatError(
            f"expected a publisher's signed metadata: {str(error) or error.__cause__}"
        ) from None
    if not isinstance(metadata.signed, Targets):
        raise FormatError(f"expected targets metadata, got {metadata.signed.type}")
    return metadata


def verify_signature(metadata: Metadata[Targets], keys: Sequence[SSlibKey]) -> None:
    """Check that one of the keys signed the metadata.

    Raises:
        TrustError: none of them did.
    """
    for key in keys:
        signature = metadata.signatures.get(key.keyid)
        if signature is None:
            continue
        try:
            key.verify_signature(signature, metadata.signed_bytes)
        except (UnverifiedSignatureError, UnsignedMetadataError):
            continue
        return
    wanted = ", ".join(key.keyid[:16] for key in keys)
    got = ", ".join(keyid[:16] for keyid in metadata.signatures) or "none"
    raise TrustError(f"expected metadata signed by key {wanted}; it carries signatures of {got}")


def _public(key: TufSigner) -> SSlibKey:
    public = key.public_key
    assert isinstance(public, SSlibKey)
    return public


def _next(release: Release, known: Sequence[CatalogTarget]) -> CatalogTarget:
    """Return the release with its counter, and with what it may fall back to."""
    model = parse_target(release.path).model
    earlier = [target for target in known if parse_target(target.path).model == model]
    earlier.sort(key=lambda target: target.release_counter, reverse=True)
    return CatalogTarget(
        path=release.path,
        length=release.length,
        sha256=release.sha256,
        release_counter=earlier[0].release_counter + 1 if earlier else 1,
        hw_classes=release.hw_classes,
        min_agent=release.min_agent,
        may_fall_back_to=["sha256:" + target.sha256 for target in earlier[:FALL_BACKS]],
    )


def _target(target: TargetFile) -> CatalogTarget:
    return catalog_target(target.path, target.length, target.hashes, target.custom)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))
