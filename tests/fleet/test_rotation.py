"""Keys are replaced by as many people as could sign before, and by no fewer."""

import json
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tuf.api.metadata import Metadata, Root, Targets

import fleet.files
import fleet.keystore
import fleet.rotation
from fleet.change import approve, check_complete, owed, read_change, write_change
from fleet.change_words import describe
from fleet.keystore import (
    load_online_keys,
    make_next_keys,
    make_online_keys,
    read_next,
    read_public,
)
from fleet.offline import key_name, named, parse_publisher, publishers_of
from fleet.roles import load_roots, sign, tuf_key
from fleet.rotation import (
    Wanted,
    approve_file,
    begin,
    install,
    load_change,
    read_standing,
    settle,
    settle_at_start,
)
from skerry.errors import (
    ConflictError,
    FormatError,
    NotFoundError,
    RefusedError,
    TrustError,
    UsageError,
)
from skerry.io.key_files import public_pem
from skerry.io.key_files import read_public as read_public_key
from skerry.io.signers import open_signer
from skerry.keys import Signer
from tests.fakes.trusted import ENVIRONMENT, NOW, PHRASE, TrustedFleet, make_bundle, make_fleet

LATER = NOW + timedelta(days=30)


@pytest.fixture
def made(tmp_path: Path) -> TrustedFleet:
    return make_fleet(tmp_path, ("acme", "globex"))


def begun(made: TrustedFleet, wanted: Wanted = Wanted(), name: str = "change") -> Path:  # noqa: B008
    out = made.data.parent / name
    return begin(made.data, out, wanted, passphrase=lambda _: PHRASE, now=LATER).file


def signed(made: TrustedFleet, change: Path, *names: str) -> Path:
    for name in names:
        fresh = change.parent / f"{name}.pem"
        key = made.out / f"{name.removeprefix('old ')}.pem"
        approve_file(change, str(fresh if fresh.exists() else key), lambda _: PHRASE, LATER)
    return change


def document(change: Path, name: str) -> Any:
    return Metadata.from_bytes(load_change(change).wanted[name]).signed


def test_with_no_wish_everything_is_signed_again_for_a_year(made: TrustedFleet) -> None:
    change = signed(made, begun(made), "root-1", "root-3")
    install(change, made.data, LATER)
    assert settle(made.data, LATER)
    for repository in ("catalog", "director"):
        roots = load_roots(made.data / "tuf" / repository)
        assert sorted(roots) == [1, 2]
        expires = Metadata.from_bytes(roots[2]).signed.expires
        assert expires == LATER + timedelta(days=365)
    made.catalog.reload(LATER)
    made.director.reload()
    assert made.catalog.expiring(NOW + timedelta(days=340)) == []


def test_one_of_two_signatures_is_too_few(made: TrustedFleet) -> None:
    change = signed(made, begun(made), "root-2")
    with pytest.raises(
        TrustError, match=r"1 of 2 signatures by the root keys \(root-2\), next: one of root-1"
    ) as e:
        install(change, made.data, LATER)
    assert e.value.code == "too_few_signatures"
    assert not (made.data / "tuf" / "incoming.json").exists()


def test_a_new_root_key_needs_the_old_keys_and_the_new_ones(made: TrustedFleet) -> None:
    wanted = Wanted({"root-1": None, "root-2": None})
    change = begun(made, wanted)
    new = [change.parent / f"root-{n}.pem" for n in (1, 2)]
    for path in new:
        approve_file(change, str(path), lambda _: PHRASE, LATER)
    with pytest.raises(TrustError, match="0 of 2 signatures by the present root keys"):
        install(change, made.data, LATER)
    approve_file(change, str(made.out / "root-3.pem"), lambda _: PHRASE, LATER)
    with pytest.raises(
        TrustError,
        match=r"1 of 2 signatures by the present root keys \(root-3\), next: one of former root-1",
    ):
        install(change, made.data, LATER)
    approve_file(change, str(made.out / "root-1.pem"), lambda _: PHRASE, LATER)
    install(change, made.data, LATER)
    assert settle(made.data, LATER)
    made.catalog.reload(LATER)
    assert sorted(load_roots(made.data / "tuf" / "catalog")) == [1, 2]


