"""The operator API and the console over a real store: who may, what comes, what is refused."""

import asyncio
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import CookieJar
from aiohttp.test_utils import TestClient, TestServer

from fleet.api.app import make_app
from fleet.api.auth import cookie_name
from skerry.states import DeviceState
from tests.fakes.backend import BUNDLE, HOSTILE, TOKEN, seed

Client = TestClient[Any, Any]
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    backend = seed(tmp_path)
    async with TestClient(TestServer(make_app(backend))) as made:
        yield made
    backend.store.close()


async def get(client: Client, path: str) -> Any:
    answer = await client.get(path, headers=BEARER)
    assert answer.status == 200, await answer.text()
    return await answer.json()


async def sign_in(client: Client) -> None:
    answer = await client.get(f"/login?token={TOKEN}", allow_redirects=False)
    assert answer.status == 303
    assert answer.headers["Location"] == "/rollouts"  # the token leaves the address bar
    cookie = answer.cookies[f"skerry_session_{client.port}"]
    assert cookie["httponly"]
    assert cookie["samesite"] == "Strict"


# --- who may -------------------------------------------------------------------


async def test_every_route_of_the_api_asks_for_a_token(client: Client) -> None:
    assert client.app is not None
    for route in client.app.router.routes():
        path = route.resource.canonical if route.resource else ""
        if path.startswith("/api/") or path == "/metrics":
            address = path.replace("{", "").replace("}", "").split(":")[0]
            answer = await client.request(route.method, address)
            assert answer.status == 401, (route.method, path)


async def test_a_wrong_token_is_no_token(client: Client) -> None:
    for header in ("Bearer wrong", "Bearer ", "Basic xyz", f"Bearer {TOKEN}x"):
        answer = await client.get("/api/v1/devices", headers={"Authorization": header})
        assert answer.status == 401
    problem = await answer.json()
    assert "admin.token" in problem["detail"]
    assert answer.content_type == "application/problem+json"


async def test_pages_send_strangers_to_the_sign_in(client: Client) -> None:
    answer = await client.get("/rollouts", allow_redirects=False)
    assert (answer.status, answer.headers["Location"]) == (303, "/login")
    answer = await client.post("/login", data={"token": "wrong"})
    assert answer.status == 401
    assert "not this fleet" in await answer.text()


async def test_two_fleets_on_one_machine_keep_their_sessions(tmp_path: Path) -> None:
    jar = CookieJar(unsafe=True)  # as a browser's: by host, for all its ports
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    backends = [seed(tmp_path / name) for name in ("one", "two")]
    async with (
        TestClient(TestServer(make_app(backends[0])), cookie_jar=jar) as one,
        TestClient(TestServer(make_app(backends[1])), cookie_jar=jar) as two,
    ):
        for client in (one, two):
            await sign_in(client)
        for client in (one, two):
            assert (await client.get("/rollouts", allow_redirects=False)).status == 200
    for backend in backends:
        backend.store.close()


@pytest.mark.parametrize(
    ("host", "suffix"),
    [("fleet.example", ""), ("fleet.example:8080", "_8080"), ("[::1]:80", "_80"), ("[::1]", ""),
     ("", ""), ("a:\u00b2", ""), ("a:80;x=1", "")],
)  # fmt: skip
def test_a_cookie_is_named_after_the_port(host: str, suffix: str) -> None:
    assert cookie_name(host) == f"skerry_session{suffix}"


async def test_a_session_changes_nothing_from_a_foreign_page(client: Client) -> None:
    await sign_in(client)
    assert (await client.get("/api/v1/devices")).status == 200
    for origin in ({}, {"Origin": "https://elsewhere.example"}):
        answer = await client.put("/api/v1/policy", json={}, headers=origin)
        assert answer.status == 403


