"""Releases signed with keys in files, on tokens and behind commands, down to the device's verifier."""

import asyncio
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives.asymmetric import ec
from securesystemslib.signer import CryptoSigner, SSlibKey
from securesystemslib.signer import Signer as TufSigner
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Targets

from agent.verifier import verify_request
from agent.verify_protocol import VerifyAnswer, VerifyRequest
from compiler.sign import add_release, release_of
from fleet.api.problems import problems
from fleet.ceremony import perform
from fleet.device_api import add_catalog_routes
from fleet.director import assign
from fleet.keystore import make_online_keys
from fleet.rotation import Wanted, approve_file, begin, install, settle
from skerry.bundle import read_bundle
from skerry.errors import TrustError
from skerry.io.signers import add_signature, open_signer
from skerry.keys import Signer
from skerry.trust import CatalogTarget
from tests.fakes.command_signer import command_for
from tests.fakes.softhsm import PIN, softhsm
from tests.fakes.trusted import (
    ENVIRONMENT,
    NOW,
    PHRASE,
    TrustedFleet,
    make_bundle,
    open_fleet,
)

pytestmark = pytest.mark.softhsm

FORMS = ("file", "token", "command")


@dataclass
class Publisher:
    """A publisher whose keys were not made in the ceremony, and a fleet that knows them."""

    trusted: TrustedFleet
    signers: dict[str, TufSigner]

    def sign(self, bundle: bytes, *forms: str) -> bytes:
        """Sign a release with one key after the other, each person handing on the file."""
        first, *others = (self.signers[form] for form in forms)
        release = release_of(read_bundle(io.BytesIO(bundle)), "acme")
        data = add_release({}, release, first, now=NOW)["acme"]
        for signer in others:
            metadata = Metadata[Targets].from_bytes(data)
            add_signature(metadata, signer, append=True)
            data = metadata.to_bytes()
        return data

    def publish(self, bundle: bytes, *forms: str) -> CatalogTarget:
        signed = self.sign(bundle, *forms)
        return self.trusted.bundles.publish(io.BytesIO(bundle), signed, NOW).target


def secret_of(what: str) -> bytes:
    return PIN if what == "token acme" else PHRASE


def public(signer: TufSigner) -> SSlibKey:
    key = signer.public_key
    assert isinstance(key, SSlibKey)
    return key


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("keys")
    pem = folder / "key.pem"
    pem.write_bytes(Signer.generate().to_pem(PHRASE))
    with softhsm(folder / "hsm") as hsm:
        hsm.make_token("acme")
        yield {
            "file": str(pem),
            "token": hsm.make_key("acme", "release"),
            "command": command_for(folder / "kms", ec.generate_private_key(ec.SECP256R1())),
        }


@pytest.fixture
def signers(specs: dict[str, str]) -> dict[str, TufSigner]:
    return {form: open_signer(spec, secret_of) for form, spec in specs.items()}


def publisher_of(
    folder: Path, signers: dict[str, TufSigner], forms: tuple[str, ...], threshold: int
) -> Publisher:
    """Hold a ceremony, then give the publisher these keys, as two root keys may."""
    data, out = folder / "data", folder / "out"
    make_online_keys(data / "keys", "demo", ENVIRONMENT)
    ceremony = perform(data, out, ["acme"], passphrase=lambda _: PHRASE, now=NOW)
    path = data / "tuf" / "catalog" / "1.targets.json"
    metadata = Metadata[Targets].from_bytes(path.read_bytes())
    keys: dict[str, SSlibKey] = {}
    for form in forms:
        key = public(signers[form])
        keys[key.keyid] = key
    role = DelegatedRole("acme", list(keys), threshold, True, paths=["models/acme/*"])
    metadata.signed.delegations = Delegations(keys, {"acme": role})
    metadata.signatures.clear()
    for name in ("root-1", "root-2"):
        root = Signer.from_pem((out / f"{name}.pem").read_bytes(), PHRASE)
        metadata.sign(CryptoSigner(root.private_key), append=True)
    path.write_bytes(metadata.to_bytes())
    return Publisher(open_fleet(data, out, ceremony), signers)


