"""Every key of a fleet is replaced once, by its holders, and one device follows it all.

The device is the agent's own control process with its verifier (`tests.attacks.harness`), the changes
are made by the same calls as `skerry keys`, and months go by. After every step the device takes a new
release, and what the old key signs is refused.
"""

import io
import shutil
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata, MetaFile, Snapshot, Timestamp

from compiler.believe import Trust
from compiler.sign import add_release, release_of
from fleet.catalog import Catalog
from fleet.keystore import OnlineKeys, load_online_keys, make_next_keys
from fleet.offline import parse_publisher
from fleet.roles import sign, tuf_key
from fleet.rotation import Wanted, approve_file, begin, install, settle
from fleet.store import open_store
from fleet.upkeep import KIND, Upkeep
from skerry.bundle import read_bundle
from skerry.errors import TrustError
from skerry.keys import Signer
from skerry.wire import Cmd
from tests.attacks.harness import Site, committed, director_targets, open_site, refused
from tests.fakes.trusted import ENVIRONMENT, NOW, PHRASE, make_bundle, make_fleet

MONTH = timedelta(days=30)
SECRET = PHRASE.decode()


class Fleet:
    """The people around a site: who holds which key, and the fleet's own upkeep."""

    def __init__(self, site: Site, folder: Path) -> None:
        self.site, self.folder = site, folder
        self.held = {path.stem: path for path in site.trusted.out.glob("*.pem")}
        self.store = open_store(f"sqlite:///{folder / 'fleet.db'}")
        self.upkeep = Upkeep(
            site.trusted.data, site.trusted.keys, site.trusted.catalog, site.trusted.director,
            alerts=self.store.alerts, changed=self._changed,
        )  # fmt: skip
        self.versions, self.changes, self.changed = 0, 0, 0

    def _changed(self, keys: OnlineKeys, now: datetime) -> None:
        self.changed += 1

    @property
    def data(self) -> Path:
        return self.site.trusted.data

    def key(self, name: str) -> Signer:
        return Signer.from_pem(self.held[name].read_bytes(), PHRASE)

    def change(self, wanted: Wanted, *approvers: str) -> None:
        """Begin a change on a machine of its own, let people approve it, install it, wait a tick."""
        self.changes += 1
        place = self.folder / f"change-{self.changes}"
        copy = place / "copy"
        for part in ("tuf", "keys"):
            # private keys stay where they are
            shutil.copytree(
                self.data / part, copy / part, ignore=shutil.ignore_patterns("*.pem", "passphrase")
            )
        begun = begin(copy, place / "out", wanted, passphrase=lambda _: PHRASE, now=self.site.now)
        new = {path.stem: path for path in begun.secret_files}
        carried = begun.file
        for n, name in enumerate(approvers):
            mine = new[name[4:]] if name.startswith("new ") else self.held[name]
            carried = Path(shutil.copy(carried, place / f"carried-{n}.json"))
            approve_file(carried, str(mine), lambda _: PHRASE, self.site.now)
        install(carried, self.data, self.site.now)
        self.held |= new
        before = self.changed
        self.upkeep.look(self.site.now)
        assert self.changed == before + 1

    def renew(self, *roles: str) -> None:
        """Make new online keys on the fleet's machine."""
        make_next_keys(self.data / "keys", roles, ENVIRONMENT)

    async def release(self, publisher: str = "acme") -> str:
        """Publish a version and install it on the device; return it once it is committed."""
        self.versions += 1
        version = f"2.{self.versions}.0"
        bundle = make_bundle(version, model=f"{publisher}-reader")
        metadata = self.sign(bundle, publisher, f"publisher-{publisher}")
        published = self.site.trusted.bundles.publish(io.BytesIO(bundle), metadata, self.site.now)
        assert await self.site.install(published.target) == committed(version)
        return version

    def sign(self, bundle: bytes, publisher: str, key: str, *former: Signer) -> bytes:
        """Sign a release as a publisher does, who knows its former key where that signed last."""
        trusted = self.site.trusted
        release = release_of(read_bundle(io.BytesIO(bundle)), publisher)
        vouched = tuple(tuf_key(signer.public) for signer in former)
        trust = Trust(trusted.delegation(publisher), is_verified=True, keys=vouched)
        signed = add_release(
            trusted.roles(publisher), release, self.key(key), now=self.site.now, trust=trust
        )
        return signed[publisher]

    def month(self) -> None:
        """Let a month go by: the fleet signs daily, as it does, and the device looks for news."""
        for _ in range(6):
            self.site.wait(timedelta(days=5), renew=False)
            self.upkeep.look(self.site.now)


