"""The client of the conformance suite: its command line and exit codes, against a catalog of ours."""

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata, Root, Targets

from fleet.roles import sign
from skerry.canonical import sha256
from skerry.keys import Signer
from tests.fakes.http_files import FileServer
from tests.fakes.trusted import PHRASE, TrustedFleet, make_bundle, make_fleet

CLIENT = Path(__file__).with_name("tuf-client")
PATH = "models/acme/reader@1.0.0"


class Place:
    """A catalog that is served, and a client's folders."""

    def __init__(self, folder: Path, server: FileServer) -> None:
        self.now = datetime.now(UTC)
        self.made: TrustedFleet = make_fleet(folder, now=self.now)
        self.metadata, self.targets = folder / "metadata", folder / "targets"
        self.targets.mkdir()
        self.url, self.files = server.url, server.files
        bundle = make_bundle("1.0.0")
        self.made.publish(bundle, now=self.now)
        self.manifest = self.made.blobs.read("sha256:" + self.made.catalog.release(PATH).sha256)
        digest = sha256(self.manifest).removeprefix("sha256:")
        self.files[f"/targets/models/acme/{digest}.reader%401.0.0"] = self.manifest
        self.serve()

    def serve(self) -> None:
        folder = self.made.data / "tuf" / "catalog"
        self.files |= {
            f"/metadata/{path.name}": path.read_bytes() for path in folder.glob("*.json")
        }

    def run(self, *arguments: str | Path) -> int:
        command = [sys.executable, CLIENT, "--metadata-dir", self.metadata, *arguments]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        return subprocess.run(command, check=False, env=environment, timeout=60).returncode

    def refresh(self) -> int:
        return self.run("--metadata-url", f"{self.url}/metadata", "refresh")

    def download(self, name: str) -> int:
        return self.run(
            "--metadata-url", f"{self.url}/metadata", "--target-base-url", f"{self.url}/targets",
            "--target-dir", self.targets, "--target-name", name, "download",
        )  # fmt: skip

    def version(self, role: str) -> int:
        return int(
            Metadata.from_bytes((self.metadata / f"{role}.json").read_bytes()).signed.version
        )


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with FileServer() as server:
        place = Place(tmp_path, server)
        root = place.made.data / "tuf" / "catalog" / "1.root.json"
        assert place.run("init", root) == 0
        yield place


def test_it_reads_a_catalog_and_fetches_what_it_names(place: Place) -> None:
    assert place.refresh() == 0
    assert (place.version("root"), place.version("targets")) == (1, 1)
    assert place.download(PATH) == 0
    assert [file.read_bytes() for file in place.targets.iterdir()] == [place.manifest]
    for path in [path for path in place.files if path.startswith("/targets")]:
        del place.files[path]
    assert place.download(PATH) == 0
    assert place.download("models/acme/another@1.0.0") == 1


def test_it_refuses_other_bytes_and_another_signer(place: Place) -> None:
    name = next(path for path in place.files if path.startswith("/targets"))
    place.files[name] = place.manifest[:-1] + b"?"
    assert place.download(PATH) == 1
    assert list(place.targets.iterdir()) == []
    stranger = Signer.generate()
    forged = Metadata[Targets].from_bytes(place.files["/metadata/timestamp.json"]).signed
    forged.version += 1
    place.files["/metadata/timestamp.json"] = sign(forged, [stranger])
    before = place.version("timestamp")
    assert place.refresh() == 1
    assert place.version("timestamp") == before


def test_it_follows_roots_from_the_first_whatever_happened_to_its_files(place: Place) -> None:
    assert place.refresh() == 0
    root = Metadata[Root].from_bytes(place.made.catalog.root).signed
    root.version = 2
    keys = [
        Signer.from_pem((place.made.out / f"root-{n}.pem").read_bytes(), PHRASE) for n in (1, 3)
    ]
    place.files["/metadata/2.root.json"] = sign(root, keys[:1])
    assert place.refresh() == 1
    place.files["/metadata/2.root.json"] = sign(root, keys)
    for file in place.metadata.glob("*.json"):
        file.write_bytes(file.read_bytes()[:10])
    assert place.refresh() == 0
    assert place.version("root") == 2
