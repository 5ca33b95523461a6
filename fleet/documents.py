"""The three documents that offline keys sign, and the only shape that they may have.

Who signs a change looks at what is shown of it: keys, publishers, thresholds. So nothing else may be
in it. A document is taken apart into just these, made again from them, and must be the same.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from tuf.api.metadata import Key, Metadata, Root, Snapshot, Targets, Timestamp

from fleet.offline import (
    catalog_root,
    check_publisher,
    delegations,
    director_root,
    key_name,
    publishers_of,
    root_keys,
)
from fleet.roles import OFFLINE_VALID, check_signed, parse
from skerry.custom import message_keys
from skerry.errors import SkerryError, TrustError
from skerry.io.key_files import tuf_id_of
from skerry.keys import PublicKey

__all__ = [
    "CATALOG_ROOT",
    "DIRECTOR_ROOT",
    "DOCUMENTS",
    "PUBLISHERS",
    "check_shape",
    "check_standing",
    "check_together",
    "document_of",
    "root_of",
    "targets_of",
]

CATALOG_ROOT: Final = "catalog/root"
DIRECTOR_ROOT: Final = "director/root"
PUBLISHERS: Final = "catalog/targets"
DOCUMENTS: Final = (CATALOG_ROOT, PUBLISHERS, DIRECTOR_ROOT)
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")  # nothing that reads as more than a name
_ROOTS: Final = (CATALOG_ROOT, DIRECTOR_ROOT)


def document_of(documents: Mapping[str, bytes], name: str) -> Metadata[Root] | Metadata[Targets]:
    """Return one of several documents, read."""
    if name == PUBLISHERS:
        return parse(documents[name], Targets, name)
    return parse(documents[name], Root, name)


def root_of(documents: Mapping[str, bytes], name: str) -> Root:
    """Return what a root among several documents says."""
    return parse(documents[name], Root, name).signed


def targets_of(documents: Mapping[str, bytes]) -> Targets:
    """Return what the catalog's delegations among several documents say."""
    return parse(documents[PUBLISHERS], Targets, PUBLISHERS).signed


def check_standing(standing: Mapping[str, bytes]) -> None:
    """Check that documents which are said to stand were signed by their own keys.

    Otherwise a change could be shown as a smaller one than it is.

    Raises:
        TrustError: code ``odd_document``.
    """
    catalog = root_of(standing, CATALOG_ROOT)
    try:
        for name in (CATALOG_ROOT, DIRECTOR_ROOT):
            check_shape(name, standing[name])
            check_signed(root_of(standing, name), Root.type, parse(standing[name], Root, name))
        check_shape(PUBLISHERS, standing[PUBLISHERS])
        check_signed(catalog, Targets.type, parse(standing[PUBLISHERS], Targets, PUBLISHERS))
    except TrustError as error:
        raise TrustError(
            f"expected the change to begin from documents that their own keys signed: {error}",
            "odd_document",
        ) from None


def check_shape(name: str, data: bytes, *, after: bytes | None = None) -> None:
    """Check that a document says nothing but keys, publishers and thresholds, in the usual way.

    Args:
        name: which document.
        data: its bytes.
        after: the bytes of the one before it, if its version is to follow.

    Raises:
        TrustError: code ``odd_document``.
    """
    try:
        said = document_of({name: data}, name).signed
        if (
            after is not None
            and said.version != document_of({name: after}, name).signed.version + 1
        ):
            raise _odd(name, "does not follow the version before it")
        again = _remade(name, said)
    except (SkerryError, KeyError, ValueError) as error:
        raise _odd(name, str(error)) from None
    if again.to_dict() != said.to_dict():
        raise _odd(name, "says more, or other things, than keys, publishers and thresholds")


def check_together(standing: Mapping[str, bytes], wanted: Mapping[str, bytes]) -> None:
    """Check that both roots name the same root keys, and that these come with all that they sign.

    Root keys are shown once, for both. A change that lost a document on its way would let a key that
    it replaces count on in that one.

    Raises:
        TrustError: code ``odd_document``.
    """
    before = _root_keys(root_of(standing, CATALOG_ROOT))
    after = {name: _root_keys(root_of({**standing, **wanted}, name)) for name in _ROOTS}
    for name in _ROOTS:
        if after[name] != after[CATALOG_ROOT]:
            raise _odd(name, f"names other root keys than {CATALOG_ROOT}")
    missing = [name for name in DOCUMENTS if name not in wanted]
    if missing and after[CATALOG_ROOT] != before:
        raise _odd(missing[0], "is not there, and its keys change")


def _root_keys(root: Root) -> dict[str, Key]:
    return {keyid: root.get_key(keyid) for keyid in root.roles[Root.type].keyids}


def _remade(name: str, said: Root | Targets) -> Root | Targets:
    now = said.expires - OFFLINE_VALID
    if isinstance(said, Targets):
        publishers = publishers_of(said)
        for publisher, given in publishers.items():
            check_publisher(publisher, given.threshold, len(given.keys))
            _check_keys(given.keys)
        return delegations(publishers, version=said.version, now=now)
    roots = [said.get_key(keyid) for keyid in said.roles[Root.type].keyids]
    _check_keys(roots)
    if len(roots) < 2:
        raise ValueError("it has fewer than two root keys")
    if name == DIRECTOR_ROOT:
        (message,) = message_keys(said.unrecognized_fields).values()
        online = {"director": _sole(said, Targets.type), "message": message}
        return director_root(roots, online, version=said.version, now=now)
    online = {role: _sole(said, role) for role in (Snapshot.type, Timestamp.type)}
    return catalog_root(roots, online, version=said.version, now=now)


def _sole(root: Root, role: str) -> PublicKey:
    (key,) = root_keys(root, role).values()
    return PublicKey(bytes.fromhex(str(key.keyval["public"])))


def _check_keys(keys: Sequence[Key]) -> None:
    if len({key_name(key) for key in keys}) != len(keys):
        raise ValueError("two keys have one name")
    for key in keys:
        if _NAME.fullmatch(key_name(key)) is None:
            raise ValueError(f"a key is named {key_name(key)[:80]!r}, which is none")
        # two keys are told apart by their ids, by devices too
        if tuf_id_of(key) != key.keyid:
            raise ValueError(f"key {key_name(key)} is not the one of its id")


def _odd(name: str, why: str) -> TrustError:
    return TrustError(
        f"the change's {name[:40]} is none that `skerry keys rotate begin` makes: {why[:300]}; sign "
        "nothing, and ask who handed it to you",
        "odd_document",
    )
