"""Several people sign one release on machines of their own, and each sees through what is not right."""

import io
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from securesystemslib.signer import CryptoSigner, SSlibKey
from securesystemslib.signer import Signer as TufSigner
from tuf.api.metadata import Metadata, Root, TargetFile, Targets

import compiler.sign
from compiler.believe import Trust, parse_targets, to_bytes
from compiler.cosign import add_signature, review
from compiler.handover import count_signatures, fetch_release_file, progress, trust_in
from compiler.sign import add_release, release_of, tuf_signer
from fleet.catalog import Catalog
from fleet.roles import sign, tuf_key
from fleet.rotation import Wanted, approve_file, install, settle
from fleet.rotation import begin as begin_change
from skerry.bundle import Bundle, read_bundle
from skerry.errors import ConflictError, FormatError, NotFoundError, TrustError, UsageError
from skerry.io.key_files import key_id_of
from skerry.keys import Signer
from skerry.release_file import ReleaseFile, read_release_file
from skerry.trust import PatchRef, target_path
from tests.fakes.trusted import NOW, PHRASE, TrustedFleet, make_bundle, make_fleet
from tests.fakes.trusted import released as released_to


@pytest.fixture
def trusted(tmp_path: Path) -> TrustedFleet:
    return make_fleet(tmp_path, ("acme:2-of-3", "globex"))


def key(trusted: TrustedFleet, number: int) -> TufSigner:
    pem = (trusted.out / f"publisher-acme-{number}.pem").read_bytes()
    return tuf_signer(Signer.from_pem(pem, PHRASE))


def public(signer: TufSigner) -> SSlibKey:
    assert isinstance(signer.public_key, SSlibKey)
    return signer.public_key


def fetched(trusted: TrustedFleet) -> ReleaseFile:
    def serve(name: str) -> bytes | None:
        try:
            return trusted.catalog.metadata(name)
        except NotFoundError:
            return None

    return fetch_release_file("acme", "", serve)


def opened(version: str = "1.0.0", **more: object) -> Bundle:
    return read_bundle(io.BytesIO(make_bundle(version, **more)))  # type: ignore[arg-type]


def begin(
    trusted: TrustedFleet, version: str = "1.0.0", by: int = 1, start: ReleaseFile | None = None
) -> ReleaseFile:
    """The first person, with a network."""
    start = start or fetched(trusted)
    trust = trust_in(start, root=trusted.catalog.root, keys=(), now=NOW)
    release = release_of(opened(version), "acme")
    signed = add_release(start.before, release, key(trusted, by), now=NOW, trust=trust)
    return replace(start, metadata=signed)


def join(
    trusted: TrustedFleet, file: ReleaseFile, version: str = "1.0.0", by: int = 2
) -> ReleaseFile:
    """A further person, with nothing but the file, the bundle and the root of the ceremony."""
    file = read_release_file(file.to_bytes())
    trust = trust_in(file, root=first_root(trusted), keys=(), now=NOW)
    reviewed = review(file, opened(version), trust, NOW)
    return replace(file, metadata=add_signature(reviewed, key(trusted, by)))


def first_root(trusted: TrustedFleet) -> bytes:
    return (trusted.data / "tuf" / "catalog" / "1.root.json").read_bytes()


def publish(trusted: TrustedFleet, file: ReleaseFile, version: str = "1.0.0") -> bool:
    bundle = io.BytesIO(make_bundle(version))
    return trusted.bundles.publish(bundle, file.for_fleet(), NOW).new


def refusal(trusted: TrustedFleet, file: ReleaseFile, version: str = "1.0.0") -> str:
    with pytest.raises(TrustError) as refused:
        join(trusted, file, version)
    return refused.value.code


