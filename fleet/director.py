"""The director: signs what one device shall run, as a small TUF repository of its own.

    timestamp.json  <n>.snapshot.json  <n>.targets.json     one version for all three
    <n>.root.json                                           from the second root on

All devices share the director's root and its online key; the metadata travels inside `desired`.
A target is a release of the catalog, with `{device, slot, rollout, nonce}`: TUF would accept
another device's assignment, so the device compares these fields (`skerry.trust`).
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from tuf.api.metadata import MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from fleet.keystore import OnlineKeys
from fleet.roles import (
    SNAPSHOT_VALID,
    TARGETS_VALID,
    TIMESTAMP_VALID,
    load_roots,
    parse,
    sign,
    tuf_key,
    until,
)
from skerry.custom import director_custom, message_keys
from skerry.errors import NotFoundError, RefusedError, TrustError
from skerry.ids import check_id
from skerry.trust import CatalogTarget, DirectorTarget

__all__ = ["Director", "assign"]

MAX_ROOTS_CARRIED: Final = 8  # a message has 128 kB; older ones are on the device listener


class Director:
    """Signs the metadata of devices.

    A device's metadata is signed anew daily, under a higher version: one that hears nothing for a
    week knows that somebody holds it back.

    Args:
        folder: holds ``<n>.root.json``.
        keys: the fleet's online keys.

    Raises:
        NotFoundError: no root; the key ceremony has not been.
        TrustError: the root names other keys than these.
    """

    def __init__(self, folder: Path, keys: OnlineKeys) -> None:
        self._folder = folder
        self._keys = keys
        self._roots: dict[int, bytes] = {}
        self.reload()

    @property
    def root(self) -> bytes:
        """The latest root."""
        return self._roots[max(self._roots)]

    @property
    def expires(self) -> datetime:
        """When the latest root expires: aware UTC."""
        return parse(self.root, Root, "director root").signed.expires

    def reload(self) -> None:
        """Take up the roots that are in the folder.

        Raises:
            NotFoundError: no root; the key ceremony has not been.
            TrustError: the latest root names other keys than the fleet's own.
        """
        roots = load_roots(self._folder)
        root = parse(roots[max(roots)], Root, "director root").signed
        keyid = tuf_key(self._keys.director.public).keyid
        online = (Targets.type, Snapshot.type, Timestamp.type)
        if any(keyid not in root.roles[role].keyids for role in online):
            raise TrustError(
                f"expected the director root to name key {self._keys.director.key_id}; "
                "the root and the keys folder are not of one fleet: restore both as a whole",
                "unknown_key",
            )
        if self._keys.message.key_id not in message_keys(root.unrecognized_fields):
            raise TrustError(
                f"expected the director root to name message key {self._keys.message.key_id}",
                "unknown_key",
            )
        self._roots = roots

    def sign(
        self, device_id: str, targets: Sequence[DirectorTarget], *, version: int, now: datetime
    ) -> dict[str, bytes]:
        """Return the metadata of one device: file name -> signed bytes.

        Args:
            device_id: whom every target must name.
            targets: one per slot that has an assignment; all of them, not only the new one.
            version: higher than any signed for this device before, from the store.
            now: aware UTC.

        Raises:
            RefusedError: a target of another device, a slot named twice, or one release in two
                slots: TUF tells targets apart by their path.
        """
        check_id(device_id, "device id")
        _check(device_id, targets)
        files = {
            target.path: TargetFile(
                target.length,
                {"sha256": target.sha256},
                target.path,
                {"custom": director_custom(target)},
            )
            for target in targets
        }
        assigned = Targets(version=version, expires=until(now, TARGETS_VALID), targets=files)
        snapshot = Snapshot(
            version=version,
            expires=until(now, SNAPSHOT_VALID),
            meta={"targets.json": MetaFile(version)},
        )
        timestamp = Timestamp(
            version=version,
            expires=until(now, TIMESTAMP_VALID),
            snapshot_meta=MetaFile(version),
        )
        signed = {
            f"{version}.targets.json": sign(assigned, [self._keys.director]),
            f"{version}.snapshot.json": sign(snapshot, [self._keys.director]),
            "timestamp.json": sign(timestamp, [self._keys.director]),
        }
        later = sorted(version for version in self._roots if version > 1)[-MAX_ROOTS_CARRIED:]
        return signed | {f"{n}.root.json": self._roots[n] for n in later}

    def metadata(self, name: str) -> bytes:
        """Return a root by its file name, ``<n>.root.json``.

        Raises:
            NotFoundError: no such root.
        """
        for version, data in self._roots.items():
            if name == f"{version}.root.json":
                return data
        raise NotFoundError(f"no director metadata {name[:80]!r}")


def assign(
    release: CatalogTarget, *, device: str, slot: str, rollout: str, assignment_id: str
) -> DirectorTarget:
    """Return the assignment of a release to one slot of one device."""
    return DirectorTarget(
        path=release.path,
        length=release.length,
        sha256=release.sha256,
        device=check_id(device, "device id"),
        slot=check_id(slot, "slot"),
        rollout=rollout,
        nonce=assignment_id,
    )


def _check(device_id: str, targets: Sequence[DirectorTarget]) -> None:
    slots: Mapping[str, DirectorTarget] = {target.slot: target for target in targets}
    paths = {target.path for target in targets}
    if any(target.device != device_id for target in targets):
        raise RefusedError(f"expected assignments of {device_id}, got another device's")
    if len(slots) != len(targets) or len(paths) != len(targets):
        raise RefusedError(
            f"expected each slot and each release once for {device_id}; "
            "one release cannot run in two slots of a device"
        )
