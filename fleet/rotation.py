"""Keys replaced: a change is begun, carried from hand to hand, installed, and brought into use.

    begin     where a copy of DATA/tuf and DATA/keys/public.json is: makes the new offline keys and
              the change; no secret of the fleet is needed
    approve   on each holder's machine, with the change file alone
    install   on the fleet's machine: checks everything, and writes one file, tuf/incoming.json
    settle    in the fleet's process, at its start and while it runs: writes what the change holds,
              and brings the fleet's own new keys into use

Only the fleet's process writes what it serves. A crash at any point leaves tuf/incoming.json or
keys/next/ behind, from which `settle` goes on.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

from tuf.api.metadata import Key, Root, Snapshot, Targets, Timestamp

from fleet.ceremony import check_phrase, write_keys
from fleet.certificates import certified_key_id
from fleet.change import (
    MAX_CHANGE_BYTES,
    Change,
    Wishes,
    approve,
    check_complete,
    check_follows,
    check_life,
    propose,
    read_change,
    write_change,
)
from fleet.documents import CATALOG_ROOT, DIRECTOR_ROOT, PUBLISHERS, root_of
from fleet.files import make_folder, write_atomic
from fleet.keystore import ONLINE, promote, read_next, read_public
from fleet.offline import PublisherKeys, PublisherWish, key_name, named, publishers_of
from fleet.roles import latest, load_roots, parse, tuf_key
from skerry.custom import message_keys
from skerry.errors import ConflictError, FormatError, NotFoundError, TrustError, UsageError
from skerry.io.signers import Passphrase, open_signer
from skerry.keys import PublicKey, Signer

__all__ = [
    "Begun",
    "Wanted",
    "approve_file",
    "begin",
    "install",
    "load_change",
    "read_standing",
    "settle",
    "settle_at_start",
]

CHANGE_FILE: Final = "change.json"
INCOMING: Final = "incoming.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What somebody asks for, by names."""

    replace: Mapping[str, Key | None] = field(default_factory=dict)  # by name; None: make one here
    publishers: Sequence[PublisherWish] = ()
    without: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Begun:
    """A change that was begun: its file, and the new private keys for their owners."""

    change: Change
    file: Path
    secret_files: tuple[Path, ...]


def begin(data: Path, out: Path, wanted: Wanted, *, passphrase: Passphrase, now: datetime) -> Begun:
    """Begin a change: make the new offline keys, and the documents that name them.

    The fleet's own keys that wait in keys/next are always part of it.

    Args:
        data: the fleet's data directory, or a copy that holds tuf/ and keys/public.json (and
            keys/next/public.json).
        out: a new folder for the change and for private keys.
        wanted: what shall be different; nothing, to sign everything again for a year.
        passphrase: returns the passphrase for a new key, by the key's name.
        now: aware UTC.

    Raises:
        NotFoundError: no such key or publisher, or the ceremony has not been.
        ConflictError: `out` holds keys or a change already.
        UsageError: a key of the fleet itself is to be replaced, and none waits in keys/next.
    """
    public, waiting = read_public(data / "keys" / "public.json"), read_next(data / "keys")
    _check_online(wanted, waiting.online)
    standing = read_standing(data)
    names = _new_names(wanted, standing)
    taken = [out / CHANGE_FILE, *(out / f"{name}.pem" for name in names)]
    if there := [path for path in taken if path.exists()]:
        raise ConflictError(f"expected a new folder for the change, found {there[0]}")
    given = {name: key for name, key in wanted.replace.items() if key is not None}
    phrases = {name: check_phrase(passphrase(name), name) for name in names}
    signers = {name: Signer.generate() for name in names}
    keys = {name: tuf_key(signer.public) for name, signer in signers.items()} | given
    held = {name: named(key, name) for name, key in keys.items()}
    change = propose(
        public.fleet_id,
        standing,
        {role: public.key(role) for role in ONLINE},
        Wishes(
            keys={name: held[name] for name in wanted.replace if name in held},
            publishers={
                wish.name: PublisherKeys(
                    wish.threshold, tuple(held[name] for name in wish.key_names())
                )
                for wish in wanted.publishers
            },
            without=wanted.without,
            online={role: waiting.key(role) for role in waiting.online},
        ),
        now,
    )
    make_folder(out, mode=0o700)
    write_keys(out, signers, phrases)
    write_atomic(out / CHANGE_FILE, write_change(change))
    return Begun(change, out / CHANGE_FILE, tuple(out / f"{name}.pem" for name in names))