def test_two_people_sign_and_a_device_finds_it(trusted: TrustedFleet, tmp_path: Path) -> None:
    one = begin(trusted)
    assert count_signatures(one) == (1, 2)
    with pytest.raises(TrustError) as refused:
        publish(trusted, one)
    assert refused.value.code == "signature_invalid"
    both = join(trusted, one)
    assert count_signatures(both) == (2, 2)
    assert publish(trusted, both)
    assert released_to(tmp_path / "device", trusted, target_path("acme", "reader", "1.0.0"))


def test_release_after_release_by_whichever_two(trusted: TrustedFleet) -> None:
    for n, (first, second) in enumerate([(1, 2), (2, 3), (3, 1), (1, 3)]):
        version = f"1.{n}.0"
        file = join(trusted, begin(trusted, version, first), version, second)
        assert publish(trusted, file, version)
    assert [one.release_counter for one in trusted.catalog.releases()] == [1, 2, 3, 4]


def test_a_third_signature_keeps_the_two(trusted: TrustedFleet) -> None:
    file = join(trusted, join(trusted, begin(trusted)), by=3)
    assert count_signatures(file) == (3, 2)
    assert publish(trusted, file)


def test_the_same_person_twice_counts_once(trusted: TrustedFleet) -> None:
    file = join(trusted, begin(trusted), by=1)
    assert count_signatures(file) == (1, 2)
    with pytest.raises(TrustError):
        publish(trusted, file)


def test_it_says_what_comes_next(trusted: TrustedFleet) -> None:
    where = Path("b.skerry"), Path("release.json")
    assert progress(begin(trusted), *where).startswith("1 of 2 signatures; next: give release.json")
    done = progress(join(trusted, begin(trusted)), *where)
    assert done == "2 of 2 signatures; next: skerry publish b.skerry release.json"
    unknown = replace(begin(trusted), targets=None)
    assert progress(unknown, *where).startswith("1 signature; how many it takes, the fleet says")


def test_what_is_signed_is_told(trusted: TrustedFleet) -> None:
    publish(trusted, join(trusted, begin(trusted)))
    file = begin(trusted, "1.1.0", by=3)
    trust = trust_in(file, root=first_root(trusted), keys=(), now=NOW)
    said = review(file, opened("1.1.0"), trust, NOW)
    assert (said.version, said.release.release_counter, said.is_new) == (2, 2, True)
    assert said.signer_ids == [key_id_of(public(key(trusted, 3)))]
    assert (said.threshold, said.moved, said.renewed) == (2, 0, 0)


# --- what the second person sees through ---------------------------------------------


def altered(file: ReleaseFile, signer: TufSigner, change: Callable[[Targets], None]) -> ReleaseFile:
    """The file as its first signer, or who has that key, might have made it."""
    metadata = parse_targets(file.metadata["acme"])
    change(metadata.signed)
    metadata.sign(signer)
    return replace(file, metadata={"acme": to_bytes(metadata)})


FIRST = target_path("acme", "reader", "1.0.0")
SECOND = target_path("acme", "reader", "1.1.0")


def drop(targets: Targets) -> None:
    del targets.targets[FIRST]


def change_first(targets: Targets) -> None:
    targets.targets[FIRST].hashes["sha256"] = "0" * 64


def smuggle(targets: Targets) -> None:
    more = TargetFile.from_dict(targets.targets[SECOND].to_dict(), SECOND.replace("1.1.0", "6.6.6"))
    targets.targets[more.path] = more


def jump(targets: Targets) -> None:
    targets.targets[SECOND].custom["release_counter"] = 1000  # type: ignore[index]


def widen(targets: Targets) -> None:
    targets.targets[SECOND].custom["min_agent"] = "0.0.1"  # type: ignore[index]


def last_for_ever(targets: Targets) -> None:
    targets.expires = NOW + timedelta(days=3650)


def spoil(targets: Targets) -> None:
    """Devices would refuse the bundle for the digest that is wrong."""
    targets.targets[SECOND].hashes["sha512"] = "0" * 128


