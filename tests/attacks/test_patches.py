"""Patches that lie, by a fleet that was taken over or with a publisher's key. Row 54 of the attack table.

A patch can save bytes and nothing else: the outcome is the signed file, whatever it says.
"""

import io
import lzma
from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest

from compiler.patch import make_patch
from compiler.sign import add_release, release_of
from skerry.bundle import read_bundle
from skerry.canonical import sha256
from skerry.delta import COPY, DIFF, NEW, PatchHead, filters
from skerry.errors import TrustError
from skerry.trust import CatalogTarget, PatchRef
from tests.attacks.harness import Site, committed, refused
from tests.fakes.trusted import make_bundle

WEIGHTS = bytes(range(256)) * 400
BEFORE, AFTER = "2.0.0", "2.1.0"


@pytest.fixture
async def running(site: Site) -> Site:
    """A device that runs a model of a size worth a patch."""
    assert await site.install(site.publish(BEFORE, weights=WEIGHTS)) == committed(BEFORE)
    return site


def file_of(version: str) -> bytes:
    return WEIGHTS + version.encode()


def good() -> bytes:
    patch = make_patch(file_of(BEFORE), file_of(AFTER))
    assert patch is not None
    return patch


def lying(steps: bytes, **change: object) -> bytes:
    old, new = file_of(BEFORE), file_of(AFTER)
    head = PatchHead(sha256(old), len(old), sha256(new), len(new), 16)
    body = lzma.compress(steps, lzma.FORMAT_RAW, filters=filters(16))
    return msgspec.structs.replace(head, **change).to_bytes() + body


def release_with(site: Site, patch: bytes, **change: object) -> CatalogTarget:
    """Sign and publish a release that lists a patch, and have the fleet hold that patch."""
    ref = PatchRef(sha256(file_of(BEFORE)), sha256(file_of(AFTER)), sha256(patch), len(patch))
    return release_listing(site, [msgspec.structs.replace(ref, **change)], patch)


def release_listing(site: Site, refs: list[PatchRef], patch: bytes) -> CatalogTarget:
    bundle = make_bundle(AFTER, weights=WEIGHTS)
    release = replace(release_of(read_bundle(io.BytesIO(bundle)), "acme"), patches=tuple(refs))
    signed = add_release(
        site.trusted.roles(), release, site.trusted.publisher(), now=site.now
    )["acme"]  # fmt: skip
    target = site.trusted.bundles.publish(io.BytesIO(bundle), signed, site.now).target
    site.trusted.blobs.put(sha256(patch), patch)
    return target


def fetched(site: Site) -> tuple[bool, bool]:
    """Whether a patch was made use of, and whether the whole file was fetched."""
    address = f"/v2/reader/blobs/{sha256(file_of(AFTER))}"
    made = site.device.control._files.patches.made == 1
    return made, any(path == address for path, _ in site.requests)


async def test_row_54_without_the_attack(running: Site) -> None:
    assert await running.install(release_with(running, good())) == committed(AFTER)
    assert fetched(running) == (True, False)


COPY_ALL = bytes([COPY, 0]) + b"\x80\xa0\x06"  # the 102,400 bytes that both have
SIGNED = {
    "random": lambda: bytes(1000),
    "makes other bytes": lambda: lying(COPY_ALL + bytes([NEW, 5]) + b"evil!"),
    "unpacks to much more": lambda: lying(COPY_ALL + bytes([NEW, 5]) + bytes(32 << 20)),
    "copies from outside": lambda: lying(bytes([COPY]) + b"\xff" * 8 + b"\x01\x01"),
    "a length beyond all": lambda: lying(bytes([DIFF, 0]) + b"\xff" * 8 + b"\x7f"),
    "a head that claims a terabyte": lambda: lying(COPY_ALL, new_size=1 << 40),
    "a head for another file": lambda: lying(COPY_ALL, new=sha256(b"evil")),
    "a window beyond all": lambda: lying(COPY_ALL, window=40),
}


@pytest.mark.parametrize("patch", SIGNED.values(), ids=SIGNED.keys())
async def test_row_54_signed_by_a_publisher_who_lies(
    running: Site, patch: Callable[[], bytes]
) -> None:
    assert await running.install(release_with(running, patch())) == committed(AFTER)
    assert fetched(running) == (False, True)
    assert running.device.control._files.patches.failed == 1


@pytest.mark.parametrize("data", [b"", good()[:-1], bytes(len(good())), b"x" * (8 << 20)])
async def test_row_54_other_bytes_than_were_signed(running: Site, data: bytes) -> None:
    release = release_with(running, good())
    running.network[f"/v2/reader/blobs/{sha256(good())}"] = data
    assert await running.install(release) == committed(AFTER)
    assert fetched(running) == (False, True)


async def test_row_54_a_patch_held_back(running: Site) -> None:
    release = release_with(running, good())
    running.network.blocked.add(f"/v2/reader/blobs/{sha256(good())}")
    assert await running.install(release) == committed(AFTER)
    assert fetched(running) == (False, True)


async def test_row_54_more_patches_than_a_release_may_list(running: Site) -> None:
    ref = PatchRef(sha256(b"old"), sha256(file_of(AFTER)), sha256(b"patch"), 9)
    with pytest.raises(TrustError) as caught:
        release_listing(running, [ref] * 17, good())
    assert caught.value.code == "custom"
    release = running.publish(AFTER, weights=WEIGHTS)
    signed = running.publisher_signs(
        msgspec.structs.replace(release, patches=[ref] * 17),
        signers=[running.trusted.publisher()], version=9,
    )  # fmt: skip
    running.network.serve_catalog(running.catalog_signs({"acme": signed}))
    assert await running.install(release) == refused("custom", BEFORE)


async def test_row_54_a_patch_of_a_file_that_is_not_in_the_bundle(running: Site) -> None:
    with pytest.raises(TrustError) as caught:
        release_with(running, good(), new=sha256(b"evil"))
    assert caught.value.code == "patches"
    with pytest.raises(TrustError) as caught:
        release_with(running, good(), size_bytes=len(WEIGHTS) + 5)
    assert caught.value.code == "patches"
    assert await running.install(release_with(running, good())) == committed(AFTER)
