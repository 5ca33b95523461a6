"""What a director's key, a mirror, or a whole fleet host in the wrong hands can do to a device.

TUF lets most of these pass: the checks are of the agent's own (`skerry.trust`). Each attack ends
with its code while the old model serves; the same without the attack commits.
"""

import asyncio
import dataclasses
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from tuf.api.metadata import DelegatedRole, Delegations

from agent.device_state import Doing, doing
from fleet.roles import tuf_key
from skerry.bundle import parse_oci_manifest
from skerry.errors import FormatError, RefusedError, TrustError
from skerry.keys import Signer
from skerry.manifest import Manifest, parse_manifest
from skerry.trust import CatalogTarget, DirectorTarget
from tests.attacks.harness import (
    HW_CLASS,
    NEW,
    OLD,
    SLOT,
    Outcome,
    Site,
    committed,
    director_targets,
    refused,
)
from tests.fakes.trusted import make_bundle


async def forged(site: Site, order: DirectorTarget) -> Outcome:
    """An order signed with the stolen director key, and told with the stolen message key."""
    return await site.tell(site.director_signs(director_targets(order)), order)


def manifest_of(site: Site, release: CatalogTarget) -> Manifest:
    oci = parse_oci_manifest(site.trusted.blobs.read("sha256:" + release.sha256))
    return parse_manifest(site.trusted.blobs.read(oci.config.digest))


# --- the network drops everything ----------------------------------------------------------


async def test_row_09_dropped_and_held_back_updates(site: Site) -> None:
    """A message that never comes changes nothing; one without a catalog ends at its deadline."""
    release = site.publish()
    state = site.device.control._machine.state
    site.desired(site.signed(site.order(release)), site.order(release))
    assert site.device.control._machine.state == state
    site.network.down = True
    order = site.order(release)
    site.device.hear(site.desired(site.signed(order), order))
    await asyncio.sleep(0.2)
    site.device.control._tick()
    slot = site.device.control._machine.state.slots[SLOT]
    assert doing(slot) is Doing.VERIFYING
    assert site.device.serves == OLD
    site.wait(timedelta(hours=2))
    site.device.control._tick()
    assert await site.device.outcome(order.nonce) == Outcome("timed_out", "deadline", OLD)
    site.network.down = False
    assert await site.install(release) == committed()


# --- another device's, another rollout's ------------------------------------------------------


async def test_row_12_another_devices_assignment(site: Site) -> None:
    release = site.publish()
    order = site.order(release, device="cam-2")
    assert await site.tell(site.signed(order), order) == refused("wrong_device")
    assert await site.install(release) == committed()


async def test_row_13_replayed_assignment_of_a_former_rollout(site: Site) -> None:
    release = site.publish()
    former = site.order(release)
    present = site.order(release)
    assert await site.tell(site.signed(former), present) == refused("wrong_assignment")
    assert await site.install(release) == committed()


async def test_row_13_replayed_message_of_a_former_rollout(site: Site) -> None:
    former = site.order(site.publish())
    message = site.desired(site.signed(former), former)
    newer = site.order(site.publish("1.2.0"))
    assert await site.tell(site.signed(newer), newer) == committed("1.2.0")
    before = site.device.control._machine.state
    site.device.hear(message)
    assert site.device.control._machine.state == before
    assert site.device.serves == "1.2.0"


# --- the director's key is stolen ---------------------------------------------------------------


async def test_row_14_bytes_of_the_thiefs_own_under_a_known_name(site: Site) -> None:
    release = site.publish()
    own = site.unsigned_release(make_bundle(NEW, weights=b"poisoned"))
    assert own.path == release.path
    assert await forged(site, site.order(own)) == refused("disagreement")
    assert await forged(site, site.order(release)) == committed()


async def test_row_14_a_release_that_the_catalog_does_not_know(site: Site) -> None:
    own = site.unsigned_release(make_bundle("6.6.6", weights=b"poisoned"))
    assert await forged(site, site.order(own)) == refused("not_in_catalog")
    assert await forged(site, site.order(site.publish())) == committed()


async def test_row_14_a_message_that_names_other_bytes_than_the_metadata(site: Site) -> None:
    release = site.publish()
    order = site.order(release)
    other = msgspec.structs.replace(order, sha256="ab" * 32)
    assert await site.tell(site.signed(order), other) == refused("disagreement")
    assert await site.install(release) == committed()


async def test_row_15_ordered_downgrade(site: Site) -> None:
    """Six releases: the newest may fall back to four, and the slot's other release is another."""
    versions = [f"1.{n}.0" for n in range(1, 7)]
    releases = [site.publish(version) for version in versions]
    newest = releases[-1]
    assert await site.install(newest) == committed("1.6.0")
    oldest = releases[0]
    assert "sha256:" + oldest.sha256 not in newest.may_fall_back_to
    assert await forged(site, site.order(oldest)) == refused("release_below_floor", serves="1.6.0")
    wanted = releases[-2]
    assert "sha256:" + wanted.sha256 in newest.may_fall_back_to
    assert await forged(site, site.order(wanted)) == committed("1.5.0")


