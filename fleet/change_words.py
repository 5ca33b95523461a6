"""A change of keys in plain words, for those who shall sign it."""

from collections.abc import Mapping

from tuf.api.metadata import Key, Root

from fleet.change import Change
from fleet.documents import (
    CATALOG_ROOT,
    DIRECTOR_ROOT,
    PUBLISHERS,
    document_of,
    root_of,
    targets_of,
)
from fleet.offline import PublisherKeys, key_name, publishers_of, root_keys
from skerry.custom import message_keys
from skerry.io.key_files import key_id_of

__all__ = ["describe"]


def describe(change: Change) -> list[str]:
    """Return in plain words what a change does, read from its documents alone.

    Raises:
        TrustError: the director's root does not name the keys of the fleet's messages.
    """
    said: list[str] = []
    if CATALOG_ROOT in change.wanted or DIRECTOR_ROOT in change.wanted:
        name = CATALOG_ROOT if CATALOG_ROOT in change.wanted else DIRECTOR_ROOT
        old, new = root_of(change.standing, name), root_of(change.wanted, name)
        said += _compare("root key", root_keys(old), root_keys(new))
        every = ", ".join(f"{n} {key_id_of(key)}" for n, key in sorted(root_keys(new).items()))
        said.append(
            f"the root keys are then {every}; {new.roles[Root.type].threshold} of them sign"
        )
    for name in (CATALOG_ROOT, DIRECTOR_ROOT):
        if name in change.wanted:
            said += _online(name, root_of(change.standing, name), root_of(change.wanted, name))
    if PUBLISHERS in change.wanted:
        said += _publisher_changes(
            publishers_of(targets_of(change.standing)), publishers_of(targets_of(change.wanted))
        )
    for name in change.wanted:
        was, is_ = (
            document_of(change.standing, name).signed,
            document_of(change.wanted, name).signed,
        )
        said.append(
            f"{name}: version {was.version} -> {is_.version}, "
            f"good until {is_.expires:%Y-%m-%d} (was {was.expires:%Y-%m-%d})"
        )
    return said


def _compare(what: str, old: Mapping[str, Key], new: Mapping[str, Key]) -> list[str]:
    said = []
    for name in sorted({*old, *new}):
        was, is_ = (key_id_of(keys[name]) if name in keys else "" for keys in (old, new))
        if not was:
            said.append(f"{what} {name} is new: {is_}")
        elif not is_:
            said.append(f"{what} {name} counts no more: {was}")
        elif was != is_:
            said.append(f"{what} {name}: {was} -> {is_}")
    return said


def _online(document: str, old: Root, new: Root) -> list[str]:
    roles = ("snapshot", "timestamp") if document == CATALOG_ROOT else ("timestamp",)
    said = []
    for role in roles:
        said += _compare("online key", root_keys(old, role), root_keys(new, role))
    if document == CATALOG_ROOT:
        return said
    was, is_ = (sorted(message_keys(root.unrecognized_fields)) for root in (old, new))
    return said + ([f"message key: {', '.join(was)} -> {', '.join(is_)}"] if was != is_ else [])


def _publisher_changes(
    old: Mapping[str, PublisherKeys], new: Mapping[str, PublisherKeys]
) -> list[str]:
    said = []
    for name in sorted({*old, *new}):
        was, is_ = old.get(name), new.get(name)
        if is_ is None:
            said.append(f"publisher {name} may release no more")
            continue
        if was is None:
            said.append(f"publisher {name} is new: {is_.threshold} of {len(is_.keys)} keys sign")
        elif (was.threshold, len(was.keys)) != (is_.threshold, len(is_.keys)):
            said.append(
                f"publisher {name}: {was.threshold} of {len(was.keys)} keys -> "
                f"{is_.threshold} of {len(is_.keys)}"
            )
        before = {key_name(key): key for key in was.keys} if was else {}
        said += _compare("key", before, {key_name(key): key for key in is_.keys})
        kept = {key.keyid for key in was.keys} & {key.keyid for key in is_.keys} if was else set()
        if was and len(kept) < is_.threshold:
            said.append(f"publisher {name} must sign its latest release again, with these keys")
    return said
