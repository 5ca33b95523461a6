"""Published releases in the database, and what of their bundles is asked for often."""

import threading
from typing import Any

import msgspec
from sqlalchemy import Row, insert, select
from sqlalchemy.exc import IntegrityError

from fleet.database import Database, upsert
from fleet.schema import blobs, bundle_blobs, releases
from skerry.canonical import from_json, from_msgpack, to_json
from skerry.errors import ConflictError, NotFoundError
from skerry.manifest import Baseline, Evaluation, Manifest
from skerry.trust import CatalogTarget, parse_target

__all__ = ["MAX_BASELINE_BYTES", "Release", "ReleaseStore"]

MAX_BASELINE_BYTES = 4 << 20


class Release(msgspec.Struct, frozen=True):
    """A published release: what the catalog says of it, and what its bundle says of itself."""

    target: CatalogTarget
    manifest: Manifest
    evaluation: Evaluation | None
    published_at: float

    @property
    def bundle(self) -> str:
        """The bundle's digest."""
        return "sha256:" + self.target.sha256


class ReleaseStore:
    """Reads and writes releases."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._baselines: dict[str, Baseline] = {}
        self._lock = threading.Lock()

    def add(self, release: Release, *, baseline: bytes, sizes: dict[str, int]) -> None:
        """Store a release with the blobs of its bundle, in one transaction.

        Args:
            release: verified.
            baseline: the baseline file of its bundle, MessagePack.
            sizes: blob digest -> bytes; the blobs are in place already.

        Raises:
            ConflictError: this version of the model is published already.
        """
        target, name = release.target, parse_target(release.target.path)
        row = {
            "target": target.path,
            "publisher": name.publisher,
            "model": name.model,
            "model_version": name.model_version,
            "bundle": release.bundle,
            "length": target.length,
            "release_counter": target.release_counter,
            "hw_classes": to_json(target.hw_classes).decode(),
            "min_agent": target.min_agent,
            "may_fall_back_to": to_json(target.may_fall_back_to).decode(),
            "manifest": to_json(release.manifest).decode(),
            "evaluation": to_json(release.evaluation).decode(),
            "baseline": baseline,
            "published_at": release.published_at,
        }
        try:
            with self._db.write() as connection:
                connection.execute(insert(releases), row)
                connection.execute(
                    upsert(connection, blobs, ["digest"], columns=["size_bytes"]),
                    [
                        {"digest": d, "size_bytes": n, "created_at": release.published_at}
                        for d, n in sorted(sizes.items())
                    ],
                )
                connection.execute(
                    insert(bundle_blobs),
                    [{"bundle": release.bundle, "digest": digest} for digest in sorted(sizes)],
                )
        except IntegrityError:
            raise ConflictError(
                f"expected a new release, but {name.model} {name.model_version} (or this very "
                "bundle) is published already; raise the version in the recipe and build again"
            ) from None

    def get(self, target: str) -> Release:
        """Return a release by its target path.

        Raises:
            NotFoundError: none is published under it.
        """
        found = self._select(releases.c.target == target)
        if not found:
            raise NotFoundError(
                f"expected a published release, found no {target}; publish it first"
            )
        return found[0]

    def by_bundle(self, bundle: str) -> Release | None:
        """Return the release of a bundle digest."""
        found = self._select(releases.c.bundle == bundle)
        return found[0] if found else None

    def of_model(self, model: str) -> list[Release]:
        """Return a model's releases, the oldest first."""
        return self._select(releases.c.model == model)

    def all(self) -> list[Release]:
        """Return every release, the oldest first."""
        return self._select()

    def baseline(self, bundle: str) -> Baseline | None:
        """Return the baseline of a published bundle."""
        with self._lock:
            known = self._baselines.get(bundle)
        if known is not None:
            return known
        with self._db.read() as connection:
            raw = connection.scalar(select(releases.c.baseline).where(releases.c.bundle == bundle))
        if raw is None:
            return None
        baseline = from_msgpack(bytes(raw), Baseline, limit=MAX_BASELINE_BYTES)
        with self._lock:
            self._baselines[bundle] = baseline
        return baseline

    def _select(self, *where: Any) -> list[Release]:
        query = select(releases).where(*where).order_by(releases.c.published_at, releases.c.target)
        with self._db.read() as connection:
            return [_release(row) for row in connection.execute(query)]


def _release(row: Row[Any]) -> Release:
    return Release(
        target=CatalogTarget(
            path=row.target,
            length=row.length,
            sha256=row.bundle.removeprefix("sha256:"),
            release_counter=row.release_counter,
            hw_classes=from_json(row.hw_classes.encode(), list[str]),
            min_agent=row.min_agent,
            may_fall_back_to=from_json(row.may_fall_back_to.encode(), list[str]),
        ),
        manifest=from_json(row.manifest.encode(), Manifest),
        evaluation=msgspec.json.decode(row.evaluation, type=Evaluation | None),
        published_at=row.published_at,
    )
