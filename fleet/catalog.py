"""The catalog: what may run, signed by publishers; this keeps it, checks it and serves it.

A publisher's new metadata is accepted only if

1. enough of the publisher's own keys signed it, as the catalog's targets name them,
2. it follows from the last by the rules of `skerry.publishing`: one version higher, nothing that was
   released is changed, at most the bundle that comes with it is new,
3. the model belongs to this publisher: who released it first. Counters of two publishers cannot be
   compared.

A publisher whose keys were replaced is silenced until it signs all of its releases again with the
new ones: devices go on serving what they run, and take nothing new of it.

Then snapshot and timestamp are signed anew with the online keys. The timestamp is written last and
names everything else, so that a crash in between leaves the catalog as it was.
"""

import contextlib
import threading
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp

from fleet.acceptance import Acceptance, check_bins, check_offer, read_offer
from fleet.files import make_folder, write_atomic
from fleet.keystore import OnlineKeys
from fleet.roles import (
    SNAPSHOT_VALID,
    TIMESTAMP_VALID,
    Role,
    check_signed,
    latest,
    load_roots,
    parse,
    sign,
    tuf_key,
    until,
)
from skerry.bundle import Bundle
from skerry.errors import NotFoundError, TrustError
from skerry.holding import Holding
from skerry.trust import CatalogTarget

__all__ = ["Acceptance", "Catalog", "Expiring"]

TIMESTAMP_RENEWAL: Final = TIMESTAMP_VALID - timedelta(days=1)  # signed anew daily
SNAPSHOT_RENEWAL: Final = timedelta(days=15)
CLOCK_SLACK: Final = timedelta(hours=1)  # clocks are set back a little every day
WARN_BEFORE: Final = timedelta(days=30)
MAX_NAME: Final = 96  # of a metadata file, characters


@dataclass(frozen=True, slots=True)
class Expiring:
    """Metadata signed by offline keys that somebody must sign again."""

    role: str
    expires: datetime


