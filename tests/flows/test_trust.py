"""What the fleet signs passes a device's verifier, and what nobody should believe does not.

The fleet's catalog and director are real, behind a real device listener; the device's side is the
agent's own verifier with python-tuf, and the checks of `skerry.trust`.
"""

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, TargetFile, Targets

from agent.verifier import verify_request
from agent.verify_protocol import VerifyAnswer, VerifyRequest
from fleet.api.problems import problems
from fleet.device_api import add_catalog_routes
from fleet.director import Director, assign
from skerry.errors import TrustError
from skerry.holding import Holding
from skerry.keys import Signer
from skerry.trust import (
    CatalogTarget,
    DirectorTarget,
    Floor,
    check_assignment,
    check_floor,
    target_path,
)
from tests.fakes.trusted import NOW, TrustedFleet, make_bundle, make_fleet

DEVICE, SLOT = "dev-1", "reader"
CLASS, AGENT = "linux-x86_64-avx2", "0.1.0"


@dataclass
class Site:
    """A fleet and one device of it."""

    trusted: TrustedFleet
    catalog_url: str
    folder: Path
    floor: Floor = field(default_factory=Floor)
    fall_back_to: set[str] = field(default_factory=set)
    versions: int = 0

    def publish(self, version: str) -> CatalogTarget:
        return self.trusted.publish(make_bundle(version)).target

    def order(
        self, release: CatalogTarget, device: str = DEVICE, assignment: str = "a-1"
    ) -> DirectorTarget:
        return assign(release, device=device, slot=SLOT, rollout="r-1", assignment_id=assignment)

    def signed(self, *orders: DirectorTarget, now: datetime = NOW) -> dict[str, bytes]:
        self.versions += 1
        return self.trusted.director.sign(orders[0].device, orders, version=self.versions, now=now)

    async def verify(self, files: dict[str, bytes], path: str, now: datetime = NOW) -> VerifyAnswer:
        request = VerifyRequest(
            target=path,
            director=files,
            catalog_url=self.catalog_url,
            catalog_root=self.trusted.catalog.root,
            director_root=self.trusted.director.root,
            directory=str(self.folder),
            now=now.timestamp(),
            timeout_s=5.0,
        )
        return await asyncio.to_thread(verify_request, request)

    async def accepts(
        self,
        files: dict[str, bytes],
        path: str,
        assignment: str = "a-1",
        now: datetime = NOW,
        hw_class: str = CLASS,
    ) -> VerifyAnswer:
        """Verify and check as a device does before it downloads anything."""
        answer = await self.verify(files, path, now)
        if answer.code:
            raise TrustError(answer.message, answer.code)
        assert answer.assigned is not None
        assert answer.released is not None
        check_floor(self.floor.metadata, answer.metadata)
        check_assignment(
            answer.assigned,
            answer.released,
            device=DEVICE,
            slot=SLOT,
            assignment_id=assignment,
            hw_class=hw_class,
            agent_version=AGENT,
            floor=self.floor.releases.get(SLOT, 0),
            fall_back_to=frozenset(self.fall_back_to),
        )
        return answer

    def commit(self, answer: VerifyAnswer) -> None:
        """Raise the floors as a device does when it commits."""
        assert answer.released is not None
        self.floor = Floor(answer.metadata, {SLOT: answer.released.release_counter})
        self.fall_back_to = set(answer.released.may_fall_back_to)

    async def refusal(
        self,
        files: dict[str, bytes],
        path: str,
        *,
        assignment: str = "a-1",
        now: datetime = NOW,
    ) -> str:
        with pytest.raises(TrustError) as refused:
            await self.accepts(files, path, assignment, now)
        return refused.value.code


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    trusted = make_fleet(tmp_path / "fleet", ("acme", "globex"))
    app = web.Application(middlewares=[problems])
    add_catalog_routes(app, trusted.catalog, trusted.director)
    async with TestServer(app) as server:
        yield Site(trusted, str(server.make_url("/tuf/catalog/metadata")), tmp_path / "device")


async def test_an_assignment_of_a_published_release_is_accepted(site: Site) -> None:
    release = site.publish("1.0.0")
    answer = await site.accepts(site.signed(site.order(release)), release.path)
    assert answer.released == release
    assert answer.metadata["director/targets"] == 1
    assert list(answer.message_keys) == [site.trusted.keys.message.key_id]


