"""A bundle is kept whole before the catalog names it, and a refused one leaves nothing."""

import io
import tarfile
from pathlib import Path

import pytest

from fleet.bundles import Bundles
from skerry.bundle import parse_oci_manifest, read_bundle
from skerry.errors import FormatError, TrustError
from tests.fakes.trusted import NOW, TrustedFleet, make_bundle, make_fleet


@pytest.fixture
def trusted(tmp_path: Path) -> TrustedFleet:
    return make_fleet(tmp_path)


def kept(trusted: TrustedFleet) -> list[str]:
    return sorted(path.name for path in (trusted.data / "blobs" / "sha256").iterdir())


def test_every_blob_of_a_published_bundle_is_kept(trusted: TrustedFleet) -> None:
    published = trusted.publish(make_bundle())
    oci = parse_oci_manifest(trusted.blobs.read(published.bundle.digest))
    for blob in (oci.config, *oci.layers):
        assert trusted.blobs.size(blob.digest) == blob.size
    assert trusted.bundles.missing() == []


def test_a_bundle_comes_back_from_its_blobs(trusted: TrustedFleet) -> None:
    published = trusted.publish(make_bundle())
    assert trusted.bundles.open(published.target) == published.bundle


def test_a_bundle_that_nobody_signed_leaves_nothing(trusted: TrustedFleet) -> None:
    metadata = trusted.sign(make_bundle("1.0.0"))
    with pytest.raises(TrustError):
        trusted.bundles.publish(io.BytesIO(make_bundle("1.1.0")), metadata, NOW)
    assert kept(trusted) == []
    assert trusted.catalog.releases() == []


@pytest.mark.parametrize("part", [b"oci-layout", b"manifests", b"weights", b"golden", b'"layers"'])
def test_a_damaged_bundle_is_refused_and_leaves_nothing(trusted: TrustedFleet, part: bytes) -> None:
    bundle = make_bundle()
    metadata = trusted.sign(bundle)
    damaged = bytearray(bundle)
    damaged[bundle.index(part)] ^= 0x20
    with pytest.raises((FormatError, TrustError)):
        trusted.bundles.publish(io.BytesIO(bytes(damaged)), metadata, NOW)
    assert kept(trusted) == []


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4])
def test_a_bundle_cut_short_is_refused(trusted: TrustedFleet, share: float) -> None:
    bundle = make_bundle()
    metadata = trusted.sign(bundle)
    with pytest.raises(FormatError):
        trusted.bundles.publish(io.BytesIO(bundle[: int(len(bundle) * share)]), metadata, NOW)


def test_a_bundle_above_the_limit_is_refused_before_it_is_read(trusted: TrustedFleet) -> None:
    bundle = make_bundle(weights=b"x" * 200_000)
    small = Bundles(trusted.blobs, trusted.catalog, limit_bytes=100_000)
    with pytest.raises(FormatError, match="at most 100000"):
        small.publish(io.BytesIO(bundle), trusted.sign(bundle), NOW)


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "blobs/sha256/../../x", "INDEX.JSON"])
def test_an_archive_with_other_names_is_refused(trusted: TrustedFleet, name: str) -> None:
    bundle = make_bundle()
    out = io.BytesIO(bundle)
    with tarfile.open(fileobj=out, mode="a") as tar:
        info = tarfile.TarInfo(name)
        info.size = 4
        tar.addfile(info, io.BytesIO(b"evil"))
    with pytest.raises(FormatError):
        trusted.bundles.publish(io.BytesIO(out.getvalue()), trusted.sign(bundle), NOW)


def test_a_release_whose_blobs_are_lost_is_named(trusted: TrustedFleet) -> None:
    published = trusted.publish(make_bundle())
    layer = min(read_bundle(io.BytesIO(make_bundle())).blobs)
    (trusted.data / "blobs" / "sha256" / layer.removeprefix("sha256:")).unlink()
    assert trusted.bundles.missing() == [published.target.path]
