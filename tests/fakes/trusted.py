"""A fleet's trust, made for real in a temporary folder: keys, ceremony, catalog, director."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tuf.api.exceptions import DownloadHTTPError
from tuf.api.metadata import Metadata, Targets
from tuf.ngclient import FetcherInterface, Updater

from compiler.believe import Trust
from compiler.handover import fetch_release_file
from compiler.sign import add_release, release_of
from fleet.blobs import Blobs
from fleet.bundles import Bundles, Published
from fleet.ca import Authority
from fleet.catalog import Catalog
from fleet.ceremony import Ceremony, perform
from fleet.director import Director
from fleet.keystore import OnlineKeys, load_online_keys, make_online_keys
from fleet.roles import tuf_key
from skerry.bundle import read_bundle, write_bundle
from skerry.canonical import sha256, to_json
from skerry.custom import catalog_target, director_target
from skerry.errors import NotFoundError
from skerry.holding import Delegation
from skerry.keys import Signer
from skerry.manifest import (
    Accuracy,
    FileRef,
    Lineage,
    Manifest,
    PredictionSpec,
    TensorSpec,
    Variant,
)
from skerry.release_file import ReleaseFile
from skerry.trust import CatalogTarget, DirectorTarget

__all__ = ["NOW", "PHRASE", "Repository", "TrustedFleet", "look_up", "make_bundle", "make_fleet"]

NOW = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
PHRASE = b"correct horse battery"
ENVIRONMENT = {"SKERRY_KEY_PASSPHRASE": PHRASE.decode()}


@dataclass
class TrustedFleet:
    """A fleet after its key ceremony."""

    data: Path
    out: Path
    keys: OnlineKeys
    ceremony: Ceremony
    catalog: Catalog
    director: Director
    authority: Authority
    blobs: Blobs
    bundles: Bundles = field(init=False)

    def __post_init__(self) -> None:
        self.bundles = Bundles(self.blobs, self.catalog)

    def publisher(self, name: str = "acme") -> Signer:
        return Signer.from_pem((self.out / f"publisher-{name}.pem").read_bytes(), PHRASE)

    def sign(self, bundle: bytes, name: str = "acme", now: datetime = NOW) -> bytes:
        """Sign a bundle's release on top of what the catalog has, as a publisher does."""
        release = release_of(read_bundle(io.BytesIO(bundle)), name)
        delegation, key = self.delegation(name), self.publisher(name)
        known = tuf_key(key.public).keyid in delegation.keys
        trust = Trust(delegation, is_verified=True) if known else Trust()
        signed = add_release(self.roles(name), release, key, now=now, trust=trust)
        return signed[name] if len(signed) == 1 else ReleaseFile(name, signed).to_bytes()

    def delegation(self, name: str = "acme") -> Delegation:
        """Whose keys speak for a publisher."""
        targets = Metadata[Targets].from_bytes(self.catalog.metadata("targets.json")).signed
        return Delegation.of(targets, name)

    def roles(self, name: str = "acme") -> dict[str, bytes]:
        """A publisher's metadata as the catalog serves it, by role."""

        def serve(file: str) -> bytes | None:
            try:
                return self.catalog.metadata(file)
            except NotFoundError:
                return None

        return fetch_release_file(name, "", serve).before

    def publish(self, bundle: bytes, name: str = "acme", now: datetime = NOW) -> Published:
        return self.bundles.publish(io.BytesIO(bundle), self.sign(bundle, name, now), now)


def make_fleet(
    folder: Path, publishers: tuple[str, ...] = ("acme",), now: datetime = NOW
) -> TrustedFleet:
    data, out = folder / "data", folder / "out"
    make_online_keys(data / "keys", "demo", ENVIRONMENT)
    ceremony = perform(data, out, publishers, passphrase=lambda _: PHRASE, now=now)
    return open_fleet(data, out, ceremony, now)


def open_fleet(data: Path, out: Path, ceremony: Ceremony, now: datetime = NOW) -> TrustedFleet:
    keys = load_online_keys(data / "keys", ENVIRONMENT)
    return TrustedFleet(
        data=data,
        out=out,
        keys=keys,
        ceremony=ceremony,
        catalog=Catalog(data / "tuf" / "catalog", keys, now),
        director=Director(data / "tuf" / "director", keys),
        authority=Authority(
            keys.issuing,
            (data / "keys" / "issuing.crt").read_bytes(),
            (data / "keys" / "authority.crt").read_bytes(),
        ),
        blobs=Blobs(data / "blobs"),
    )


def make_bundle(
    version: str = "1.0.0",
    model: str = "reader",
    weights: bytes = b"weights",
    hw_classes: Sequence[str] = ("any",),
    opset: int = 17,
) -> bytes:
    """Return a bundle file; its layers are no real model, which nobody here loads."""
    layers = {
        "model.onnx": weights + version.encode(),
        "golden.msgpack": b"golden",
        "baseline.msgpack": b"baseline",
        "evaluation.json": b"{}",
        "card.md": b"# card",
    }
    refs = {name: FileRef(sha256(data), len(data)) for name, data in layers.items()}
    manifest = Manifest(
        model=model,
        model_version=version,
        variants=[
            Variant(
                id="fp32-cpu",
                file=refs["model.onnx"],
                precision="fp32",
                provider="CPUExecutionProvider",
                hw_classes=list(hw_classes),
                opset=opset,
                min_agent="0.1.0",
                accuracy=Accuracy("accuracy", 0.9, 100, "avx2"),
            )
        ],
        inputs=[TensorSpec("image", "FP32", [-1, 64])],
        outputs=[TensorSpec("scores", "FP32", [-1, 10])],
        prediction=PredictionSpec("scores", "argmax"),
        features=[],
        golden=refs["golden.msgpack"],
        baseline=refs["baseline.msgpack"],
        evaluation=refs["evaluation.json"],
        card=refs["card.md"],
        lineage=Lineage(recipe=sha256(b"recipe"), model_file=sha256(b"model")),
    )
    out = io.BytesIO()
    write_bundle(out, to_json(manifest), layers)
    return out.getvalue()


class Repository(FetcherInterface):
    """Serves metadata files out of a mapping, as they come in a message."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = files

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.rpartition("/")[2]
        try:
            yield self.files[name]
        except (KeyError, NotFoundError):
            raise DownloadHTTPError(f"no {name}", 404) from None


class CatalogFiles(Mapping[str, bytes]):
    """A catalog as a mapping of its files."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def __getitem__(self, name: str) -> bytes:
        return self._catalog.metadata(name)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def look_up(
    folder: Path, root: bytes, files: Mapping[str, bytes], path: str, now: datetime = NOW
) -> tuple[int, dict[str, str], object] | None:
    """Verify a repository as a device does, and return a target: length, hashes, custom."""
    folder.mkdir(parents=True, exist_ok=True)
    updater = Updater(str(folder), "http://x/", fetcher=Repository(files), bootstrap=root)
    updater._trusted_set.reference_time = now
    updater.refresh()
    info = updater.get_targetinfo(path)
    return None if info is None else (info.length, info.hashes, info.custom)


def released(
    folder: Path, fleet: TrustedFleet, path: str, now: datetime = NOW
) -> CatalogTarget | None:
    found = look_up(folder, fleet.catalog.root, CatalogFiles(fleet.catalog), path, now)
    return None if found is None else catalog_target(path, *found)


def assigned(
    folder: Path,
    root: bytes,
    files: Mapping[str, bytes],
    path: str,
    now: datetime = NOW,
) -> DirectorTarget | None:
    found = look_up(folder, root, files, path, now)
    return None if found is None else director_target(path, *found)