def expire(targets: Targets) -> None:
    targets.expires = NOW - timedelta(days=1)


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("", lambda targets: None),
        ("release_changed", drop),
        ("release_changed", change_first),
        ("wrong_bundle", smuggle),
        ("custom", jump),
        ("custom", widen),
        ("custom", spoil),
        ("expires", last_for_ever),
        ("expired", expire),
    ],
)
def test_what_else_was_changed_is_noticed(
    trusted: TrustedFleet, code: str, change: Callable[[Targets], None]
) -> None:
    publish(trusted, join(trusted, begin(trusted)))
    file = altered(begin(trusted, "1.1.0"), key(trusted, 1), change)
    if code:
        assert refusal(trusted, file, "1.1.0") == code
    else:
        assert publish(trusted, join(trusted, file, "1.1.0"), "1.1.0")


def test_a_file_about_another_bundle_is_not_signed(trusted: TrustedFleet) -> None:
    assert refusal(trusted, begin(trusted, "1.0.0"), "1.1.0") == "wrong_bundle"
    file = begin(trusted)
    trust = trust_in(file, root=first_root(trusted), keys=(), now=NOW)
    with pytest.raises(TrustError) as refused:
        review(file, opened("1.0.0", weights=b"others"), trust, NOW)
    assert refused.value.code == "wrong_bundle"


def test_a_release_that_a_stranger_began_is_not_signed(trusted: TrustedFleet) -> None:
    file = altered(begin(trusted), tuf_signer(Signer.generate()), lambda _: None)
    assert refusal(trusted, file) == "signature_invalid"
    file = altered(begin(trusted), tuf_signer(trusted.publisher("globex")), lambda _: None)
    assert refusal(trusted, file) == "signature_invalid"


def test_what_it_starts_from_must_have_enough_signatures(trusted: TrustedFleet) -> None:
    """One of the two begins, and pretends that what never was published had been."""
    begun = begin(trusted, "1.0.0")
    pretended = replace(begun, before=begun.metadata, metadata={})
    signed = add_release(
        pretended.before, release_of(opened("1.1.0"), "acme"), key(trusted, 1), now=NOW
    )
    assert refusal(trusted, replace(pretended, metadata=signed), "1.1.0") == "signature_invalid"


def test_without_a_root_the_first_signer_goes_by_a_signature_of_its_own(
    trusted: TrustedFleet,
) -> None:
    """A fleet that was taken over tells of two keys more, and of a release that they signed."""
    start = fetched(trusted)
    top = parse_targets(trusted.catalog.metadata("targets.json"))
    thieves = [tuf_signer(Signer.generate()) for _ in range(2)]
    for thief in thieves:
        top.signed.add_key(public(thief), "acme")
    planted = parse_targets(begin(trusted).metadata["acme"])
    planted.signatures.clear()
    for thief in thieves:
        planted.sign(thief, append=True)
    lying = replace(start, before={"acme": to_bytes(planted)}, targets=to_bytes(top))
    trust = trust_in(lying, root=None, keys=(), now=NOW)
    release = release_of(opened("1.1.0"), "acme")
    with pytest.raises(TrustError, match="does not carry your signature"):
        add_release(lying.before, release, key(trusted, 1), now=NOW, trust=trust)
    planted.sign(key(trusted, 1), append=True)  # the control: one's own is there as well
    honest = {"acme": to_bytes(planted)}
    assert add_release(honest, release, key(trusted, 1), now=NOW, trust=trust)


def test_the_first_signer_sees_that_too(trusted: TrustedFleet) -> None:
    begun = begin(trusted, "1.0.0")
    with pytest.raises(TrustError, match="signed by 2 of its keys, got 1"):
        begin(trusted, "1.1.0", start=replace(begun, before=begun.metadata, metadata={}))


