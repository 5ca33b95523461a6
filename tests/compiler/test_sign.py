"""What a publisher signs follows from what it signed before, and a fleet accepts it."""

import io
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from tuf.api.metadata import Metadata, Targets

from compiler.believe import Trust, parse_targets, to_bytes, verify_signature
from compiler.build import Built
from compiler.sign import Release, add_release, next_release, release_of, target_file, tuf_signer
from compiler.verify import tuf_key, verify_in_catalog, verify_with_key
from fleet.catalog import Catalog
from fleet.ceremony import perform
from fleet.keystore import load_online_keys, make_online_keys
from skerry.bundle import Bundle, read_bundle, write_bundle
from skerry.canonical import to_json
from skerry.custom import catalog_target
from skerry.errors import (
    ConflictError,
    FormatError,
    NotFoundError,
    TrustError,
    UnreachableError,
    UsageError,
)
from skerry.holding import Delegation, Holding
from skerry.keys import Signer
from skerry.trust import CatalogTarget
from tests.compiler.conftest import NOW

KEY = Signer.generate()
TODAY = datetime.now(UTC)  # python-tuf compares with the system's clock
PHRASE = {"SKERRY_KEY_PASSPHRASE": "correct horse"}


def release(version: str, digit: str = "", model: str = "shapes") -> Release:
    return Release(
        path=f"models/acme/{model}@{version}", length=1000,
        sha256=(digit or version[-1]) * 64, hw_classes=["any"], min_agent="0.1.0",
    )  # fmt: skip


def chain(*releases: Release, key: Signer = KEY) -> bytes:
    metadata: dict[str, bytes] = {}
    for one in releases:
        metadata = add_release(metadata, one, key, now=NOW)
    return metadata["acme"]


def targets(metadata: bytes) -> dict[str, CatalogTarget]:
    signed = parse_targets(metadata).signed
    return {
        path: catalog_target(t.path, t.length, t.hashes, t.custom)
        for path, t in signed.targets.items()
    }


def test_counters_rise_per_model_and_versions_per_signature() -> None:
    metadata = chain(release("1.0.0"), release("9.0.0", "9", "other"), release("1.0.1"))
    found = targets(metadata)
    assert found["models/acme/shapes@1.0.0"].release_counter == 1
    assert found["models/acme/shapes@1.0.1"].release_counter == 2
    assert found["models/acme/other@9.0.0"].release_counter == 1
    assert parse_targets(metadata).signed.version == 3


def test_a_release_may_fall_back_to_the_newest_four_before_it() -> None:
    metadata = chain(*(release(f"1.0.{n}") for n in range(6)))
    last = targets(metadata)["models/acme/shapes@1.0.5"]
    assert last.may_fall_back_to == ["sha256:" + str(n) * 64 for n in (4, 3, 2, 1)]
    assert targets(metadata)["models/acme/shapes@1.0.0"].may_fall_back_to == []


def test_signing_again_renews_and_keeps_the_counter() -> None:
    first = chain(release("1.0.0"), release("1.0.1"))
    later = NOW + timedelta(days=60)
    again = add_release({"acme": first}, release("1.0.0"), KEY, now=later)["acme"]
    assert targets(again) == targets(first)
    assert parse_targets(again).signed.version == 3
    assert parse_targets(again).signed.expires > parse_targets(first).signed.expires


def test_a_released_version_never_changes() -> None:
    with pytest.raises(ConflictError, match="give the model a new version"):
        chain(release("1.0.0"), release("1.0.0", "f"))


def test_metadata_of_somebody_else_is_not_signed_on() -> None:
    planted = chain(release("1.0.0"), key=Signer.generate())
    with pytest.raises(TrustError, match="expected metadata signed by key"):
        add_release({"acme": planted}, release("1.0.1"), KEY, now=NOW)


def test_metadata_changed_after_signing_is_not_signed_on() -> None:
    planted = chain(release("1.0.0")).replace(b"shapes", b"shafts")
    with pytest.raises(TrustError):
        add_release({"acme": planted}, release("1.0.1"), KEY, now=NOW)


def test_another_key_of_the_publisher_may_have_signed_last() -> None:
    other = Signer.generate()
    current = chain(release("1.0.0"), key=other)
    trust = Trust(keys=(tuf_key(other.public),))
    metadata = add_release({"acme": current}, release("1.0.1"), KEY, now=NOW, trust=trust)
    key = tuf_key(KEY.public)
    verify_signature(parse_targets(metadata["acme"]), {key.keyid: key})


@pytest.mark.parametrize("data", [b"", b"{}", b"[" * 9000, b'{"signed":{"_type":"root"}}'])
def test_other_bytes_are_no_metadata(data: bytes) -> None:
    with pytest.raises(FormatError):
        add_release({"acme": data}, release("1.0.0"), KEY, now=NOW)


def test_a_publishers_key_verifies_what_it_signed() -> None:
    metadata = chain(release("1.0.0"), release("1.0.1"))
    assert verify_with_key(release("1.0.1"), metadata, tuf_key(KEY.public), now=NOW) == 2


