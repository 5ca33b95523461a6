"""A device whose clock lies, and versions that a thief has pushed far ahead: both must heal."""

from datetime import timedelta

import pytest
from tuf.api.metadata import Metadata, Root

from fleet.roles import sign, tuf_key
from skerry.keys import Signer
from skerry.wire import Ack
from tests.attacks.harness import (
    NEW,
    Files,
    Site,
    committed,
    director_targets,
    refused,
)

FAR = (1 << 31) - 1
LONG_AGO, FAR_AHEAD = 0.0, 4_070_908_800.0  # 1970, 2099


# --- clocks ---------------------------------------------------------------------------------------


def hears_the_time(site: Site) -> None:
    """The fleet's signed answer to what the device said when it connected."""
    site.device.control._connected()
    site.device.hear(site.seal("ack", Ack(now=site.now.timestamp())))


async def test_row_05_freeze_with_the_clock_set_back(site: Site) -> None:
    """The fleet's signed time raised a floor; what had expired by then stays expired."""
    release = site.publish()
    order = site.order(release)
    frozen = site.signed(order)
    site.wait(timedelta(days=8), renew=False)
    hears_the_time(site)
    site.clock.now = LONG_AGO
    assert await site.tell(frozen, order) == refused("metadata_expired")
    site.trusted.catalog.renew(site.now)
    assert await site.install(release) == committed()


async def test_row_05_the_floor_of_time_survives_a_restart(site: Site) -> None:
    release = site.publish()
    order = site.order(release)
    frozen = site.signed(order)
    site.wait(timedelta(days=8), renew=False)
    hears_the_time(site)
    site.clock.now = LONG_AGO
    await site.device.restart(lose_metadata=True)
    assert await site.tell(frozen, order) == refused("metadata_expired")
    site.trusted.catalog.renew(site.now)
    assert await site.install(release) == committed()


async def test_row_05_a_clock_far_ahead_stops_updates_and_heals(site: Site) -> None:
    """Its own clock raises no floor: set right again, the device takes updates again."""
    release = site.publish()
    site.clock.now = FAR_AHEAD
    assert await site.install(release) == refused("root_expired")
    assert site.device.floor.time < site.now.timestamp() + 2 * 86_400
    site.clock.now = site.now.timestamp()
    assert await site.install(release) == committed()


async def test_row_05_nobody_but_the_fleet_raises_the_floor_of_time(site: Site) -> None:
    before = site.device.floor.time
    forged = site.seal("ack", Ack(now=FAR_AHEAD), signer=Signer.generate())
    site.device.hear(forged)
    assert site.device.floor.time == before
    assert site.device.refusals == {"unknown_key": 1}
    assert await site.install(site.publish()) == committed()


# --- versions far ahead ----------------------------------------------------------------------------


def next_root(site: Site, repository: str, keys: dict[str, Signer]) -> bytes:
    """The next root of a repository: other keys for these roles, by two of three holders."""
    root = site.root(repository)
    root.version += 1
    for role, signer in keys.items():
        for keyid in list(root.roles[role].keyids):
            root.revoke_key(keyid, role)
        root.add_key(tuf_key(signer.public), role)
    return sign(root, [site.root_key(2), site.root_key(3)])


async def test_row_10_catalog_versions_far_ahead_and_recovery(site: Site) -> None:
    """The thief's versions are believed at first: nothing tells them from honest ones."""
    release = site.publish()
    site.network.serve_catalog(site.catalog_signs(publishers(site), versions=(FAR, FAR)))
    assert await site.install(release) == committed(NEW)
    site.network.clear()
    newer = site.publish("1.2.0")
    assert await site.install(newer) == refused("metadata_rollback", serves=NEW)
    await site.device.restart(lose_metadata=True)
    assert await site.install(newer) == refused("metadata_below_floor", serves=NEW)
    # the holders of the root keys name new keys; the catalog goes on from low versions
    snapshot, timestamp = Signer.generate(), Signer.generate()
    root = next_root(site, "catalog", {"snapshot": snapshot, "timestamp": timestamp})
    low = site.catalog_signs(publishers(site), keys=(snapshot, timestamp))
    site.network.serve_catalog(low | {"2.root.json": root})
    assert await site.install(newer) == committed("1.2.0")
    # and the thief's catalog is no longer believed
    stolen = site.catalog_signs(publishers(site), versions=(FAR, FAR))
    site.network.serve_catalog({"timestamp.json": stolen["timestamp.json"]})
    assert await site.install(release) == refused("signature_invalid", serves="1.2.0")


async def test_row_10_director_versions_far_ahead_and_recovery(site: Site) -> None:
    release, newer = site.publish(), site.publish("1.2.0")
    order = site.order(release)
    far = site.director_signs(director_targets(order), version=FAR)
    assert await site.tell(far, order) == committed(NEW)
    assert await site.install(newer) == refused("metadata_rollback", serves=NEW)
    await site.device.restart(lose_metadata=True)
    assert await site.install(newer) == refused("metadata_below_floor", serves=NEW)
    director = Signer.generate()
    root = next_root(
        site, "director", dict.fromkeys(("targets", "snapshot", "timestamp"), director)
    )
    order = site.order(newer)
    low = site.director_signs(director_targets(order), signer=director)
    assert await site.tell(low | {"2.root.json": root}, order) == committed("1.2.0")
    order = site.order(release)
    far = site.director_signs(director_targets(order), version=FAR)
    assert await site.tell(far, order) == refused("signature_invalid", serves="1.2.0")


async def test_row_10_a_new_root_does_not_lower_the_release_counter(site: Site) -> None:
    """What recovers from the attack must not be a way to older models."""
    releases = [site.publish(f"1.{n}.0") for n in range(1, 7)]
    assert await site.install(releases[-1]) == committed("1.6.0")
    director = Signer.generate()
    root = next_root(
        site, "director", dict.fromkeys(("targets", "snapshot", "timestamp"), director)
    )
    order = site.order(releases[0])
    low = site.director_signs(director_targets(order), signer=director)
    expected = refused("release_below_floor", serves="1.6.0")
    assert await site.tell(low | {"2.root.json": root}, order) == expected
    order = site.order(releases[-2])
    low = site.director_signs(director_targets(order), signer=director)
    assert await site.tell(low | {"2.root.json": root}, order) == committed("1.5.0")


@pytest.mark.parametrize("repository", ["catalog", "director"])
async def test_row_10_a_new_root_of_one_repository_leaves_the_others_floor(
    site: Site, repository: str
) -> None:
    other = "director" if repository == "catalog" else "catalog"
    release, newer = site.publish(), site.publish("1.2.0")
    assert await site.install(newer) == committed("1.2.0")
    before = floors(site, other)
    same = Metadata[Root].from_bytes(next_root(site, repository, {})).to_bytes()
    order = site.order(release)
    files = site.signed(order)
    if repository == "director":
        files |= {"2.root.json": same}
    else:
        site.network.serve_catalog({"2.root.json": same})
    assert await site.tell(files, order) == committed(NEW)
    after = floors(site, other)
    assert all(after[name] >= version for name, version in before.items())


def floors(site: Site, repository: str) -> dict[str, int]:
    floor: dict[str, int] = site.device.floor.metadata
    return {name: n for name, n in floor.items() if name.startswith(f"{repository}/")}


def publishers(site: Site) -> Files:
    """What publishers have signed."""
    return {"acme": site.trusted.catalog.metadata("acme.json")}
