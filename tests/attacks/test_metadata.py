"""Forged, old, mixed, endless and broken metadata, and keys that are not enough.

Each attack ends with its code while the old model serves; the same without the attack commits.
"""

import json
from collections.abc import Callable
from datetime import timedelta

import pytest

from agent.status_file import read_status
from skerry.bundle import parse_oci_manifest
from skerry.keys import Signer
from skerry.manifest import parse_manifest
from skerry.trust import CatalogTarget
from tests.attacks.harness import (
    OLD,
    Files,
    Site,
    committed,
    refused,
    resign,
)


def altered(data: bytes) -> bytes:
    """Longer valid than it was signed for."""
    document = json.loads(data)
    document["signed"]["expires"] = "2035-01-01T00:00:00Z"
    return json.dumps(document).encode()


def unsigned(data: bytes) -> bytes:
    document = json.loads(data)
    document["signatures"] = []
    return json.dumps(document).encode()


def by_a_stranger(data: bytes) -> bytes:
    return resign(data, Signer.generate())


def of(files: Files, role: str) -> str:
    """The name of a role's file."""
    return next(name for name in files if name.endswith(f"{role}.json"))


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
@pytest.mark.parametrize("forge", [altered, unsigned, by_a_stranger])
async def test_row_01_forged_director_metadata(
    site: Site, role: str, forge: Callable[[bytes], bytes]
) -> None:
    order = site.order(site.publish())
    files = site.signed(order)
    name = of(files, role)
    assert await site.tell(files | {name: forge(files[name])}, order) == refused(
        "signature_invalid"
    )
    order = site.order(site.trusted.catalog.release(order.path))
    assert await site.tell(site.signed(order), order) == committed()


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "acme"])
@pytest.mark.parametrize("forge", [altered, unsigned, by_a_stranger])
async def test_row_01_forged_catalog_metadata(
    site: Site, role: str, forge: Callable[[bytes], bytes]
) -> None:
    release = site.publish()
    files = site.catalog_files()
    name = of(files, role)
    site.network.serve_catalog({name: forge(files[name])})
    assert await site.install(release) == refused("signature_invalid")
    site.network.clear()
    assert await site.install(release) == committed()


async def test_row_02_replay_of_older_director_metadata(site: Site) -> None:
    first = site.order(site.publish())
    older = site.signed(first)
    again = site.order(site.publish("1.2.0"))
    assert await site.tell(site.signed(again), again) == committed("1.2.0")
    assert await site.tell(older, first) == refused("metadata_rollback", serves="1.2.0")


async def test_row_02_replay_of_an_older_catalog(site: Site) -> None:
    site.publish()
    older = site.catalog_files()
    newest = site.publish("1.2.0")
    assert await site.install(newest) == committed("1.2.0")
    site.network.serve_catalog(older)
    assert await site.install(newest) == refused("metadata_rollback", serves="1.2.0")


@pytest.mark.parametrize("damage", ["lost", "truncated"])
@pytest.mark.parametrize("repository", ["director", "catalog"])
async def test_row_03_replay_after_files_were_lost(
    site: Site, repository: str, damage: str
) -> None:
    first = site.order(site.publish())
    older, older_catalog = site.signed(first), site.catalog_files()
    newest = site.publish("1.2.0")
    assert await site.install(newest) == committed("1.2.0")
    if damage == "truncated":
        for path in site.device.layout.tuf.rglob("*.json"):
            path.write_bytes(path.read_bytes()[:100])
    await site.device.restart(lose_metadata=damage == "lost")
    if repository == "director":
        assert await site.tell(older, first) == refused("metadata_below_floor", serves="1.2.0")
    else:
        site.network.serve_catalog(older_catalog)
        old = site.trusted.catalog.release(first.path)
        assert await site.install(old) == refused("metadata_below_floor", serves="1.2.0")
    site.network.clear()
    assert await site.install(site.publish("1.3.0")) == committed("1.3.0")


@pytest.mark.parametrize("repository", ["director", "catalog"])
async def test_row_04_freeze(site: Site, repository: str) -> None:
    release = site.publish()
    order = site.order(release)
    files = site.signed(order)
    site.wait(timedelta(days=8), renew=repository == "director")
    if repository == "catalog":
        files = site.signed(order)
    assert await site.tell(files, order) == refused("metadata_expired")
    site.trusted.catalog.renew(site.now)
    assert await site.install(release) == committed()


