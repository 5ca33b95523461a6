"""Releases in bins: a device finds them, and a bin is no weaker than its publisher."""

from collections.abc import Iterator

import pytest
from tuf.api.metadata import Delegations, Metadata, SuccinctRoles, Targets

import compiler.sign
from fleet.roles import sign, tuf_key
from skerry.holding import BIN_BITS, bin_prefix
from skerry.keys import Signer
from skerry.trust import CatalogTarget, target_path
from tests.attacks.harness import NEW, OLD, Files, Site, catalog_file, committed, refused
from tests.attacks.test_keys import two_of_three
from tests.fakes.trusted import make_bundle


@pytest.fixture(autouse=True)
def split_early(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the second release move into bins."""
    monkeypatch.setattr(compiler.sign, "SPLIT_ABOVE", 1)
    return


def in_bins(
    site: Site,
    *releases: CatalogTarget,
    keys: list[Signer],
    threshold: int,
    signers: list[Signer],
    bin_signers: list[Signer],
) -> Files:
    """A publisher's role and its bins, as one who has these keys may make them."""
    public = {key.keyid: key for key in (tuf_key(signer.public) for signer in keys)}
    bins = SuccinctRoles(list(public), threshold, BIN_BITS, bin_prefix("acme"))
    roles = {
        name: Targets(version=1, expires=site.now.replace(year=2027)) for name in bins.get_roles()
    }
    for release in releases:
        roles[bins.get_role_for_target(release.path)].targets[release.path] = catalog_file(release)
    own = site.publisher_signs(
        signers=signers, delegations=Delegations(public, succinct_roles=bins)
    )
    return {"acme": own} | {name: sign(role, bin_signers) for name, role in roles.items()}


async def test_a_device_is_updated_to_a_release_in_a_bin_and_back(site: Site) -> None:
    release = site.publish()
    own = Metadata[Targets].from_bytes(site.trusted.catalog.metadata("acme.json")).signed
    assert own.targets == {}
    assert await site.install(release) == committed()
    old = site.trusted.catalog.release(target_path("acme", "reader", OLD))
    assert await site.install(old) == committed(OLD)  # `may_fall_back_to` holds across the move
    floor = site.device.floor.metadata
    assert [name for name in floor if name.startswith("catalog/acme_bin-")]


@pytest.mark.parametrize("stolen", [1, 2])
async def test_row_18_one_of_two_publisher_keys_for_a_bin(site: Site, stolen: int) -> None:
    """The publisher's role is as both signed it; one of them and the fleet make up a bin."""
    signers = two_of_three(site)
    release = site.unsigned_release(make_bundle(NEW))
    files = in_bins(
        site, release, keys=signers, threshold=2, signers=signers[:2], bin_signers=signers[:stolen]
    )
    site.network.serve_catalog(site.catalog_signs(files))
    assert await site.install(release) == (
        refused("signature_invalid") if stolen == 1 else committed()
    )


@pytest.mark.parametrize("by", ["a stranger", "globex", "acme"])
async def test_row_20_a_bin_by_another_than_its_publisher(site: Site, by: str) -> None:
    acme = site.trusted.publisher("acme")
    others = {"a stranger": Signer.generate(), "globex": site.trusted.publisher("globex")}
    release = site.unsigned_release(make_bundle(NEW))
    files = in_bins(
        site, release, keys=[acme], threshold=1, signers=[acme], bin_signers=[others.get(by, acme)]
    )
    site.network.serve_catalog(site.catalog_signs(files))
    assert await site.install(release) == (
        committed() if by == "acme" else refused("signature_invalid")
    )


@pytest.mark.parametrize("where", ["another bin", "its bin"])
async def test_row_20_a_release_in_a_bin_that_is_not_its_own(site: Site, where: str) -> None:
    acme = site.trusted.publisher("acme")
    release = site.unsigned_release(make_bundle(NEW))
    files = in_bins(site, release, keys=[acme], threshold=1, signers=[acme], bin_signers=[acme])
    if where == "another bin":
        names = [name for name in files if name != "acme"]
        full = max(names, key=lambda name: len(files[name]))
        empty = next(name for name in names if name != full)
        files[full], files[empty] = files[empty], files[full]
    site.network.serve_catalog(site.catalog_signs(files))
    assert await site.install(release) == (
        committed() if where == "its bin" else refused("not_in_catalog")
    )