async def test_releases_follow_each_other_and_the_floor_rises(site: Site) -> None:
    for n, version in enumerate(("1.0.0", "1.1.0", "1.2.0"), start=1):
        release = site.publish(version)
        files = site.signed(site.order(release, assignment=f"a-{n}"))
        site.commit(await site.accepts(files, release.path, f"a-{n}"))
    assert site.floor.releases == {SLOT: 3}


async def test_the_same_metadata_is_verified_twice(site: Site) -> None:
    release = site.publish("1.0.0")
    files = site.signed(site.order(release))
    assert await site.accepts(files, release.path) == await site.accepts(files, release.path)


async def test_another_devices_assignment_is_refused(site: Site) -> None:
    release = site.publish("1.0.0")
    files = site.signed(site.order(release, device="dev-2"))
    assert (await site.verify(files, release.path)).code == ""  # TUF alone believes it
    assert await site.refusal(files, release.path) == "wrong_device"


async def test_an_assignment_of_a_former_rollout_is_refused(site: Site) -> None:
    release = site.publish("1.0.0")
    files = site.signed(site.order(release, assignment="a-0"))
    assert await site.refusal(files, release.path, assignment="a-1") == "wrong_assignment"


async def test_an_ordered_downgrade_is_refused(site: Site) -> None:
    old, middle, new = (site.publish(version) for version in ("1.0.0", "1.1.0", "1.2.0"))
    site.commit(await site.accepts(site.signed(site.order(new)), new.path))
    site.fall_back_to = {"sha256:" + middle.sha256}
    files = site.signed(site.order(old))
    assert (await site.verify(files, old.path)).code == ""  # TUF alone believes it
    assert await site.refusal(files, old.path) == "release_below_floor"


async def test_a_wanted_rollback_is_accepted(site: Site) -> None:
    old, new = site.publish("1.0.0"), site.publish("1.1.0")
    site.commit(await site.accepts(site.signed(site.order(new)), new.path))
    assert new.may_fall_back_to == ["sha256:" + old.sha256]
    files = site.signed(site.order(old, assignment="a-2"))
    assert (await site.accepts(files, old.path, "a-2")).released == old


async def test_a_replay_is_refused_by_tuf_and_after_lost_files_by_the_floor(site: Site) -> None:
    release = site.publish("1.0.0")
    old = site.signed(site.order(release))
    new = site.signed(site.order(release))
    site.commit(await site.accepts(new, release.path))
    assert await site.refusal(old, release.path) == "metadata_rollback"
    site.folder = site.folder.with_name("lost")
    assert await site.refusal(old, release.path) == "metadata_below_floor"


async def test_expired_metadata_is_refused(site: Site) -> None:
    release = site.publish("1.0.0")
    files = site.signed(site.order(release))
    later = NOW + timedelta(days=8)
    site.trusted.catalog.renew(later)
    assert await site.refusal(files, release.path, now=later) == "metadata_expired"


async def test_metadata_of_a_fleet_that_renews_is_accepted_for_weeks(site: Site) -> None:
    release = site.publish("1.0.0")
    for day in range(0, 85, 6):
        now = NOW + timedelta(days=day)
        site.trusted.catalog.renew(now)
        files = site.signed(site.order(release), now=now)
        site.commit(await site.accepts(files, release.path, now=now))


async def test_a_device_of_other_hardware_refuses(site: Site) -> None:
    bundle = make_bundle(hw_classes=["linux-aarch64"])
    release = site.trusted.publish(bundle).target
    files = site.signed(site.order(release))
    assert await site.refusal(files, release.path) == "wrong_hardware"
    await site.accepts(files, release.path, hw_class="linux-aarch64-dotprod")


async def test_a_stolen_director_key_gains_no_bytes_of_its_own(site: Site) -> None:
    release = site.publish("1.0.0")
    forged = msgspec.structs.replace(site.order(release), sha256="ab" * 32)
    assert await site.refusal(site.signed(forged), release.path) == "disagreement"
    invented = msgspec.structs.replace(
        site.order(release), path=target_path("acme", "reader", "6.6.6")
    )
    assert await site.refusal(site.signed(invented), invented.path) == "not_in_catalog"