def test_what_is_shown_is_read_from_the_documents(made: TrustedFleet) -> None:
    wanted = Wanted(
        {"root-2": None, "publisher-acme": None}, [parse_publisher("initech:2-of-3")], ["globex"]
    )
    said = "\n".join(describe(load_change(begun(made, wanted))))
    for words in (
        "root key root-2: ", "publisher initech is new: 2 of 3 keys sign",
        "publisher globex may release no more", "key publisher-acme: ",
        "catalog/root: version 1 -> 2", "director/root: version 1 -> 2",
    ):  # fmt: skip
        assert words in said
    assert "root key root-1" not in said
    assert "root-1 " in said.partition("the root keys are then")[2]


def test_only_what_changes_is_signed_again(made: TrustedFleet) -> None:
    wanted = load_change(begun(made, Wanted(without=["globex"]))).wanted
    assert list(wanted) == ["catalog/targets"]
    make_next_keys(made.data / "keys", ["director"], ENVIRONMENT)
    assert list(load_change(begun(made, name="second")).wanted) == ["director/root"]


def test_a_publisher_may_bring_a_key_of_its_own(made: TrustedFleet, tmp_path: Path) -> None:
    own = Signer.generate()
    file = tmp_path / "acme.pub"
    file.write_bytes(public_pem(tuf_key(own.public)))
    change = begun(made, Wanted({"publisher-acme": read_public_key(file)}))
    assert list(change.parent.glob("*.pem")) == []
    given = publishers_of(document(change, "catalog/targets"))["acme"]
    assert [key.keyid for key in given.keys] == [tuf_key(own.public).keyid]


def test_a_publisher_with_a_threshold_is_one_of_the_ceremony_too(tmp_path: Path) -> None:
    made = make_fleet(tmp_path, ("acme:2-of-3",))
    signed = Metadata.from_bytes(made.catalog.metadata("targets.json")).signed
    assert isinstance(signed, Targets)
    given = publishers_of(signed)["acme"]
    assert (given.threshold, len(given.keys)) == (2, 3)
    assert sorted(path.name for path in made.out.glob("publisher-*.pem")) == [
        f"publisher-acme-{n}.pem" for n in (1, 2, 3)
    ]
    assert "2 of them sign each release" in made.ceremony.checklist()


@pytest.mark.parametrize(
    "text", ["acme:3-of-2", "acme:0-of-2", "acme:2", "acme:2-of-99", "Acme", "root", "acme:1-of-17"]
)
def test_an_impossible_publisher_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_publisher(text)


def test_new_online_keys_are_used_once_a_root_names_them(made: TrustedFleet) -> None:
    folder = made.data / "keys"
    before = read_public(folder / "public.json")
    waiting = make_next_keys(folder, ["director", "message", "snapshot", "timestamp"], ENVIRONMENT)
    assert make_next_keys(folder, ["director"], ENVIRONMENT) == waiting  # one may be on its way
    assert read_public(folder / "public.json") == before
    assert not settle(made.data, LATER)
    change = signed(made, begun(made), "root-1", "root-2")
    install(change, made.data, LATER)
    assert settle(made.data, LATER)
    assert not settle(made.data, LATER)
    assert read_public(folder / "public.json").online == waiting.online
    assert read_next(folder).online == {}
    assert list((folder / "next").glob("*.pem")) == []
    made.keys.take_over(load_online_keys(folder, ENVIRONMENT))
    made.catalog.reload(LATER)
    made.director.reload()
    assert made.keys.director.public == waiting.key("director")