async def test_row_15_downgrade_by_a_publishers_own_list(site: Site) -> None:
    """What may be fallen back to is the running release's word, not the wanted one's."""
    releases = [site.publish(f"1.{n}.0") for n in range(1, 7)]
    assert await site.install(releases[-1]) == committed("1.6.0")
    boastful = msgspec.structs.replace(
        releases[0], may_fall_back_to=["sha256:" + releases[0].sha256]
    )
    assert await forged(site, site.order(boastful)) == refused(
        "release_below_floor", serves="1.6.0"
    )
    assert await forged(site, site.order(site.publish("1.7.0"))) == committed("1.7.0")


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (["linux-riscv64"], Outcome("incompatible", "wrong_hardware", OLD)),
        (["linux-x86_64-amx", "linux-aarch64"], Outcome("incompatible", "wrong_hardware", OLD)),
        ([HW_CLASS], committed()),
    ],
)
async def test_row_16_a_release_for_other_hardware(
    site: Site, classes: list[str], expected: Outcome
) -> None:
    release = site.publish(hw_classes=classes)
    assert await forged(site, site.order(release)) == expected


async def test_row_16_other_hardware_under_a_forged_class(site: Site) -> None:
    """The class is the publisher's signed word; a director has no say in it."""
    release = site.publish(hw_classes=["linux-riscv64"])
    order = site.order(release)
    targets = director_targets(order)
    custom = targets.targets[order.path].unrecognized_fields["custom"]
    custom |= {"hw_classes": ["any"], "release_counter": 99}
    outcome = await site.tell(site.director_signs(targets), order)
    assert outcome == Outcome("incompatible", "wrong_hardware", OLD)
    assert await forged(site, site.order(site.publish("1.2.0"))) == committed("1.2.0")


@pytest.mark.parametrize(
    ("opset", "expected"),
    [(29, Outcome("incompatible", "no_variant", OLD)), (28, committed())],
)
async def test_row_16_a_release_of_another_opset(site: Site, opset: int, expected: Outcome) -> None:
    """The manifest tells, before the model is fetched."""
    release = site.publish(opset=opset)
    assert await forged(site, site.order(release)) == expected
    fetched = [path for path, _ in site.requests if "/blobs/" in path]
    told = {path.rpartition("/")[2] for path in fetched}
    manifest = site.manifest(release)
    assert (manifest.variants[0].file.digest in told) == (expected == committed())


async def test_row_16_a_release_for_another_slot(site: Site) -> None:
    release = site.publish()
    order = site.order(release, slot="writer")
    assert await forged(site, order) == refused("wrong_assignment")
    assert await forged(site, site.order(release)) == committed()


async def test_row_17_a_director_that_delegates(site: Site) -> None:
    release = site.publish()
    order = site.order(release)
    thief = tuf_key(Signer.generate().public)
    targets = director_targets(order)
    role = DelegatedRole("thief", [thief.keyid], 1, False, paths=["models/*/*"])
    targets.delegations = Delegations({thief.keyid: thief}, {"thief": role})
    assert await site.tell(site.director_signs(targets), order) == refused("delegation")
    assert await forged(site, site.order(release)) == committed()


async def test_row_17_two_orders_for_one_slot(site: Site) -> None:
    one, two = site.publish(), site.publish("1.2.0")
    orders = [site.order(one, assignment="a-x"), site.order(two, assignment="a-x")]
    files = site.director_signs(director_targets(*orders))
    assert await site.tell(files, orders[0]) == refused("slot_twice")
    other = [site.order(one), site.order(two, slot="writer")]
    files = site.director_signs(director_targets(*other))
    assert await site.tell(files, other[0]) == committed()


async def test_row_17_the_fleet_signs_no_two_orders_for_one_slot(site: Site) -> None:
    one, two = site.publish(), site.publish("1.2.0")
    with pytest.raises(RefusedError):
        site.signed(site.order(one), site.order(two))
    site.signed(site.order(one), site.order(two, slot="writer"))


# --- mirrors and partial bundles -----------------------------------------------------------------


async def test_row_24_a_mirror_with_another_snapshot(site: Site) -> None:
    old = site.catalog_files()
    release = site.publish()
    older_snapshot = next(name for name in old if name.endswith("snapshot.json"))
    newer_snapshot = next(n for n in site.catalog_files() if n.endswith("snapshot.json"))
    site.network.serve_catalog({newer_snapshot: old[older_snapshot]})
    assert await site.install(release) == refused("metadata_rollback")
    site.network.clear()  # the next mirror
    assert await site.install(release) == committed()


