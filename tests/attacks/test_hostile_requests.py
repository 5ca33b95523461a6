"""Addresses that lead out of where they belong. Row 51 of the attack table."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from agent.slots import Slots
from fleet.api.app import make_app
from fleet.api.problems import problems
from fleet.blobs import Blobs
from fleet.caller import CALLER, Caller
from fleet.device_api import DIGEST, MODEL, _Pulls
from skerry.canonical import sha256
from skerry.errors import FormatError
from tests.fakes.backend import TOKEN, seed

SECRET = b"the key of the fleet"
DATA = b"a blob that may be had"


@dataclass
class Site:
    """The operators' listener ("/o") and the pulls of the device listener ("/d")."""

    ports: dict[bytes, int]

    async def ask(
        self, target: bytes, *headers: bytes, method: bytes = b"GET", body: bytes = b""
    ) -> tuple[int, bytes]:
        """Send a request exactly as it is written here; return status and body."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.ports[target[:2]])
        lines = [
            method + b" " + target[2:] + b" HTTP/1.1", b"Host: fleet", b"Connection: close",
            b"Content-Length: %d" % len(body), *headers,
        ]  # fmt: skip
        writer.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)
        async with asyncio.timeout(10):
            answer = await reader.read(4 << 20)
            while chunk := await reader.read(1 << 20):
                answer += chunk
        writer.close()
        head, _, content = answer.partition(b"\r\n\r\n")
        return int(head.split(b" ")[1]), content


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    backend = seed(tmp_path)
    for folder in (tmp_path, tmp_path / "keys", tmp_path / "blobs"):
        folder.mkdir(exist_ok=True)
        (folder / "secret.json").write_bytes(SECRET)
        (folder / "secret").write_bytes(SECRET)
    blobs = Blobs(tmp_path / "blobs")
    blobs.put(sha256(DATA), DATA)
    pulls = _Pulls(blobs)

    @web.middleware
    async def known(request: web.Request, handler: Any) -> web.StreamResponse:
        request[CALLER] = Caller("harbour-01", 1)
        return await handler(request)

    devices = web.Application(middlewares=[problems, known])
    devices.router.add_get(f"/v2/{MODEL}/manifests/{DIGEST}", pulls.manifest)
    devices.router.add_get(f"/v2/{MODEL}/blobs/{DIGEST}", pulls.blob)
    async with TestServer(make_app(backend)) as operators, TestServer(devices) as pulling:
        assert operators.port is not None
        assert pulling.port is not None
        yield Site({b"/o": operators.port, b"/d": pulling.port})
    backend.store.close()


UP = [
    b"..",
    b"%2e%2e",
    b"%2E.",
    b"%252e%252e",
    b"..%00",
    b"%c0%ae%c0%ae",
    b"..%5c",
    b"....//",
    b"%u002e%u002e",
]
SLASH = [b"/", b"%2f", b"%252f", b"%5c", b"%c0%af"]


@pytest.mark.parametrize(
    "base",
    [
        b"/d/v2/reader/blobs/", b"/d/v2/reader/manifests/", b"/d/v2/reader/blobs/sha256:", b"/d/v2/",
        b"/o/tuf/catalog/metadata/", b"/o/static/", b"/o/api/v1/devices/", b"/o/api/v1/rollouts/",
        b"/o/api/v1/models/", b"/o/",
    ],
)  # fmt: skip
async def test_row_51_no_address_leads_out(site: Site, base: bytes) -> None:
    bearer = f"Authorization: Bearer {TOKEN}".encode()
    for up in UP:
        for slash in SLASH:
            for depth, name in ((1, b"secret"), (2, b"keys/secret.json"), (4, b"etc/passwd")):
                target = base + (up + slash) * depth + name
                status, body = await site.ask(target, bearer)
                assert status in (303, 400, 401, 403, 404), (target, status)
                assert SECRET not in body, target
                assert b"root:" not in body, target


async def test_row_51_what_may_be_had_is_given(site: Site) -> None:
    digest = sha256(DATA).encode()
    assert await site.ask(b"/d/v2/reader/blobs/" + digest) == (200, DATA)
    encoded = digest.replace(b":", b"%3A")  # once is how a client may write it
    assert await site.ask(b"/d/v2/reader/blobs/" + encoded) == (200, DATA)
    status, _ = await site.ask(b"/o/healthz")
    assert status == 200


@pytest.mark.parametrize("spoil", ["twice", "upper", "long", "short", "space", "nul", "newline"])
async def test_row_51_a_digest_in_another_spelling_names_nothing(site: Site, spoil: str) -> None:
    digest = sha256(DATA)
    spelling = {
        "twice": quote(quote(digest, safe=""), safe=""),
        "upper": digest[:7] + digest[7:].upper(),
        "long": digest + "0",
        "short": digest[:-1],
        "space": digest + "%20",
        "nul": digest + "%00",
        "newline": digest + "%0a",
    }[spoil]
    status, body = await site.ask(b"/d/v2/reader/blobs/" + spelling.encode())
    assert status == 404
    assert msgspec.json.decode(body)["code"] == "not_found"


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "sha256:../../../etc/passwd", "sha256:" + "a" * 63 + "/", "", "sha256:" + "A" * 64,
             "sha256:" + "a" * 64 + "\n"],
)  # fmt: skip
def test_row_51_no_digest_leads_out_of_a_folder(tmp_path: Path, name: str) -> None:
    blobs, slots = Blobs(tmp_path / "blobs"), Slots(tmp_path / "slots")
    acts = (
        lambda: blobs.open(name), lambda: blobs.put(name, b""), lambda: blobs.has(name),
        lambda: slots.path(name, sha256(b"")), lambda: slots.path(sha256(b""), name),
    )  # fmt: skip
    for act in acts:
        with pytest.raises(FormatError) as refused:
            act()
        assert refused.value.code == "format"
    blobs.put(sha256(b"x"), b"x")
    assert blobs.read(sha256(b"x")) == b"x"


@pytest.mark.parametrize("open_place", [b"/static/", b"/tuf/", b"/healthz/", b"/login/"])
async def test_row_51_no_open_address_leads_to_a_closed_one(site: Site, open_place: bytes) -> None:
    assert (await site.ask(b"/o/api/v1/devices"))[0] == 401
    for up in UP:
        for slash in SLASH:
            status, body = await site.ask(b"/o" + open_place + up + slash + b"api/v1/devices")
            assert status in (303, 400, 401, 404), (up, slash, status)
            assert b"harbour" not in body
    bearer = f"Authorization: Bearer {TOKEN}".encode()
    status, body = await site.ask(b"/o/api/v1/devices", bearer)
    assert status == 200
    assert b"harbour" in body


STRANGE = [
    (b"/o/api/v1/devices/%ff%fe", b""), (b"/o/api/v1/devices/a%00b", b""), (b"/o/%ff%fe", b""),
    (b"/o/api/v1/windows/counts?model=a&model_version=1&min_n=%C2%B2", b""),
    (b"/o/api/v1/windows/counts?model=a&model_version=1&min_n=" + b"9" * 5000, b""),
    (b"/o/api/v1/drift?model=%00", b""), (b"/o/api/v1/drift?model=%ed%a0%80", b""),
    (b"/o/api/v1/devices", b"Authorization: Bearer \xff\xfe"), (b"/o/api/v1/devices", b"Cookie: skerry_session=\xff\xed"),
    (b"/o/api/v1/drift/histograms?device=a&model=b&windows=99999999999", b""),
]  # fmt: skip


@pytest.mark.parametrize(("target", "header"), STRANGE)
async def test_row_51_no_strange_address_is_a_fault_of_ours(
    site: Site, target: bytes, header: bytes
) -> None:
    headers = [header] if header else [f"Authorization: Bearer {TOKEN}".encode()]
    status, body = await site.ask(target, *headers)
    assert status in (200, 303, 400, 401, 404), body


BODIES = [
    b"", b"[" * 100_000, b'{"device_id":"' + b"\xff" * 10 + b'"}', b'{"device_id":"\\ud800x"}',
    b'{"device_id":1e999}', b"9" * 5000, b'{"device_id":"x","device_ids":"y"}', b'{"a":' * 50_000,
]  # fmt: skip


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
@pytest.mark.parametrize("path", [b"devices/preauthorize", b"rollouts"])
async def test_row_51_no_strange_body_is_a_fault_of_ours(
    site: Site, path: bytes, body: bytes
) -> None:
    bearer = f"Authorization: Bearer {TOKEN}".encode()
    status, answer = await site.ask(b"/o/api/v1/" + path, bearer, method=b"POST", body=body)
    assert (status, msgspec.json.decode(answer)["code"]) == (400, "usage")


async def test_row_41_a_compressed_request_is_bounded_after_it_is_unpacked(site: Site) -> None:
    bomb = gzip.compress(b" " * (256 << 20))
    headers = (f"Authorization: Bearer {TOKEN}".encode(), b"Content-Encoding: gzip")
    status, _ = await site.ask(b"/o/api/v1/rollouts", *headers, method=b"POST", body=bomb)
    assert status == 413
    status, answer = await site.ask(
        b"/o/api/v1/rollouts", *headers, method=b"POST", body=gzip.compress(b"{}")
    )
    assert (status, msgspec.json.decode(answer)["code"]) == (400, "usage")