def load_change(file: Path) -> Change:
    """Read a change file.

    Raises:
        NotFoundError: no such file.
        FormatError: damaged, cut short, or no change.
    """
    try:
        with file.open("rb") as stream:
            return read_change(stream.read(MAX_CHANGE_BYTES + 1))
    except FileNotFoundError:
        raise NotFoundError(f"expected a change file at {file}; there is none") from None
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from None


def approve_file(
    file: Path, key: str, passphrase: Passphrase, now: datetime, *, shown: Change | None = None
) -> Change:
    """Add one person's signatures to a change file, and return the change.

    Args:
        file: the change file; it is replaced by the signed one.
        key: as `open_signer` takes it.
        passphrase: returns what opens the key.
        now: aware UTC.
        shown: what its holder has looked at; nothing else is signed.

    Raises:
        FormatError: not a change.
        RefusedError: nothing in it asks for this key.
        ConflictError: this key has signed already, or the file is not what was shown.
        TrustError: the passphrase does not open the key, or the change is not as `begin` makes it.
    """
    change = load_change(file)
    if shown is not None and change != shown:
        raise ConflictError(f"{file} was changed after it was shown; look at it again")
    check_life(change, now)
    change = approve(change, open_signer(key, passphrase))
    write_atomic(file, write_change(change))
    return change


def install(file: Path, data: Path, now: datetime) -> Change:
    """Hand a change to a fleet; a running one takes it up within a minute.

    Raises:
        FormatError: not a change.
        TrustError: too few have approved it, it has expired, or it is for another fleet.
        ConflictError: the fleet's documents changed since it was begun, or another change waits.
    """
    change = load_change(file)
    check_follows(change, read_public(data / "keys" / "public.json").fleet_id, read_standing(data))
    check_complete(change, now)
    _check_online_keys(change, data)
    incoming, content = data / "tuf" / INCOMING, write_change(change)
    if incoming.exists() and incoming.read_bytes() != content and _fits(incoming, data, now):
        raise ConflictError(
            f"another change waits in {incoming}; a running fleet takes it up within a minute, "
            "others at their next start"
        )
    write_atomic(incoming, content)
    return change


def settle(data: Path, now: datetime) -> bool:
    """Take up a change that was installed, and keys that are named now; tell whether there were any.

    Raises:
        TrustError, ConflictError, FormatError: what waits is not a change of this fleet; it stays
            where it is, and nothing else changes.
    """
    incoming = data / "tuf" / INCOMING
    arrived = incoming.exists()
    if arrived:
        change = load_change(incoming)
        _check_waiting(change, data, now)
        for name, content in change.wanted.items():
            write_atomic(_file(data, name, content), content)
        log.info("a change of keys was installed: %s", ", ".join(sorted(change.wanted)))
    promoted = _promote(data)
    if promoted:
        log.info("new keys are in use: %s", ", ".join(promoted))
    if arrived:
        incoming.unlink()
    return arrived or bool(promoted)


def settle_at_start(data: Path, now: datetime) -> None:
    """Take up what was installed, but start without a change that has expired or does not fit.

    It stays where it is, and `settle` says so again and again while the fleet runs. Where half of it
    was written, the fleet's own checks of its keys decide.
    """
    try:
        settle(data, now)
    except (TrustError, ConflictError, FormatError) as error:
        log.error("the change in %s is not taken up: %s", data / "tuf" / INCOMING, error)


def read_standing(data: Path, *, check: bool = True) -> dict[str, bytes]:
    """Return every document as it is now.

    Args:
        data: the fleet's data directory or a copy of it.
        check: whether each root must follow from the one before it. Between the files of a change
            that is being written it need not.

    Raises:
        NotFoundError: the key ceremony has not been.
        TrustError: a root does not follow from the one before it.
    """
    catalog, director = data / "tuf" / "catalog", data / "tuf" / "director"
    if check or not latest(catalog, Root.type):
        load_roots(catalog), load_roots(director)
    return {
        CATALOG_ROOT: (catalog / f"{latest(catalog, Root.type)}.root.json").read_bytes(),
        DIRECTOR_ROOT: (director / f"{latest(director, Root.type)}.root.json").read_bytes(),
        PUBLISHERS: (catalog / f"{latest(catalog, Targets.type)}.targets.json").read_bytes(),
    }