@pytest.mark.parametrize("what", ["manifest", "config", "model"])
async def test_row_24_a_mirror_with_other_bytes(site: Site, what: str) -> None:
    release = site.publish()
    oci = parse_oci_manifest(site.trusted.blobs.read("sha256:" + release.sha256))
    places = {
        "manifest": f"/v2/reader/manifests/sha256:{release.sha256}",
        "config": f"/v2/reader/blobs/{oci.config.digest}",
        "model": f"/v2/reader/blobs/{manifest_of(site, release).variants[0].file.digest}",
    }
    data = site.network.get(places[what])
    assert data is not None
    site.network[places[what]] = data[:-1] + bytes([data[-1] ^ 1])
    assert await site.install(release) == refused("digest_mismatch")
    site.network.clear()
    assert await site.install(release) == committed()


@pytest.mark.parametrize("what", ["golden", "baseline", "model"])
async def test_row_25_a_part_of_the_bundle_is_blocked(site: Site, what: str) -> None:
    """All or nothing: without one of its files a release never serves."""
    release = site.publish()
    manifest = manifest_of(site, release)
    files = {
        "golden": manifest.golden,
        "baseline": manifest.baseline,
        "model": manifest.variants[0].file,
    }
    site.network.blocked.add(f"/v2/reader/blobs/{files[what].digest}")
    outcome = await site.install(release)
    assert outcome == Outcome("failed", "not_found", OLD)
    site.network.blocked.clear()
    assert await site.install(release) == committed()


# --- the whole fleet host is owned -----------------------------------------------------------------


async def test_row_28_an_owned_fleet_host_publishes_nothing(site: Site) -> None:
    """With every online key: its own release, signed by a publisher key of its own."""
    own = site.unsigned_release(make_bundle("6.6.6", weights=b"poisoned"))
    data = site.publisher_signs(own, signers=[Signer.generate()])
    honest = site.publish()
    clean = dict(site.network)
    site.network.serve_catalog(site.catalog_signs({"acme": data}, versions=(3, 3)))
    assert await forged(site, site.order(own)) == refused("signature_invalid")
    site.network.clear()
    site.network.update(clean)
    # its timestamp has been seen: the fleet signs on from there
    signed = site.trusted.catalog.metadata("acme.json")
    site.network.serve_catalog(site.catalog_signs({"acme": signed}, versions=(4, 4)))
    assert await forged(site, site.order(honest)) == committed()


async def test_row_28_an_owned_fleet_host_orders_nothing_older_or_unfit(site: Site) -> None:
    """It can choose among what is published, hardware-fitting and not older: no more."""
    releases = [site.publish(f"1.{n}.0") for n in range(1, 7)]
    assert await forged(site, site.order(releases[-1])) == committed("1.6.0")
    assert await forged(site, site.order(releases[0])) == refused(
        "release_below_floor", serves="1.6.0"
    )
    other = site.publish("1.7.0", hw_classes=["linux-riscv64"])
    assert await forged(site, site.order(other)) == Outcome(
        "incompatible", "wrong_hardware", "1.6.0"
    )
    assert await forged(site, site.order(site.publish("1.8.0"))) == committed("1.8.0")


async def test_row_28_what_an_owned_host_does_is_seen_in_signed_reports(site: Site) -> None:
    release = site.publish()
    order = site.order(release)
    assert await forged(site, order) == committed()
    told = site.device.control._reported()
    assert told.slots[SLOT].bundle == "sha256:" + release.sha256
    assert site.device.report(order.nonce).state == "committed"


# --- a key is missing --------------------------------------------------------------------------------


@pytest.mark.parametrize("root", ["catalog", "director"])
@pytest.mark.parametrize("damage", [b"", b"{}", None])
async def test_row_53_a_root_that_is_missing_or_damaged(
    site: Site, root: str, damage: bytes | None
) -> None:
    """No root, no update: a check that cannot be made is a check that failed."""
    release = site.publish()
    honest = site.device.identity
    if damage is None:
        document: dict[str, Any] = msgspec.json.decode(getattr(honest, f"{root}_root"))
        document["signed"]["keys"] = {}
        damage = msgspec.json.encode(document)
    site.device.identity = with_root(honest, root, damage)
    assert await site.install(release) == refused(
        "metadata_invalid" if damage in {b"", b"{}"} else "signature_invalid"
    )
    site.device.identity = honest
    assert await site.install(release) == committed()


def with_root(identity: Any, root: str, data: bytes) -> Any:
    return dataclasses.replace(identity, **{f"{root}_root": data})


async def test_row_53_message_keys_that_are_missing(site: Site) -> None:
    """Without a key that speaks for the fleet, nothing that comes down is believed."""
    release = site.publish()
    order = site.order(release)
    message = site.desired(site.signed(order), order)
    keys, site.device.control._trust.keys = site.device.control._trust.keys, {}
    before = site.device.refused
    site.device.hear(message)
    assert site.device.refused == before + 1
    assert site.device.serves == OLD
    site.device.control._trust.keys = keys
    site.device.hear(message)
    assert await site.device.outcome(order.nonce) == committed()


async def test_row_53_an_identity_without_a_root_names_no_key(site: Site) -> None:
    identity = site.device.identity
    with pytest.raises((TrustError, FormatError)):
        with_root(identity, "director", b"{}").message_keys()
    assert identity.message_keys()