def test_a_key_of_nobody_here_does_not_sign(trusted: TrustedFleet) -> None:
    file = begin(trusted)
    trust = trust_in(file, root=first_root(trusted), keys=(), now=NOW)
    reviewed = review(file, opened(), trust, NOW)
    with pytest.raises(TrustError) as refused:
        add_signature(reviewed, tuf_signer(Signer.generate()))
    assert refused.value.code == "unknown_key"


def test_without_a_root_or_a_key_nothing_can_be_told(trusted: TrustedFleet) -> None:
    file = begin(trusted)
    with pytest.raises(UsageError, match="--root"):
        review(file, opened(), trust_in(file, root=None, keys=(), now=NOW), NOW)


def test_the_first_signers_key_may_be_trusted_instead_of_a_root(trusted: TrustedFleet) -> None:
    file = begin(trusted)
    trust = trust_in(file, root=None, keys=[public(key(trusted, 1))], now=NOW)
    signed = add_signature(review(file, opened(), trust, NOW), key(trusted, 2))
    assert publish(trusted, replace(file, metadata=signed))
    other = trust_in(file, root=None, keys=[public(key(trusted, 3))], now=NOW)
    with pytest.raises(TrustError, match="no signature by any that you trust"):
        review(file, opened(), other, NOW)


def test_another_fleets_root_vouches_for_nothing(trusted: TrustedFleet, tmp_path: Path) -> None:
    other = make_fleet(tmp_path / "other", ("acme:2-of-3",))
    with pytest.raises(TrustError, match="do not follow from the root that you trust"):
        trust_in(begin(trusted), root=first_root(other), keys=(), now=NOW)


def test_delegations_that_expired_vouch_for_nothing(trusted: TrustedFleet) -> None:
    later = NOW + timedelta(days=366)
    with pytest.raises(TrustError) as refused:
        trust_in(begin(trusted), root=first_root(trusted), keys=(), now=later)
    assert refused.value.code == "expired"


def test_later_roots_are_followed_and_strangers_are_not(trusted: TrustedFleet) -> None:
    root = Metadata[Root].from_bytes(first_root(trusted)).signed
    root.version = 2
    people = [Signer.from_pem((trusted.out / f"root-{n}.pem").read_bytes(), PHRASE) for n in (1, 2)]
    good, forged = sign(root, people), sign(root, [people[0], Signer.generate()])
    file = begin(trusted)
    known = first_root(trusted)
    assert trust_in(replace(file, roots=[good]), root=known, keys=(), now=NOW).is_verified
    assert trust_in(replace(file, roots=[good]), root=good, keys=(), now=NOW).is_verified
    with pytest.raises(TrustError):
        trust_in(replace(file, roots=[forged]), root=known, keys=(), now=NOW)
    stolen = Metadata[Root].from_bytes(known).signed
    stolen.version = 2
    strangers = [Signer.generate() for _ in range(3)]
    for keyid in list(stolen.roles["root"].keyids):
        stolen.revoke_key(keyid, "root")
    for stranger in strangers:
        stolen.add_key(tuf_key(stranger.public), "root")
    for signers in (strangers, people):  # by the new ones only, by the old ones only
        with pytest.raises(TrustError):
            trust_in(replace(file, roots=[sign(stolen, signers)]), root=known, keys=(), now=NOW)
    root.version = 3
    with pytest.raises(TrustError, match="expected root 2"):
        trust_in(replace(file, roots=[sign(root, people)]), root=known, keys=(), now=NOW)


def test_who_was_overtaken_learns_it_from_the_fleet(trusted: TrustedFleet) -> None:
    late = join(trusted, begin(trusted, "2.0.0"), "2.0.0")
    publish(trusted, join(trusted, begin(trusted)))
    with pytest.raises(ConflictError, match="sign again on the fleet's latest"):
        publish(trusted, late, "2.0.0")


