"""A device whose clock lies, and versions that a thief has pushed far ahead: both must heal."""

from datetime import UTC, datetime, timedelta

import pytest
from tuf.api.metadata import Metadata, Root

from fleet.roles import sign, tuf_key
from skerry.custom import MESSAGE_KEYS_FIELD, message_keys_field
from skerry.keys import Signer
from skerry.wire import Ack, Hello, Policy, open_up
from tests.attacks.harness import (
    DEVICE,
    NEW,
    Files,
    Site,
    committed,
    director_targets,
    refused,
    resign,
)

FAR = (1 << 31) - 1
LONG_AGO, FAR_AHEAD = 0.0, 4_070_908_800.0  # 1970, 2099


# --- clocks ---------------------------------------------------------------------------------------


def nonce(site: Site) -> bytes:
    """The nonce of the device's last hello, as the broker sees it."""
    hellos = [data for topic, data in site.device.link.said if topic.endswith("/hello")]
    _, hello = open_up(hellos[-1], site.device.signer.public, device=DEVICE)
    assert isinstance(hello, Hello)
    return hello.nonce


def hears_the_time(site: Site, at: float | None = None, signer: Signer | None = None) -> None:
    """The fleet's signed answer to what the device said when it connected."""
    site.device.control._connected()
    now = site.now.timestamp() if at is None else at
    site.device.hear(site.seal("ack", Ack(now=now, nonce=nonce(site)), signer=signer))


def knows(site: Site) -> float:
    """The device's time."""
    return site.device.control._trust.now()


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
    hears_the_time(site, FAR_AHEAD, Signer.generate())
    assert (site.device.floor.time, knows(site)) == (before, site.now.timestamp())
    assert site.device.refusals == {"unknown_key": 1}
    assert await site.install(site.publish()) == committed()


async def test_row_05_a_clock_in_1970_learns_the_time(site: Site) -> None:
    """Metadata that was held back is fresh by its clock, and is not by the time it was told."""
    release = site.publish()
    site.wait(timedelta(days=10))
    order = site.order(release)
    frozen, catalog = site.signed(order), site.catalog_files()
    site.wait(timedelta(days=10))
    site.network.serve_catalog(catalog)
    site.clock.now = LONG_AGO
    hears_the_time(site)
    assert knows(site) == site.now.timestamp()
    assert await site.tell(frozen, order) == refused("metadata_expired")
    site.network.clear()
    assert await site.install(release) == committed()


async def test_row_05_only_an_answer_to_its_own_nonce_tells_the_time(site: Site) -> None:
    """A guess, an answer of an earlier connection, one that was held back, one that came before."""
    site.device.control._connected()
    earlier = site.seal("ack", Ack(now=FAR_AHEAD, nonce=nonce(site)))
    site.device.control._connected()
    late = site.seal("ack", Ack(now=FAR_AHEAD, nonce=nonce(site)))
    for forged in (b"", bytes(16), nonce(site)[:-1], nonce(site) + b"x"):
        site.device.hear(site.seal("ack", Ack(now=FAR_AHEAD, nonce=forged)))
    site.device.hear(earlier)
    site.wait(timedelta(minutes=11))
    site.device.hear(late)
    assert (knows(site), site.device.floor.time) == (site.now.timestamp(), 0.0)
    hears_the_time(site)
    told = site.device.floor.time
    assert told == site.now.timestamp()
    hears_the_time(site, told - 86_400.0)
    assert site.device.floor.time == told
    assert await site.install(site.publish()) == committed()


async def test_row_05_a_stolen_message_key_alone_does_no_lasting_harm(site: Site) -> None:
    """Its time holds until the next true answer; the floor stays within what others signed."""
    release = site.publish()
    hears_the_time(site, FAR_AHEAD)
    assert await site.install(release) == refused("root_expired")
    assert site.device.floor.time <= site.now.timestamp() + 7 * 86_400
    # thrown off the broker, or started again, the device asks anew
    hears_the_time(site)
    site.wait(timedelta(days=1))
    assert await site.install(release) == committed()


