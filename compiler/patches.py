"""Which patches a release comes with: from what devices have, variant by variant.

Earlier bundles are parents here. They are given as files, or they are what the fleet's devices run:
then the digest of each is one that this publisher signed. Patches lie beside the release file, as
`<release file>.patches/<hex of the digest>`, until `skerry publish` hands them over.
"""

import io
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from compiler.believe import parse_targets
from compiler.patch import make_patch
from compiler.publish import download, fetch_bundle
from skerry.bundle import Bundle, read_bundle
from skerry.canonical import check_digest, sha256
from skerry.custom import MAX_PATCHES, catalog_target
from skerry.errors import FormatError, TrustError
from skerry.manifest import Manifest, Variant
from skerry.release_file import ReleaseFile
from skerry.trust import PatchRef

__all__ = [
    "Made",
    "in_service",
    "make_patches",
    "patch_file",
    "signed_patches",
]

MAX_PARENTS: Final = 4
MAX_DEVICES_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Made:
    """A patch, and what it is for."""

    ref: PatchRef
    data: bytes
    variant: str
    parent_version: str
    share: float  # of the file's bytes


def in_service(fleet: str, token: str, model: str, signed: Collection[str]) -> Iterator[Bundle]:
    """Give the bundles of a model that most devices of a fleet run, at most four.

    Args:
        fleet: URL of the operator API.
        token: an operator's.
        model: its name.
        signed: digests of the bundles that this publisher released; no others are looked at.

    Raises:
        TrustError: the fleet has another bundle than it says.
        FormatError: no answer of a fleet, or no bundle.
        SkerryError: it refuses, or does not answer.
    """
    counts: Counter[tuple[str, str]] = Counter()
    try:
        devices = json.loads(download(f"{fleet}/api/v1/devices", token, MAX_DEVICES_BYTES))["items"]
        for device in devices:
            for slot in device["slots"].values():
                running = str(slot["bundle"]), str(slot["model_version"])
                counts[running] += slot["model"] == model
    except (ValueError, KeyError, TypeError, AttributeError):
        raise FormatError(f"expected a list of devices from {fleet}; is this a fleet?") from None
    running_most = [running for running, n in counts.most_common() if n and running[0] in signed]
    for digest, version in running_most[:MAX_PARENTS]:
        data = fetch_bundle(fleet, quote(model, safe=""), quote(version, safe=""), token)
        bundle = read_bundle(io.BytesIO(data))
        if bundle.digest != digest:
            raise TrustError(f"expected {digest} from {fleet}, got {bundle.digest}", "wrong_bundle")
        yield bundle


def make_patches(bundle: Bundle, parents: Iterable[Bundle]) -> Iterator[Made]:
    """Give the patches to a bundle's variants that save enough, at most as many as may be signed."""
    done: set[tuple[str, str]] = set()
    for parent in parents:
        for variant in bundle.manifest.variants:
            old = _twin(variant, parent.manifest)
            if old is None or old.file.digest == variant.file.digest:
                continue
            pair = old.file.digest, variant.file.digest
            if pair in done or len(done) >= MAX_PATCHES:
                continue
            data = make_patch(parent.blobs[old.file.digest], bundle.blobs[variant.file.digest])
            if data is None:
                continue
            done.add(pair)
            yield Made(
                PatchRef(*pair, digest=sha256(data), size_bytes=len(data)), data, variant.id,
                parent.manifest.model_version, len(data) / variant.file.size_bytes,
            )  # fmt: skip


def patch_file(release_file: Path, digest: str) -> Path:
    """Return where a patch lies until it is published."""
    folder = release_file.with_name(release_file.name + ".patches")
    return folder / check_digest(digest).removeprefix("sha256:")


def signed_patches(file: ReleaseFile, path: str) -> list[PatchRef]:
    """Return the patches that a release file lists of a target; none where it is not in it."""
    for data in file.metadata.values():
        target = parse_targets(data).signed.targets.get(path)
        if target is not None:
            return catalog_target(path, target.length, target.hashes, target.custom).patches
    return []


def _twin(variant: Variant, parent: Manifest) -> Variant | None:
    """Return what a device that runs the variant next is likely to run now."""
    same = [old for old in parent.variants if old.id == variant.id]
    alike = [old for old in parent.variants if old.precision == variant.precision]
    return next(iter(same or alike), None)
