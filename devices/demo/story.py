"""The story itself: six steps, each of which must really happen for the run to be ok.

1 start      a fleet, its broker and twelve devices, each enrolled with its own token
2 build      bundles from recipes: quantized, gated, signed, verified, published
3 roll out   1.0.0 to all, 1.1.0 by canary; processes are killed meanwhile
4 bad news   1.2.0 fails its analysis on three canaries and is rolled back
5 drift      two smudged lenses are named, the others stay quiet
6 account    the client's book against what the fleet stored
"""

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from devices.demo.options import CANARIES, DEVICES, SITES, DemoOptions, smudged_devices
from devices.demo.summary import BundleSummary, DriftSummary, RolloutSummary, Summary
from devices.demo.telling import Teller
from devices.demo.traffic import MODEL, Traffic
from devices.demo.world import World, wait_for
from skerry.errors import SkerryError

__all__ = ["Story"]

PUBLISHER: Final = "acme"
WINDOW_S: Final = 1.0
WINDOW_MIN_N: Final = 30
WINDOWS_BEFORE: Final = 20  # of each device, before the release that must be told apart
WINDOWS_BEFORE_FIRST: Final = 10  # before the first canary
WINDOWS_AFTER: Final = 6
MIN_REQUESTS: Final = 20_000
SETTLE_S: Final = 45.0  # a batch whose answer was lost goes out again after 20 s
KILLED_DEVICE: Final = "harbour-03"
PROBATION: Final = {"min_answered": 60, "min_seconds": 2.0, "timeout_s": 20.0}
ENDS: Final = {"completed", "aborted", "rolled_back", "denied", "archived", "paused"}