async def test_health_is_open_and_metrics_are_not(client: Client) -> None:
    assert (await client.get("/healthz")).status == 200
    assert (await client.get("/readyz")).status == 200
    metrics = await (await client.get("/metrics", headers=BEARER)).text()
    assert "skerry_predictions_stored_total 3" in metrics


# --- what comes ------------------------------------------------------------------


async def test_devices_say_what_they_are_and_run(client: Client) -> None:
    first, second = (await get(client, "/api/v1/devices"))["items"]
    assert (first["device_id"], first["connected"]) == ("harbour-01", True)
    assert (second["connected"], second["last_seen"]) == (False, None)
    assert (first["trust"], second["trust"]) == ("stale, root_expired", "")
    assert (await get(client, "/api/v1/devices/harbour-02"))["tags"]["site"] == "harbour"


async def test_a_rollout_shows_stages_assignments_and_who_served(client: Client) -> None:
    found = await get(client, "/api/v1/rollouts/reader-1-1-0-abc")
    assert found["stages"][0]["counts"] == {"committed": 1}
    assert [step["state"] for step in found["assignments"][0]["steps"]][-1] == "committed"
    assert found["devices_served"] == ["harbour-01"]
    listed = await get(client, "/api/v1/rollouts")
    assert listed["items"][0]["rollout_id"] == "reader-1-1-0-abc"


async def test_the_account_tells_rows_from_distinct_ids(client: Client) -> None:
    totals = await get(client, "/api/v1/accounting")
    assert (totals["rows"], totals["distinct_ids"], totals["sketch_rows"]) == (3, 2, 45)


async def test_ids_come_in_pages(client: Client) -> None:
    page = await get(client, "/api/v1/predictions/ids?limit=2")
    assert page["ids"] == ["r-1", "r-0"]
    rest = await get(client, f"/api/v1/predictions/ids?limit=2&cursor={page['next']}")
    assert (rest["ids"], rest["next"]) == (["r-1"], None)


async def test_histograms_stand_on_the_baselines_bins(client: Client) -> None:
    found = await get(client, "/api/v1/drift/histograms?device=harbour-01&model=reader")
    by_name = {item["column"]: item for item in found["items"]}
    assert set(by_name) >= {"brightness", "prediction"}
    for item in found["items"]:
        assert len(item["labels"]) == len(item["baseline"]) == len(item["live"])
    assert by_name["prediction"]["live"][1] == 1.0


async def test_histograms_stand_beside_the_training_data_of_the_devices_own_site(
    client: Client,
) -> None:
    path = "/api/v1/drift/histograms?device=harbour-01&model=reader"
    own = {item["column"]: item for item in (await get(client, path))["items"]}
    assert (own["brightness"]["slice"], own["brightness"]["baseline_n"]) == ("site:harbour", 30)
    assert max(own["brightness"]["baseline"]) == 1.0
    whole = {item["column"]: item for item in (await get(client, path + "&slice="))["items"]}
    assert (whole["brightness"]["slice"], whole["brightness"]["baseline_n"]) == ("", 2000)
    assert whole["brightness"]["live"] == own["brightness"]["live"]
    answer = await client.get(path + "&slice=site:moon", headers=BEARER)
    assert answer.status == 404
    assert "site:harbour" in (await answer.text())
    page = await client.get("/drift?model=reader&device=harbour-01", headers=BEARER)
    assert "training data of site harbour" in await page.text()


async def test_windows_are_counted_by_version(client: Client) -> None:
    path = "/api/v1/windows/counts?model=reader&model_version=1.1.0&min_n="
    assert await get(client, path + "30") == {"harbour-01": 1}
    assert await get(client, path + "46") == {}


async def test_changes_are_pushed(client: Client) -> None:
    answer = await client.get("/api/v1/events", headers=BEARER)
    assert answer.content_type == "text/event-stream"
    assert (await answer.content.readline()) == b"event: change\n"
    answer.close()


