"""The device listener over TLS: enrolment, pulls, metadata, and what it refuses.

Who may ask at all: `tests/fleet/test_caller.py`.
"""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import agent.enroll
import fleet.device_api
from agent.download import Fetcher
from agent.enroll import enroll
from skerry.bundle import MANIFEST_TYPE, parse_oci_manifest
from skerry.enrolment import MAX_ENROL_BYTES
from skerry.errors import RefusedError, TrustError
from skerry.profile import Inventory
from skerry.states import DeviceState
from tests.fakes.disk import Crash
from tests.fakes.listener import Listening, open_listener
from tests.fakes.trusted import make_bundle


@pytest.fixture
async def listening(tmp_path: Path) -> AsyncIterator[Listening]:
    async with open_listener(tmp_path, weights=b"w" * 1_000_000) as listening:
        yield listening


async def problem(listening: Listening, method: str, path: str, **kwargs: Any) -> dict[str, Any]:
    async with listening.http.request(method, listening.url + path, **kwargs) as response:
        assert response.content_type == "application/problem+json"
        document: dict[str, Any] = json.loads(await response.read())
        assert document["status"] == response.status
        return document


async def test_a_device_enrols_with_its_token(listening: Listening, tmp_path: Path) -> None:
    token, folder = listening.token("dev-2"), tmp_path / "identity"
    record = await asyncio.to_thread(enroll, folder, token, Inventory(agent="0.1.0"))
    assert record.device_id == "dev-2"
    assert listening.store.states["dev-2"] is DeviceState.ACCEPTED
    assert listening.store.records["dev-2"].inventory.agent == "0.1.0"
    assert (folder / "catalog-root.json").read_bytes() == listening.trusted.catalog.root