def test_a_file_that_was_cut_is_none(trusted: TrustedFleet) -> None:
    data = begin(trusted).to_bytes()
    for length in range(0, len(data), 97):
        with pytest.raises(FormatError):
            read_release_file(data[:length])


def test_metadata_of_others_in_the_file_is_noticed(trusted: TrustedFleet) -> None:
    file = begin(trusted)
    file.metadata["globex"] = file.metadata["acme"]
    with pytest.raises(FormatError, match="globex"):
        join(trusted, file)


def replace_keys(trusted: TrustedFleet) -> None:
    """Two root keys name new keys for acme, and the fleet takes that up."""
    wanted = Wanted({f"publisher-acme-{n}": None for n in (1, 2, 3)})
    change = begin_change(
        trusted.data, trusted.out / "new", wanted, passphrase=lambda _: PHRASE, now=NOW
    ).file
    for n in (1, 3):
        approve_file(change, str(trusted.out / f"root-{n}.pem"), lambda _: PHRASE, NOW)
    install(change, trusted.data, NOW)
    settle(trusted.data, NOW)
    trusted.catalog.reload(NOW)
    for n in (1, 2, 3):
        name = f"publisher-acme-{n}.pem"
        (trusted.out / "new" / name).replace(trusted.out / name)


@pytest.mark.parametrize("split_above", [300, 1])
def test_after_a_change_of_keys_a_former_key_is_trusted_by_name(
    trusted: TrustedFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split_above: int
) -> None:
    monkeypatch.setattr(compiler.sign, "SPLIT_ABOVE", split_above)
    paths = [target_path("acme", "reader", f"1.{n}.0") for n in range(3)]
    for n in range(2):
        publish(trusted, join(trusted, begin(trusted, f"1.{n}.0"), f"1.{n}.0"), f"1.{n}.0")
        assert released_to(tmp_path / "device", trusted, paths[n]) is not None
    former = public(key(trusted, 1))
    replace_keys(trusted)
    assert trusted.catalog.releases() == []
    with pytest.raises(TrustError, match="trust the former one: --trusted FILE"):
        begin(trusted, "1.2.0")
    file = fetched(trusted)
    trust = trust_in(file, root=first_root(trusted), keys=[former], now=NOW)
    release = release_of(opened("1.2.0"), "acme")
    signed = add_release(file.before, release, key(trusted, 1), now=NOW, trust=trust)
    assert len(signed) == (1 if split_above == 300 else 65)  # bins need the new keys too
    both = add_signature(
        review(replace(file, metadata=signed), opened("1.2.0"), trust, NOW), key(trusted, 2)
    )
    assert publish(trusted, replace(file, metadata=both), "1.2.0")
    assert [one.release_counter for one in trusted.catalog.releases()] == [1, 2, 3]
    for path in paths:
        assert released_to(tmp_path / "device", trusted, path) == trusted.catalog.release(path)
    again = Catalog(trusted.data / "tuf" / "catalog", trusted.keys, NOW)
    assert again.releases() == trusted.catalog.releases()


# --- keys of the other kind, and bins ------------------------------------------------


def test_a_p_256_key_begins_and_an_ed25519_key_joins() -> None:
    first, second = CryptoSigner.generate_ecdsa(), CryptoSigner.generate_ed25519()
    signed = add_release({}, release_of(opened(), "acme"), first, now=NOW)
    file = ReleaseFile("acme", signed)
    trust = Trust(keys=(first.public_key,))
    both = add_signature(review(file, opened(), trust, NOW), second)
    assert set(parse_targets(both["acme"]).signatures) == {
        first.public_key.keyid, second.public_key.keyid,
    }  # fmt: skip


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler.sign, "SPLIT_ABOVE", 1)


