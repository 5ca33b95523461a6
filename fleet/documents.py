"""The three documents that offline keys sign, and the only shape that they may have.

Who signs a change looks at what is shown of it: keys, publishers, thresholds. So nothing else may be
in it. A document is taken apart into just these, made again from them, and must be the same.
"""

from collections.abc import Mapping
from typing import Final

from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

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
from skerry.keys import PublicKey

__all__ = [
    "CATALOG_ROOT",
    "DIRECTOR_ROOT",
    "DOCUMENTS",
    "PUBLISHERS",
    "check_shape",
    "check_standing",
    "document_of",
    "root_of",
    "targets_of",
]

CATALOG_ROOT: Final = "catalog/root"
DIRECTOR_ROOT: Final = "director/root"
PUBLISHERS: Final = "catalog/targets"
DOCUMENTS: Final = (CATALOG_ROOT, PUBLISHERS, DIRECTOR_ROOT)


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


def _remade(name: str, said: Root | Targets) -> Root | Targets:
    now = said.expires - OFFLINE_VALID
    if isinstance(said, Targets):
        publishers = publishers_of(said)
        for publisher, given in publishers.items():
            check_publisher(publisher, given.threshold, len(given.keys))
            _distinct([key_name(key) for key in given.keys])
        return delegations(publishers, version=said.version, now=now)
    roots = [said.get_key(keyid) for keyid in said.roles[Root.type].keyids]
    _distinct([key_name(key) for key in roots])
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


def _distinct(names: list[str]) -> None:
    if len(set(names)) != len(names):
        raise ValueError("two keys have one name")


def _odd(name: str, why: str) -> TrustError:
    return TrustError(
        f"the change's {name[:40]} is none that `skerry keys rotate begin` makes: {why[:300]}; sign "
        "nothing, and ask who handed it to you",
        "odd_document",
    )