async def test_a_device_whose_answer_was_lost_asks_again(
    listening: Listening, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise Crash

    token, folder = listening.token("dev-2"), tmp_path / "identity"
    save = agent.enroll.save_identity
    monkeypatch.setattr("agent.enroll.save_identity", crash)
    with pytest.raises(Crash):
        await asyncio.to_thread(enroll, folder, token, Inventory())
    assert listening.store.states["dev-2"] is DeviceState.ACCEPTED
    monkeypatch.setattr("agent.enroll.save_identity", save)
    again = await asyncio.to_thread(enroll, folder, token, Inventory())
    assert again.device_id == "dev-2"


async def test_a_spent_token_enrols_no_second_machine(listening: Listening, tmp_path: Path) -> None:
    token = listening.token("dev-2")
    await asyncio.to_thread(enroll, tmp_path / "one", token, Inventory())
    with pytest.raises(RefusedError, match="unknown, spent or expired"):
        await asyncio.to_thread(enroll, tmp_path / "two", token, Inventory())


async def test_a_fleet_that_is_not_the_tokens_is_refused_by_the_device(
    listening: Listening, tmp_path: Path
) -> None:
    zeros = "sha256:" + "00" * 32
    for n, field in enumerate(("ca_fingerprint", "roots_digest")):
        token = msgspec.structs.replace(listening.token(f"dev-2{n}"), **{field: zeros})
        with pytest.raises(TrustError):
            await asyncio.to_thread(enroll, tmp_path / "identity", token, Inventory())
        assert not (tmp_path / "identity" / "identity.json").exists()


@pytest.mark.parametrize("body", [b"", b"{}", b"[", b"[" * 50_000, b"\xff", b'{"secret": 1}'])
async def test_a_malformed_enrolment_is_refused(listening: Listening, body: bytes) -> None:
    document = await problem(listening, "POST", "/enrol", data=body)
    assert (document["status"], document["code"]) == (400, "format")


async def test_an_oversized_enrolment_is_refused(listening: Listening) -> None:
    body = b"x" * (MAX_ENROL_BYTES + 1)
    document = await problem(listening, "POST", "/enrol", data=body)
    assert document["status"] == 413


async def test_an_unknown_token_is_forbidden(listening: Listening) -> None:
    body = {"secret": "AAAA", "csr": "", "report_key": "A" * 43 + "="}
    document = await problem(listening, "POST", "/enrol", json=body)
    assert (document["status"], document["exit_code"]) == (403, 4)


async def test_it_says_that_it_is_a_registry(listening: Listening) -> None:
    async with listening.http.get(listening.url + "/v2/") as response:
        assert response.status == 200


async def test_a_manifest_is_pulled_by_its_digest(listening: Listening) -> None:
    digest = listening.published.bundle.digest
    async with listening.http.get(f"{listening.url}/v2/reader/manifests/{digest}") as response:
        assert response.content_type == MANIFEST_TYPE
        assert response.headers["Docker-Content-Digest"] == digest
        assert await response.read() == listening.published.bundle.oci


async def test_every_blob_of_a_manifest_is_pulled(listening: Listening) -> None:
    oci = parse_oci_manifest(listening.published.bundle.oci)
    for blob in (oci.config, *oci.layers):
        url = f"{listening.url}/v2/reader/blobs/{blob.digest}"
        async with listening.http.get(url) as response:
            assert len(await response.read()) == blob.size


async def test_a_head_request_tells_the_size_and_sends_nothing(listening: Listening) -> None:
    digest, data = listening.layer
    async with listening.http.head(f"{listening.url}/v2/reader/blobs/{digest}") as response:
        assert response.status == 200
        assert int(response.headers["Content-Length"]) == len(data)
        assert await response.read() == b""


async def test_a_range_is_sent_alone(listening: Listening) -> None:
    digest, data = listening.layer
    url = f"{listening.url}/v2/reader/blobs/{digest}"
    async with listening.http.get(url, headers={"Range": "bytes=400000-"}) as response:
        assert response.status == 206
        assert response.headers["Content-Range"] == f"bytes 400000-{len(data) - 1}/{len(data)}"
        assert await response.read() == data[400_000:]


async def test_a_range_of_something_else_brings_the_whole(listening: Listening) -> None:
    digest, data = listening.layer
    url = f"{listening.url}/v2/reader/blobs/{digest}"
    headers = {"Range": "bytes=10-20", "If-Range": '"sha256:another"'}
    async with listening.http.get(url, headers=headers) as response:
        assert response.status == 200
        assert len(await response.read()) == len(data)


async def test_a_range_beyond_the_end_is_refused(listening: Listening) -> None:
    digest, data = listening.layer
    path = f"/v2/reader/blobs/{digest}"
    document = await problem(listening, "GET", path, headers={"Range": f"bytes={len(data)}-"})
    assert document["status"] == 416


async def test_what_the_device_holds_is_not_sent_again(listening: Listening) -> None:
    for kind in ("blobs", "manifests"):
        digest = listening.published.bundle.digest
        headers = {"If-None-Match": f'"{digest}"'}
        url = f"{listening.url}/v2/reader/{kind}/{digest}"
        async with listening.http.get(url, headers=headers) as response:
            assert response.status == 304
            assert await response.read() == b""


async def test_the_agents_download_goes_on_where_it_stopped(
    listening: Listening, tmp_path: Path
) -> None:
    digest, data = listening.layer
    (tmp_path / "layer.part").write_bytes(data[:300_000])
    files = listening.identity
    fetcher = Fetcher(
        listening.url, timeout_s=5, ca_file=files / "ca.crt", cert_file=files / "device.pem",
        key_file=files / "device.pem",
    )  # fmt: skip
    await asyncio.to_thread(
        fetcher.blob, f"/v2/reader/blobs/{digest}", tmp_path / "layer",
        digest=digest, size_bytes=len(data),
    )  # fmt: skip
    assert (tmp_path / "layer").read_bytes() == data


@pytest.mark.parametrize(
    "path",
    [
        "/v2/reader/blobs/sha256:" + "00" * 32,
        "/v2/reader/manifests/sha256:" + "00" * 32,
        "/v2/reader/manifests/latest",
        "/v2/reader/blobs/..%2f..%2fkeys%2fdirector.pem",
        "/v2/../keys/director.pem",
        "/tuf/catalog/metadata/..%2f..%2f..%2fkeys%2fpublic.json",
        "/tuf/catalog/metadata/2.root.json",
        "/tuf/director/metadata/timestamp.json",
        "/keys/passphrase",
        "/",
    ],
)
async def test_what_is_not_there_is_not_found(listening: Listening, path: str) -> None:
    assert (await problem(listening, "GET", path))["status"] == 404


async def test_a_layer_is_no_manifest_and_a_manifest_belongs_to_its_model(
    listening: Listening,
) -> None:
    digest, _ = listening.layer
    card = min(listening.published.bundle.blobs)
    for path in (
        f"/v2/reader/manifests/{digest}",
        f"/v2/reader/manifests/{card}",
        f"/v2/other/manifests/{listening.published.bundle.digest}",
    ):
        assert (await problem(listening, "GET", path))["status"] == 404


async def test_nothing_can_be_pushed(listening: Listening) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        document = await problem(listening, method, f"/v2/reader/blobs/{listening.layer[0]}")
        assert document["status"] == 405


async def test_metadata_is_served_and_only_what_never_changes_may_be_kept(
    listening: Listening,
) -> None:
    for name, kept in (("timestamp.json", False), ("1.root.json", True), ("acme.json", False)):
        async with listening.http.get(f"{listening.url}/tuf/catalog/metadata/{name}") as response:
            assert await response.read() == listening.trusted.catalog.metadata(name)
            assert ("immutable" in response.headers["Cache-Control"]) is kept


async def test_metadata_that_is_held_already_is_not_sent_again(listening: Listening) -> None:
    url = f"{listening.url}/tuf/catalog/metadata/timestamp.json"
    async with listening.http.get(url) as response:
        tag = response.headers["ETag"]
    async with listening.http.get(url, headers={"If-None-Match": tag}) as response:
        assert (response.status, await response.read()) == (304, b"")
    async with listening.http.get(url, headers={"If-None-Match": '"other"'}) as response:
        assert response.status == 200


async def test_a_device_that_takes_nothing_loses_its_place(
    listening: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet.device_api, "STALL_TIMEOUT_S", 0.2)
    digest = (
        listening.trusted.publish(make_bundle("2.0.0", weights=b"w" * 20_000_000))
        .bundle.manifest.variants[0]
        .file.digest
    )
    port = int(listening.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, limit=1024, ssl=listening.context
    )
    writer.write(f"GET /v2/reader/blobs/{digest} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    await writer.drain()
    await asyncio.sleep(1.0)
    taken = 0
    with contextlib.suppress(ConnectionResetError, ssl.SSLError):
        while chunk := await reader.read(1 << 16):
            taken += len(chunk)
    assert taken < 20_000_000
    writer.close()


async def test_one_device_cannot_take_every_place(
    listening: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = listening.published.bundle.manifest.variants[0].file
    blob = f"/v2/reader/blobs/{file.digest}"
    monkeypatch.setattr(fleet.device_api, "MAX_PULLS_EACH", 0)
    assert (await problem(listening, "GET", blob))["status"] == 429
    monkeypatch.setattr(fleet.device_api, "MAX_PULLS_EACH", 1)
    for _ in range(3):  # each gives its place back
        async with listening.http.get(listening.url + blob) as response:
            assert len(await response.read()) > 1_000_000