async def test_row_04_a_device_that_is_shown_nothing_new_says_so(site: Site) -> None:
    """Stale in its status and to its fleet, while the old model serves; fresh again by itself."""
    control = site.device.control
    order = site.order(site.trusted.catalog.releases()[0], assignment="a-1")  # what runs
    site.wait(timedelta(days=6), renew=False)
    assert control._health(0.0).trust == ""
    site.wait(timedelta(days=2), renew=False)
    assert control._health(0.0).trust == "stale"
    assert await control._trust.look(ask=True) is False  # the fleet has nothing newer
    control._write_status()
    status = read_status(site.device.layout.status)
    assert status is not None
    assert status.stale == ["catalog", "director"]
    assert site.device.serves == OLD
    site.trusted.catalog.renew(site.now)
    site.device.hear(site.desired(site.signed(order), order))
    assert await control._trust.look(ask=True)
    assert (control._health(0.0).trust, site.device.serves) == ("", OLD)


@pytest.mark.parametrize("role", ["snapshot", "targets"])
async def test_row_06_new_timestamp_with_old_director_metadata(site: Site, role: str) -> None:
    release = site.publish()
    old, new = site.signed(site.order(release)), site.order(release)
    files = site.signed(new)
    mixed = files | {of(files, role): old[of(old, role)]}
    assert await site.tell(mixed, new) == refused("metadata_rollback")
    assert await site.install(release) == committed()


@pytest.mark.parametrize("role", ["snapshot", "acme"])
async def test_row_06_new_timestamp_with_an_old_catalog(site: Site, role: str) -> None:
    old = site.catalog_files()
    release = site.publish()
    new = site.catalog_files()
    site.network.serve_catalog({of(new, role): old[of(old, role)]})
    assert await site.install(release) == refused("metadata_rollback")
    site.network.clear()
    assert await site.install(release) == committed()


@pytest.mark.parametrize("megabytes", [0.01, 8])
async def test_row_07_endless_catalog_timestamp(site: Site, megabytes: float) -> None:
    release = site.publish()
    site.network.serve_catalog({"timestamp.json": b" " * int(megabytes * 2**20)})
    assert await site.install(release) == refused("metadata_too_long")
    site.network.clear()
    assert await site.install(release) == committed()


async def test_row_07_endless_director_timestamp(site: Site) -> None:
    order = site.order(site.publish())
    files = site.signed(order)
    long = files | {"timestamp.json": files["timestamp.json"] + b" " * 8192}
    assert await site.tell(long, order) == refused("metadata_too_long")
    endless = site.desired(files | {"timestamp.json": b" " * (8 << 20)}, order)
    before = site.device.refused
    site.device.hear(endless)
    assert site.device.refused == before + 1
    assert site.device.serves == OLD
    assert await site.install(site.trusted.catalog.release(order.path)) == committed()


async def test_row_07_model_longer_than_signed(site: Site) -> None:
    release = site.publish()
    model = model_path(site, release)
    data = site.network.get(model)
    assert data is not None
    site.network[model] = b"x" * (8 << 20)
    assert await site.install(release) == refused("digest_mismatch")
    assert list(site.device.layout.slots.rglob("*.part")) == []
    site.network[model] = data + b"x" * (8 << 20)  # the signed bytes, and no end
    assert await site.install(release) == committed()
    sizes = [path.stat().st_size for path in site.device.layout.slots.rglob("*") if path.is_file()]
    assert max(sizes) < 64 << 10


def model_path(site: Site, release: CatalogTarget) -> str:
    """Where the model's bytes of a release are fetched."""
    oci = parse_oci_manifest(site.trusted.blobs.read("sha256:" + release.sha256))
    manifest = parse_manifest(site.trusted.blobs.read(oci.config.digest))
    return f"/v2/reader/blobs/{manifest.variants[0].file.digest}"


RUBBISH = {
    "empty": b"",
    "empty object": b"{}",
    "no JSON": b"\xff\xfe\x00",
    "nested 100,000 deep": b"[" * 100_000,
    "a number of 10,000 digits": b'{"signed":' + b"9" * 10_000 + b"}",
    "a huge version": b'{"signatures":[],"signed":{"_type":"timestamp","version":1e400}}',
}


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "acme"])
async def test_row_11_rubbish_from_the_catalog(site: Site, role: str) -> None:
    release = site.publish()
    for rubbish, data in RUBBISH.items():
        site.network.serve_catalog({of(site.catalog_files(), role): data})
        assert await site.install(release) == refused(code_of(data, role)), rubbish
    site.network.clear()
    assert await site.install(release) == committed()


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
async def test_row_11_rubbish_from_the_director(site: Site, role: str) -> None:
    release = site.publish()
    for rubbish, data in RUBBISH.items():
        order = site.order(release)
        files = site.signed(order)
        outcome = await site.tell(files | {of(files, role): data}, order)
        assert outcome == refused(code_of(data, role)), rubbish
    assert await site.install(release) == committed()


def code_of(rubbish: bytes, role: str) -> str:
    too_long = role == "timestamp" and len(rubbish) > 4096
    return "metadata_too_long" if too_long else "metadata_invalid"