def _snapshot(catalog: Catalog) -> Snapshot:
    signed = Metadata.from_bytes(catalog.metadata("snapshot.json")).signed
    assert isinstance(signed, Snapshot)
    return signed


@pytest.fixture
async def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Fleet]:
    monkeypatch.setenv("SKERRY_KEY_PASSPHRASE", SECRET)
    with open_site(tmp_path, monkeypatch) as site:
        made = Fleet(site, tmp_path)
        try:
            await made.release()
            yield made
        finally:
            made.store.close()
            await site.device.stop()


async def test_the_three_root_keys_one_after_another(fleet: Fleet) -> None:
    for name in ("root-1", "root-2", "root-3"):
        old = fleet.key(name)
        others = [other for other in ("root-1", "root-2", "root-3") if other != name]
        fleet.month()
        fleet.change(Wanted({name: None}), *others)
        await fleet.release()
        root = fleet.site.root("director")
        root.version += 1
        # the old key and one of the two others: enough before, too few now
        forged = sign(root, [old, fleet.key(others[0])])
        serves = fleet.site.device.serves
        order = fleet.site.order(fleet.site.publish(f"9.{fleet.changes}.0"))
        files = fleet.site.signed(order) | {f"{root.version}.root.json": forged}
        assert await fleet.site.tell(files, order) == refused("signature_invalid", serves)


async def test_two_root_keys_at_once_need_both_halves(fleet: Fleet) -> None:
    wanted = Wanted({"root-1": None, "root-2": None})
    for too_few in (["new root-1", "new root-2"], ["root-1", "root-2"], ["root-3", "new root-1"]):
        with pytest.raises(TrustError) as caught:
            fleet.change(wanted, *too_few)
        assert caught.value.code == "too_few_signatures"
    fleet.change(wanted, "root-1", "root-3", "new root-2")
    await fleet.release()


async def test_a_publisher(fleet: Fleet) -> None:
    old = fleet.key("publisher-acme")
    fleet.month()
    fleet.change(Wanted({"publisher-acme": None}), "root-1", "root-2")
    serves = fleet.site.device.serves
    # what the device runs goes on; a new order of what the old key signed is refused
    known = fleet.site.trusted.catalog.metadata("acme.json")
    path = next(iter(Metadata.from_bytes(known).signed.targets))  # type: ignore[attr-defined]
    target = Metadata.from_bytes(known).signed.targets[path]  # type: ignore[attr-defined]
    assert fleet.site.trusted.catalog.releases() == []
    bundle = make_bundle("2.1.0", model="acme-reader")
    with pytest.raises(TrustError, match="--trusted"):
        fleet.sign(bundle, "acme", "publisher-acme")
    again = fleet.sign(bundle, "acme", "publisher-acme", old)
    fleet.site.trusted.bundles.publish(io.BytesIO(bundle), again, fleet.site.now)
    assert [r.path for r in fleet.site.trusted.catalog.releases()] == [path]
    assert target.length == fleet.site.trusted.catalog.release(path).length
    stolen = make_bundle("6.6.6", model="acme-reader")
    forged = add_release(
        fleet.site.trusted.roles("acme"),
        release_of(read_bundle(io.BytesIO(stolen)), "acme"),
        old,
        now=fleet.site.now,
        trust=Trust(keys=(tuf_key(fleet.key("publisher-acme").public),)),
    )
    with pytest.raises(TrustError, match="0/1"):
        fleet.site.trusted.bundles.publish(io.BytesIO(stolen), forged["acme"], fleet.site.now)
    assert fleet.site.device.serves == serves
    await fleet.release()