async def test_unsigned_altered_and_foreign_metadata_are_refused(site: Site) -> None:
    release = site.publish("1.0.0")
    good = site.signed(site.order(release))
    site.trusted.director = foreign(site)
    foreign_files = site.signed(site.order(release))
    site.trusted.director = Director(site.trusted.data / "tuf" / "director", site.trusted.keys)
    for name in ("timestamp.json", "1.snapshot.json", "1.targets.json"):
        unsigned = json.loads(good[name])
        unsigned["signatures"] = []
        altered = json.loads(good[name])
        altered["signed"]["expires"] = "2035-01-01T00:00:00Z"
        for document in (unsigned, altered):
            files = good | {name: json.dumps(document).encode()}
            assert await site.refusal(files, release.path) == "signature_invalid"
    assert await site.refusal(foreign_files, release.path) == "signature_invalid"
    await site.accepts(good, release.path)


def foreign(site: Site) -> Director:
    """Return a director that signs with a key of its own, and says so in no root."""
    director = Director(site.trusted.data / "tuf" / "director", site.trusted.keys)
    director._keys = dataclasses.replace(site.trusted.keys, director=Signer.generate())
    return director


@pytest.mark.parametrize("name", ["timestamp.json", "1.snapshot.json", "1.targets.json"])
@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b"[" * 90_000, b"9" * 10_000])
async def test_rubbish_is_refused_and_does_no_harm(site: Site, name: str, data: bytes) -> None:
    release = site.publish("1.0.0")
    good = site.signed(site.order(release))
    assert await site.refusal(good | {name: data}, release.path) in {
        "metadata_invalid", "metadata_too_long", "metadata_mismatch",
    }  # fmt: skip
    await site.accepts(good, release.path)


async def test_missing_files_are_refused(site: Site) -> None:
    release = site.publish("1.0.0")
    good = site.signed(site.order(release))
    for name in good:
        site.folder = site.folder.with_name(f"without-{name}")
        files = {other: data for other, data in good.items() if other != name}
        assert await site.refusal(files, release.path) == "metadata_missing"


async def test_new_timestamp_with_old_targets_is_refused(site: Site) -> None:
    old, new = site.publish("1.0.0"), site.publish("1.1.0")
    first = site.signed(site.order(old))
    second = site.signed(site.order(new))
    mixed = second | {"2.targets.json": first["1.targets.json"]}
    assert await site.refusal(mixed, old.path) == "metadata_rollback"


async def test_a_publisher_outside_of_its_path_is_not_believed(site: Site) -> None:
    """Even where the fleet itself has been made to keep and to name such metadata."""
    release = site.publish("1.0.0")
    stolen = target_path("acme", "reader", "2.0.0")
    metadata = Metadata(Targets(version=1, expires=NOW + timedelta(days=90)))
    target = TargetFile(release.length, {"sha256": release.sha256}, stolen)
    target.unrecognized_fields["custom"] = {
        "release_counter": 9, "hw_classes": ["any"], "min_agent": "0.1.0",
    }  # fmt: skip
    metadata.signed.targets[stolen] = target
    metadata.sign(CryptoSigner(site.trusted.publisher("globex").private_key))
    catalog = site.trusted.catalog
    (site.trusted.data / "tuf" / "catalog" / "1.globex.json").write_bytes(metadata.to_bytes())
    catalog._publishers["globex"] = Holding("globex", {"globex": metadata})
    catalog.renew(NOW)
    wanted = msgspec.structs.replace(site.order(release), path=stolen)
    assert await site.refusal(site.signed(wanted), stolen) == "not_in_catalog"


async def test_a_catalog_signed_with_other_online_keys_is_refused(site: Site) -> None:
    release = site.publish("1.0.0")
    catalog = site.trusted.catalog
    catalog._keys = dataclasses.replace(
        site.trusted.keys, timestamp=Signer.generate(), snapshot=Signer.generate()
    )
    catalog.renew(NOW + timedelta(days=2))
    files = site.signed(site.order(release))
    assert await site.refusal(files, release.path) == "signature_invalid"