@pytest.mark.usefixtures("small")
def test_two_people_sign_the_move_into_bins_and_what_comes_after(
    trusted: TrustedFleet, tmp_path: Path
) -> None:
    for n, (first, second) in enumerate([(1, 2), (2, 3), (3, 1)]):
        version = f"1.{n}.0"
        file = begin(trusted, version, first)
        assert len(file.metadata) == (1, 65, 2)[n]
        assert publish(trusted, join(trusted, file, version, second), version)
        path = target_path("acme", "reader", version)
        assert released_to(tmp_path / "device", trusted, path) == trusted.catalog.release(path)


@pytest.mark.usefixtures("small")
def test_every_bin_needs_both_signatures(trusted: TrustedFleet) -> None:
    publish(trusted, join(trusted, begin(trusted)))
    one = begin(trusted, "1.1.0")
    both = join(trusted, one, "1.1.0")
    name = next(name for name in both.metadata if name != "acme")
    mixed = replace(both, metadata=both.metadata | {name: one.metadata[name]})
    assert count_signatures(mixed) == (1, 2)
    with pytest.raises(TrustError) as refused:
        publish(trusted, mixed, "1.1.0")
    assert refused.value.code == "signature_invalid"
    assert publish(trusted, both, "1.1.0")


@pytest.mark.usefixtures("small")
def test_nobody_names_the_keys_of_bins_by_somebodys_word(trusted: TrustedFleet) -> None:
    """A fleet that was taken over tells of a key more: with it, whoever has it could release."""
    publish(trusted, join(trusted, begin(trusted)))
    start = fetched(trusted)
    top = parse_targets(trusted.catalog.metadata("targets.json"))
    stranger = tuf_key(Signer.generate().public)
    top.signed.add_key(stranger, "acme")
    lying = replace(start, targets=to_bytes(top))
    trust = trust_in(lying, root=None, keys=[public(key(trusted, 2))], now=NOW)
    release = release_of(opened("1.1.0"), "acme")
    with pytest.raises(UsageError, match="give --fleet and --root"):
        add_release(lying.before, release, key(trusted, 1), now=NOW, trust=trust)
    with pytest.raises(TrustError):
        trust_in(lying, root=trusted.catalog.root, keys=(), now=NOW)
    honest = begin(trusted, "1.1.0")
    trust = trust_in(honest, root=None, keys=[public(key(trusted, 1))], now=NOW)
    with pytest.raises(UsageError, match="give its root"):
        review(honest, opened("1.1.0"), trust, NOW)


# --- patches ---------------------------------------------------------------------------


def with_patches(trusted: TrustedFleet, **change: object) -> ReleaseFile:
    """What the first person signed, with a patch to the bundle's file."""
    bundle = opened()
    file = bundle.manifest.variants[0].file
    patch = PatchRef("sha256:" + "1" * 64, file.digest, "sha256:" + "2" * 64, file.size_bytes - 1)
    patch = msgspec.structs.replace(patch, **change)
    start = fetched(trusted)
    trust = trust_in(start, root=trusted.catalog.root, keys=(), now=NOW)
    release = replace(release_of(bundle, "acme"), patches=(patch,))
    signed = add_release(start.before, release, key(trusted, 1), now=NOW, trust=trust)
    return replace(start, metadata=signed)


def test_patches_are_the_first_signers_to_list(trusted: TrustedFleet) -> None:
    file = join(trusted, with_patches(trusted))
    (target,) = parse_targets(file.metadata["acme"]).signed.targets.values()
    assert len((target.custom or {})["patches"]) == 1
    assert count_signatures(file) == (2, 2)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"new": "sha256:" + "9" * 64}, "patches"),
        ({"size_bytes": 1 << 20}, "patches"),
        ({"size_bytes": 0}, "custom"),
        ({"digest": "x"}, "custom"),
    ],
)
def test_a_patch_that_makes_no_file_of_the_bundle_gets_no_signature(
    trusted: TrustedFleet, change: dict[str, object], code: str
) -> None:
    with pytest.raises(TrustError) as refused:
        join(trusted, with_patches(trusted, **change))
    assert refused.value.code == code
