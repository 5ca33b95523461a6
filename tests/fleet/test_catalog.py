"""The catalog keeps what a publisher signed, refuses the rest, and survives a crash in between."""

import io
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import ExpiredMetadataError, RepositoryError
from tuf.api.metadata import Delegations, Metadata, Snapshot, TargetFile, Targets, Timestamp

import fleet.catalog
from fleet.catalog import Catalog
from skerry.bundle import read_bundle
from skerry.errors import ConflictError, FormatError, NotFoundError, TrustError
from skerry.keys import Signer
from skerry.trust import target_path
from tests.fakes.trusted import NOW, CatalogFiles, TrustedFleet, look_up, make_bundle, make_fleet
from tests.fakes.trusted import released as released_to

FIRST = target_path("acme", "reader", "1.0.0")
SECOND = target_path("acme", "reader", "1.1.0")


@pytest.fixture
def trusted(tmp_path: Path) -> TrustedFleet:
    return make_fleet(tmp_path, ("acme", "globex"))


def signed(data: bytes, signer: Signer, change: Callable[[Targets], Any]) -> bytes:
    """Return metadata with a change, signed again: what a publisher could do, or who has its key."""
    metadata = Metadata[Targets].from_bytes(data)
    change(metadata.signed)
    metadata.sign(CryptoSigner(signer.private_key))
    return metadata.to_bytes()


def publish(trusted: TrustedFleet, bundle: bytes, metadata: bytes) -> None:
    trusted.bundles.publish(io.BytesIO(bundle), metadata, NOW)


def refusal(trusted: TrustedFleet, bundle: bytes, metadata: bytes) -> str:
    before = sorted(path.name for path in (trusted.data / "tuf" / "catalog").iterdir())
    with pytest.raises(TrustError) as refused:
        publish(trusted, bundle, metadata)
    assert sorted(p.name for p in (trusted.data / "tuf" / "catalog").iterdir()) == before
    return refused.value.code


def test_a_device_finds_a_release_once_it_is_published(
    trusted: TrustedFleet, tmp_path: Path
) -> None:
    with pytest.raises(RepositoryError, match="not part of snapshot"):
        released_to(tmp_path / "device", trusted, FIRST)
    published = trusted.publish(make_bundle("1.0.0"))
    assert published.new
    assert released_to(tmp_path / "device", trusted, FIRST) == published.target
    assert trusted.catalog.release(FIRST) == published.target


def test_a_later_release_counts_higher_and_may_fall_back(trusted: TrustedFleet) -> None:
    first = trusted.publish(make_bundle("1.0.0"))
    second = trusted.publish(make_bundle("1.1.0"))
    assert second.target.release_counter == first.target.release_counter + 1
    assert second.target.may_fall_back_to == [first.bundle.digest]
    assert [target.path for target in trusted.catalog.releases()] == [FIRST, SECOND]


def test_the_same_request_again_changes_nothing(trusted: TrustedFleet) -> None:
    bundle = make_bundle("1.0.0")
    metadata = trusted.sign(bundle)
    publish(trusted, bundle, metadata)
    timestamp = trusted.catalog.metadata("timestamp.json")
    again = trusted.bundles.publish(io.BytesIO(bundle), metadata, NOW)
    assert not again.new
    assert trusted.catalog.metadata("timestamp.json") == timestamp


def test_a_publisher_may_sign_the_same_releases_anew(trusted: TrustedFleet) -> None:
    bundle = make_bundle("1.0.0")
    trusted.publish(bundle)
    later = NOW + timedelta(days=80)
    again = trusted.publish(bundle, now=later)
    assert not again.new
    assert again.target.release_counter == 1
    assert Metadata.from_bytes(trusted.catalog.metadata("acme.json")).signed.version == 2


def test_metadata_that_a_stranger_signed_is_refused(trusted: TrustedFleet) -> None:
    bundle = make_bundle()
    stranger = Signer.generate()
    metadata = signed(trusted.sign(bundle), stranger, lambda targets: None)
    assert refusal(trusted, bundle, metadata) == "signature_invalid"


def test_unsigned_and_changed_metadata_are_refused(trusted: TrustedFleet) -> None:
    bundle = make_bundle()
    unsigned = Metadata[Targets].from_bytes(trusted.sign(bundle))
    unsigned.signatures.clear()
    assert refusal(trusted, bundle, unsigned.to_bytes()) == "signature_invalid"
    changed = trusted.sign(bundle).replace(b'"release_counter":1', b'"release_counter":2')
    assert refusal(trusted, bundle, changed) == "signature_invalid"


def test_one_publisher_cannot_release_under_anothers_name(trusted: TrustedFleet) -> None:
    bundle = make_bundle()
    by_globex = signed(trusted.sign(bundle, "acme"), trusted.publisher("globex"), lambda _: None)
    assert refusal(trusted, bundle, by_globex) == "signature_invalid"


