"""Above a number of releases a publisher's move into bins; devices find each, and no rule is lost."""

import io
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    Snapshot,
    SuccinctRoles,
    TargetFile,
    Targets,
)

import compiler.sign
import fleet.catalog
from compiler.believe import to_bytes
from fleet.catalog import Catalog
from fleet.roles import tuf_key
from skerry.bundle import read_bundle
from skerry.errors import ConflictError, FormatError, NotFoundError, TrustError
from skerry.holding import BIN_BITS, Delegation, Holding, bin_prefix
from skerry.keys import Signer
from skerry.release_file import ReleaseFile, read_release_file
from skerry.trust import target_path
from tests.fakes.trusted import NOW, TrustedFleet, make_bundle, make_fleet
from tests.fakes.trusted import released as released_to

BINS = 1 << BIN_BITS
Roles = dict[str, Metadata[Targets]]


def path(version: str, model: str = "reader") -> str:
    return target_path("acme", model, version)


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrustedFleet:
    """A fleet with three releases, where the next one moves them."""
    monkeypatch.setattr(compiler.sign, "SPLIT_ABOVE", 3)
    made = make_fleet(tmp_path, ("acme", "globex"))
    for n in range(3):
        made.publish(make_bundle(f"1.{n}.0"))
    return made


@pytest.fixture
def binned(trusted: TrustedFleet) -> TrustedFleet:
    trusted.publish(make_bundle("1.3.0"))
    return trusted


def snapshot(trusted: TrustedFleet) -> set[str]:
    return set(Metadata[Snapshot].from_bytes(trusted.catalog.metadata("snapshot.json")).signed.meta)


def test_the_next_release_moves_all_into_bins_and_devices_find_each(
    trusted: TrustedFleet, tmp_path: Path
) -> None:
    before = {one.path: one for one in trusted.catalog.releases()}
    assert not any(bin_prefix("acme") in name for name in snapshot(trusted))
    newest = trusted.publish(make_bundle("1.3.0")).target
    assert newest.release_counter == 4
    assert sum(bin_prefix("acme") in name for name in snapshot(trusted)) == BINS
    own = Metadata[Targets].from_bytes(trusted.catalog.metadata("acme.json")).signed
    assert own.targets == {}
    assert {one.path: one for one in trusted.catalog.releases()} == before | {newest.path: newest}
    for one in trusted.catalog.releases():
        assert released_to(tmp_path / "device", trusted, one.path) == one
        assert trusted.catalog.release(one.path) == one
    assert released_to(tmp_path / "device", trusted, path("9.9.9")) is None


def test_a_release_then_changes_one_bin_and_the_publishers_role(binned: TrustedFleet) -> None:
    file = read_release_file(binned.sign(make_bundle("1.4.0")))
    assert len(file.metadata) == 2
    accepted = binned.publish(make_bundle("1.4.0"))
    assert accepted.target.release_counter == 5  # counted over all bins
    assert (
        accepted.target.may_fall_back_to[0]
        == "sha256:" + binned.catalog.release(path("1.3.0")).sha256
    )


def test_bins_are_there_after_a_restart_and_the_same_request_changes_nothing(
    binned: TrustedFleet,
) -> None:
    again = Catalog(binned.data / "tuf" / "catalog", binned.keys, NOW)
    assert again.releases() == binned.catalog.releases()
    assert again.metadata("acme_bin-00.json") == binned.catalog.metadata("acme_bin-00.json")
    bundle = make_bundle("1.4.0")
    data = binned.sign(bundle)
    assert binned.bundles.publish(io.BytesIO(bundle), data, NOW).new
    timestamp = binned.catalog.metadata("timestamp.json")
    assert not binned.bundles.publish(io.BytesIO(bundle), data, NOW).new
    assert binned.catalog.metadata("timestamp.json") == timestamp


