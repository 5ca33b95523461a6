"""The director signs for one device: names, versions, expiry as a TUF client expects them."""

import dataclasses
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from tuf.api.exceptions import BadVersionNumberError, ExpiredMetadataError

from fleet.director import Director, assign
from skerry.canonical import to_msgpack
from skerry.errors import NotFoundError, RefusedError, TrustError
from skerry.keys import Signer
from skerry.trust import DirectorTarget
from tests.fakes.trusted import NOW, TrustedFleet, assigned, make_bundle, make_fleet


@pytest.fixture
def trusted(tmp_path: Path) -> TrustedFleet:
    return make_fleet(tmp_path)


def order(trusted: TrustedFleet, slot: str = "reader", version: str = "1.0.0") -> DirectorTarget:
    release = trusted.publish(make_bundle(version)).target
    return assign(release, device="dev-1", slot=slot, rollout="r-1", assignment_id="a-1")


def test_a_device_reads_its_assignment(trusted: TrustedFleet, tmp_path: Path) -> None:
    wanted = order(trusted)
    files = trusted.director.sign("dev-1", [wanted], version=1, now=NOW)
    assert sorted(files) == ["1.snapshot.json", "1.targets.json", "timestamp.json"]
    assert assigned(tmp_path / "device", trusted.director.root, files, wanted.path) == wanted


def test_it_fits_into_a_message(trusted: TrustedFleet) -> None:
    files = trusted.director.sign("dev-1", [order(trusted)], version=1, now=NOW)
    assert len(to_msgpack(files)) < 2048


def test_a_later_version_replaces_and_an_older_one_is_refused(
    trusted: TrustedFleet, tmp_path: Path
) -> None:
    first, second = order(trusted), order(trusted, version="1.1.0")
    sign, root, device = trusted.director.sign, trusted.director.root, tmp_path / "device"
    old = sign("dev-1", [first], version=7, now=NOW)
    new = sign("dev-1", [second], version=8, now=NOW)
    assert assigned(device, root, old, first.path) == first
    assert assigned(device, root, new, second.path) == second
    assert assigned(device, root, new, first.path) is None
    with pytest.raises(BadVersionNumberError):
        assigned(device, root, old, first.path)


def test_metadata_expires_in_a_week(trusted: TrustedFleet, tmp_path: Path) -> None:
    wanted = order(trusted)
    files = trusted.director.sign("dev-1", [wanted], version=1, now=NOW)
    root = trusted.director.root
    late = NOW + timedelta(days=6, hours=23)
    assert assigned(tmp_path / "a", root, files, wanted.path, late) == wanted
    with pytest.raises(ExpiredMetadataError):
        assigned(tmp_path / "b", root, files, wanted.path, NOW + timedelta(days=7, seconds=1))


def test_every_slot_has_its_own_assignment(trusted: TrustedFleet, tmp_path: Path) -> None:
    one = order(trusted)
    other = trusted.publish(make_bundle(model="counter")).target
    two = assign(other, device="dev-1", slot="counter", rollout="r-2", assignment_id="a-2")
    files = trusted.director.sign("dev-1", [one, two], version=1, now=NOW)
    root = trusted.director.root
    assert assigned(tmp_path / "device", root, files, one.path) == one
    assert assigned(tmp_path / "device", root, files, two.path) == two


def test_what_tuf_could_not_tell_apart_is_refused(trusted: TrustedFleet) -> None:
    one = order(trusted)
    elsewhere = msgspec.structs.replace(one, slot="other-slot")
    later = msgspec.structs.replace(order(trusted, version="1.1.0"), nonce="a-2")
    for wrong in ([one, elsewhere], [one, later]):
        with pytest.raises(RefusedError, match="once"):
            trusted.director.sign("dev-1", wrong, version=1, now=NOW)
    with pytest.raises(RefusedError, match="another device"):
        trusted.director.sign("dev-2", [one], version=1, now=NOW)


def test_the_director_serves_its_roots_and_nothing_else(trusted: TrustedFleet) -> None:
    assert trusted.director.metadata("1.root.json") == trusted.director.root
    for name in ("2.root.json", "timestamp.json", "../1.root.json"):
        with pytest.raises(NotFoundError):
            trusted.director.metadata(name)


def test_a_director_with_other_keys_than_its_root_names_does_not_start(
    trusted: TrustedFleet,
) -> None:
    for role in ("director", "message"):
        stranger = dataclasses.replace(trusted.keys, **{role: Signer.generate()})
        with pytest.raises(TrustError, match="expected the director root to name"):
            Director(trusted.data / "tuf" / "director", stranger)


def test_without_a_ceremony_there_is_no_director(trusted: TrustedFleet, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="skerry keys ceremony"):
        Director(tmp_path / "nowhere", trusted.keys)
