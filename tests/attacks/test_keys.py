"""Keys that are not enough, not entitled, or revoked: publishers', roots' and the director's."""

import json

import pytest
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Root, Targets

from fleet.catalog import Catalog
from fleet.roles import sign, tuf_key
from skerry.errors import TrustError
from skerry.keys import Signer
from skerry.trust import CatalogTarget, target_path
from tests.attacks.harness import (
    NEW,
    OLD,
    Outcome,
    Site,
    committed,
    director_targets,
    refused,
)
from tests.fakes.trusted import make_bundle


def two_of_three(site: Site) -> list[Signer]:
    """Let acme release by two of three keys, as the holders of the root keys would."""
    signers = [site.trusted.publisher("acme"), Signer.generate(), Signer.generate()]
    top = Metadata[Targets].from_bytes(site.trusted.catalog.metadata("targets.json")).signed
    assert top.delegations is not None
    assert top.delegations.roles is not None
    keys = {key.keyid: key for key in (tuf_key(signer.public) for signer in signers)}
    top.delegations.keys |= keys
    role = top.delegations.roles["acme"]
    role.keyids, role.threshold = list(keys), 2
    top.version += 1
    data = sign(top, [site.root_key(1), site.root_key(2)])
    folder = site.trusted.data / "tuf" / "catalog"
    # signed anew by two, or the catalog would not stand by its own rules
    one = site.trusted.catalog.metadata("acme.json")
    both = sign(Metadata[Targets].from_bytes(one).signed, signers[:2])
    (folder / "1.acme.json").write_bytes(both)
    (folder / f"{top.version}.targets.json").write_bytes(data)
    catalog = Catalog(folder, site.trusted.keys, site.now)
    site.trusted.catalog = site.trusted.bundles._catalog = catalog
    site.network._trusted.catalog = catalog
    return signers


def new_release(site: Site) -> CatalogTarget:
    """A release whose blobs are there, and which acme has not signed."""
    return site.unsigned_release(make_bundle(NEW))


@pytest.mark.parametrize("stolen", [1, 2])
async def test_row_18_one_of_two_publisher_keys_and_every_online_key(
    site: Site, stolen: int
) -> None:
    signers = two_of_three(site)
    release = new_release(site)
    both = [site.trusted.catalog.release(target_path("acme", "reader", OLD)), release]
    data = site.publisher_signs(*both, signers=signers[:stolen])
    site.network.serve_catalog(site.catalog_signs({"acme": data}))
    expected = refused("signature_invalid") if stolen == 1 else committed()
    assert await site.install(release) == expected


async def test_row_18_the_fleet_refuses_one_of_two_publisher_keys(site: Site) -> None:
    two_of_three(site)
    with pytest.raises(TrustError, match="1/2 keys") as refusal:
        site.publish()
    assert refusal.value.code == "signature_invalid"


@pytest.mark.parametrize("twice", ["same id", "other id", "both keys"])
async def test_row_19_one_key_counted_twice(site: Site, twice: str) -> None:
    signers = two_of_three(site)
    release = new_release(site)
    data = site.publisher_signs(release, signers=signers[:2])
    document = json.loads(data)
    first, second = document["signatures"]
    if twice == "same id":
        document["signatures"] = [first, first]
    elif twice == "other id":
        document["signatures"] = [first, {"keyid": second["keyid"], "sig": first["sig"]}]
    forged = json.dumps(document).encode()
    site.network.serve_catalog(site.catalog_signs({"acme": data}))
    site.network.serve_catalog({"2.acme.json": forged})
    expected = {
        "same id": refused("metadata_invalid"),
        "other id": refused("signature_invalid"),
        "both keys": committed(),
    }
    assert await site.install(release) == expected[twice]


@pytest.mark.parametrize("publisher", ["globex", "acme"])
async def test_row_20_a_publisher_outside_of_its_path(site: Site, publisher: str) -> None:
    release = new_release(site)
    data = site.publisher_signs(release, signers=[site.trusted.publisher(publisher)])
    others = {} if publisher == "acme" else {"acme": site.trusted.catalog.metadata("acme.json")}
    site.network.serve_catalog(site.catalog_signs({publisher: data} | others))
    expected = refused("not_in_catalog") if publisher == "globex" else committed()
    assert await site.install(release) == expected