def test_a_crash_amid_the_move_leaves_the_catalog_as_it_was(
    trusted: TrustedFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = fleet.catalog.write_atomic

    def crash(where: Path, data: bytes) -> None:
        if "bin-1f" in where.name:
            raise OSError("the power went")
        write(where, data)

    with monkeypatch.context() as patched:
        patched.setattr(fleet.catalog, "write_atomic", crash)
        with pytest.raises(OSError, match="power"):
            trusted.publish(make_bundle("1.3.0"))
    again = Catalog(trusted.data / "tuf" / "catalog", trusted.keys, NOW)
    assert [one.path for one in again.releases()] == [path(f"1.{n}.0") for n in range(3)]
    with pytest.raises(NotFoundError):
        trusted.catalog.metadata("acme_bin-00.json")
    assert trusted.publish(make_bundle("1.3.0")).new


def test_bins_that_are_about_to_expire_are_signed_anew_with_the_next_release(
    binned: TrustedFleet,
) -> None:
    assert binned.catalog.expiring(NOW + timedelta(days=50)) == []
    assert [one.role for one in binned.catalog.expiring(NOW + timedelta(days=61))] == ["acme"]
    later = NOW + timedelta(days=50)
    binned.catalog.renew(later)
    file = read_release_file(binned.sign(make_bundle("1.4.0"), now=later))
    assert len(file.metadata) == BINS + 1
    binned.publish(make_bundle("1.4.0"), now=later)
    assert binned.catalog.expiring(NOW + timedelta(days=61)) == []


def test_whoever_was_overtaken_by_the_move_signs_again(trusted: TrustedFleet) -> None:
    late = trusted.sign(make_bundle("1.4.0"))
    trusted.publish(make_bundle("1.3.0"))
    with pytest.raises(ConflictError, match="sign again on the fleet's latest"):
        trusted.bundles.publish(io.BytesIO(make_bundle("1.4.0")), late, NOW)


def test_a_model_belongs_to_who_released_it_first_in_a_bin_too(binned: TrustedFleet) -> None:
    bundle = make_bundle("2.0.0")
    with pytest.raises(TrustError) as refused:
        binned.publish(bundle, "globex")
    assert refused.value.code == "model_taken"


# --- what must not pass ----------------------------------------------------------------


def any_with(roles: Roles, count: int = 1) -> Targets:
    """Return a bin that holds this many releases or more."""
    return next(
        role.signed for name, role in roles.items()
        if "_bin-" in name and len(role.signed.targets) >= count
    )  # fmt: skip


def drop(roles: Roles) -> None:
    del any_bin_of(roles, path("1.0.0")).targets[path("1.0.0")]


def change(roles: Roles) -> None:
    any_bin_of(roles, path("1.0.0")).targets[path("1.0.0")].length += 1


def any_bin_of(roles: Roles, wanted: str) -> Targets:
    return next(role.signed for role in roles.values() if wanted in role.signed.targets)


def misplace(roles: Roles) -> None:
    home = any_bin_of(roles, path("1.3.0"))
    target = home.targets.pop(path("1.3.0"))
    other = next(r.signed for n, r in roles.items() if "_bin-" in n and r.signed is not home)
    other.targets[target.path] = target


def keep_beside(roles: Roles) -> None:
    target = any_bin_of(roles, path("1.0.0")).targets[path("1.0.0")]
    roles["acme"].signed.targets[target.path] = target


def smuggle(roles: Roles) -> None:
    target = any_bin_of(roles, path("1.3.0")).targets[path("1.3.0")]
    own = roles["acme"].signed.delegations
    assert own is not None
    assert own.succinct_roles is not None
    more = TargetFile.from_dict(target.to_dict(), path("9.9.9"))
    roles[own.succinct_roles.get_role_for_target(more.path)].signed.targets[more.path] = more


def lose_a_bin(roles: Roles) -> None:
    del roles[next(name for name, role in roles.items() if not role.signed.targets and "_" in name)]


def add_a_role(roles: Roles) -> None:
    roles["acme_bin-zz"] = Metadata(Targets(version=1, expires=NOW + timedelta(days=1)))


def delegate_onwards(roles: Roles) -> None:
    any_with(roles).delegations = Delegations({}, {})


def delegate_to_others(roles: Roles) -> None:
    key = tuf_key(Signer.generate().public)
    role = DelegatedRole("x", [key.keyid], 1, True, paths=["models/acme/*"])
    roles["acme"].signed.delegations = Delegations({key.keyid: key}, {"x": role})


def bins_of(roles: Roles) -> Delegations:
    delegations = roles["acme"].signed.delegations
    assert delegations is not None
    assert delegations.succinct_roles is not None
    return delegations


def give_away(roles: Roles) -> None:
    key = tuf_key(Signer.generate().public)
    bins_of(roles).keys[key.keyid] = key
    bins_of(roles).succinct_roles.keyids.append(key.keyid)  # type: ignore[union-attr]


def swap_a_key(roles: Roles) -> None:
    [keyid] = bins_of(roles).keys
    bins_of(roles).keys[keyid] = tuf_key(Signer.generate().public)


def too_many_bins(roles: Roles) -> None:
    bins_of(roles).succinct_roles.bit_length = 32  # type: ignore[union-attr]


def foreign_prefix(roles: Roles) -> None:
    bins_of(roles).succinct_roles.name_prefix = "globex_bin"  # type: ignore[union-attr]


def expire(roles: Roles) -> None:
    any_with(roles).expires = NOW - timedelta(days=1)


def forged(trusted: TrustedFleet, bundle: bytes, alter: Callable[[Roles], None]) -> bytes:
    """Return what a publisher, or who has its key, may sign."""
    signed = read_release_file(trusted.sign(bundle))
    roles = {name: Metadata[Targets].from_bytes(data) for name, data in signed.metadata.items()}
    alter(roles)
    for role in roles.values():
        role.sign(compiler.sign.tuf_signer(trusted.publisher()))
    return ReleaseFile("acme", {name: to_bytes(role) for name, role in roles.items()}).to_bytes()


@pytest.mark.parametrize(
    ("code", "alter"),
    [
        ("", lambda roles: None),
        ("release_changed", drop),
        ("release_changed", change),
        ("outside_bin", misplace),
        ("outside_bin", keep_beside),
        ("wrong_bundle", smuggle),
        ("bins", lose_a_bin),
        ("bins", add_a_role),
        ("delegation", delegate_onwards),
        ("delegation", delegate_to_others),
        ("bins", give_away),
        ("bins", swap_a_key),
        ("delegation", too_many_bins),
        ("delegation", foreign_prefix),
        ("expired", expire),
    ],
)
def test_what_must_not_happen_in_the_move_is_refused_by_name(
    trusted: TrustedFleet, code: str, alter: Callable[[Roles], None]
) -> None:
    bundle = make_bundle("1.3.0")
    data = forged(trusted, bundle, alter)
    if not code:  # the control: the same detour without the attack
        assert trusted.bundles.publish(io.BytesIO(bundle), data, NOW).new
        return
    before = sorted(file.name for file in (trusted.data / "tuf" / "catalog").iterdir())
    with pytest.raises(TrustError) as refused:
        trusted.bundles.publish(io.BytesIO(bundle), data, NOW)
    assert refused.value.code == code
    assert sorted(f.name for f in (trusted.data / "tuf" / "catalog").iterdir()) == before


def back_again(roles: Roles) -> None:
    targets = any_bin_of(roles, path("1.4.0")).targets
    roles["acme"].signed.delegations = None
    roles["acme"].signed.targets = dict(targets)


def more_bins(roles: Roles) -> None:
    bins_of(roles).succinct_roles.bit_length += 1  # type: ignore[union-attr]


@pytest.mark.parametrize(("code", "alter"), [("bins", back_again), ("bins", more_bins)])
def test_bins_stay_once_they_are_there(
    binned: TrustedFleet, code: str, alter: Callable[[Roles], None]
) -> None:
    """A device that has seen a snapshot with a role refuses each later one without it."""
    bundle = make_bundle("1.4.0")
    with pytest.raises(TrustError) as refused:
        binned.bundles.publish(io.BytesIO(bundle), forged(binned, bundle, alter), NOW)
    assert refused.value.code == code


@pytest.mark.parametrize(("bits", "code"), [(8, ""), (5, "bins"), (9, "bins")])
def test_a_publisher_may_spread_its_releases_over_more_bins(
    binned: TrustedFleet, tmp_path: Path, bits: int, code: str
) -> None:
    """As long as every name that was in a snapshot stays in it."""
    bundle = make_bundle("1.3.0")  # released already: nothing is new
    known = {name: Metadata[Targets].from_bytes(d) for name, d in binned.roles().items()}
    holding = Holding("acme", known)
    bins = Delegation(bins_of(known).keys, 1).bins("acme")
    assert bins.succinct_roles is not None
    spread = SuccinctRoles(bins.succinct_roles.keyids, 1, bits, "acme_bin")
    roles = {
        name: Metadata(Targets(version=1, expires=NOW + timedelta(days=1)))
        for name in ("acme", *spread.get_roles())
    }
    roles["acme"].signed.delegations = Delegations(bins.keys, succinct_roles=spread)
    for where, target in holding.targets.items():
        roles[spread.get_role_for_target(where)].signed.targets[where] = target
    for name, role in roles.items():
        if name in known:
            role.signed.version = known[name].signed.version + 1
        role.sign(compiler.sign.tuf_signer(binned.publisher()))
    data = ReleaseFile("acme", {name: to_bytes(role) for name, role in roles.items()}).to_bytes()
    released_to(tmp_path / "device", binned, path("1.0.0"))
    if code:
        with pytest.raises(TrustError) as refused:
            binned.bundles.publish(io.BytesIO(bundle), data, NOW)
        assert refused.value.code == code
        return
    assert not binned.bundles.publish(io.BytesIO(bundle), data, NOW).new
    for one in binned.catalog.releases():
        assert released_to(tmp_path / "device", binned, one.path) == one


def test_a_bin_that_skips_a_version_is_a_conflict(binned: TrustedFleet) -> None:
    bundle = make_bundle("1.4.0")

    def skip(roles: Roles) -> None:
        any_bin_of(roles, path("1.4.0")).version += 1

    with pytest.raises(ConflictError):
        binned.bundles.publish(io.BytesIO(bundle), forged(binned, bundle, skip), NOW)


@pytest.mark.parametrize("how", ["unsigned", "stranger"])
def test_a_bin_that_the_publisher_did_not_sign_is_refused(binned: TrustedFleet, how: str) -> None:
    bundle = make_bundle("1.4.0")
    file = read_release_file(binned.sign(bundle))
    name = next(name for name in file.metadata if name != "acme")
    role = Metadata[Targets].from_bytes(file.metadata[name])
    role.signatures.clear()
    if how == "stranger":
        role.sign(compiler.sign.tuf_signer(Signer.generate()))
    file.metadata[name] = to_bytes(role)
    with pytest.raises(TrustError) as refused:
        binned.bundles.publish(io.BytesIO(bundle), file.to_bytes(), NOW)
    assert refused.value.code == "signature_invalid"


@pytest.mark.parametrize(
    "data",
    [b'{"format": "skerry-release/1"}', b'{"format": "skerry-release/2", "publisher": "acme"}',
     b'{"format":"skerry-release/1","publisher":"acme","metadata":{}}',
     b'{"format":"skerry-release/1","publisher":"acme","metadata":{"acme":{}}}',
     b'{"format":"skerry-release/1","publisher":"acme","metadata":{"acme":' + b"[" * 100_000],
)  # fmt: skip
def test_what_is_no_release_file_is_refused(trusted: TrustedFleet, data: bytes) -> None:
    with pytest.raises(FormatError):
        trusted.catalog.check(data, read_bundle(io.BytesIO(make_bundle("1.3.0"))), NOW)