@pytest.mark.parametrize("at", range(8))
def test_a_crash_while_a_change_is_taken_up_is_made_good_at_the_next_start(
    made: TrustedFleet, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made.data / "keys"
    waiting = make_next_keys(folder, ["director", "timestamp"], ENVIRONMENT)
    wanted = Wanted({"root-1": None})
    change = signed(made, begun(made, wanted), "root-1", "root-2", "root-3")
    install(change, made.data, LATER)
    left = [at]

    def cut(path: Path, data: Any, *, mode: int = 0o644) -> None:
        if not left[0]:
            raise OSError("power cut")
        left[0] -= 1
        fleet.files.write_atomic(path, data, mode=mode)

    with monkeypatch.context() as patch:
        patch.setattr(fleet.rotation, "write_atomic", cut)
        patch.setattr(fleet.keystore, "write_atomic", cut)
        if at < 7:
            with pytest.raises(OSError, match="power cut"):
                settle(made.data, LATER)
        else:
            settle(made.data, LATER)
    settle(made.data, LATER)
    keys = load_online_keys(folder, ENVIRONMENT)
    assert keys.director.public == waiting.key("director")
    made.keys.take_over(keys)
    made.catalog.reload(LATER)
    made.director.reload()


def test_a_fleet_starts_without_a_change_that_it_cannot_take_up(
    made: TrustedFleet, caplog: pytest.LogCaptureFixture
) -> None:
    """It was installed, and the fleet was off until the change had expired."""
    install(signed(made, begun(made), "root-1", "root-2"), made.data, LATER)
    before, much_later = read_standing(made.data), LATER + timedelta(days=400)
    with pytest.raises(TrustError, match="begin it again"):
        settle(made.data, much_later)
    settle_at_start(made.data, much_later)
    assert "is not taken up" in caplog.text
    assert read_standing(made.data) == before
    again = begin(
        made.data, made.data.parent / "again", Wanted(), passphrase=lambda _: PHRASE, now=much_later
    ).file
    for name in ("root-1", "root-2"):
        approve_file(again, str(made.out / f"{name}.pem"), lambda _: PHRASE, much_later)
    install(again, made.data, much_later)
    other = begin(
        made.data, made.data.parent / "other", Wanted(), passphrase=lambda _: PHRASE, now=much_later
    ).file
    for name in ("root-2", "root-3"):
        approve_file(other, str(made.out / f"{name}.pem"), lambda _: PHRASE, much_later)
    with pytest.raises(ConflictError, match="another change waits"):
        install(other, made.data, much_later)
    settle_at_start(made.data, much_later)
    assert read_standing(made.data) != before


def test_a_change_of_what_has_changed_since_is_refused(made: TrustedFleet) -> None:
    first = signed(made, begun(made, Wanted(without=["globex"])), "root-1", "root-2")
    second = signed(
        made, begun(made, Wanted({"publisher-acme": None}), "second"), "root-1", "root-2"
    )
    install(first, made.data, LATER)
    with pytest.raises(ConflictError, match="another change waits"):
        install(second, made.data, LATER)
    settle(made.data, LATER)
    with pytest.raises(ConflictError, match="begin it again"):
        install(second, made.data, LATER)
    install(first, made.data, LATER)  # again, by somebody who did not see it arrive
    assert settle(made.data, LATER)


def test_a_change_that_names_a_key_which_the_fleet_does_not_have_is_refused(
    made: TrustedFleet,
) -> None:
    """Its fleet would not start any more."""
    make_next_keys(made.data / "keys", ["director", "timestamp"], ENVIRONMENT)
    change = signed(made, begun(made), "root-1", "root-2")
    waiting = made.data / "keys" / "next" / "public.json"
    kept = waiting.read_bytes()
    waiting.unlink()
    for take in (lambda: install(change, made.data, LATER), lambda: settle(made.data, LATER)):
        with pytest.raises(TrustError, match="keys/next") as caught:
            take()
        assert caught.value.code == "unknown_key"
        shutil.copy(change, made.data / "tuf" / "incoming.json")  # by hand, past `install`
    waiting.write_bytes(kept)
    assert settle(made.data, LATER)


def test_a_change_for_another_fleet_is_refused(made: TrustedFleet) -> None:
    change = load_change(signed(made, begun(made), "root-1", "root-2"))
    other = made.data.parent / "other.json"
    other.write_bytes(write_change(msgspec.structs.replace(change, fleet_id="another")))
    with pytest.raises(TrustError, match="another") as caught:
        install(other, made.data, LATER)
    assert caught.value.code == "wrong_fleet"


def test_a_change_that_waited_too_long_is_refused(made: TrustedFleet) -> None:
    change = signed(made, begun(made), "root-1", "root-2")
    with pytest.raises(TrustError, match="begin it again") as caught:
        install(change, made.data, LATER + timedelta(days=400))
    assert caught.value.code == "metadata_expired"


def test_a_damaged_change_is_refused(made: TrustedFleet, tmp_path: Path) -> None:
    whole = signed(made, begun(made), "root-1", "root-2").read_bytes()
    for damaged in (
        b"",
        whole[: len(whole) // 2],
        b"[]",
        b"{}",
        whole.replace(b"wanted", b"wonted"),
    ):
        with pytest.raises(FormatError, match="a whole change file"):
            read_change(damaged)
    with pytest.raises(NotFoundError):
        load_change(tmp_path / "none.json")


def test_a_signature_under_an_altered_document_does_not_count(made: TrustedFleet) -> None:
    change = load_change(signed(made, begun(made), "root-1", "root-2"))
    value = json.loads(change.wanted["catalog/root"])
    value["signed"]["roles"]["root"]["threshold"] = 1
    wanted = change.wanted | {"catalog/root": json.dumps(value).encode()}
    with pytest.raises(TrustError, match="0 of 2 signatures"):
        check_complete(msgspec.structs.replace(change, wanted=wanted), LATER)


def altered(change: Path, name: str, alter: Callable[[Any], None], which: str = "wanted") -> bytes:
    """A change file with a document altered by somebody who hands it on."""
    loaded = load_change(change)
    documents = dict(getattr(loaded, which))
    value = json.loads(documents[name])
    alter(value["signed"])
    documents[name] = json.dumps(value).encode()
    return write_change(msgspec.structs.replace(loaded, **{which: documents}))


def lower_threshold(signed: Any) -> None:
    signed["roles"]["root"]["threshold"] = 1


def add_timestamp_key(signed: Any) -> None:
    signed["roles"]["timestamp"]["keyids"].append(signed["roles"]["root"]["keyids"][0])


def last_for_ever(signed: Any) -> None:
    signed["expires"] = "2126-01-01T00:00:00Z"


def add_a_field(signed: Any) -> None:
    signed["x-other"] = "anything"


def add_message_key(signed: Any) -> None:
    signer = Signer.generate()
    signed["x-skerry-message-keys"][signer.key_id] = signer.public.raw.hex()


def call_two_keys_the_same(signed: Any) -> None:
    for keyid in signed["roles"]["root"]["keyids"]:
        signed["keys"][keyid]["x-skerry-name"] = "root-1"


def give_a_key_a_name_that_says_more(signed: Any) -> None:
    keyid = signed["roles"]["root"]["keyids"][2]
    signed["keys"][keyid]["x-skerry-name"] = "root-3 (as it was)"


def skip_a_version(signed: Any) -> None:
    signed["version"] += 1


def widen_a_path(signed: Any) -> None:
    signed["delegations"]["roles"][0]["paths"].append("models/globex/*")


def let_another_key_sign(signed: Any) -> None:
    one, other = signed["delegations"]["roles"]
    one["keyids"] += other["keyids"]
    one["threshold"] = 3


@pytest.mark.parametrize(
    ("name", "alter"),
    [
        ("catalog/root", lower_threshold),
        ("director/root", lower_threshold),
        ("catalog/root", add_timestamp_key),
        ("director/root", add_timestamp_key),
        ("catalog/root", last_for_ever),
        ("catalog/root", add_a_field),
        ("director/root", add_message_key),
        ("director/root", call_two_keys_the_same),
        ("catalog/root", give_a_key_a_name_that_says_more),
        ("catalog/root", skip_a_version),
        ("catalog/targets", widen_a_path),
        ("catalog/targets", let_another_key_sign),
    ],
)
def test_a_change_that_says_more_than_is_shown_is_not_signed(
    made: TrustedFleet, name: str, alter: Callable[[Any], None]
) -> None:
    change = begun(made)
    lying = change.with_name("lying.json")
    lying.write_bytes(altered(change, name, alter))
    with pytest.raises(TrustError) as caught:
        approve_file(lying, str(made.out / "root-1.pem"), lambda _: PHRASE, LATER)
    assert caught.value.code == "odd_document"
    approve_file(change, str(made.out / "root-1.pem"), lambda _: PHRASE, LATER)


def put_other_root_keys(signed: Any) -> None:
    for number, keyid in enumerate(list(signed["roles"]["root"]["keyids"]), 1):
        stranger = named(tuf_key(Signer.generate().public), f"root-{number}")
        signed["keys"] = {k: v for k, v in signed["keys"].items() if k != keyid}
        signed["keys"][stranger.keyid] = stranger.to_dict()
        signed["roles"]["root"]["keyids"].remove(keyid)
        signed["roles"]["root"]["keyids"].append(stranger.keyid)


def put_another_key_under_an_id(signed: Any) -> None:
    keyid = signed["roles"]["root"]["keyids"][0]
    signed["keys"][keyid]["keyval"]["public"] = Signer.generate().public.raw.hex()


@pytest.mark.parametrize("alter", [put_other_root_keys, put_another_key_under_an_id])
def test_root_keys_that_only_the_director_would_have_are_not_signed(
    made: TrustedFleet, alter: Callable[[Any], None]
) -> None:
    """Root keys are shown once: nobody would see that these are a stranger's."""
    change = begun(made)
    lying = change.with_name("lying.json")
    lying.write_bytes(altered(change, "director/root", alter))
    with pytest.raises(TrustError) as caught:
        approve_file(lying, str(made.out / "root-1.pem"), lambda _: PHRASE, LATER)
    assert caught.value.code == "odd_document"


@pytest.mark.parametrize("lost", ["catalog/root", "catalog/targets", "director/root"])
def test_a_change_of_root_keys_that_lost_a_document_is_not_signed(
    made: TrustedFleet, lost: str
) -> None:
    """The root key that it replaces would count on in that document."""
    change = begun(made, Wanted(replace={"root-1": None}))
    loaded = load_change(change)
    wanted = {name: data for name, data in loaded.wanted.items() if name != lost}
    cut = change.with_name("cut.json")
    cut.write_bytes(write_change(msgspec.structs.replace(loaded, wanted=wanted)))
    with pytest.raises(TrustError) as caught:
        approve_file(cut, str(made.out / "root-2.pem"), lambda _: PHRASE, LATER)
    assert caught.value.code == "odd_document"
    signed(made, change, "root-2")


def test_a_change_that_lies_about_what_stands_is_not_signed(made: TrustedFleet) -> None:
    """It would show a stranger's root key as one that was there before."""
    stranger, change = named(tuf_key(Signer.generate().public), "root-3"), begun(made)
    loaded = load_change(change)
    standing, wanted = dict(loaded.standing), dict(loaded.wanted)
    for documents in (standing, wanted):
        for name in ("catalog/root", "director/root"):
            root = Metadata[Root].from_bytes(documents[name])
            former = next(k for k in root.signed.roles["root"].keyids
                          if key_name(root.signed.keys[k]) == "root-3")  # fmt: skip
            for role in ("root", "targets") if name.startswith("catalog") else ("root",):
                root.signed.revoke_key(former, role)
                root.signed.add_key(stranger, role)
            documents[name] = root.to_bytes()
    lying = change.with_name("lying.json")
    lying.write_bytes(
        write_change(msgspec.structs.replace(loaded, standing=standing, wanted=wanted))
    )
    with pytest.raises(TrustError, match="that their own keys signed") as caught:
        approve_file(lying, str(made.out / "root-1.pem"), lambda _: PHRASE, LATER)
    assert caught.value.code == "odd_document"


def test_nothing_is_signed_but_what_was_shown(made: TrustedFleet) -> None:
    change = begun(made)
    shown, other = load_change(change), begun(made, Wanted(without=["globex"]), "other")
    change.write_bytes(other.read_bytes())
    key = str(made.out / "root-1.pem")
    with pytest.raises(ConflictError, match="after it was shown"):
        approve_file(change, key, lambda _: PHRASE, LATER, shown=shown)
    approve_file(change, key, lambda _: PHRASE, LATER, shown=load_change(change))


def test_a_key_that_nobody_asked_for_signs_nothing(made: TrustedFleet) -> None:
    change = begun(made)
    with pytest.raises(RefusedError, match="root-1, root-2, root-3") as caught:
        approve_file(change, str(made.out / "publisher-acme.pem"), lambda _: PHRASE, LATER)
    assert caught.value.code == "key_not_asked"
    assert all(not quorum.signed for quorum in owed(load_change(change)))


def test_one_person_counts_once(made: TrustedFleet) -> None:
    change = signed(made, begun(made), "root-1")
    with pytest.raises(ConflictError, match="has signed this change already"):
        signed(made, change, "root-1")
    assert {quorum.signed for quorum in owed(load_change(change))} == {("root-1",)}


def test_a_wrong_passphrase_signs_nothing(made: TrustedFleet) -> None:
    change = begun(made)
    before = change.read_bytes()
    with pytest.raises(TrustError, match="passphrase") as caught:
        approve_file(change, str(made.out / "root-1.pem"), lambda _: b"not this one", LATER)
    assert caught.value.code == "key_unreadable"
    assert change.read_bytes() == before


def test_names_that_are_not_there_are_refused(made: TrustedFleet) -> None:
    for wanted in (Wanted({"root-9": None}), Wanted(without=["initech"])):
        with pytest.raises(NotFoundError, match="there are"):
            begun(made, wanted)
    with pytest.raises(UsageError, match="skerry keys renew director"):
        begun(made, Wanted({"director": None}))
    with pytest.raises(UsageError, match="online key"):
        make_next_keys(made.data / "keys", ["root-1"], ENVIRONMENT)
    begun(made)
    with pytest.raises(ConflictError, match="new folder"):
        begun(made)


def test_a_fleet_of_before_the_ceremony_has_nothing_to_replace(tmp_path: Path) -> None:
    make_online_keys(tmp_path / "keys", "demo", ENVIRONMENT)
    with pytest.raises(NotFoundError, match="ceremony"):
        begin(tmp_path, tmp_path / "out", Wanted(), passphrase=lambda _: PHRASE, now=NOW)


def test_a_revoked_publisher_may_release_no_more_and_stays_in_the_list(made: TrustedFleet) -> None:
    made.publish(make_bundle("1.0.0"))
    install(
        signed(made, begun(made, Wanted(without=["acme"])), "root-1", "root-2"), made.data, LATER
    )
    settle(made.data, LATER)
    made.catalog.reload(LATER)
    assert made.catalog.releases() == []
    with pytest.raises(TrustError) as caught:
        made.publish(make_bundle("1.1.0"), now=LATER)
    assert caught.value.code == "unknown_publisher"
    # clients refuse a list that leaves out what was in it
    snapshot = Metadata.from_bytes(made.catalog.metadata("snapshot.json")).signed
    assert "acme.json" in snapshot.meta  # type: ignore[attr-defined]


def test_a_publisher_with_a_new_key_signs_its_releases_again(made: TrustedFleet) -> None:
    made.publish(make_bundle("1.0.0"))
    change = signed(made, begun(made, Wanted({"publisher-acme": None})), "root-1", "root-2")
    install(change, made.data, LATER)
    settle(made.data, LATER)
    made.catalog.reload(LATER)
    assert made.catalog.releases() == []
    with pytest.raises(TrustError, match="signed by its own keys"):
        made.publish(make_bundle("1.1.0"), now=LATER)  # with the old key
    with pytest.raises(TrustError):
        made.publish(make_bundle("1.0.0", model="reader"), "globex", LATER)  # not theirs to take


def test_standing_documents_are_those_that_follow_from_the_first_root(made: TrustedFleet) -> None:
    root = Metadata[Root].from_bytes(made.catalog.root)
    root.signed.version = 2
    stranger = Signer.generate()
    (made.data / "tuf" / "catalog" / "2.root.json").write_bytes(sign(root.signed, [stranger]))
    with pytest.raises(TrustError):
        read_standing(made.data)


def test_approving_is_pure(made: TrustedFleet) -> None:
    change = load_change(begun(made))
    signer = open_signer(str(made.out / "root-1.pem"), lambda _: PHRASE)
    assert approve(change, signer) == approve(change, signer)
    assert all(not quorum.signed for quorum in owed(change))