async def seen_by_a_device(
    trusted: TrustedFleet, release: CatalogTarget, folder: Path
) -> VerifyAnswer:
    """Let the agent's verifier follow the catalog over HTTP, from the first root."""
    order = assign(release, device="dev-1", slot="reader", rollout="r-1", assignment_id="a-1")
    app = web.Application(middlewares=[problems])
    add_catalog_routes(app, trusted.catalog, trusted.director)
    async with TestServer(app) as server:
        request = VerifyRequest(
            target=release.path,
            director=trusted.director.sign("dev-1", [order], version=1, now=NOW),
            catalog_url=str(server.make_url("/tuf/catalog/metadata")),
            catalog_root=(trusted.data / "tuf" / "catalog" / "1.root.json").read_bytes(),
            director_root=(trusted.data / "tuf" / "director" / "1.root.json").read_bytes(),
            directory=str(folder),
            now=NOW.timestamp(),
            timeout_s=5.0,
        )
        return await asyncio.to_thread(verify_request, request)


@pytest.mark.parametrize("form", FORMS)
async def test_a_device_accepts_a_release_signed_in_each_form(
    tmp_path: Path, signers: dict[str, TufSigner], form: str
) -> None:
    publisher = publisher_of(tmp_path, signers, (form,), 1)
    release = publisher.publish(make_bundle(), form)
    answer = await seen_by_a_device(publisher.trusted, release, tmp_path / "device")
    assert (answer.code, answer.message) == ("", "")
    assert answer.released == release


async def test_a_device_accepts_what_two_of_three_people_signed(
    tmp_path: Path, signers: dict[str, TufSigner]
) -> None:
    publisher = publisher_of(tmp_path, signers, FORMS, 2)
    release = publisher.publish(make_bundle(), "token", "command")
    answer = await seen_by_a_device(publisher.trusted, release, tmp_path / "device")
    assert (answer.code, answer.message) == ("", "")
    assert answer.released == release


@pytest.mark.parametrize("form", FORMS)
def test_the_fleet_refuses_what_one_of_three_signed(
    tmp_path: Path, signers: dict[str, TufSigner], form: str
) -> None:
    publisher = publisher_of(tmp_path, signers, FORMS, 2)
    with pytest.raises(TrustError) as refused:
        publisher.publish(make_bundle(), form)
    assert refused.value.code == "signature_invalid"


@pytest.mark.parametrize(("left_out", "code"), [((), ""), (("command",), "signature_invalid")])
async def test_a_device_refuses_what_one_of_three_signed(
    tmp_path: Path, signers: dict[str, TufSigner], left_out: tuple[str, ...], code: str
) -> None:
    """A fleet that was taken over would publish it all the same."""
    publisher = publisher_of(tmp_path, signers, FORMS, 2)
    release = publisher.publish(make_bundle(), "token", "command")
    [path] = (tmp_path / "data" / "tuf" / "catalog").glob("*.acme.json")
    metadata = Metadata[Targets].from_bytes(path.read_bytes())
    for form in left_out:
        del metadata.signatures[signers[form].public_key.keyid]
    path.write_bytes(metadata.to_bytes())
    answer = await seen_by_a_device(publisher.trusted, release, tmp_path / "device")
    assert answer.code == code, answer.message


async def test_a_root_key_and_a_publisher_s_move_to_tokens_by_rotation(
    tmp_path: Path, specs: dict[str, str], signers: dict[str, TufSigner]
) -> None:
    """A device that was enrolled before follows both roots, and believes the new keys."""
    data, out = tmp_path / "data", tmp_path / "out"
    make_online_keys(data / "keys", "demo", ENVIRONMENT)
    ceremony = perform(data, out, ["acme"], passphrase=lambda _: PHRASE, now=NOW)
    root_1, root_3 = (str(out / f"{name}.pem") for name in ("root-1", "root-3"))
    wanted = Wanted(
        {"root-2": public(signers["token"]), "publisher-acme": public(signers["command"])}
    )
    for changed, holders in (
        (wanted, (specs["token"], root_1, root_3)),
        (Wanted(), (specs["token"], root_1)),
    ):
        folder = tmp_path / f"change-{len(holders)}"
        begun = begin(data, folder, changed, passphrase=secret_of, now=NOW)
        assert begun.secret_files == ()
        for holder in holders:
            approve_file(begun.file, holder, secret_of, NOW)
        install(begun.file, data, NOW)
        assert settle(data, NOW)
    publisher = Publisher(open_fleet(data, out, ceremony), signers)
    with pytest.raises(TrustError):
        publisher.publish(make_bundle(), "file")
    release = publisher.publish(make_bundle(), "command")
    answer = await seen_by_a_device(publisher.trusted, release, tmp_path / "device")
    assert (answer.code, answer.message) == ("", "")
    assert answer.released == release
    assert answer.metadata["catalog/root"] == 3