@pytest.mark.parametrize(
    ("asked", "key", "days", "code"),
    [
        (release("1.0.0"), Signer.generate(), 0, "signature_invalid"),
        (release("1.0.0"), KEY, 91, "expired"),
        (release("2.0.0"), KEY, 0, "unsigned"),
        (release("1.0.0", "f"), KEY, 0, "digest"),
        (replace(release("1.0.0"), length=999), KEY, 0, "digest"),
    ],
)
def test_verifying_refuses(asked: Release, key: Signer, days: int, code: str) -> None:
    with pytest.raises(TrustError) as refused:
        verify_with_key(
            asked, chain(release("1.0.0")), tuf_key(key.public), now=NOW + timedelta(days=days)
        )
    assert refused.value.code == code


def many(count: int) -> dict[str, bytes]:
    """A publisher's metadata with so many releases, signed once."""
    role = Targets(version=count, expires=NOW + timedelta(days=90))
    for n in range(count):
        one = next_release(release(f"{n}.0.0", "a"), {})
        role.targets[one.path] = target_file(msgspec.structs.replace(one, release_counter=n + 1))
    metadata = Metadata(role)
    metadata.sign(tuf_signer(KEY))
    return {"acme": to_bytes(metadata)}


def test_three_hundred_releases_are_one_list_and_one_more_moves_them() -> None:
    key = tuf_key(KEY.public)
    trust = Trust(Delegation({key.keyid: key}, 1))  # the one key: a root adds nothing to it
    full = add_release(many(299), release("1.2.3", "b"), KEY, now=NOW, trust=trust)
    assert list(full) == ["acme"]
    assert len(targets(full["acme"])) == 300
    moved = add_release(full, release("1.2.4", "c"), KEY, now=NOW, trust=trust)
    assert len(moved) == 65
    every = Holding("acme", {name: parse_targets(data) for name, data in moved.items()})
    assert len(every.releases) == 301
    assert every.releases["models/acme/shapes@1.2.4"].release_counter == 301
    every.check_shape(Delegation({key.keyid: key}, 1))
    assert max(map(len, moved.values())) < 20_000


def test_bins_wait_for_somebody_who_knows_the_keys() -> None:
    with pytest.raises(UsageError, match="give --fleet and --root"):
        add_release(many(300), release("1.2.4", "c"), KEY, now=NOW)


# --- with a real fleet's catalog -------------------------------------------------------


@pytest.fixture
def publisher(tmp_path: Path) -> Signer:
    make_online_keys(tmp_path / "data" / "keys", "test", PHRASE)
    secret = PHRASE["SKERRY_KEY_PASSPHRASE"].encode()
    perform(tmp_path / "data", tmp_path / "out", ["acme"], passphrase=lambda _: secret, now=TODAY)
    return Signer.from_pem((tmp_path / "out" / "publisher-acme.pem").read_bytes(), secret)


@pytest.fixture
def catalog(tmp_path: Path, publisher: Signer) -> Catalog:
    keys = load_online_keys(tmp_path / "data" / "keys", PHRASE)
    return Catalog(tmp_path / "data" / "tuf" / "catalog", keys, TODAY)


def next_version(built: Built, version: str) -> Bundle:
    manifest = msgspec.structs.replace(built.manifest, model_version=version)
    bundle = read_bundle(io.BytesIO(built.bundle))
    file = io.BytesIO()
    layers = {digest[7:23]: data for digest, data in bundle.blobs.items()}
    write_bundle(file, to_json(manifest), layers)
    return read_bundle(io.BytesIO(file.getvalue()))


def test_a_fleet_accepts_release_after_release(
    built: Built, catalog: Catalog, publisher: Signer
) -> None:
    metadata: dict[str, bytes] = {}
    for number, version in enumerate(("1.0.0", "1.1.0", "1.2.0"), start=1):
        bundle = next_version(built, version)
        metadata = add_release(metadata, release_of(bundle, "acme"), publisher, now=TODAY)
        accepted = catalog.accept(metadata["acme"], bundle, TODAY)
        assert (accepted.target.release_counter, accepted.new) == (number, True)
        assert catalog.metadata("acme.json") == metadata["acme"]


def test_a_published_release_verifies_from_the_root_down(
    built: Built, catalog: Catalog, publisher: Signer
) -> None:
    bundle = next_version(built, "1.0.0")
    one = release_of(bundle, "acme")
    catalog.accept(add_release({}, one, publisher, now=TODAY)["acme"], bundle, TODAY)

    def fetch(url: str) -> bytes | None:
        try:
            return catalog.metadata(url.rpartition("/")[2])
        except NotFoundError:
            return None

    assert verify_in_catalog(one, catalog.root, "http://fleet/md/", fetch) == 1
    with pytest.raises(TrustError, match=r"to list models/acme/shapes@7\.0\.0"):
        verify_in_catalog(release("7.0.0"), catalog.root, "http://fleet/md/", fetch)
    with pytest.raises(UnreachableError, match="not complete"):
        verify_in_catalog(one, catalog.root, "http://fleet/md/", lambda _: None)
    forged = catalog.root.replace(b'"threshold":2', b'"threshold":1')
    with pytest.raises(TrustError, match="does not verify"):
        verify_in_catalog(one, forged, "http://fleet/md/", fetch)
