"""Verifying a release as a stranger would: against a publisher's key, or a whole catalog.

By a key: the metadata names this bundle, is signed by the key and has not expired.
By a catalog: python-tuf walks from the root that the caller trusts to the bundle's
target, as every device does, with all that TUF checks.
"""

import tempfile
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from securesystemslib.signer import SSlibKey
from tuf.api.exceptions import DownloadError, DownloadHTTPError, RepositoryError
from tuf.api.metadata import TargetFile
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from compiler.believe import parse_targets, verify_signature
from compiler.sign import Release
from skerry.custom import catalog_target
from skerry.errors import TrustError, UnreachableError
from skerry.keys import PublicKey
from skerry.release_file import read_release_file

__all__ = ["tuf_key", "verify_in_catalog", "verify_with_key"]

LIMITS: Final = UpdaterConfig(
    max_root_rotations=1024, max_delegations=4,
    root_max_length=64_000, timestamp_max_length=16_000,
    snapshot_max_length=256_000, targets_max_length=1_000_000,
)  # fmt: skip

Fetch = Callable[[str], bytes | None]  # a URL's body, None for 404; raises UnreachableError


def tuf_key(public: PublicKey) -> SSlibKey:
    """Return a public key as TUF names it."""
    return SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(public.raw))


def verify_with_key(release: Release, metadata: bytes, key: SSlibKey, *, now: datetime) -> int:
    """Check a release against metadata signed by a publisher's key.

    Args:
        release: of the bundle at hand.
        metadata: the publisher's, or the release file that holds it.
        key: the publisher's.
        now: aware UTC.

    Returns:
        The release counter.

    Raises:
        FormatError: the metadata is none.
        TrustError: wrong key, expired, or not about this bundle.
    """
    target = None
    for data in read_release_file(metadata).metadata.values():
        signed = parse_targets(data)
        verify_signature(signed, {key.keyid: key})
        if signed.signed.is_expired(now):
            raise TrustError(
                f"the metadata expired at {signed.signed.expires:%Y-%m-%d}; sign again", "expired"
            )
        target = signed.signed.targets.get(release.path, target)
    return check_target(release, target)


def verify_in_catalog(release: Release, root: bytes, base_url: str, fetch: Fetch) -> int:
    """Check a published release from a trusted root down, and return its release counter.

    Args:
        release: of the bundle at hand.
        root: the catalog's root metadata, trusted by the caller.
        base_url: where the metadata files are.
        fetch: gets a URL.

    Raises:
        TrustError: the catalog does not verify, or says something else of this bundle.
        UnreachableError: no answer.
    """
    with tempfile.TemporaryDirectory(prefix="skerry-") as folder:
        try:
            updater = Updater(
                folder, base_url, fetcher=_Fetcher(fetch), config=LIMITS, bootstrap=root
            )
            updater.refresh()
            target = updater.get_targetinfo(release.path)
        except DownloadError as error:
            raise UnreachableError(f"the catalog at {base_url} is not complete: {error}") from None
        except (RepositoryError, ValueError) as error:
            raise TrustError(f"the catalog does not verify: {error}", "catalog") from None
    return check_target(release, target)


def check_target(release: Release, target: TargetFile | None) -> int:
    """Compare verified metadata with the bundle, and return the release counter.

    Raises:
        TrustError: it is not listed, or with another length or digest.
    """
    if target is None:
        raise TrustError(
            f"expected the metadata to list {release.path}; it does not. "
            "Sign the bundle with `skerry sign`", "unsigned",
        )  # fmt: skip
    said = (target.length, target.hashes.get("sha256"))
    if said != (release.length, release.sha256):
        raise TrustError(
            f"{release.path}: expected a bundle sha256:{said[1]}, got sha256:{release.sha256}",
            "digest",
        )
    return catalog_target(target.path, target.length, target.hashes, target.custom).release_counter


class _Fetcher(FetcherInterface):
    """python-tuf's view of a function that gets URLs."""

    def __init__(self, fetch: Fetch) -> None:
        self._get = fetch

    def _fetch(self, url: str) -> Iterator[bytes]:
        body = self._get(url)
        if body is None:
            raise DownloadHTTPError(f"no {url}", 404)
        return iter([body])