async def test_an_open_stream_does_not_hold_up_the_end(tmp_path: Path) -> None:
    backend = seed(tmp_path)
    async with TestClient(TestServer(make_app(backend))) as client:
        answer = await client.get("/api/v1/events", headers=BEARER)
        assert await answer.content.readline()
        async with asyncio.timeout(5):
            await client.server.close()
    backend.store.close()


async def test_the_api_describes_itself(client: Client) -> None:
    document = await get(client, "/api/v1/openapi.json")
    assert document["openapi"] == "3.1.0"
    assert "/rollouts/{rollout}" in document["paths"]
    text = str(document)
    for name in document["components"]["schemas"]:
        assert f"#/components/schemas/{name}" in text


# --- what is refused ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "status", "exit_code"),
    [
        ("/api/v1/devices/nobody", 404, 3),
        ("/api/v1/rollouts/none", 404, 3),
        ("/api/v1/predictions/ids?cursor=x", 400, 2),
        ("/api/v1/predictions/ids?limit=-1", 400, 2),
        ("/api/v1/drift", 400, 2),
    ],
)
async def test_problems_have_a_status_and_an_exit_code(
    client: Client, path: str, status: int, exit_code: int
) -> None:
    answer = await client.get(path, headers=BEARER)
    problem = await answer.json()
    assert (answer.status, problem["status"], problem["exit_code"]) == (status, status, exit_code)
    assert problem["detail"]


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 5000, b'{"stages": 1}', b'{"unknown": 1}'])
async def test_a_wrong_plan_is_a_usage_error(client: Client, body: bytes) -> None:
    answer = await client.post("/api/v1/rollouts", data=body, headers=BEARER)
    assert (answer.status, (await answer.json())["code"]) == (400, "usage")


async def test_an_unknown_path_is_a_problem_too(client: Client) -> None:
    answer = await client.get("/api/v1/nothing", headers=BEARER)
    assert (answer.status, (await answer.json())["code"]) == (404, "not_found")


# --- the console --------------------------------------------------------------------


@pytest.mark.parametrize("page", ["/rollouts", "/devices", "/drift", "/drift?device=harbour-01"])
async def test_pages_escape_what_others_wrote_and_run_no_foreign_script(
    client: Client, page: str
) -> None:
    await sign_in(client)
    answer = await client.get(page)
    text = await answer.text()
    assert answer.status == 200
    assert HOSTILE not in text
    assert " style=" not in text
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


async def test_a_device_that_is_shut_out_shows_why(tmp_path: Path) -> None:
    backend = seed(tmp_path)
    devices = backend.store.devices
    accepted, pending = DeviceState.ACCEPTED, DeviceState.PENDING
    why = f"two machines with one identity: {HOSTILE}"
    assert devices.move("harbour-02", accepted, pending, datetime.now(UTC), reason=why)
    async with TestClient(TestServer(make_app(backend))) as client:
        first, second = (await get(client, "/api/v1/devices"))["items"]
        assert (first["state_reason"], second["state_reason"]) == ("", why)
        await sign_in(client)
        page = await (await client.get("/devices")).text()
    backend.store.close()
    assert page.count("Two machines with one identity: &lt;script&gt;") == 1
    assert "skerry devices preauthorize harbour-02 --again" in page
    assert HOSTILE not in page


async def test_pages_say_what_stands(client: Client) -> None:
    await sign_in(client)
    rollouts = await (await client.get("/rollouts")).text()
    assert "1.1.0" in rollouts
    assert "1 committed" in rollouts
    drift = await (await client.get("/drift")).text()
    assert "harbour-01" in drift
    start, end = drift.index("<svg"), drift.index("</svg>") + 6
    ET.fromstring(drift[start:end])
    assert BUNDLE not in drift


async def test_static_files_are_served_and_nothing_beside_them(client: Client) -> None:
    assert (await client.get("/static/console.css")).status == 200
    for path in ("/static/..%2fpages.py", "/static/templates/base.html"):
        answer = await client.get(path, allow_redirects=False)
        assert answer.status != 200