async def test_row_05_a_new_root_ends_what_stolen_keys_said_of_the_time(site: Site) -> None:
    """Message and director key together push the floor far ahead; no key of theirs brings it back."""
    release = site.publish()
    order = site.order(release)
    files = site.director_signs(director_targets(order))
    far = datetime.fromtimestamp(FAR_AHEAD, UTC)
    stamp = resign(files["timestamp.json"], site.trusted.keys.director, expires=far)
    assert await site.tell(files | {"timestamp.json": stamp}, order) == committed()
    hears_the_time(site, FAR_AHEAD)
    await site.device.restart()
    assert site.device.floor.time == FAR_AHEAD
    newer = site.publish("1.2.0")
    assert await site.install(newer) == refused("root_expired", serves=NEW)
    # the holders of the root keys name another director and another message key
    director, message = Signer.generate(), Signer.generate()
    root = next_root(
        site, "director", dict.fromkeys(("targets", "snapshot", "timestamp"), director), message
    )
    order = site.order(newer)
    told = site.desired(site.director_signs(director_targets(order), signer=director), order,
                        signer=message)  # fmt: skip
    site.device.hear(told)
    assert site.device.refusals == {"unknown_key": 1}
    # a key it does not know: the device looks for a later root
    site.network["/tuf/director/metadata/2.root.json"] = root
    site.device.control._connected()
    before = nonce(site)
    await site.device.control._trust.look(ask=False)
    assert site.device.floor.time == 0.0
    assert nonce(site) != before  # it has said hello again: the fleet answers with its order
    site.device.hear(told)
    assert await site.device.outcome(order.nonce) == committed("1.2.0")
    # and the thief's word is no longer heard
    hears_the_time(site, FAR_AHEAD)
    assert site.device.refusals == {"unknown_key": 2}
    hears_the_time(site, signer=message)
    assert site.device.floor.time == site.now.timestamp()


async def test_row_05_a_new_root_that_keeps_the_message_key_keeps_the_time(site: Site) -> None:
    hears_the_time(site)
    before = site.device.floor
    assert before.time == site.now.timestamp()
    director = Signer.generate()
    root = next_root(
        site, "director", dict.fromkeys(("targets", "snapshot", "timestamp"), director)
    )
    order = site.order(site.publish())
    low = site.director_signs(director_targets(order), signer=director)
    assert await site.tell(low | {"2.root.json": root}, order) == committed()
    assert site.device.floor.time == before.time
    assert site.device.floor.metadata["director/root"] == 2


# --- versions far ahead ----------------------------------------------------------------------------


def next_root(
    site: Site, repository: str, keys: dict[str, Signer], message: Signer | None = None
) -> bytes:
    """The next root of a repository: other keys for these roles, by two of three holders."""
    root = site.root(repository)
    root.version += 1
    if message is not None:
        root.unrecognized_fields[MESSAGE_KEYS_FIELD] = message_keys_field([message.public])
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


async def test_row_10_versions_of_messages_far_ahead_and_recovery(site: Site) -> None:
    """A stolen message key uses up the versions of `desired` and `policy`, and of reports."""
    control, last = site.device.control, 1 << 62
    order = site.order(site.publish())
    site.desired_versions = last - 1
    garbage = site.signed(order) | {"2.root.json": b"none"}
    assert await site.tell(garbage, order) == refused("metadata_invalid")
    site.device.hear(site.seal("policy", Policy(version=last, window_s=1.0), dev="all"))
    for reported in (last, last + 1, (1 << 64) - 1):
        site.device.hear(site.seal("ack", Ack(reported=reported)))
    assert control._policy.version == last
    newer = site.order(site.publish("1.2.0"))
    site.desired_versions = 7
    site.device.hear(site.desired(site.signed(newer), newer))
    assert control._machine.state.desired_version == last
    # the holders of the root keys name another message key
    message = Signer.generate()
    root = next_root(site, "director", {}, message)
    site.network["/tuf/director/metadata/2.root.json"] = root
    site.device.hear(site.seal("policy", Policy(version=3), dev="all", signer=message))
    assert await control._trust.look(ask=False)
    site.device.hear(site.seal("policy", Policy(version=3), dev="all", signer=message))
    assert control._policy == Policy(version=3)
    site.device.hear(site.desired(site.signed(newer), newer, signer=message))
    assert await site.device.outcome(newer.nonce) == committed("1.2.0")
    site.device.hear(site.seal("policy", Policy(version=2), dev="all", signer=message))
    assert control._policy == Policy(version=3)


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