class Story:
    """One run: told as it happens, and summed up."""

    def __init__(self, options: DemoOptions, world: World, teller: Teller) -> None:
        self.options = options
        self.world = world
        self.tell = teller
        self.summary = Summary(devices=len(DEVICES))
        self.smudged = smudged_devices(options.smudge)
        self._failed: list[str] = []
        self._traffic: Traffic | None = None

    def run(self) -> bool:
        """Tell the whole story and return whether every step happened."""
        self.start()
        if self.options.traffic == "off":
            self.build(("1.0.0",))
            self.roll_out_in_silence()
        else:
            self.build(("1.0.0", "1.1.0"))
            self.roll_out_the_good()
            self.roll_out_the_last()
            self.smudge_lenses()
            self.account()
        self.summary.ok = not self._failed
        self.summary.seconds = round(self.tell.seconds, 1)
        return self.summary.ok

    @property
    def last_version(self) -> str:
        """The version of step 4."""
        return "1.2.0" if self.options.release == "bad" else "1.2.1"

    @property
    def traffic(self) -> Traffic:
        """The client, once it runs."""
        assert self._traffic is not None
        return self._traffic

    # --- 1 ----------------------------------------------------------------------

    def start(self) -> None:
        """Start the fleet and the devices."""
        self.tell.step(1, "A fleet, and twelve devices on two sites")
        self.world.start_fleet()
        info = self.world.run_info
        self.tell.say(f"fleet at {info['api_url']}, broker at {info['broker_url']}")
        self.world.api.put("/policy", {"window_s": WINDOW_S, "records": "all"})
        self.world.start_agents()

        def connected() -> bool:
            devices = self.world.api.get("/devices")["items"]
            return sum(bool(device["connected"]) for device in devices) == len(DEVICES)

        wait_for("twelve connected devices", connected, 60)
        sites = ", ".join(f"{count} at {site}" for site, count in SITES.items())
        self.expect(True, f"{len(DEVICES)} devices enrolled, each with its own token: {sites}")
        if self.options.traffic == "on":
            self._traffic = Traffic(
                {device: agent.url for device, agent in self.world.agents.items()},
                self.options.examples,
                seed=self.options.seed,
                rate_hz=self.options.rate_hz,
            )
            self._traffic.start()

    # --- 2 ----------------------------------------------------------------------

    def build(self, versions: tuple[str, ...]) -> None:
        """Build, sign, verify and publish the bundles."""
        self.tell.step(2, "Bundles: built from recipes, gated, signed, verified, published")
        for version in versions:
            self._build_one(version)

    def _build_one(self, version: str) -> None:
        recipe = self.options.examples / f"{MODEL}-{version}.toml"
        out = self.world.root / "bundles"
        built = json.loads(self.world.skerry("build", recipe, "--out", out, "--json"))
        bundle = msgspec.convert(
            {"version": version, "variants": built["variants"]}, BundleSummary, strict=False
        )
        self.summary.bundles.append(bundle)
        signed = out / f"{MODEL}-{version}.targets.json"
        key = self.world.keys / f"publisher-{PUBLISHER}.pem"
        fleet = ("--fleet", self.world.run_info["api_url"])
        self.world.skerry(
            "sign", built["bundle"], "--publisher", PUBLISHER, "--key", key, "--out", signed, *fleet
        )
        token = ("--token-file", self.world.data / "admin.token")
        self.world.skerry("publish", built["bundle"], signed, *fleet, *token)
        self.tell.good(f"{MODEL} {version} published as {built['digest'][:19]}…")
        self.tell.table(
            ("precision", "bytes", "accuracy", "latency", "verdict"),
            [
                (
                    variant.precision,
                    f"{variant.bytes:,}",
                    "-" if variant.accuracy is None else f"{variant.accuracy:.1%}",
                    "-" if variant.latency_ratio is None else f"{variant.latency_ratio:.2f} x",
                    ("chosen: " if variant.chosen else "") + variant.reason,
                )
                for variant in bundle.variants
            ],
        )

    # --- 3 ----------------------------------------------------------------------

    def roll_out_the_good(self) -> None:
        """Roll out 1.0.0 to all and 1.1.0 by canary, killing processes meanwhile."""
        self.tell.step(3, "Rollouts that earn their way: verified, tried, on probation, committed")
        self._roll_out("1.0.0", [{"name": "all", "percent": 100, "bake_s": 0}])
        self._kill_the_agent()
        self._await_windows("1.0.0", WINDOWS_BEFORE_FIRST)
        self._roll_out("1.1.0", _canary_stages(WINDOWS_BEFORE_FIRST))
        for version in ("1.0.0", "1.1.0"):
            self._say_accuracy(version, DEVICES)

    def roll_out_in_silence(self) -> None:
        """Try to roll out 1.0.0 without any traffic: nothing may commit."""
        self.tell.step(3, "A rollout without live traffic must not pass")
        rollout = self._roll_out("1.0.0", [{"name": "all", "percent": 100, "bake_s": 0}], None)
        committed = [a["device"] for a in rollout["assignments"] if a["state"] == "committed"]
        self.expect(
            rollout["state"] == "paused"
            and rollout["pause_reason"] == "insufficient_data"
            and not committed,
            f"ended {rollout['state']}/{rollout['pause_reason']}, {len(committed)} devices committed",
        )

    # --- 4 ----------------------------------------------------------------------

    def roll_out_the_last(self) -> None:
        """Roll out the release that fails on live data, or the good one in its place."""
        bad = self.options.release == "bad"
        self.tell.step(4, "A release that passed its own evaluation" if bad else "A good release")
        self._build_one(self.last_version)
        self._kill_the_broker()
        self._await_windows("1.1.0", WINDOWS_BEFORE)
        expected = "rolled_back" if bad else "completed"
        rollout = self._roll_out(self.last_version, _canary_stages(WINDOWS_BEFORE), expected)
        served = tuple(rollout["devices_served"])
        self._say_accuracy(self.last_version, served)
        # two witnesses: what the fleet recorded, and from where the client got such answers
        seen = self.traffic.served_on(self.last_version)
        self.expect(
            seen == served and len(served) == (CANARIES if bad else len(DEVICES)),
            f"it served on {_listed(served)}; the client had its answers from {_listed(seen)}",
        )
        if bad:
            wait_for("the canaries back on 1.1.0", lambda: self._all_on("1.1.0"), 30)
            self.expect(True, "all twelve devices serve 1.1.0")

    # --- 5 ----------------------------------------------------------------------

    def smudge_lenses(self) -> None:
        """Smudge lenses and see whether the drift analysis names exactly these devices."""
        self.tell.step(5, f"A smudged lens on {_listed(self.smudged)}")
        version = "1.1.0" if self.options.release == "bad" else self.last_version
        self._await_windows(version, 8)
        self.traffic.smudge(self.smudged)
        if self.smudged:
            wait_for("an alert for the smudged devices", self._alert_is_complete, 20, 0.3)
        else:
            time.sleep(8 * WINDOW_S)
        report = self.world.api.get(f"/drift?model={MODEL}")
        devices = sorted(d["device"] for d in report["devices"] if d["verdict"] == "drift")
        features = {
            feature["name"]
            for device in report["devices"]
            if device["verdict"] == "drift"
            for feature in device["features"]
        }
        alerts = [a for a in self.world.api.get("/alerts")["items"] if a["kind"] == "drift"]
        alerted = sorted({device for alert in alerts for device in alert["devices"]})
        self.summary.drift = DriftSummary(bool(alerts), alerted, sorted(features))
        for alert in alerts:
            self.tell.say(f"alert: {alert['message']}")
        self.expect(
            devices == alerted == sorted(self.smudged),
            f"drift on {_listed(devices)}; alerts on {_listed(alerted)}; "
            f"{len(DEVICES) - len(devices)} devices quiet",
        )

    def _alert_is_complete(self) -> bool:
        alerts = self.world.api.get("/alerts")["items"]
        found = {device for a in alerts if a["kind"] == "drift" for device in a["devices"]}
        return found >= set(self.smudged)

    # --- 6 ----------------------------------------------------------------------

    def account(self) -> None:
        """Compare the client's book with what the fleet stored."""
        self.tell.step(6, "The account: every answer, exactly once")
        self.traffic.stop()
        books = self.traffic.books.values()
        sent = set().union(*(book.sent for book in books))
        answered = set().union(*(book.answered for book in books))

        def all_stored() -> bool:
            totals = self.world.api.get("/accounting")
            stored, sketched = totals["distinct_ids"], totals["sketch_rows"]
            return bool(stored >= len(answered) and sketched >= len(answered))

        try:
            wait_for("every answer stored", all_stored, SETTLE_S, 0.3)
        except SkerryError as late:
            self.tell.bad(str(late))
        stored = self._stored_ids()
        totals = self.world.api.get("/accounting")
        book = self.summary.accounting
        book.sent, book.answered = len(sent), len(answered)
        book.counted = len(answered & stored)
        book.lost = len(answered - stored)
        repeated = totals["rows"] - totals["distinct_ids"]
        book.double = repeated + max(0, totals["sketch_rows"] - totals["distinct_ids"])
        book.unconfirmed = len(stored - answered)
        if book.lost:
            self.tell.bad(f"lost: {', '.join(sorted(answered - stored)[:8])}")
        retried = sum(book.retried for book in self.traffic.books.values())
        self.tell.say(
            f"{book.sent:,} sent, {book.answered:,} answered, {book.counted:,} counted, "
            f"{retried} asked again; sketches hold {totals['sketch_rows']:,} rows"
        )
        self.expect(
            (book.lost, book.double) == (0, 0) and totals["sketch_rows"] == totals["distinct_ids"],
            f"{book.lost} lost, {book.double} double, {book.unconfirmed} stored but unconfirmed",
        )
        self.expect(book.answered >= MIN_REQUESTS, f"at least {MIN_REQUESTS:,} requests")

    def _stored_ids(self) -> set[str]:
        stored: set[str] = set()
        cursor = ""
        while True:
            page = self.world.api.get(f"/predictions/ids?limit=20000&cursor={cursor}")
            stored.update(page["ids"])
            cursor = page["next"]
            if not cursor:
                return stored

    @contextlib.contextmanager
    def traffic_going_on(self) -> Iterator[None]:
        """Let the client go on asking, for whoever looks at the console after the story."""
        if self._traffic is None:
            yield
            return
        self._traffic.start()
        try:
            yield
        finally:
            self._traffic.stop()

    # --- what several steps need ---------------------------------------------------

    def expect(self, happened: bool, what: str) -> None:
        """Tell what came out; a step that did not happen makes the run fail."""
        if happened:
            self.tell.good(what)
        else:
            self.tell.bad(what)
            self._failed.append(what)

    def _roll_out(
        self, version: str, stages: list[dict[str, Any]], expected: str | None = "completed"
    ) -> dict[str, Any]:
        began = time.monotonic()
        api = self.world.api
        plan = {
            "model": MODEL,
            "model_version": version,
            "publisher": PUBLISHER,
            "slot": MODEL,
            "selector": "all",
            "stages": stages,
            "probation": PROBATION,
            "on_failure": "rollback",
        }
        identity = api.post("/rollouts", plan)["rollout_id"]

        def over() -> dict[str, Any] | None:
            rollout: dict[str, Any] = api.get(f"/rollouts/{identity}")
            return rollout if rollout["state"] in ENDS else None

        rollout: dict[str, Any] = wait_for(f"an end of the rollout of {version}", over, 60, 0.25)
        took = time.monotonic() - began
        said = rollout["reason"] or rollout["pause_reason"] or ""
        self.summary.rollouts.append(
            RolloutSummary(version, rollout["state"], said, len(rollout["devices_served"]))
        )
        for stage in rollout["stages"]:
            counts = ", ".join(f"{count} {state}" for state, count in stage["counts"].items())
            reason = "" if stage["reason"] in rollout["reason"] else f": {stage['reason']}"
            self.tell.say(
                f"stage {stage['name']} {stage['state']} ({counts or 'no device'}){reason}"
            )
        if expected is not None:
            self.expect(
                rollout["state"] == expected,
                f"{version} {rollout['state'].replace('_', ' ')} after {took:.1f} s: {said}",
            )
            if rollout["state"] != expected:
                raise SkerryError(f"the story cannot go on: {version} is {rollout['state']}")
        return rollout

    def _await_windows(self, version: str, count: int) -> None:
        """Wait until every device has sent so many full windows of this version."""

        def enough() -> bool:
            counts = self.world.api.get(
                f"/windows/counts?model={MODEL}&model_version={version}&min_n={WINDOW_MIN_N}"
            )
            return all(counts.get(device, 0) >= count for device in DEVICES)

        wait_for(f"{count} windows of {version} on every device", enough, 60, 1.0)

    def _all_on(self, version: str) -> bool:
        devices = self.world.api.get("/devices")["items"]
        return all(
            device["slots"].get(MODEL, {}).get("model_version") == version for device in devices
        )

    def _say_accuracy(self, version: str, devices: tuple[str, ...]) -> None:
        accuracy = self.traffic.accuracy(version, devices)
        if accuracy is not None:
            self.tell.say(
                f"what only the client knows: {version} read {accuracy:.1%} of them right"
            )

    def _kill_the_agent(self) -> None:
        """SIGKILL both processes of a device, with requests and records under way."""
        over = self.traffic.burst(KILLED_DEVICE, 4)
        status, waiting = self.world.freeze_agent(
            KILLED_DEVICE, lambda: self.traffic.in_flight(KILLED_DEVICE)
        )
        self.world.kill_agent(KILLED_DEVICE, (status["control_pid"], status["serve_pid"]))
        self.tell.say(
            f"SIGKILL to both processes of {KILLED_DEVICE}: {waiting} requests in flight, "
            f"{status['outbox_records']} records in its outbox"
        )
        self.expect(waiting > 0 and status["outbox_records"] > 0, "both were under way")
        self.world.start_agent(KILLED_DEVICE)
        time.sleep(0.5)
        over.set()

    def _kill_the_broker(self) -> None:
        """SIGKILL the broker, with requests and records under way; the fleet restarts it."""
        pid = self.world.freeze_broker()
        time.sleep(0.6)  # the broker hangs: outboxes fill
        waiting = wait_for("requests in flight", self.traffic.in_flight, 5, 0.0005)
        self.world.kill_broker(pid)
        status = self.world.agent_status(DEVICES[0])
        self.tell.say(
            f"SIGKILL to the broker: {waiting} requests in flight, "
            f"{status['outbox_records']} records in the outbox of {DEVICES[0]}"
        )
        self.expect(waiting > 0 and status["outbox_records"] > 0, "both were under way")
        wait_for("a restarted broker", lambda: self.world.broker_pid() != pid, 20)


def _canary_stages(windows_before: int) -> list[dict[str, Any]]:
    analysis = {
        "min_windows_before": windows_before,
        "min_window_n": WINDOW_MIN_N,
        "min_windows_after": WINDOWS_AFTER,
    }
    return [
        {"name": "canary", "count": CANARIES, "bake_s": 3 * WINDOW_S, "analysis": analysis},
        {"name": "rest", "percent": 100, "bake_s": 0},
    ]


def _listed(devices: Sequence[str]) -> str:
    if len(devices) == len(DEVICES):
        return "all devices"
    return ", ".join(devices) or "no device"
