"""Who may ask on the device listener: shown by real TLS, decided by the registry at each request."""

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator
from datetime import timedelta
from http.client import HTTPSConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from agent.download import Fetcher
from fleet.tls_files import context_of, make_client
from skerry.errors import UnreachableError
from skerry.states import DeviceState
from tests.fakes.listener import DEVICE, Listening, open_listener, utc_now
from tests.fakes.pki import SERVER, Pki

FILE = "/tuf/catalog/metadata/1.root.json"
PATHS = [FILE, "/v2/", "/v2/reader/blobs/sha256:" + "00" * 32, "/renew", "/", "/keys/passphrase"]


@pytest.fixture
async def listening(tmp_path: Path) -> AsyncIterator[Listening]:
    async with open_listener(tmp_path) as listening:
        yield listening


class Connection:
    """One kept-alive connection to the listener."""

    def __init__(self, listening: Listening, context: ssl.SSLContext) -> None:
        where = urlsplit(listening.url)
        assert where.hostname is not None
        self._http = HTTPSConnection(where.hostname, where.port, context=context, timeout=10)

    async def ask(self, path: str = FILE, method: str = "GET") -> tuple[int, str]:
        return await asyncio.to_thread(self._ask, path, method)

    def _ask(self, path: str, method: str) -> tuple[int, str]:
        self._http.request(method, path)
        answer = self._http.getresponse()
        body = answer.read()
        code = json.loads(body).get("code", "") if answer.status >= 400 and body else ""
        return answer.status, code

    def close(self) -> None:
        self._http.close()


def nobody(listening: Listening) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(listening.identity / "ca.crt"))


async def ask(
    listening: Listening, context: ssl.SSLContext, path: str = FILE, method: str = "GET"
) -> tuple[int, str]:
    connection = Connection(listening, context)
    try:
        return await connection.ask(path, method)
    finally:
        connection.close()


@pytest.mark.parametrize("path", PATHS)
async def test_without_a_certificate_there_is_nothing_to_see(
    listening: Listening, path: str
) -> None:
    for method in ("GET", "POST", "HEAD"):
        status, code = await ask(listening, nobody(listening), path, method)
        assert (status, code) == (401, "" if method == "HEAD" else "certificate_missing")
    assert (await ask(listening, listening.context))[0] == 200


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/ca"), ("GET", "/enrol"), ("GET", "/ca/"), ("GET", "//ca")]
)
async def test_the_open_addresses_are_exactly_two(
    listening: Listening, method: str, path: str
) -> None:
    assert (await ask(listening, nobody(listening), path, method))[0] == 401
    assert (await ask(listening, nobody(listening), "/ca"))[0] == 200


async def test_a_rejected_device_is_refused_on_the_connection_that_it_has(
    listening: Listening,
) -> None:
    connection = Connection(listening, listening.context)
    assert (await connection.ask())[0] == 200
    listening.registry.move(DEVICE, DeviceState.REJECTED, utc_now())
    assert await connection.ask() == (403, "certificate_refused")
    connection.close()
    assert await ask(listening, listening.context) == (403, "certificate_refused")


async def test_a_certificate_that_expires_ends_the_connection_that_it_opened(
    listening: Listening,
) -> None:
    connection = Connection(listening, listening.context)
    assert (await connection.ask())[0] == 200
    listening.clock = lambda: utc_now() + timedelta(days=31)
    assert await connection.ask() == (403, "certificate_refused")
    connection.close()


async def test_a_certificate_that_a_later_enrolment_replaced_is_refused(
    listening: Listening,
) -> None:
    old = listening.context
    listening.folder = listening.folder / "again"
    token = listening.token(DEVICE, again=True)
    listening.token = lambda *_, **__: token  # type: ignore[method-assign]
    await listening.enrol(DEVICE)
    assert await ask(listening, old) == (403, "certificate_refused")
    assert (await ask(listening, listening.context))[0] == 200
    assert listening.cut == [DEVICE]


async def test_a_client_of_the_fleet_itself_is_no_device(
    listening: Listening, tmp_path: Path
) -> None:
    files = make_client(tmp_path / "own", listening.trusted.authority, "_fleet", utc_now())
    assert await ask(listening, context_of(files)) == (403, "certificate_refused")


@pytest.mark.parametrize("fault", ["foreign", "expired", "early", "server"])
async def test_a_wrong_certificate_fails_in_the_handshake(
    listening: Listening, tmp_path: Path, fault: str
) -> None:
    pki = Pki(tmp_path / "pki")
    day = timedelta(days=1)
    made = {
        "foreign": lambda: pki.client(DEVICE),
        "expired": lambda: pki.client(DEVICE, start=-9 * day, end=-day),
        "early": lambda: pki.client(DEVICE, start=day, end=9 * day),
        "server": lambda: pki.client(DEVICE, usage=SERVER),
    }[fault]()
    context = nobody(listening)
    context.load_cert_chain(made.certificate, made.key)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await ask(listening, context)


async def test_a_client_of_an_older_tls_is_not_spoken_to(listening: Listening) -> None:
    context = nobody(listening)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        await ask(listening, context, "/ca")


async def test_no_session_is_taken_up_again(listening: Listening) -> None:
    context, where = listening.context, urlsplit(listening.url)

    def session() -> ssl.SSLSession | None:
        with (
            socket.create_connection((where.hostname or "", where.port or 0), 10) as raw,
            context.wrap_socket(raw, server_hostname=where.hostname) as connection,
        ):
            connection.sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b" 200 " in connection.recv(100)
            return connection.session

    found = await asyncio.to_thread(session)
    assert found is None or not found.has_ticket


async def test_nothing_is_downloaded_from_another_fleet(
    listening: Listening, tmp_path: Path
) -> None:
    pki, device = Pki(tmp_path / "pki"), listening.identity / "device.pem"
    fetcher = Fetcher(
        listening.url, timeout_s=5, ca_file=pki.ca, cert_file=device, key_file=device
    )  # fmt: skip
    with pytest.raises(UnreachableError, match="not of this fleet's authority"):
        await asyncio.to_thread(fetcher.small, FILE, 1 << 20)


async def test_a_refused_download_waits_for_better_days(listening: Listening) -> None:
    device = listening.identity / "device.pem"
    fetcher = Fetcher(
        listening.url, timeout_s=5, ca_file=listening.identity / "ca.crt", cert_file=device,
        key_file=device,
    )  # fmt: skip
    assert await asyncio.to_thread(fetcher.small, FILE, 1 << 20)
    listening.registry.move(DEVICE, DeviceState.REJECTED, utc_now())
    with pytest.raises(UnreachableError, match="is the device accepted"):
        await asyncio.to_thread(fetcher.small, FILE, 1 << 20)