def test_a_release_outside_of_the_publishers_path_is_refused(trusted: TrustedFleet) -> None:
    bundle = make_bundle()

    def add_anothers(targets: Targets) -> None:
        target = targets.targets[FIRST]
        path = target_path("globex", "reader", "1.0.0")
        targets.targets[path] = TargetFile(
            target.length, target.hashes, path, target.unrecognized_fields
        )

    metadata = signed(trusted.sign(bundle), trusted.publisher(), add_anothers)
    assert refusal(trusted, bundle, metadata) == "outside_path"


def test_a_publisher_that_the_ceremony_did_not_name_is_refused(trusted: TrustedFleet) -> None:
    bundle = make_bundle()

    def rename(targets: Targets) -> None:
        target = targets.targets.pop(FIRST)
        target.path = target_path("nobody", "reader", "1.0.0")
        targets.targets[target.path] = target

    metadata = signed(trusted.sign(bundle), trusted.publisher(), rename)
    assert refusal(trusted, bundle, metadata) == "unknown_publisher"


def test_a_model_belongs_to_who_released_it_first(trusted: TrustedFleet) -> None:
    trusted.publish(make_bundle("1.0.0"))
    bundle = make_bundle("1.1.0")
    assert refusal(trusted, bundle, trusted.sign(bundle, "globex")) == "model_taken"


def test_a_skipped_and_a_repeated_version_are_conflicts(trusted: TrustedFleet) -> None:
    bundle = make_bundle("1.0.0")
    stale = trusted.sign(make_bundle("1.1.0"))
    trusted.publish(bundle)
    with pytest.raises(ConflictError, match="expected version 2"):
        publish(trusted, make_bundle("1.1.0"), stale)

    def skip(targets: Targets) -> None:
        targets.version += 1

    skipped = signed(trusted.sign(make_bundle("1.1.0")), trusted.publisher(), skip)
    with pytest.raises(ConflictError, match="got 3"):
        publish(trusted, make_bundle("1.1.0"), skipped)


def change_custom(name: str, value: object, path: str = SECOND) -> Callable[[Targets], None]:
    def change(targets: Targets) -> None:
        targets.targets[path].custom[name] = value

    return change


def drop_first(targets: Targets) -> None:
    del targets.targets[FIRST]


def smuggle(targets: Targets) -> None:
    target = TargetFile.from_dict(targets.targets[SECOND].to_dict(), SECOND)
    target.path = target_path("acme", "reader", "9.9.9")
    targets.targets[target.path] = target


def expire(targets: Targets) -> None:
    targets.expires = NOW - timedelta(days=1)


def delegate(targets: Targets) -> None:
    targets.delegations = Delegations({}, {})


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("release_counter", change_custom("release_counter", 1)),
        ("custom", change_custom("release_counter", 0)),
        ("custom", change_custom("min_agent", "latest")),
        ("custom", change_custom("hw_classes", [])),
        ("hw_classes", change_custom("hw_classes", ["linux-aarch64"])),
        ("fall_back", change_custom("may_fall_back_to", ["sha256:" + "ab" * 32])),
        ("release_changed", change_custom("min_agent", "0.0.1", FIRST)),
        ("release_changed", drop_first),
        ("wrong_bundle", smuggle),
        ("expired", expire),
        ("delegation", delegate),
    ],
)
def test_what_a_publisher_must_not_sign_is_refused_by_name(
    trusted: TrustedFleet, code: str, change: Callable[[Targets], None]
) -> None:
    trusted.publish(make_bundle("1.0.0"))
    bundle = make_bundle("1.1.0")
    metadata = signed(trusted.sign(bundle), trusted.publisher(), change)
    assert refusal(trusted, bundle, metadata) == code


def test_another_bundle_than_the_signed_one_is_refused_and_not_kept(trusted: TrustedFleet) -> None:
    metadata = trusted.sign(make_bundle("1.0.0"))
    other = make_bundle("1.0.0", weights=b"others")
    assert refusal(trusted, other, metadata) == "wrong_bundle"
    assert not trusted.blobs.has(read_bundle(io.BytesIO(other)).digest)


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[" * 100_000, b'{"signed": 1}', b"\xff" * 9, b"x" * (1 << 21)]
)
def test_what_is_no_metadata_is_refused(trusted: TrustedFleet, data: bytes) -> None:
    with pytest.raises(FormatError):
        publish(trusted, make_bundle(), data)


def test_other_metadata_than_targets_is_refused(trusted: TrustedFleet) -> None:
    with pytest.raises(FormatError, match="type targets"):
        publish(trusted, make_bundle(), trusted.catalog.root)


def test_what_was_published_is_there_after_a_restart(trusted: TrustedFleet) -> None:
    trusted.publish(make_bundle("1.0.0"))
    again = Catalog(trusted.data / "tuf" / "catalog", trusted.keys, NOW)
    assert again.releases() == trusted.catalog.releases()
    assert again.metadata("timestamp.json") == trusted.catalog.metadata("timestamp.json")


