"""Two people, two machines, a file in between: the real commands, against a real fleet."""

import asyncio
import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from skerry.bundle import read_bundle, write_bundle
from skerry.canonical import to_json
from tests.flows.test_errors import (
    EXAMPLES,
    PHRASE,
    ROOT,
    Done,
    Town,
    command,
    environment,
    must,
    skerry,
    until,
)


@dataclass
class Machine:
    """A folder with what one person has: a key, the root of the ceremony, what was brought."""

    folder: Path
    number: int

    @property
    def key(self) -> Path:
        return self.folder / f"publisher-acme-{self.number}.pem"

    def run(self, *arguments: object) -> Done:
        return skerry(*arguments, cwd=self.folder, SKERRY_KEY_PASSPHRASE=PHRASE)

    def sign(self, bundle: str, *arguments: object) -> Done:
        return self.run("sign", bundle, "--key", self.key, *arguments, "--out", "release.json")

    def begin(self, bundle: str, fleet: str) -> Done:
        return self.sign(bundle, "--publisher", "acme", "--fleet", fleet)

    def add(self, bundle: str) -> Done:
        return self.sign(bundle, "--add", "release.json", "--root", "1.root.json")

    def carry(self, other: "Machine", *names: str) -> None:
        """Take files over on a stick."""
        for name in names:
            shutil.copy(self.folder / name, other.folder / name)


class Street(Town):
    """A fleet whose publisher acme signs by two of three people."""

    def make(self) -> None:
        must(skerry("fleet", "init", "--data", self.data))
        must(
            skerry(
                "keys", "ceremony", "--data", self.data, "--out", self.root / "keys",
                "--publisher", "acme:2-of-3", SKERRY_KEY_PASSPHRASE=PHRASE,
            )
        )  # fmt: skip
        must(skerry("build", EXAMPLES / "reader-1.0.0.toml", "--out", self.root))
        toml = 'fleet_id = "main"\nport = 0\ndevice_port = 0\nbroker_port = 0\n'
        (self.data / "fleet.toml").write_text(toml)

    def machine(self, number: int) -> Machine:
        folder = self.root / f"machine-{number}"
        folder.mkdir()
        shutil.copy(self.root / "keys" / f"publisher-acme-{number}.pem", folder)
        shutil.copy(self.data / "tuf" / "catalog" / "1.root.json", folder)
        return Machine(folder, number)

    def bundle_of(self, version: str) -> bytes:
        """The same model under another version."""
        bundle = read_bundle(io.BytesIO(self.bundle.read_bytes()))
        manifest = msgspec.structs.replace(bundle.manifest, model_version=version)
        file = io.BytesIO()
        layers = {digest[7:23]: data for digest, data in bundle.blobs.items()}
        write_bundle(file, to_json(manifest), layers)
        return file.getvalue()

    @property
    def url(self) -> str:
        return str(self.info["api_url"])

    def publish(self, machine: Machine, bundle: str) -> Done:
        token = ("--token-file", self.data / "admin.token")
        return machine.run("publish", bundle, "release.json", "--fleet", self.url, *token)

    def post(self, bundle: Path, metadata: bytes) -> tuple[int, Any]:
        """Publish without our own command; return the status and the answer."""

        async def send() -> tuple[int, Any]:
            form = aiohttp.FormData()
            form.add_field("metadata", metadata, filename="metadata.json")
            form.add_field("bundle", bundle.read_bytes(), filename=bundle.name)
            head = {"Authorization": f"Bearer {(self.data / 'admin.token').read_text().strip()}"}
            async with (
                aiohttp.ClientSession(headers=head) as session,
                session.post(f"{self.url}/api/v1/bundles", data=form) as answer,
            ):
                return answer.status, json.loads(await answer.read())

        return asyncio.run(send())


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Street]:
    made = Street(tmp_path_factory.mktemp("street"))
    made.make()
    made.start()
    until("an address", lambda: made.info.get("api_url"))
    yield made
    made.stop()


