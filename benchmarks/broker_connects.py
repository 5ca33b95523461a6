"""How many devices log in to the broker in a second, and what it costs to put one out.

    .venv/bin/python benchmarks/broker_connects.py

A real nats-server, a real registry on SQLite with 1,000 and 10,000 enrolled devices. The logins
come from another process: TCP, TLS 1.3, MQTT CONNECT and its answer, then the end. A revocation is
timed from `Registry.move` to the moment when the device's connection is closed. With `callout` the
fleet answers each login; with `users` the broker reads a file of all devices again.
"""

import argparse
import asyncio
import multiprocessing
import secrets
import socket
import ssl
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import outcome
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509 import CertificateSigningRequestBuilder, Name

from fleet.access import AskedAccess, ListedAccess, accepted_devices, log_in
from fleet.broker import Broker, broker_settings
from fleet.broker_config import FLEET_USER, device_rights
from fleet.ca import Authority, issuing_request, make_root, sign_issuing
from fleet.callout import SELF_TEST_USER, Callout, load_issuer
from fleet.certificates import make_ec_key
from fleet.config import FleetConfig
from fleet.files import make_folder
from fleet.registry import Registry
from fleet.schema import devices
from fleet.store import Store, open_store
from fleet.tls_files import context_of, make_client, make_server
from skerry.io.tls import client_context
from skerry.states import DeviceState

HOST = "127.0.0.1"
REAL = 100  # devices with a certificate of their own; the others are only registered
LIVE = 50
REVOKED = 10


def main() -> None:
    """Measure, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--logins", type=int, default=1_000)
    parser.add_argument("--auth", nargs="+", default=["callout", "users"])
    args = parser.parse_args()
    rows = []
    for auth in args.auth:
        for registered in args.devices:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(asyncio.run(measure(Path(folder), auth, registered, args.logins)))
    outcome.write("broker_connects", {"logins": args.logins, "rows": rows})


async def measure(folder: Path, auth: str, registered: int, logins: int) -> dict[str, Any]:
    """Return what logins and revocations cost with so many devices registered."""
    now = datetime.now(UTC)
    root_key, key = make_ec_key(), make_ec_key()
    root = make_root(root_key, "bench", now)
    issuing = sign_issuing(root_key, root, issuing_request(key, "bench"), "bench", now)
    authority = Authority(key, issuing, root)
    config = FleetConfig(data=folder, fleet_id="bench", broker_port=0, broker_auth=auth)
    names = [f"dev-{number:05d}" for number in range(registered)]
    certificates = make_devices(folder, authority, names[:REAL], now)
    store = open_store(config.db_url)
    register(store, names, certificates)
    issuer = load_issuer(make_folder(config.keys_dir)) if auth == "callout" else None
    tls = make_server(config, authority, now)
    fleet = context_of(make_client(config.tls_dir, authority, FLEET_USER, now))
    started: list[int] = []
    broker = Broker(broker_settings(config, tls, issuer.public if issuer else ""), fleet,
                    started.append)  # fmt: skip
    registry = Registry(
        store.devices, authority, lambda: (b"", b""), on_cut=lambda device: access.cut(device)
    )
    access: AskedAccess | ListedAccess
    if issuer is None:
        access = ListedAccess(broker, lambda: accepted_devices(store.database))
    else:
        callout = Callout(
            issuer, registry, lambda device: device_rights("bench", 4, device),
            lambda: datetime.now(UTC),
        )  # fmt: skip
        tester = make_client(config.tls_dir, authority, SELF_TEST_USER, now)
        access = AskedAccess(broker, callout, context_of(tester))
    await broker.start()
    try:
        await asyncio.to_thread(access.start)
        port = broker.settings.mqtt_port
        await asyncio.to_thread(wait_for_login, port, folder, names[0])
        rates = await asyncio.to_thread(in_another_process, port, folder, names[:REAL], logins)
        cuts = await asyncio.to_thread(revoke, registry, port, folder, names[:LIVE])
        memory = resident_mb(broker.pid)
    finally:
        await asyncio.to_thread(access.stop)
        await broker.stop()
        store.close()
    return {
        "auth": auth,
        "registered": registered,
        **rates,
        "revocation_to_cut_ms_median": round(1000 * statistics.median(cuts), 1),
        "revocation_to_cut_ms_worst": round(1000 * max(cuts), 1),
        "revocations": len(cuts),
        "live": LIVE,
        "server_rss_mb": memory,
    }


def make_devices(
    folder: Path, authority: Authority, names: list[str], now: datetime
) -> dict[str, str]:
    """Make keys and certificates of devices; return the certificates."""
    made = {}
    (folder / "ca.pem").write_text(authority.pem)
    for name in names:
        key = make_ec_key()
        request = CertificateSigningRequestBuilder().subject_name(Name([]))
        pem = request.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()
        made[name] = authority.issue(name, pem, now).pem
        (folder / f"{name}.crt").write_text(made[name])
        (folder / f"{name}.key").write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
    return made


def register(store: Store, names: list[str], certificates: dict[str, str]) -> None:
    """Write enrolled devices into the database."""
    some = next(iter(certificates.values()))
    rows = [
        {
            "device": name, "state": "accepted", "created_at": 0.0, "enrolled_at": 0.0,
            "client_id": name, "certificate": certificates.get(name, some),
            "certificate_expires": 2e9, "report_key": secrets.token_bytes(32),
            "inventory": '{"agent":"0.1.0","platform":"linux-x86_64","isa":[]}',
        }
        for name in names
    ]  # fmt: skip
    with store.database.write() as connection:
        connection.execute(devices.insert(), rows)


def wait_for_login(port: int, folder: Path, name: str) -> None:
    """Wait until a device gets in."""
    context, end = device_context(folder, name), time.monotonic() + 20
    while log_in(HOST, port, context, name) != 0:
        assert time.monotonic() < end
        time.sleep(0.05)


def device_context(folder: Path, name: str) -> ssl.SSLContext:
    """Return how a device speaks TLS."""
    return client_context(folder / "ca.pem", folder / f"{name}.crt", folder / f"{name}.key")


def in_another_process(port: int, folder: Path, names: list[str], logins: int) -> dict[str, float]:
    """Run `connects` where it does not hold the fleet's interpreter up."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(connects, (port, folder, names, logins))


