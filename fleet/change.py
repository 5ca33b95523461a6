"""A change of keys: what stands, what shall stand, and the signatures that it has so far.

    begin      somebody says which keys give way to which; new documents are made, unsigned
    approve    holders of root keys look at it, each on a machine of their own, and sign
    install    the fleet takes it, once enough of them have

A change holds only the documents that it alters: the catalog's root, the director's root, the
catalog's delegations. A new root needs two of three signatures by the keys of the root before it
*and* two of three by its own: so nobody can be pushed out by fewer people than could sign, and no key
is named that nobody holds. Pure: bytes and keys in, bytes out.

Source: TUF specification 1.0, section 6.1 (key management).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec
from securesystemslib.signer import Key
from securesystemslib.signer import Signer as MetadataSigner
from tuf.api.metadata import Metadata, Root, Targets
from tuf.api.serialization.json import JSONSerializer

from fleet.documents import (
    CATALOG_ROOT,
    DIRECTOR_ROOT,
    DOCUMENTS,
    PUBLISHERS,
    check_shape,
    check_standing,
    check_together,
    document_of,
    root_of,
    targets_of,
)
from fleet.offline import (
    PublisherKeys,
    catalog_root,
    delegations,
    director_root,
    key_name,
    publishers_of,
    root_keys,
)
from fleet.roles import OFFLINE_VALID
from skerry.canonical import from_json, to_json
from skerry.errors import ConflictError, FormatError, NotFoundError, RefusedError, TrustError
from skerry.io.signers import add_signature, key_id_of
from skerry.keys import PublicKey

__all__ = [
    "Change",
    "Quorum",
    "Wishes",
    "approve",
    "check_complete",
    "check_follows",
    "check_life",
    "dump",
    "owed",
    "propose",
    "read_change",
    "write_change",
]

MAX_CHANGE_BYTES: Final = 4 << 20
LEEWAY: Final = timedelta(days=1)  # between the clocks of two machines


class Change(msgspec.Struct, frozen=True):
    """A change, as it travels from machine to machine: JSON, its documents in base64."""

    fleet_id: str
    standing: dict[str, bytes]  # every document as it is now
    wanted: dict[str, bytes]  # those that shall take its place, with the signatures so far


@dataclass(frozen=True, slots=True)
class Wishes:
    """What shall be different. With nothing wished for, everything is signed again, for a year."""

    keys: Mapping[str, Key] = field(default_factory=dict)  # name of an offline key -> another
    publishers: Mapping[str, PublisherKeys] = field(default_factory=dict)  # new, or wholly anew
    without: Sequence[str] = ()  # publishers that may release no more
    online: Mapping[str, PublicKey] = field(default_factory=dict)  # by role


@dataclass(frozen=True, slots=True)
class Quorum:
    """Signatures that documents need from one group of keys."""

    documents: tuple[str, ...]
    group: str  # whose keys, for people
    threshold: int
    signed: tuple[str, ...]  # names of keys
    missing: tuple[str, ...]

    @property
    def lacks(self) -> int:
        """So many signatures are still needed."""
        return max(0, self.threshold - len(self.signed))

    def __str__(self) -> str:
        signed = f" ({', '.join(self.signed)})" if self.signed else ""
        return f"{len(self.signed)} of {self.threshold} signatures by {self.group}{signed}"


def propose(
    fleet_id: str,
    standing: Mapping[str, bytes],
    online: Mapping[str, PublicKey],
    wishes: Wishes,
    now: datetime,
) -> Change:
    """Return a change that nobody has approved yet.

    Args:
        fleet_id: whose.
        standing: every document as it is now.
        online: the fleet's online keys as they are now, by role.
        wishes: what shall be different.
        now: aware UTC; what is signed holds for a year from then.

    Raises:
        NotFoundError: a key or publisher of that name does not exist.
    """
    catalog, director = root_of(standing, CATALOG_ROOT), root_of(standing, DIRECTOR_ROOT)
    before = targets_of(standing)
    roots, publishers = root_keys(catalog), publishers_of(before)
    _check_names(wishes, roots, publishers)
    after = [wishes.keys.get(name, key) for name, key in roots.items()]
    given = _publishers_after(publishers, wishes)
    at = {**online, **wishes.online}
    again = not (wishes.keys or wishes.publishers or wishes.without or wishes.online)
    everywhere = again or any(name in roots for name in wishes.keys)
    wanted: dict[str, bytes] = {}
    if everywhere or {"snapshot", "timestamp"} & set(wishes.online):
        new = catalog_root(after, at, version=catalog.version + 1, now=now)
        wanted[CATALOG_ROOT] = dump(Metadata(new))
    if everywhere or given != publishers:
        wanted[PUBLISHERS] = dump(Metadata(delegations(given, version=before.version + 1, now=now)))
    if everywhere or {"director", "message"} & set(wishes.online):
        new = director_root(after, at, version=director.version + 1, now=now)
        wanted[DIRECTOR_ROOT] = dump(Metadata(new))
    return Change(fleet_id, dict(standing), wanted)


def approve(change: Change, signer: MetadataSigner) -> Change:
    """Return the change with one person's signatures added.

    Raises:
        RefusedError: nothing in it asks for this key.
        ConflictError: this key has signed already.
    """
    keyid, told = signer.public_key.keyid, key_id_of(signer.public_key)
    asked = [name for name in change.wanted if keyid in _counting(change, name)]
    if not asked:
        names = ", ".join(sorted({n for q in owed(change) for n in (*q.signed, *q.missing)}))
        raise RefusedError(
            f"expected a key that this change asks for ({names}), got key {told}; "
            "nothing was signed",
            "key_not_asked",
        )
    wanted = dict(change.wanted)
    for name in asked:
        metadata = document_of(wanted, name)
        if keyid not in metadata.signatures:
            add_signature(metadata, signer, append=True)
            wanted[name] = dump(metadata)
    if wanted == change.wanted:
        raise ConflictError(f"key {told} has signed this change already; hand it on")
    return msgspec.structs.replace(change, wanted=wanted)


def owed(change: Change) -> list[Quorum]:
    """Return every signature that the change needs, given and missing, by whose they are."""
    found: dict[tuple[Any, ...], list[str]] = {}
    for name in change.wanted:
        for group, delegator in _delegators(change, name):
            found.setdefault((group, *_signers(change, name, delegator)), []).append(name)
    return [
        Quorum(tuple(names), group, threshold, signed, missing)
        for (group, threshold, signed, missing), names in found.items()
    ]


def check_complete(change: Change, now: datetime) -> None:
    """Check that a change is signed by everybody whom it needs, and has not expired.

    Raises:
        TrustError: `too_few_signatures`, or as `check_life`.
    """
    short = [quorum for quorum in owed(change) if quorum.lacks]
    if short:
        told = "; ".join(f"{quorum}, next: one of {', '.join(quorum.missing)}" for quorum in short)
        raise TrustError(
            f"expected a change that enough people have approved, got {told}", "too_few_signatures"
        )
    check_life(change, now)


def check_life(change: Change, now: datetime) -> None:
    """Check that what a change holds has not expired, and ends within a year.

    Raises:
        TrustError: `metadata_expired`, or `odd_document`.
    """
    for name in change.wanted:
        expires = document_of(change.wanted, name).signed.expires
        if expires > now + OFFLINE_VALID + LEEWAY:
            raise TrustError(
                f"expected the change's {name} to hold for a year at most, not until "
                f"{expires:%Y-%m-%d}; check this machine's clock, or begin it again",
                "odd_document",
            )
        if expires <= now:
            raise TrustError(
                f"the change's {name} expired on {expires:%Y-%m-%d}; begin it again",
                "metadata_expired",
            )


def check_follows(change: Change, fleet_id: str, standing: Mapping[str, bytes]) -> None:
    """Check that a change begins where a fleet stands; what is in place of it already is right too.

    Raises:
        TrustError: it was made for another fleet.
        ConflictError: the fleet's documents have changed since.
    """
    if change.fleet_id != fleet_id:
        raise TrustError(
            f"expected a change of fleet {fleet_id}, got one of {change.fleet_id[:64]}",
            "wrong_fleet",
        )
    for name, data in standing.items():
        if data not in (change.standing.get(name), change.wanted.get(name)):
            raise ConflictError(
                f"the fleet's {name} was changed since this change was begun; begin it again"
            )


def read_change(data: bytes) -> Change:
    """Read a change file; what it shows is all that it does.

    Raises:
        FormatError: damaged, cut short, or no change.
        TrustError: code ``odd_document``: a document says what `propose` never makes, or what is said
            to stand was not signed by its own keys.
    """
    try:
        change = from_json(data, Change, limit=MAX_CHANGE_BYTES)
        known = set(DOCUMENTS)
        if set(change.standing) != known or not change.wanted or set(change.wanted) - known:
            raise FormatError("it does not hold the documents of a change")
        for documents in (change.standing, change.wanted):
            for name in documents:
                document_of(documents, name)
    except (FormatError, KeyError, ValueError) as error:
        raise FormatError(
            f"expected a whole change file, as `skerry keys rotate begin` wrote it: {error}; "
            "copy it again"
        ) from None
    check_standing(change.standing)
    for name in change.wanted:
        check_shape(name, change.wanted[name], after=change.standing[name])
    check_together(change.standing, change.wanted)
    return change


def dump(metadata: Metadata[Root] | Metadata[Targets]) -> bytes:
    """Return the bytes of a document."""
    return metadata.to_bytes(JSONSerializer(compact=True))


def write_change(change: Change) -> bytes:
    """Return the bytes of a change file."""
    return to_json(change) + b"\n"


# --- who must sign what ---------------------------------------------------------------------


def _delegators(change: Change, name: str) -> list[tuple[str, Root]]:
    """Return the roots by whose keys a document must be signed, and what people call each."""
    if name == PUBLISHERS:
        roots = change.wanted if CATALOG_ROOT in change.wanted else change.standing
        new = root_of(roots, CATALOG_ROOT)
        old = root_of(change.standing, CATALOG_ROOT)
    else:
        old, new = root_of(change.standing, name), root_of(change.wanted, name)
    if set(old.roles[Root.type].keyids) == set(new.roles[Root.type].keyids):
        return [("the root keys", old)]
    after = [("the new root keys", new)]
    return after if name == PUBLISHERS else [("the present root keys", old), *after]


def _counting(change: Change, name: str) -> set[str]:
    role = Targets.type if name == PUBLISHERS else Root.type
    return {keyid for _, root in _delegators(change, name) for keyid in root.roles[role].keyids}


def _signers(
    change: Change, name: str, delegator: Root
) -> tuple[int, tuple[str, ...], tuple[str, ...]]:
    """Return the threshold, and the names of the keys that have signed a document and have not."""
    metadata = document_of(change.wanted, name)
    role = Targets.type if name == PUBLISHERS else Root.type
    result = delegator.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
    roots = [
        set(root_of(documents, CATALOG_ROOT).roles[Root.type].keyids)
        for documents in (change.standing, change.standing | change.wanted)
    ]

    def named(key: Key) -> str:
        # the name goes on to the next key: say which of the two is meant
        if key.keyid not in roots[1]:
            return f"former {key_name(key)}"
        return key_name(key) if key.keyid in roots[0] else f"new {key_name(key)}"

    signed, missing = (
        sorted(map(named, keys.values())) for keys in (result.signed, result.unsigned)
    )
    return result.threshold, tuple(signed), tuple(missing)


# --- what shall be different -----------------------------------------------------------------


def _check_names(
    wishes: Wishes, roots: Mapping[str, Key], publishers: Mapping[str, PublisherKeys]
) -> None:
    known = {*roots, *(key_name(key) for given in publishers.values() for key in given.keys)}
    if strangers := sorted(set(wishes.keys) - known):
        raise NotFoundError(f"no key {strangers[0]!r}; there are {', '.join(sorted(known))}")
    if strangers := sorted(set(wishes.without) - set(publishers)):
        raise NotFoundError(
            f"no publisher {strangers[0]!r}; there are {', '.join(sorted(publishers)) or 'none'}"
        )


def _publishers_after(
    publishers: Mapping[str, PublisherKeys], wishes: Wishes
) -> dict[str, PublisherKeys]:
    kept = {
        name: PublisherKeys(
            given.threshold,
            tuple(wishes.keys.get(key_name(key), key) for key in given.keys),
        )
        for name, given in publishers.items()
        if name not in wishes.without
    }
    return {**kept, **wishes.publishers}