@pytest.mark.parametrize("repository", ["director", "catalog"])
@pytest.mark.parametrize(
    ("signers", "version", "code"),
    [
        ("strangers", 2, "signature_invalid"),
        ("one of the old", 2, "signature_invalid"),
        ("two of the old", 3, "metadata_rollback"),
        ("two of the old", 2, ""),
    ],
)
async def test_row_21_a_root_by_too_few_keys_or_out_of_turn(
    site: Site, repository: str, signers: str, version: int, code: str
) -> None:
    root = site.root(repository)
    root.version = version
    strangers = [Signer.generate() for _ in range(3)]
    if signers == "strangers":
        for keyid in list(root.roles["root"].keyids):
            root.revoke_key(keyid, "root")
        for stranger in strangers:
            root.add_key(tuf_key(stranger.public), "root")
    keys = {
        "strangers": strangers,
        "one of the old": [site.root_key(1)],
        "two of the old": [site.root_key(1), site.root_key(3)],
    }
    outcome = await install_with_root(site, repository, sign(root, keys[signers]))
    assert outcome == (refused(code) if code else committed())
    assert root_version(site, repository) == (1 if code else 2)
    if code:
        site.network.clear()
        assert await site.install(site.trusted.catalog.release(path(NEW))) == committed()


async def install_with_root(site: Site, repository: str, root: bytes) -> Outcome:
    """Assign a release while a repository offers its second root."""
    order = site.order(site.publish())
    files = site.signed(order)
    if repository == "director":
        files |= {"2.root.json": root}
    else:
        site.network.serve_catalog({"2.root.json": root})
    return await site.tell(files, order)


def path(version: str) -> str:
    return target_path("acme", "reader", version)


def root_version(site: Site, repository: str) -> int:
    """The root that the device trusts."""
    data = (site.device.layout.tuf / repository / "root.json").read_bytes()
    return int(Metadata[Root].from_bytes(data).signed.version)


def rotated(site: Site, repository: str, roles: dict[str, Signer]) -> bytes:
    """The next root, with a new key for each of these roles, signed by two root keys."""
    root = site.root(repository)
    root.version += 1
    for role, signer in roles.items():
        for keyid in list(root.roles[role].keyids):
            root.revoke_key(keyid, role)
        root.add_key(tuf_key(signer.public), role)
    return sign(root, [site.root_key(1), site.root_key(2)])


async def test_row_22_a_stolen_director_key_after_its_revocation(site: Site) -> None:
    new = Signer.generate()
    root = rotated(site, "director", dict.fromkeys(("targets", "snapshot", "timestamp"), new))
    release = site.publish()
    stolen = site.order(release)
    files = site.director_signs(director_targets(stolen))
    assert await site.tell(files | {"2.root.json": root}, stolen) == refused("signature_invalid")
    assert await site.tell(files, stolen_again := site.order(release)) == refused(
        "signature_invalid"
    ), stolen_again
    order = site.order(release)
    good = site.director_signs(director_targets(order), signer=new)
    assert await site.tell(good | {"2.root.json": root}, order) == committed()


@pytest.mark.parametrize("key", ["of a stranger", "of globex"])
async def test_row_23_a_cached_role_reached_by_another_parent(site: Site, key: str) -> None:
    """The device holds globex's metadata; then acme delegates to that name, with another key."""
    evil = new_release(site)
    globex = site.publisher_signs(evil, signers=[site.trusted.publisher("globex")], version=1)
    folder = site.device.layout.tuf / "catalog"
    (folder / "globex.json").write_bytes(globex)
    named = site.trusted.publisher("globex") if key == "of globex" else Signer.generate()
    public = tuf_key(named.public)
    delegated = DelegatedRole("globex", [public.keyid], 1, False, paths=["models/acme/*"])
    acme = site.publisher_signs(
        signers=[site.trusted.publisher("acme")],
        delegations=Delegations({public.keyid: public}, {"globex": delegated}),
    )
    site.network.serve_catalog(site.catalog_signs({"acme": acme, "globex": globex}))
    expected = committed() if key == "of globex" else refused("signature_invalid")
    assert await site.install(evil) == expected