def _file(data: Path, name: str, content: bytes) -> Path:
    folder, _, role = name.partition("/")
    kind = Targets if name == PUBLISHERS else Root
    version = parse(content, kind, name).signed.version  # type: ignore[type-var]
    return data / "tuf" / folder / f"{version}.{role}.json"


def _check_waiting(change: Change, data: Path, now: datetime) -> None:
    fleet_id = read_public(data / "keys" / "public.json").fleet_id
    check_follows(change, fleet_id, read_standing(data, check=False))
    check_complete(change, now)
    _check_online_keys(change, data)


def _fits(incoming: Path, data: Path, now: datetime) -> bool:
    """Tell whether what waits will be taken up; what will not gives way to the next change."""
    try:
        _check_waiting(load_change(incoming), data, now)
    except (TrustError, ConflictError, FormatError):
        return False
    return True


def _check_online_keys(change: Change, data: Path) -> None:
    """Refuse a change after which the fleet could not sign: it names a key that is not here."""
    present, waiting = read_public(data / "keys" / "public.json"), read_next(data / "keys")
    for role, is_named in _named(change.standing | change.wanted).items():
        keys = [public.key(role) for public in (present, waiting) if role in public.online]
        if not any(map(is_named, keys)):
            raise TrustError(
                f"expected a change that names the {role} key of this fleet, or the one that waits "
                f"in {data / 'keys' / 'next'}; it names another: begin it again with this fleet's "
                "public.json and keys/next/public.json",
                "unknown_key",
            )


def _promote(data: Path) -> list[str]:
    if not (data / "keys" / "next" / "public.json").exists():
        return []
    is_named = _named(read_standing(data))
    waiting = read_next(data / "keys")
    keys = {role: waiting.key(role) for role in waiting.online}
    names = {role: key for role, key in keys.items() if is_named[role](key)}
    issuing = (data / "keys" / "issuing.crt").read_bytes()
    return promote(data / "keys", names, certified_key_id(issuing, "issuing authority"))


def _named(documents: Mapping[str, bytes]) -> dict[str, Callable[[PublicKey], bool]]:
    """Return, by online role, whether the roots name a key."""
    catalog, director = root_of(documents, CATALOG_ROOT), root_of(documents, DIRECTOR_ROOT)
    messages = message_keys(director.unrecognized_fields)
    return {
        "snapshot": lambda key: tuf_key(key).keyid in catalog.roles[Snapshot.type].keyids,
        "timestamp": lambda key: tuf_key(key).keyid in catalog.roles[Timestamp.type].keyids,
        "director": lambda key: tuf_key(key).keyid in director.roles[Targets.type].keyids,
        "message": lambda key: key.key_id in messages,
    }


def _check_online(wanted: Wanted, waiting: Mapping[str, str]) -> None:
    for role in wanted.replace:
        if role in ONLINE and role not in waiting:
            raise UsageError(
                f"{role} is a key of the fleet itself; make the new one on its machine first: "
                f"skerry keys renew {role} --data DATA"
            )


def _new_names(wanted: Wanted, standing: Mapping[str, bytes]) -> list[str]:
    """Return the names of the keys to be made here, each once."""
    names = [name for name, key in wanted.replace.items() if key is None and name not in ONLINE]
    names += [name for wish in wanted.publishers for name in wish.key_names()]
    publishers = publishers_of(parse(standing[PUBLISHERS], Targets, PUBLISHERS).signed)
    others = {
        key_name(key)
        for name, given in publishers.items()
        if name not in {wish.name for wish in wanted.publishers}
        for key in given.keys
    }
    made_for = {name for wish in wanted.publishers for name in wish.key_names()}
    if len(set(names)) != len(names) or made_for & others:
        raise UsageError("expected each key and each publisher to be named once")
    return names