async def test_a_publisher_comes_and_another_goes(fleet: Fleet) -> None:
    wanted = Wanted(publishers=[parse_publisher("initech")], without=["acme"])
    fleet.change(wanted, "root-2", "root-3")
    serves = fleet.site.device.serves
    await fleet.release("initech")
    assert serves != fleet.site.device.serves
    assert [r.path.split("/")[1] for r in fleet.site.trusted.catalog.releases()] == ["initech"]


@pytest.mark.parametrize("role", ["snapshot", "timestamp"])
async def test_a_key_of_the_catalog_that_was_stolen_and_used_to_wind_versions_forward(
    fleet: Fleet, role: str
) -> None:
    old = {"snapshot": fleet.site.trusted.keys.snapshot,
           "timestamp": fleet.site.trusted.keys.timestamp}  # fmt: skip
    fleet.month()
    catalog = fleet.site.trusted.catalog
    ahead = 1 << 20
    evil = {
        "timestamp.json": sign(
            _timestamp(ahead, _snapshot(catalog).version, fleet), [old["timestamp"]]
        )
    }
    if role == "snapshot":
        meta = {name: MetaFile(file.version) for name, file in _snapshot(catalog).meta.items()}
        snapshot = Snapshot(version=ahead, expires=fleet.site.now + MONTH, meta=meta)
        evil = {
            f"{ahead}.snapshot.json": sign(snapshot, [old["snapshot"]]),
            "timestamp.json": sign(_timestamp(ahead, ahead, fleet), [old["timestamp"]]),
        }
    fleet.site.network.serve_catalog(evil)
    await fleet.site.device.control._trust.refresh()
    fleet.site.network.clear()
    with pytest.raises(AssertionError):  # the honest catalog is behind what the device has seen
        await fleet.release()
    serves = fleet.site.device.serves
    fleet.renew("snapshot", "timestamp")
    fleet.change(Wanted(), "root-1", "root-3")
    await fleet.release()
    assert fleet.site.device.serves != serves
    fleet.site.network.serve_catalog(evil)
    order = fleet.site.order(fleet.site.publish("7.0.0"))
    assert await fleet.site.tell(fleet.site.signed(order), order) == refused(
        "signature_invalid", fleet.site.device.serves
    )


async def test_the_director(fleet: Fleet) -> None:
    old = fleet.site.trusted.keys.director
    fleet.month()
    fleet.renew("director")
    fleet.change(Wanted(), "root-1", "root-2")
    await fleet.release()
    serves = fleet.site.device.serves
    order = fleet.site.order(fleet.site.publish("7.0.0"))
    files = fleet.site.director_signs(director_targets(order), signer=old)
    assert await fleet.site.tell(files, order) == refused("signature_invalid", serves)


async def test_the_message_key(fleet: Fleet) -> None:
    old = fleet.site.trusted.keys.message
    fleet.month()
    fleet.renew("message")
    fleet.change(Wanted(), "root-2", "root-3")
    # the device does not know the key that speaks now, and looks for a root that names it
    ping = fleet.site.seal("cmd", Cmd("c-1", "ping"), id="c-1", exp=fleet.site.now.timestamp() + 60)
    before = fleet.site.device.refused
    fleet.site.device.hear(ping)
    assert fleet.site.device.refused == before + 1
    assert await fleet.site.device.control._trust.look(ask=False)
    fleet.site.device.hear(ping)
    assert fleet.site.device.refused == before + 1
    await fleet.release()
    stolen = fleet.site.seal(
        "cmd", Cmd("c-2", "ping"), id="c-2", signer=old, exp=fleet.site.now.timestamp() + 60
    )
    fleet.site.device.hear(stolen)
    assert fleet.site.device.refused == before + 2