def connects(port: int, folder: Path, names: list[str], logins: int) -> dict[str, float]:
    """Log in one after another, then sixteen at a time."""
    contexts = [(name, device_context(folder, name)) for name in names]

    def one(number: int) -> float:
        name, context = contexts[number % len(contexts)]
        began = time.perf_counter()
        code = log_in(HOST, port, context, name)
        assert code == 0, (name, code)
        return time.perf_counter() - began

    alone = [one(number) for number in range(logins // 4)]
    began = time.perf_counter()
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(one, range(logins)))
    rate = logins / (time.perf_counter() - began)
    return {
        "login_alone_ms_median": round(1000 * statistics.median(alone), 1),
        "logins_per_second_16_at_a_time": round(rate),
    }


def revoke(registry: Registry, port: int, folder: Path, names: list[str]) -> list[float]:
    """Reject connected devices; return the seconds until each connection was closed."""
    live = {name: connected(port, folder, name) for name in names}
    took = []
    for name in names[:REVOKED]:
        connection = live[name]
        ended: list[float] = []
        watch = threading.Thread(target=_until_closed, args=(connection, ended))
        watch.start()
        began = time.perf_counter()
        registry.move(name, DeviceState.REJECTED, datetime.now(UTC))
        watch.join()
        took.append(ended[0] - began)
    for connection in live.values():
        connection.close()
    return took


def _until_closed(connection: ssl.SSLSocket, ended: list[float]) -> None:
    try:
        while connection.recv(64):
            pass
    except OSError:
        pass
    ended.append(time.perf_counter())


def connected(port: int, folder: Path, name: str) -> ssl.SSLSocket:
    """Return a connection that has logged in."""
    raw = socket.create_connection((HOST, port), 10)
    connection = device_context(folder, name).wrap_socket(raw, server_hostname=HOST)
    body = b"\x00\x04MQTT\x04\x02\x00\x78" + len(name).to_bytes(2, "big") + name.encode()
    connection.sendall(b"\x10" + len(body).to_bytes(1, "big") + body)
    assert connection.recv(4) == b"\x20\x02\x00\x00"
    connection.settimeout(30)
    return connection


def resident_mb(pid: int) -> float:
    """Return the memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return round(int(line.split()[1]) / 1024, 1)


if __name__ == "__main__":
    main()
