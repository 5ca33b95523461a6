"""A service behind the operator API without broker or devices: a real store, seeded by hand.

`with_commands` gives it the real commands, engine and trust, `listening` a real address.
"""

import asyncio
import contextlib
import functools
import io
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from aiohttp import web

from fleet import schema
from fleet.api.app import make_app
from fleet.commands import Commands
from fleet.dispatch import Dispatcher
from fleet.engine import Engine
from fleet.mqtt import Sender
from fleet.plan import Plan
from fleet.registry import Registry
from fleet.rollout import draft
from fleet.store import Store, open_store
from fleet.watch import DriftWatch
from skerry.bundle import read_bundle
from skerry.canonical import to_json, to_msgpack
from skerry.counting import count_categorical, count_numeric
from skerry.manifest import BaselineGroup
from skerry.sketch import NumericSpec
from tests.fakes.releases import readable_bundle
from tests.fakes.trusted import TrustedFleet
from tests.fakes.windows import BASELINE, CLASSES, FEATURES, FakeDevice

__all__ = ["BUNDLE", "TOKEN", "FakeBackend", "listening", "new_store", "seed", "with_commands"]

TOKEN: Final = "an-operators-token"
BUNDLE: Final = "sha256:" + "ab" * 32
HOSTILE: Final = '<script>alert("x")</script>'
NOW: Final = 1_800_000_000.0


_DARK: Final = {
    name: count_numeric(np.full(30, -1.0), column.spec)
    for name, column in BASELINE.columns.items()
    if name in FEATURES and isinstance(column.spec, NumericSpec)
}
SLICED: Final = msgspec.structs.replace(
    BASELINE, slices={"site": {"harbour": BaselineGroup(30, dict(_DARK))}}
)


@dataclass
class FakeBackend:
    """What `fleet.api` asks for; its commands are not reached in tests that only read."""

    store: Store
    commands: Any = None
    catalog: Any = None
    engine: Any = None
    admin_token: str = TOKEN
    is_ready: bool = True


@functools.cache
def _migrated() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        open_store(f"sqlite:///{folder}/fleet.db").close()
        return (Path(folder) / "fleet.db").read_bytes()


def new_store(path: Path) -> Store:
    """Return an empty store; migrating takes a second, so it is done once."""
    (path / "fleet.db").write_bytes(_migrated())
    return open_store(f"sqlite:///{path / 'fleet.db'}")


