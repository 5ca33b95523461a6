"""The patches that a release comes with: made of what devices run, signed, and handed over."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result

import compiler.patches
import compiler.publish
from compiler import cli_release, cli_sign
from compiler.patches import in_service, make_patches, patch_file, signed_patches
from compiler.sign import release_of
from fleet import schema
from fleet.blobs import Blobs
from skerry.bundle import Bundle, read_bundle, write_bundle
from skerry.canonical import sha256, to_json
from skerry.delta import apply_patch
from skerry.errors import FormatError, NotFoundError, RefusedError, TrustError, UsageError
from skerry.manifest import FileRef
from skerry.release_file import read_release_file
from skerry.wire import ReleaseRef
from tests.fakes.backend import TOKEN, FakeBackend, listening, seed, with_commands
from tests.fakes.manifests import tiny_manifest
from tests.fakes.releases import readable_bundle
from tests.fakes.trusted import PHRASE, TrustedFleet, make_fleet

WEIGHTS = np.random.default_rng(1).bytes(60_000)


def bundle_of(version: str, files: dict[str, bytes]) -> Bundle:
    """A bundle with a variant of each file, in their order."""
    rest = ("golden.msgpack", "baseline.msgpack", "evaluation.json", "card.md")
    layers = {name: name.encode() for name in rest} | {"model.onnx": next(iter(files.values()))}
    manifest = tiny_manifest(layers)
    variants = [
        msgspec.structs.replace(
            manifest.variants[0], id=f"{name}-cpu", precision=name,
            file=FileRef(sha256(data), len(data)),
        )
        for name, data in files.items()
    ]  # fmt: skip
    manifest = msgspec.structs.replace(manifest, model_version=version, variants=variants)
    out = io.BytesIO()
    write_bundle(out, to_json(manifest), layers | files)
    return read_bundle(io.BytesIO(out.getvalue()))


def changed(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_each_variant_is_patched_from_its_twin() -> None:
    old = bundle_of("1.0.0", {"int8": WEIGHTS[:20_000], "fp32": WEIGHTS})
    new = bundle_of("1.1.0", {"int8": changed(WEIGHTS[:20_000], 5), "fp32": changed(WEIGHTS, 7)})
    made = list(make_patches(new, [old]))
    assert [(one.variant, one.parent_version) for one in made] == [
        ("int8-cpu", "1.0.0"), ("fp32-cpu", "1.0.0"),
    ]  # fmt: skip
    for one in made:
        pieces = apply_patch(
            io.BytesIO(old.blobs[one.ref.old]), io.BytesIO(one.data), limit_bytes=1 << 20
        )
        assert sha256(b"".join(pieces)) == one.ref.new
        assert (sha256(one.data), len(one.data)) == (one.ref.digest, one.ref.size_bytes)
        assert one.share < 0.02


def test_a_file_that_is_the_same_or_has_nothing_in_common_has_no_patch() -> None:
    old = bundle_of("1.0.0", {"int8": WEIGHTS[:20_000], "fp32": WEIGHTS})
    other = np.random.default_rng(2).bytes(60_000)
    new = bundle_of("1.1.0", {"int8": WEIGHTS[:20_000], "fp32": other, "fp16": changed(WEIGHTS, 1)})
    assert list(make_patches(new, [old])) == []


def test_no_more_patches_than_may_be_signed() -> None:
    parents = [bundle_of(f"1.0.{n}", {"fp32": changed(WEIGHTS, n)}) for n in range(20)]
    made = list(make_patches(bundle_of("1.1.0", {"fp32": WEIGHTS}), [*parents, *parents]))
    assert len(made) == 16
    assert len({one.ref.old for one in made}) == 16


# --- by commands, against a fleet ------------------------------------------------------------


class Publisher:
    """Somebody who releases, and the fleet that it is released to."""

    def __init__(self, folder: Path, trusted: TrustedFleet, backend: FakeBackend, url: str) -> None:
        self.folder, self.trusted, self.backend, self.url = folder, trusted, backend, url
        self.release = folder / "signed.json"

    def run(self, command: Any, *arguments: str | Path) -> Result:
        env = {"SKERRY_KEY_PASSPHRASE": PHRASE.decode(), "SKERRY_TOKEN": TOKEN,
               "SKERRY_FLEET": self.url}  # fmt: skip
        return CliRunner().invoke(command, [str(a) for a in arguments], env=env)

    def bundle(self, version: str, weights: bytes) -> Path:
        path = self.folder / f"reader-{version}.skerry"
        path.write_bytes(readable_bundle(version, weights=weights))
        return path

    def sign(self, bundle: Path, *options: str | Path) -> Result:
        return self.run(
            cli_sign.sign, bundle, "--publisher", "acme", "--key",
            self.trusted.out / "publisher-acme.pem", "--out", self.release, *options, "--json",
        )  # fmt: skip

    def publish(self, bundle: Path) -> Any:
        done = self.run(cli_release.publish, bundle, self.release, "--json")
        assert done.exit_code == 0, done.stderr
        return json.loads(done.stdout)

    def first(self) -> Path:
        """Publish 1.2.0."""
        bundle = self.bundle("1.2.0", WEIGHTS)
        done = self.sign(bundle)
        assert done.exit_code == 0, done.stderr
        assert self.publish(bundle)["patches"] == []
        return bundle

    def blobs(self) -> Blobs:
        return self.trusted.blobs


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[Publisher]:
    trusted = make_fleet(tmp_path)
    backend = with_commands(seed(tmp_path), trusted)
    with listening(backend) as url:
        yield Publisher(tmp_path, trusted, backend, url)
    backend.store.close()


def listed(publisher: Publisher, version: str = "1.3.0") -> list[Any]:
    return publisher.trusted.catalog.release(f"models/acme/reader@{version}").patches


def test_patches_are_signed_and_handed_over(publisher: Publisher) -> None:
    old = publisher.first()
    new = publisher.bundle("1.3.0", changed(WEIGHTS, 9))
    said = publisher.sign(new, "--patch-from", old)
    assert said.exit_code == 0, said.stderr
    assert "patch from 1.2.0 for fp32-cpu" in said.stderr
    (patch,) = json.loads(said.stdout)["patches"]
    assert publisher.publish(new)["patches"] == [patch["digest"]]
    assert [ref.digest for ref in listed(publisher)] == [patch["digest"]]
    data = publisher.blobs().read(patch["digest"])
    assert data == patch_file(publisher.release, patch["digest"]).read_bytes()
    assert publisher.publish(new)["patches"] == [patch["digest"]]  # again: nothing changes


def test_what_devices_run_is_fetched_and_patched(publisher: Publisher) -> None:
    old = publisher.first()
    running(publisher, {"harbour-01": read_bundle(io.BytesIO(old.read_bytes())).digest})
    new = publisher.bundle("1.3.0", changed(WEIGHTS, 9))
    said = publisher.sign(new, "--patches")
    assert said.exit_code == 0, said.stderr
    assert len(json.loads(said.stdout)["patches"]) == 1
    assert len(publisher.publish(new)["patches"]) == 1


def running(publisher: Publisher, devices: dict[str, str]) -> None:
    """Have devices report that they run 1.2.0."""
    with publisher.backend.store.database.write() as connection:
        for device, digest in devices.items():
            slots = {"reader": ReleaseRef("reader", "1.2.0", digest, "fp32-cpu", 1.0)}
            connection.execute(
                schema.reported.insert().values(
                    device=device, version=1, desired_version=1, slots=to_json(slots).decode(),
                    stored_at=1.0,
                )
            )  # fmt: skip


def test_why_there_are_no_patches_is_told(publisher: Publisher) -> None:
    old = publisher.first()
    other = publisher.bundle("1.3.0", np.random.default_rng(3).bytes(60_000))
    done = publisher.sign(other, "--patches")
    assert "run no version that was signed here" in done.stderr
    assert json.loads(done.stdout)["patches"] == []
    publisher.release.unlink()
    done = publisher.sign(other, "--patch-from", old)
    assert "none from 1.2.0 saves a tenth" in done.stderr
    assert json.loads(done.stdout)["patches"] == []


def test_what_was_released_keeps_its_patches(publisher: Publisher) -> None:
    old = publisher.first()
    new = publisher.bundle("1.3.0", changed(WEIGHTS, 9))
    publisher.sign(new)
    publisher.publish(new)
    done = publisher.sign(new, "--patch-from", old)
    assert done.exit_code == 0, done.stderr
    assert "stay those that were signed" in done.stderr
    assert json.loads(done.stdout)["patches"] == []


def test_a_bundle_that_the_publisher_never_signed_is_not_looked_at(publisher: Publisher) -> None:
    running(publisher, {"harbour-01": sha256(b"strange"), "harbour-02": sha256(b"stranger")})
    assert list(in_service(publisher.url, TOKEN, "reader", {sha256(b"mine")})) == []


def test_a_fleet_that_gives_another_bundle_is_refused(publisher: Publisher) -> None:
    publisher.first()
    running(publisher, {"harbour-01": sha256(b"mine")})
    with pytest.raises(TrustError, match="expected sha256"):
        list(in_service(publisher.url, TOKEN, "reader", {sha256(b"mine")}))
    with pytest.raises(RefusedError):
        list(in_service(publisher.url, "wrong", "reader", {sha256(b"mine")}))


def test_what_is_no_fleet_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    for answer in (b"<html>", b"[]", b'{"items": [1]}', b'{"items": [{"slots": {"a": {}}}]}'):
        monkeypatch.setattr(compiler.patches, "download", lambda *_, answer=answer: answer)
        with pytest.raises(FormatError, match="is this a fleet"):
            list(in_service("http://x", TOKEN, "reader", set()))


def test_options_that_do_not_go_together_leave_with_2(publisher: Publisher) -> None:
    bundle = publisher.first()
    env = {"SKERRY_FLEET": "", "SKERRY_TOKEN": ""}
    alone = ["--publisher", "acme", "--key", "k", "--out", "o"]
    done = CliRunner().invoke(cli_sign.sign, [str(bundle), *alone, "--patches"], env=env)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "--fleet" in done.stderr
    further = ["--add", str(publisher.release), "--key", "k", "--out", "o"]
    done = CliRunner().invoke(
        cli_sign.sign, [str(bundle), *further, "--patch-from", str(bundle)], env=env
    )
    assert (done.exit_code, done.stdout) == (2, "")
    done = publisher.sign(publisher.bundle("1.3.0", WEIGHTS), "--patch-from", "nothing.skerry")
    assert (done.exit_code, done.stdout) == (3, "")


def test_a_patch_that_is_not_at_hand_is_told_and_can_follow(publisher: Publisher) -> None:
    old = publisher.first()
    new = publisher.bundle("1.3.0", changed(WEIGHTS, 9))
    (patch,) = json.loads(publisher.sign(new, "--patch-from", old).stdout)["patches"]
    place = patch_file(publisher.release, patch["digest"])
    away = place.rename(publisher.folder / "away")
    done = publisher.run(cli_release.publish, new, publisher.release, "--json")
    assert (done.exit_code, json.loads(done.stdout)["patches"]) == (0, [])
    assert str(place) in done.stderr
    away.rename(place)
    assert publisher.publish(new)["patches"] == [patch["digest"]]


def test_the_fleet_keeps_only_patches_that_are_signed(publisher: Publisher) -> None:
    old = publisher.first()
    new = publisher.bundle("1.3.0", changed(WEIGHTS, 9))
    (patch,) = json.loads(publisher.sign(new, "--patch-from", old).stdout)["patches"]
    commands, digest = publisher.backend.commands, patch["digest"]
    data = patch_file(publisher.release, digest).read_bytes()
    with pytest.raises(NotFoundError, match="no release lists"):
        commands.add_patch(digest, io.BytesIO(data), "admin")
    done = publisher.run(cli_release.publish, new, publisher.release)
    assert done.exit_code == 0
    (publisher.trusted.data / "blobs" / "sha256" / digest.removeprefix("sha256:")).unlink()
    for wrong in (data[:-1], data + b"x", bytes(len(data))):
        with pytest.raises(FormatError):
            commands.add_patch(digest, io.BytesIO(wrong), "admin")
        assert not publisher.blobs().has(digest)
    assert commands.add_patch(digest, io.BytesIO(data), "admin")
    assert not commands.add_patch(digest, io.BytesIO(data), "admin")


def test_the_route_stops_at_the_signed_size(publisher: Publisher) -> None:
    old = publisher.first()
    new = publisher.bundle("1.3.0", changed(WEIGHTS, 9))
    (patch,) = json.loads(publisher.sign(new, "--patch-from", old).stdout)["patches"]
    publisher.publish(new)
    url, path = publisher.url, publisher.folder / "long"
    path.write_bytes(bytes(patch["size_bytes"] + 1))
    with pytest.raises(UsageError, match="got more"):
        compiler.publish.upload_patch(path, patch["digest"], url, TOKEN)
    with pytest.raises(NotFoundError):
        compiler.publish.upload_patch(path, sha256(b"unlisted"), url, TOKEN)
    with pytest.raises(RefusedError):
        compiler.publish.upload_patch(path, patch["digest"], url, "wrong")


def test_a_release_with_patches_to_other_files_is_refused(publisher: Publisher) -> None:
    """The rule that fleet and further signers ask: a patch makes a file of this bundle."""
    old = publisher.first()
    new = publisher.bundle("1.3.0", changed(WEIGHTS, 9))
    real = compiler.patches.make_patches

    def elsewhere(bundle: Bundle, parents: Any) -> Iterator[Any]:
        for made in real(bundle, parents):
            ref = msgspec.structs.replace(made.ref, new=sha256(b"another file"))
            yield replace(made, ref=ref)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cli_sign, "make_patches", elsewhere)
        assert publisher.sign(new, "--patch-from", old).exit_code == 0
    done = publisher.run(cli_release.publish, new, publisher.release)
    assert done.exit_code == 7
    assert "patches that make a variant" in done.stderr


def test_signed_patches_are_read_from_the_release_file(publisher: Publisher) -> None:
    old = publisher.first()
    new = publisher.bundle("1.3.0", changed(WEIGHTS, 9))
    publisher.sign(new, "--patch-from", old)
    file = read_release_file(publisher.release.read_bytes())
    path = release_of(read_bundle(io.BytesIO(new.read_bytes())), "acme").path
    assert len(signed_patches(file, path)) == 1
    assert signed_patches(file, path + "9") == []
