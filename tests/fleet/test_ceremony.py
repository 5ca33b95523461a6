"""The key ceremony makes keys that only passphrases open, and roots that two of three sign."""

import stat
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata, Root, Targets

from fleet.ceremony import perform
from fleet.keystore import load_online_keys, make_online_keys, passphrase_of, read_public
from fleet.roles import load_roots
from skerry.custom import message_keys
from skerry.errors import ConflictError, NotFoundError, TrustError, UsageError
from skerry.keys import Signer
from tests.fakes.trusted import NOW, PHRASE, make_fleet


def root_of(path: Path) -> Root:
    signed = Metadata.from_bytes(path.read_bytes()).signed
    assert isinstance(signed, Root)
    return signed


def test_two_of_three_offline_keys_sign_roots_and_delegations(tmp_path: Path) -> None:
    made = make_fleet(tmp_path, ("acme", "globex"))
    for repository in ("catalog", "director"):
        root = root_of(made.data / "tuf" / repository / "1.root.json")
        assert (root.roles["root"].threshold, len(root.roles["root"].keyids)) == (2, 3)
        assert root.consistent_snapshot
    catalog = root_of(made.data / "tuf" / "catalog" / "1.root.json")
    assert catalog.roles["targets"].keyids == catalog.roles["root"].keyids
    assert catalog.roles["targets"].threshold == 2


def test_each_publisher_is_given_its_own_folder_of_the_catalog(tmp_path: Path) -> None:
    made = make_fleet(tmp_path, ("acme", "globex"))
    signed = Metadata.from_bytes(
        (made.data / "tuf" / "catalog" / "1.targets.json").read_bytes()
    ).signed
    assert isinstance(signed, Targets)
    assert signed.delegations is not None
    assert signed.delegations.roles is not None
    assert {name: role.paths for name, role in signed.delegations.roles.items()} == {
        "acme": ["models/acme/*"],
        "globex": ["models/globex/*"],
    }


def test_online_keys_are_named_and_offline_keys_are_not_on_the_fleet(tmp_path: Path) -> None:
    made = make_fleet(tmp_path)
    director = root_of(made.data / "tuf" / "director" / "1.root.json")
    assert list(message_keys(director.unrecognized_fields)) == [made.keys.message.key_id]
    on_the_fleet = {path.name for path in (made.data / "keys").iterdir()}
    assert {path.name for path in made.out.glob("*.pem")} & on_the_fleet == set()


def test_private_files_are_encrypted_and_for_their_owner_alone(tmp_path: Path) -> None:
    made = make_fleet(tmp_path)
    private = [*made.out.glob("*.pem"), *(made.data / "keys").glob("*.pem")]
    assert len(private) == 10
    for path in private:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert b"BEGIN ENCRYPTED PRIVATE KEY" in path.read_bytes()
    with pytest.raises(TrustError, match="passphrase"):
        Signer.from_pem((made.out / "root-1.pem").read_bytes(), b"another passphrase")


def test_the_checklist_names_every_key(tmp_path: Path) -> None:
    made = make_fleet(tmp_path)
    text = made.ceremony.checklist()
    ids = read_public(made.data / "keys" / "public.json").key_ids()
    assert sorted(ids) == ["director", "issuing", "message", "snapshot", "timestamp"]
    for key_id in ids.values():
        assert key_id in text
    assert made.publisher().key_id in text
    assert made.ceremony.facts()["fingerprints"]["publisher-acme"] == made.publisher().key_id


def test_a_second_ceremony_is_refused(tmp_path: Path) -> None:
    made = make_fleet(tmp_path)
    with pytest.raises(ConflictError, match="skerry keys rotate"):
        perform(made.data, tmp_path / "new", ["acme"], passphrase=lambda _: PHRASE, now=NOW)


def test_a_ceremony_that_broke_off_is_held_again(tmp_path: Path) -> None:
    made = make_fleet(tmp_path)
    (made.data / "tuf" / "catalog" / "1.root.json").unlink()  # it is written last
    perform(made.data, tmp_path / "new", ["acme"], passphrase=lambda _: PHRASE, now=NOW)
    for repository in ("catalog", "director"):
        load_roots(made.data / "tuf" / repository)
    other = tmp_path / "other"
    make_online_keys(other / "keys", "other", {})
    with pytest.raises(ConflictError, match="new folder"):
        perform(other, made.out, ["acme"], passphrase=lambda _: PHRASE, now=NOW)


@pytest.mark.parametrize("publishers", [[], ["acme", "acme"], ["targets"], ["Acme"], ["a/b"]])
def test_wrong_publishers_are_refused_before_anything_is_made(
    tmp_path: Path, publishers: list[str]
) -> None:
    make_online_keys(tmp_path / "keys", "demo", {})
    with pytest.raises(UsageError):
        perform(tmp_path, tmp_path / "out", publishers, passphrase=lambda _: PHRASE, now=NOW)
    assert not (tmp_path / "out").exists()


def test_a_short_passphrase_is_refused(tmp_path: Path) -> None:
    make_online_keys(tmp_path / "keys", "demo", {})
    with pytest.raises(UsageError, match="passphrase"):
        perform(tmp_path, tmp_path / "out", ["acme"], passphrase=lambda _: b"short", now=NOW)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_ceremony_needs_the_fleets_public_keys(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="fleet init"):
        perform(tmp_path, tmp_path / "out", ["acme"], passphrase=lambda _: PHRASE, now=NOW)


def test_online_keys_come_back_with_the_passphrase_on_disk(tmp_path: Path) -> None:
    public = make_online_keys(tmp_path, "demo", {})
    assert stat.S_IMODE((tmp_path / "passphrase").stat().st_mode) == 0o600
    assert load_online_keys(tmp_path, {}).director.public == public.key("director")
    with pytest.raises(ConflictError):
        make_online_keys(tmp_path, "demo", {})


def test_a_passphrase_from_the_environment_is_not_written_down(tmp_path: Path) -> None:
    environment = {"SKERRY_KEY_PASSPHRASE": "from elsewhere"}
    make_online_keys(tmp_path, "demo", environment)
    assert not (tmp_path / "passphrase").exists()
    with pytest.raises(NotFoundError, match="SKERRY_KEY_PASSPHRASE"):
        passphrase_of(tmp_path, {})


def test_a_key_of_another_fleet_is_noticed(tmp_path: Path) -> None:
    make_online_keys(tmp_path / "one", "demo", {})
    other = Signer.generate().to_pem(passphrase_of(tmp_path / "one", {}))
    (tmp_path / "one" / "director.pem").write_bytes(other)
    with pytest.raises(TrustError, match=r"director\.pem"):
        load_online_keys(tmp_path / "one", {})


def test_a_root_that_its_keys_did_not_sign_is_refused(tmp_path: Path) -> None:
    made = make_fleet(tmp_path)
    folder = made.data / "tuf" / "director"
    metadata = Metadata.from_bytes((folder / "1.root.json").read_bytes())
    for keyid in list(metadata.signatures)[:2]:
        del metadata.signatures[keyid]
    (folder / "1.root.json").write_bytes(metadata.to_bytes())
    with pytest.raises(TrustError, match="1/2 keys"):
        load_roots(folder)