def test_two_people_two_machines_and_a_file(street: Street) -> None:
    ann, bob, cy = (street.machine(number) for number in (1, 2, 3))
    for version in ("1.0.0", "1.1.0"):
        (ann.folder / f"{version}.skerry").write_bytes(street.bundle_of(version))

    # the first release: one begins it, and cannot publish it alone
    done = ann.begin("1.0.0.skerry", street.url)
    must(done)
    assert "1 of 2 signatures; next: give release.json and 1.0.0.skerry to somebody" in done.err
    street.publish(ann, "1.0.0.skerry").refused(7, "1 of 2 signatures; next: ")

    # the other has no network, and no address of a fleet
    ann.carry(bob, "release.json", "1.0.0.skerry")
    done = bob.add("1.0.0.skerry")
    must(done)
    for words in (
        "model      reader 1.0.0, release 1 of this model (new)", "the one at hand",
        "metadata   version 0 becomes 1", "besides    nothing changes",
        "2 of 2 signatures; next: skerry publish 1.0.0.skerry release.json",
    ):  # fmt: skip
        assert words in done.err
    assert must(street.publish(bob, "1.0.0.skerry")).startswith("sha256:")

    # the same person twice is one; a fleet that is told so all the same refuses too
    done = ann.begin("1.1.0.skerry", street.url)
    must(done)
    done = ann.add("1.1.0.skerry")
    must(done)
    assert "1 of 2 signatures" in done.err
    file = json.loads((ann.folder / "release.json").read_text())
    plain = ann.folder / "plain.json"
    plain.write_text(json.dumps(file["metadata"]["acme"]))
    token = ("--token-file", street.data / "admin.token")
    ann.run("publish", "1.1.0.skerry", plain, "--fleet", street.url, *token).refused(
        7, "refused", "1/2 keys"
    )

    status, problem = street.post(ann.folder / "1.1.0.skerry", plain.read_bytes())
    assert (status, problem["code"]) == (422, "signature_invalid")

    # somebody else was faster: what both signed is too late, and says what to do
    ann.carry(cy, "release.json", "1.1.0.skerry")
    must(cy.add("1.1.0.skerry"))
    (bob.folder / "1.2.0.skerry").write_bytes(street.bundle_of("1.2.0"))
    must(bob.sign("1.2.0.skerry", "--publisher", "acme", "--metadata", "release.json"))
    bob.carry(ann, "1.2.0.skerry")
    shutil.copy(bob.folder / "release.json", ann.folder / "release.json")
    must(ann.add("1.2.0.skerry"))
    must(street.publish(ann, "1.2.0.skerry"))
    street.publish(cy, "1.1.0.skerry").refused(5, "somebody published in between", "sign again")


def test_what_can_be_wrong_with_the_file(street: Street, tmp_path: Path) -> None:
    dee = Machine(tmp_path, 1)
    for name in ("publisher-acme-1.pem", "publisher-acme-2.pem"):
        shutil.copy(street.root / "keys" / name, tmp_path)
    shutil.copy(street.data / "tuf" / "catalog" / "1.root.json", tmp_path)
    for version in ("3.0.0", "4.0.0"):
        (tmp_path / f"{version}.skerry").write_bytes(street.bundle_of(version))
    must(dee.begin("3.0.0.skerry", street.url))
    good = (tmp_path / "release.json").read_bytes()
    eve = Machine(tmp_path, 2)

    eve.add("4.0.0.skerry").refused(7, "reader@4.0.0", "the bundle that came with it")
    eve.sign("3.0.0.skerry", "--add", "release.json").refused(2, "--root", "--trusted")
    eve.sign("3.0.0.skerry", "--add", "none.json", "--root", "1.root.json").refused(3, "none.json")
    (tmp_path / "release.json").write_bytes(good[: len(good) // 2])
    eve.add("3.0.0.skerry").refused(1, "release.json", "if it was cut on its way, copy it again")
    (tmp_path / "release.json").write_bytes(good)
    wrong = skerry(
        "sign", "3.0.0.skerry", "--add", "release.json", "--root", "1.root.json",
        "--key", eve.key, "--out", "release.json", cwd=tmp_path, SKERRY_KEY_PASSPHRASE="not it",
    )  # fmt: skip
    assert wrong.code == 7
    assert "expected the passphrase" in wrong.err
    assert (tmp_path / "release.json").read_bytes() == good
    both = ("--publisher", "acme", "--add", "release.json")
    eve.sign("3.0.0.skerry", *both).refused(2, "--publisher to begin", "--add")
    must(eve.add("3.0.0.skerry"))


def test_the_howto_works_when_it_is_copied_into_an_empty_folder(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "howto" / "release-with-two-signatures.md").read_text()
    script = "".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL))
    ports = "--port 0 --device-port 0 --broker-port 0"
    assert script.count("fleet run --data fleet &") == 1
    script = script.replace("fleet run --data fleet &", f"fleet run --data fleet {ports} &")
    shim = tmp_path / "bin" / "skerry"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {" ".join(command("skerry"))} "$@"\n')
    shim.chmod(0o755)
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    path = f"{shim.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-emc", script + "wait\n"], cwd=fresh, capture_output=True, text=True, timeout=120,
        env=environment(PATH=path, EXAMPLES=str(EXAMPLES.parent)), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for words in ("1 of 2 signatures", "2 of 2 signatures", "published reader 1.0.0"):
        assert words in done.stderr
    assert "the one at hand" in done.stderr