def seed(path: Path) -> FakeBackend:
    """Return a backend with two devices, a release, a rollout, windows, drift and an alert."""
    store = new_store(path)
    bundle = read_bundle(io.BytesIO(readable_bundle("1.1.0")))
    plan = Plan(model="reader", model_version="1.1.0", publisher="acme", slot="reader")
    rollout = draft("reader-1-1-0-abc", plan, ["harbour-01", "harbour-02"], NOW)
    window = FakeDevice("harbour-01", 1).window(NOW, bundle=BUNDLE)
    drift = {
        "at": NOW,
        "groups": [],
        "devices": [
            {"device": "harbour-01", "site": "harbour", "verdict": "drift", "words": HOSTILE,
             "features": [], "stuck": [], "skew": {}, "reference_windows": 9, "current_windows": 3},
        ],
    }  # fmt: skip
    with store.database.write() as connection:

        def add(table: Any, **values: Any) -> None:
            connection.execute(table.insert().values(**values))

        for device in ("harbour-01", "harbour-02"):
            tags = to_json({"site": "harbour", "note": HOSTILE}).decode()
            add(schema.devices, device=device, state="accepted", tags=tags, created_at=NOW)
        add(
            schema.liveness,
            device="harbour-01",
            last_seen=time.time(),
            device_ts=NOW,
            boot="b",
            trust="stale, root_expired",
        )
        add(
            schema.releases, target=plan.target, publisher="acme", model="reader",
            model_version="1.1.0", bundle=BUNDLE, length=1, release_counter=1, hw_classes='["any"]',
            min_agent="0.1.0", may_fall_back_to="[]", manifest=to_json(bundle.manifest).decode(),
            evaluation=bundle.blobs[bundle.manifest.evaluation.digest].decode(), baseline=to_msgpack(SLICED), published_at=NOW,
        )  # fmt: skip
        add(
            schema.rollouts, rollout=rollout.rollout_id, model="reader", model_version="1.1.0",
            bundle=BUNDLE, slot="reader", state="running", pause_reason=None, reason=HOSTILE,
            body=to_json(rollout).decode(), revision=1, created_at=NOW, updated_at=NOW,
        )  # fmt: skip
        add(
            schema.assignments, assignment="a-1", rollout=rollout.rollout_id, stage="all",
            device="harbour-01", slot="reader", state="committed", target=plan.target,
            bundle=BUNDLE, created_at=NOW, updated_at=NOW,
        )  # fmt: skip
        for position, state in enumerate(("notified", "probation", "committed")):
            add(
                schema.steps,
                assignment="a-1",
                position=position,
                state=state,
                at=NOW,
                stored_at=NOW,
            )
        add(
            schema.contexts, context=1, slot="reader", model="reader", model_version="1.1.0",
            bundle=BUNDLE, variant="int8-cpu",
        )  # fmt: skip
        for seq in (1, 2, 3):
            add(
                schema.predictions, device="harbour-01", boot="b", seq=seq, context=1,
                request=f"r-{seq % 2}", at=NOW, prediction=1, confidence=0.9, latency_us=100,
                features=to_msgpack([0.1]),
            )  # fmt: skip
        columns = dict(window.columns) | {"prediction": count_categorical([1] * 45, CLASSES)}
        add(
            schema.windows, device="harbour-01", boot="b", seq=4, context=1, start=NOW,
            length_s=1.0, n=45, errors=0, columns=to_msgpack(columns), stored_at=NOW,
        )  # fmt: skip
        add(schema.drift_reports, model="reader", body=to_json(drift).decode(), at=NOW)
        add(
            schema.alerts, alert="alert-1", kind="drift", subject="reader", state="open",
            severity="warning", message=HOSTILE, body='{"devices":["harbour-01"]}',
            raised_at=NOW, updated_at=NOW,
        )  # fmt: skip
    return FakeBackend(store)


def utc_now() -> datetime:
    """Return the present."""
    return datetime.now(UTC)


def with_commands(
    backend: FakeBackend, trusted: TrustedFleet, clock: Callable[[], datetime] = utc_now
) -> FakeBackend:
    """Give a backend real commands, and every release that the catalog has.

    What is sent to devices goes to a sender that no broker listens to.
    """
    store = backend.store
    dispatcher = Dispatcher(trusted.director, store.releases)
    sender = Sender("demo", trusted.keys.message)
    engine = Engine(
        store,
        dispatcher,
        sender,
        DriftWatch(store, windows=35),
        drift_every_s=1.0,
        keep_predictions_s=1e9,
        keep_windows_s=1e9,
    )
    backend.catalog, backend.engine = trusted.catalog, engine
    backend.commands = Commands(
        store=store,
        dispatcher=dispatcher,
        engine=engine,
        sender=sender,
        registry=Registry(
            store.devices,
            trusted.authority,
            lambda: (trusted.catalog.root, trusted.director.root),
        ),
        bundles=trusted.bundles,
        catalog=trusted.catalog,
        fleet_url="http://127.0.0.1:8441",
        clock=clock,
    )
    backend.commands.reconcile()
    return backend


@contextlib.contextmanager
def listening(backend: FakeBackend, port: int = 0) -> Iterator[str]:
    """Serve the operators' application in a thread of its own, and give its address."""
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(make_app(backend))

    async def start() -> str:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        host, bound = runner.addresses[0][:2]
        return f"http://{host}:{bound}"

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