def test_a_crash_before_the_timestamp_leaves_the_catalog_as_it_was(
    trusted: TrustedFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted.publish(make_bundle("1.0.0"))
    folder = trusted.data / "tuf" / "catalog"
    write = fleet.catalog.write_atomic

    def crash(path: Path, data: bytes) -> None:
        if path.name == "timestamp.json":
            raise OSError("the power went")
        write(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(fleet.catalog, "write_atomic", crash)
        with pytest.raises(OSError, match="power"):
            trusted.publish(make_bundle("1.1.0"))
    assert [target.path for target in trusted.catalog.releases()] == [FIRST]
    again = Catalog(folder, trusted.keys, NOW)
    assert [target.path for target in again.releases()] == [FIRST]
    assert look_up(tmp_path / "dev", again.root, CatalogFiles(again), SECOND) is None

    trusted.publish(make_bundle("1.1.0"))
    assert released_to(tmp_path / "dev", trusted, SECOND) is not None


def test_the_timestamp_is_signed_anew_daily_and_the_snapshot_in_time(
    trusted: TrustedFleet, tmp_path: Path
) -> None:
    trusted.publish(make_bundle("1.0.0"))
    assert not trusted.catalog.renew(NOW + timedelta(hours=20))
    for day in range(1, 60):
        now = NOW + timedelta(days=day, minutes=1)
        trusted.catalog.renew(now)
        assert released_to(tmp_path / "device", trusted, FIRST, now) is not None
    timestamp = Metadata[Timestamp].from_bytes(trusted.catalog.metadata("timestamp.json")).signed
    snapshot = Metadata[Snapshot].from_bytes(trusted.catalog.metadata("snapshot.json")).signed
    assert timestamp.version >= 50
    assert 3 <= snapshot.version <= 6


def test_what_was_signed_under_a_clock_ahead_is_signed_again(trusted: TrustedFleet) -> None:
    trusted.publish(make_bundle("1.0.0"))
    assert trusted.catalog.renew(NOW + timedelta(days=400))  # for a moment
    assert trusted.catalog.renew(NOW + timedelta(minutes=1))
    timestamp = Metadata[Timestamp].from_bytes(trusted.catalog.metadata("timestamp.json")).signed
    snapshot = Metadata[Snapshot].from_bytes(trusted.catalog.metadata("snapshot.json")).signed
    assert timestamp.expires < NOW + timedelta(days=8)
    assert snapshot.expires < NOW + timedelta(days=40)
    assert not trusted.catalog.renew(NOW + timedelta(minutes=2))


def test_without_renewal_a_device_notices_that_it_is_held_back(
    trusted: TrustedFleet, tmp_path: Path
) -> None:
    trusted.publish(make_bundle("1.0.0"))
    with pytest.raises(ExpiredMetadataError):
        released_to(tmp_path / "device", trusted, FIRST, NOW + timedelta(days=7, seconds=1))


def test_what_offline_keys_must_sign_again_is_told_in_time(trusted: TrustedFleet) -> None:
    trusted.publish(make_bundle("1.0.0"))
    assert trusted.catalog.expiring(NOW) == []
    soon = trusted.catalog.expiring(NOW + timedelta(days=61))
    assert [item.role for item in soon] == ["acme"]
    late = trusted.catalog.expiring(NOW + timedelta(days=340))
    assert [item.role for item in late] == ["acme", "root", "targets"]


@pytest.mark.parametrize(
    "name",
    ["2.root.json", "../timestamp.json", "1.nobody.json", "01.root.json", "1.root.json.bak", "json",
     ".json", "1.timestamp.json", "-1.root.json", "1.1.root.json", "\u0661.root.json", "a" * 300],
)  # fmt: skip
def test_only_metadata_files_are_served(trusted: TrustedFleet, name: str) -> None:
    with pytest.raises(NotFoundError):
        trusted.catalog.metadata(name)


def test_a_version_that_was_never_published_is_not_served(trusted: TrustedFleet) -> None:
    trusted.publish(make_bundle("1.0.0"))
    stray = trusted.data / "tuf" / "catalog" / "2.acme.json"
    stray.write_bytes(trusted.sign(make_bundle("1.1.0")))
    with pytest.raises(NotFoundError):
        trusted.catalog.metadata("2.acme.json")
    assert trusted.catalog.metadata("1.acme.json") == trusted.catalog.metadata("acme.json")


def test_a_catalog_that_its_root_did_not_sign_does_not_open(trusted: TrustedFleet) -> None:
    folder = trusted.data / "tuf" / "catalog"
    metadata = Metadata.from_bytes((folder / "timestamp.json").read_bytes())
    metadata.signatures.clear()
    (folder / "timestamp.json").write_bytes(metadata.to_bytes())
    with pytest.raises(TrustError, match="timestamp"):
        Catalog(folder, trusted.keys, NOW)
