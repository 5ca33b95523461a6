"""What offline keys sign: the two roots, and the catalog's delegations to publishers.

Each key carries its name (`root-2`, `publisher-acme`, `snapshot`), as the ceremony gave it: a person
who replaces a key, years later, says which one by what is written on its envelope.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from securesystemslib.signer import Key, SSlibKey
from tuf.api.metadata import DelegatedRole, Delegations, Root, Snapshot, Targets, Timestamp

from fleet.roles import OFFLINE_VALID, tuf_key, until
from skerry.custom import MESSAGE_KEYS_FIELD, message_keys_field
from skerry.errors import UsageError
from skerry.ids import check_id
from skerry.io.key_files import key_id_of
from skerry.keys import PublicKey

__all__ = [
    "ROOT_THRESHOLD",
    "PublisherKeys",
    "PublisherWish",
    "catalog_root",
    "check_publisher",
    "delegations",
    "director_root",
    "key_name",
    "named",
    "parse_publisher",
    "publishers_of",
    "root_keys",
]

ROOT_THRESHOLD: Final = 2
TOP_LEVEL: Final = (Root.type, Targets.type, Snapshot.type, Timestamp.type)
MAX_PUBLISHER_KEYS: Final = 16
NAME_FIELD: Final = "x-skerry-name"
_SPEC: Final = re.compile(r"([^:]*)(?::([0-9]{1,2})-of-([0-9]{1,2}))?")


@dataclass(frozen=True, slots=True)
class PublisherWish:
    """A publisher to be: how many keys it gets, and how many of them sign a release."""

    name: str
    threshold: int = 1
    keys: int = 1

    def key_names(self) -> list[str]:
        """Return the names of its keys, which are those of their files."""
        if self.keys == 1:
            return [f"publisher-{self.name}"]
        return [f"publisher-{self.name}-{n}" for n in range(1, self.keys + 1)]


@dataclass(frozen=True, slots=True)
class PublisherKeys:
    """A publisher's public keys, and how many of them sign a release."""

    threshold: int
    keys: tuple[Key, ...]


def parse_publisher(text: str) -> PublisherWish:
    """Read ``NAME``, or ``NAME:n-of-m`` where n of m people sign each release.

    Raises:
        UsageError: a wrong name, or numbers that cannot be.
    """
    match = _SPEC.fullmatch(text)
    name = match[1] if match else text
    threshold, keys = (int(match[2]), int(match[3])) if match and match[2] else (1, 1)
    check_publisher(name, threshold, keys)
    return PublisherWish(name, threshold, keys)


def check_publisher(name: str, threshold: int, keys: int) -> None:
    """Check that there can be a publisher of this name, with so many keys.

    Raises:
        UsageError: a wrong name, or numbers that cannot be.
    """
    check_id(name, "publisher")
    if name in TOP_LEVEL:
        raise UsageError(f"expected another publisher name than {name}: it names a role of TUF")
    if not 1 <= threshold <= keys <= MAX_PUBLISHER_KEYS:
        raise UsageError(
            f"expected NAME or NAME:n-of-m with 1 <= n <= m <= {MAX_PUBLISHER_KEYS}, "
            f"got {name}:{threshold}-of-{keys}"
        )


def named(key: Key, name: str) -> Key:
    """Return a key that carries its name."""
    return SSlibKey(key.keyid, key.keytype, key.scheme, key.keyval, {NAME_FIELD: name})


def key_name(key: Key) -> str:
    """Return the name that a key carries, or the beginning of its id."""
    name = key.unrecognized_fields.get(NAME_FIELD)
    return name if isinstance(name, str) and name.isprintable() else key_id_of(key)


def catalog_root(
    roots: Sequence[Key], online: Mapping[str, PublicKey], *, version: int, now: datetime
) -> Root:
    """Return the catalog's root: the root keys also sign the delegations to publishers."""
    roles: dict[str, Sequence[Key]] = {Root.type: roots, Targets.type: roots}
    for role in (Snapshot.type, Timestamp.type):
        roles[role] = [named(tuf_key(online[role]), role)]
    return _root(roles, version, now, {})


def director_root(
    roots: Sequence[Key], online: Mapping[str, PublicKey], *, version: int, now: datetime
) -> Root:
    """Return the director's root, which also names the key of the fleet's messages."""
    director = [named(tuf_key(online["director"]), "director")]
    roles: dict[str, Sequence[Key]] = {Root.type: roots}
    roles |= dict.fromkeys((Targets.type, Snapshot.type, Timestamp.type), director)
    field = {MESSAGE_KEYS_FIELD: message_keys_field([online["message"]])}
    return _root(roles, version, now, field)


def delegations(publishers: Mapping[str, PublisherKeys], *, version: int, now: datetime) -> Targets:
    """Return the catalog's own targets: nothing but who may release below which path."""
    keys = {key.keyid: key for publisher in publishers.values() for key in publisher.keys}
    roles = {
        name: DelegatedRole(
            name, [key.keyid for key in given.keys], given.threshold, True,
            paths=[f"models/{name}/*"],
        )
        for name, given in publishers.items()
    }  # fmt: skip
    return Targets(
        version=version, expires=until(now, OFFLINE_VALID), delegations=Delegations(keys, roles)
    )


def root_keys(root: Root, role: str = Root.type) -> dict[str, Key]:
    """Return the keys of a root's role by their names."""
    keys = [root.get_key(keyid) for keyid in root.roles[role].keyids]
    return {key_name(key): key for key in keys}


def publishers_of(targets: Targets) -> dict[str, PublisherKeys]:
    """Return everybody to whom the catalog delegates."""
    if targets.delegations is None:
        return {}
    return {
        name: PublisherKeys(
            role.threshold, tuple(targets.delegations.keys[keyid] for keyid in role.keyids)
        )
        for name, role in (targets.delegations.roles or {}).items()
    }


def _root(
    roles: Mapping[str, Sequence[Key]], version: int, now: datetime, extra: Mapping[str, object]
) -> Root:
    root = Root(
        version=version, expires=until(now, OFFLINE_VALID), consistent_snapshot=True,
        unrecognized_fields=dict(extra),
    )  # fmt: skip
    for role, keys in roles.items():
        for key in keys:
            root.add_key(key, role)
        if len(keys) > 1:
            root.roles[role].threshold = ROOT_THRESHOLD
    return root