class Catalog:
    """The catalog in a folder.

    Args:
        folder: holds what the key ceremony wrote.
        keys: the fleet's online keys.
        now: aware UTC; snapshot and timestamp are signed anew where they are due.

    Raises:
        NotFoundError: the key ceremony has not been.
        TrustError: metadata in the folder is not signed as the root says.
    """

    def __init__(self, folder: Path, keys: OnlineKeys, now: datetime) -> None:
        self._folder = make_folder(folder)
        self._keys = keys
        self._lock = threading.Lock()
        self._load()
        self.renew(now)

    def _load(self) -> None:
        roots = load_roots(self._folder)
        root = parse(roots[max(roots)], Root, "catalog root").signed
        for role, signer in ((Snapshot.type, self._keys.snapshot),
                             (Timestamp.type, self._keys.timestamp)):  # fmt: skip
            if tuf_key(signer.public).keyid not in root.roles[role].keyids:
                raise TrustError(
                    f"expected the catalog root to name {role} key {signer.key_id}; "
                    "the root and the keys folder are not of one fleet: restore both as a whole",
                    "unknown_key",
                )
        self._roots, self._root = roots, root
        self._targets = self._load_targets()
        self._due: set[str] = set()  # roles that another key has signed than the root names now
        self._timestamp = self._load_timestamp()
        self._snapshot = self._load_snapshot()
        self._silenced: dict[str, Holding] = {}
        self._publishers = self._load_publishers()

    def reload(self, now: datetime) -> None:
        """Take up roots and delegations that were installed, and sign what follows from them.

        Raises:
            TrustError: they are not signed as they should be, or name other keys than the fleet's.
        """
        with self._lock:
            self._load()
            self._sign(self._publishers, now)

    @property
    def root(self) -> bytes:
        """The latest root."""
        return self._roots[max(self._roots)]

    @property
    def publishers(self) -> list[str]:
        """Everybody to whom the catalog delegates, released or not."""
        delegations = self._targets.delegations
        return sorted(delegations.roles or {}) if delegations is not None else []

    def releases(self) -> list[CatalogTarget]:
        """Return every release, in order of its path."""
        every = [holding.releases for holding in self._publishers.values()]
        return [target for known in every for _, target in sorted(known.items())]

    def release(self, path: str) -> CatalogTarget:
        """Return one release by its path.

        Raises:
            NotFoundError: no such release.
        """
        for holding in self._publishers.values():
            if path in holding.targets:
                return holding.releases[path]
        raise NotFoundError(f"the catalog has no release {path[:120]!r}; publish it first")

    def metadata(self, name: str) -> bytes:
        """Return a metadata file as it is served.

        Args:
            name: ``timestamp.json``, ``<n>.<role>.json``, or ``<role>.json`` for a role's latest.

        Raises:
            NotFoundError: no such file.
        """
        stem, _, extension = name.rpartition(".")
        version, _, role = stem.rpartition(".")
        if extension == "json" and len(name) <= MAX_NAME and role in self._roles():
            number = version or str(self._version(role))
            plain = role == Timestamp.type and not version
            if plain or (number.isascii() and number.isdecimal() and number == str(int(number))):
                path = self._folder / (name if plain else f"{number}.{role}.json")
                if path.is_file() and int(number) <= self._version(role):
                    return path.read_bytes()
        raise NotFoundError(f"the catalog has no metadata {name[:80]!r}")

    def check(self, data: bytes, bundle: Bundle, now: datetime) -> Acceptance:
        """Check a publisher's metadata and the bundle it releases; change nothing.

        Args:
            data: a release file, or the publisher's plain targets metadata.
            bundle: as `read_bundle` returned it.
            now: aware UTC.

        Raises:
            FormatError: neither.
            TrustError: with a `code` that names the rule.
            ConflictError: somebody released in between; sign again on the latest metadata.
        """
        holdings = self._publishers | self._silenced
        return check_offer(read_offer(data), self._targets, holdings, bundle, now)[0]

    def accept(self, data: bytes, bundle: Bundle, now: datetime) -> Acceptance:
        """Check a publisher's metadata and its bundle, keep it, and sign what changes with it.

        The bundle's blobs are kept before this is called: what the catalog names can be fetched.

        Raises:
            FormatError, TrustError, ConflictError: as `check`.
        """
        with self._lock:
            offer = read_offer(data)
            known = self._publishers | self._silenced
            accepted, holding = check_offer(offer, self._targets, known, bundle, now)
            if holding is not known.get(offer.publisher):
                for role, metadata in offer.roles.items():
                    name = f"{metadata.signed.version}.{role}.json"
                    write_atomic(self._folder / name, offer.files[role])
                self._sign({**self._publishers, offer.publisher: holding}, now)
            return accepted

    def renew(self, now: datetime) -> bool:
        """Sign snapshot and timestamp anew where they are due; tell whether anything was.

        Args:
            now: aware UTC. Call it hourly or so; it does nothing most of the time.
        """
        with self._lock:
            return self._sign(self._publishers, now)

    def expiring(self, now: datetime) -> list[Expiring]:
        """Return what offline keys must sign again within 30 days."""
        ends = {"root": self._root.expires, "targets": self._targets.expires}
        for name, holding in self._publishers.items():  # with its bins: they are signed together
            ends[name] = min(metadata.signed.expires for metadata in holding.roles.values())
        return [
            Expiring(name, end) for name, end in sorted(ends.items()) if end - now < WARN_BEFORE
        ]

    def _sign(self, publishers: dict[str, Holding], now: datetime) -> bool:
        """Bring snapshot and timestamp up to what there is; tell whether they were not.

        What is served changes only at the end: a full disk leaves the catalog as it was.
        """
        # clients refuse a snapshot that leaves out a role: who may release no more stays in it
        meta = {} if self._snapshot is None else dict(self._snapshot.meta)
        meta["targets.json"] = MetaFile(self._targets.version)
        for holding in publishers.values():
            for role, metadata in holding.roles.items():
                meta[f"{role}.json"] = MetaFile(metadata.signed.version)
        snapshot, timestamp = self._snapshot, self._timestamp
        if (
            snapshot is None
            or snapshot.meta != meta
            or not _due_later(snapshot.expires, now, SNAPSHOT_RENEWAL, SNAPSHOT_VALID)
            or Snapshot.type in self._due
        ):
            snapshot = Snapshot(
                version=1 if snapshot is None else snapshot.version + 1,
                expires=until(now, SNAPSHOT_VALID),
                meta=meta,
            )
            data = sign(snapshot, [self._keys.snapshot])
            write_atomic(self._folder / f"{snapshot.version}.snapshot.json", data)
        if (
            timestamp is not None
            and timestamp.snapshot_meta.version == snapshot.version
            and _due_later(timestamp.expires, now, TIMESTAMP_RENEWAL, TIMESTAMP_VALID)
            and Timestamp.type not in self._due
        ):
            return False
        timestamp = Timestamp(
            version=1 if timestamp is None else timestamp.version + 1,
            expires=until(now, TIMESTAMP_VALID),
            snapshot_meta=MetaFile(snapshot.version),
        )
        write_atomic(self._folder / "timestamp.json", sign(timestamp, [self._keys.timestamp]))
        # whole values are replaced, so that readers in other threads see the old or the new ones
        self._publishers, self._snapshot, self._timestamp = publishers, snapshot, timestamp
        self._silenced = {n: m for n, m in self._silenced.items() if n not in publishers}
        self._due = set()
        return True

    def _roles(self) -> set[str]:
        holdings = (*self._publishers.values(), *self._silenced.values())
        own = {name for holding in holdings for name in holding.roles}
        return {Root.type, Targets.type, Snapshot.type, Timestamp.type} | own

    def _version(self, role: str) -> int:
        """Return the latest version of a role that is served."""
        present = {Root.type: self._root, Targets.type: self._targets}
        online = {Snapshot.type: self._snapshot, Timestamp.type: self._timestamp}
        publisher = role.partition("_")[0]
        known = self._publishers.get(publisher) or self._silenced.get(publisher)
        if known is not None:
            return known.roles[role].signed.version
        signed = present.get(role) or online.get(role)
        return signed.version if signed is not None else 0

    def _load_targets(self) -> Targets:
        version = latest(self._folder, Targets.type)
        metadata = self._read(f"{version}.targets.json", Targets)
        check_signed(self._root, Targets.type, metadata)
        return metadata.signed

    def _load_timestamp(self) -> Timestamp | None:
        if not (self._folder / "timestamp.json").is_file():
            return None
        metadata = self._read("timestamp.json", Timestamp)
        self._check_online(Timestamp.type, metadata)
        return metadata.signed

    def _load_snapshot(self) -> Snapshot | None:
        if self._timestamp is None:
            return None
        version = self._timestamp.snapshot_meta.version
        metadata = self._read(f"{version}.snapshot.json", Snapshot)
        self._check_online(Snapshot.type, metadata)
        return metadata.signed

    def _check_online(self, role: str, metadata: Metadata[Role]) -> None:
        """Check who signed a role of ours; where a former root's key did, it is signed anew."""
        try:
            check_signed(self._root, role, metadata)
        except TrustError:
            for data in self._roots.values():
                former = parse(data, Root, "catalog root").signed
                with contextlib.suppress(TrustError):
                    check_signed(former, role, metadata)
                    self._due.add(role)
                    return
            raise

    def _load_publishers(self) -> dict[str, Holding]:
        loaded = {}
        for name in self.publishers:
            role = self._load_role(name)
            if role is None:
                continue
            holding = Holding(name, {name: role})
            names = holding.bins.get_roles() if holding.bins is not None else ()
            bins = {name: self._load_role(name) for name in names}
            holding = holding.with_roles({name: bin for name, bin in bins.items() if bin})
            try:
                check_signed(self._targets, name, role)
                check_bins(holding)
            except TrustError:
                # its keys were replaced: nothing of it counts until the new ones sign it
                self._silenced[name] = holding
            else:
                loaded[name] = holding
        return loaded

    def _load_role(self, name: str) -> Metadata[Targets] | None:
        meta = None if self._snapshot is None else self._snapshot.meta.get(f"{name}.json")
        return None if meta is None else self._read(f"{meta.version}.{name}.json", Targets)

    def _read(self, name: str, kind: type[Role]) -> Metadata[Role]:
        path = self._folder / name
        try:
            return parse(path.read_bytes(), kind, str(path))
        except FileNotFoundError:
            raise TrustError(f"expected {path}; restore the folder as a whole", "missing") from None


def _due_later(expires: datetime, now: datetime, renewal: timedelta, valid: timedelta) -> bool:
    """Tell whether metadata need not be signed anew.

    One that expires later than any signed now was signed under a clock that was ahead: devices
    must not take its word for the time any longer than they have to.
    """
    return renewal < expires - now <= valid + CLOCK_SLACK