async def test_a_year_in_which_nobody_signs_is_announced_and_made_good(fleet: Fleet) -> None:
    offline = {"root", "targets", "director root"}
    for _ in range(11):
        fleet.month()
    assert set(told(fleet)) == {"acme"}  # its releases are to be signed every 90 days
    fleet.site.wait(timedelta(days=10), renew=False)
    fleet.upkeep.look(fleet.site.now)
    assert {role: told(fleet)[role] for role in offline} == dict.fromkeys(offline, "warning")
    fleet.month()
    assert {role: told(fleet)[role] for role in offline} == dict.fromkeys(offline, "critical")
    order = fleet.site.order(fleet.site.trusted.catalog.releases()[0])
    serves = fleet.site.device.serves
    outcome = await fleet.site.tell(fleet.site.signed(order), order)
    assert outcome == refused("root_expired", serves)
    fleet.change(Wanted(), "root-1", "root-2")
    bundle = make_bundle("2.1.0", model="acme-reader")
    fleet.site.trusted.bundles.publish(
        io.BytesIO(bundle), fleet.sign(bundle, "acme", "publisher-acme"), fleet.site.now
    )
    await fleet.release()
    fleet.upkeep.look(fleet.site.now)
    assert told(fleet) == {}


async def test_a_device_that_slept_through_twelve_changes_finds_its_way(fleet: Fleet) -> None:
    serves = fleet.site.device.serves
    for n in range(12):
        fleet.renew(("director", "message", "timestamp")[n % 3])
        fleet.change(Wanted({f"root-{n % 3 + 1}": None}), *_two_others(n))
        fleet.month()
    assert fleet.site.device.serves == serves
    ping = fleet.site.seal("cmd", Cmd("c-1", "ping"), id="c-1", exp=fleet.site.now.timestamp() + 60)
    fleet.site.device.hear(ping)
    assert await fleet.site.device.control._trust.look(ask=False)
    bundle = make_bundle("2.1.0", model="acme-reader")
    fleet.site.trusted.bundles.publish(
        io.BytesIO(bundle), fleet.sign(bundle, "acme", "publisher-acme"), fleet.site.now
    )
    await fleet.release()


def test_a_fleet_starts_with_a_change_that_waits(tmp_path: Path) -> None:
    """Installed while it was down: the service takes it up before it reads its keys."""
    made = make_fleet(tmp_path)
    make_next_keys(made.data / "keys", ["director", "message", "snapshot"], ENVIRONMENT)
    change = begin(
        made.data, tmp_path / "change", Wanted(), passphrase=lambda _: PHRASE, now=NOW
    ).file
    for n in (1, 2):
        approve_file(change, str(made.out / f"root-{n}.pem"), lambda _: PHRASE, NOW)
    install(change, made.data, NOW)
    assert settle(made.data, NOW)
    keys = load_online_keys(made.data / "keys", ENVIRONMENT)
    assert keys.director.public != made.keys.director.public
    Catalog(made.data / "tuf" / "catalog", keys, NOW)


def told(fleet: Fleet) -> dict[str, str]:
    """What operators are warned of: role -> severity."""
    return {alert.subject: alert.severity for alert in fleet.store.alerts.live_alerts(KIND)}


def _timestamp(version: int, snapshot: int, fleet: Fleet) -> Timestamp:
    return Timestamp(
        version=version, expires=fleet.site.now + MONTH, snapshot_meta=MetaFile(snapshot)
    )


def _two_others(n: int) -> list[str]:
    return [f"root-{(n + 1) % 3 + 1}", f"root-{(n + 2) % 3 + 1}"]
