"""The control process: trust, updates, the outbox and the connection, in one event loop.

It owns the state directory (one lock), the only writing connection to the database, the
listening socket and the serving process. It loads no numerical library and no TUF: both
live in children. Its tasks:

    link       the broker connection, made again whenever it breaks
    ship       looks for new records, sends what the outbox allows
    renewal    a new certificate in time (`agent.renewal`)
    tick       once a second: deadlines, what is overdue, what may be forgotten
    trust      keeps metadata fresh (`agent.trust`)
    installer  one task per slot that is busy (`agent.installer`)

Killed at any time it loses nothing: what serve answered is in the spool, what the update
machine was about to do is in the database, and both are taken up at the next start.
"""

import asyncio
import contextlib
import logging
import os
import random
import socket
import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from agent.bundle_files import BundleFiles
from agent.config import AgentConfig, Layout
from agent.device_state import Host, State, doing, reported
from agent.facts import (
    Acknowledged,
    ClockJumped,
    DesiredArrived,
    Event,
    ProbationObserved,
    Restarted,
    ServeCrashed,
    ServeUnable,
    Ticked,
)
from agent.identity import Identity
from agent.installer import Installer
from agent.inventory import os_boot_id, take_inventory, vital_signs
from agent.leaving import Gate, input_settings
from agent.mqtt import Link, LinkConfig, parse_broker_url
from agent.orders import Orders, with_remote
from agent.outbox import Outbox
from agent.permission import Permission
from agent.renewal import Keeper
from agent.serve_protocol import ServeConfig
from agent.slots import Slots
from agent.spooler import Spooler
from agent.staging import Staging
from agent.state import Database
from agent.status_file import Status, read_status, write_status
from agent.supervisor import Supervisor, feedback_settings
from agent.trials import Trials
from agent.trust import Trust
from agent.update import Machine, accepts_version
from agent.uplink import Uplink
from agent.wishes import take_wishes
from skerry import topics
from skerry.canonical import to_json
from skerry.profile import hw_class
from skerry.wire import Ack, Cmd, Desired, Health, Policy, Reported, policy_fault, signed_by

__all__ = ["Control"]

log = logging.getLogger(__name__)

TICK_S: Final = 1.0
STOP_S: Final = 4.0  # of a clean end, for serve to drain
AGAIN_S: Final = 1.0  # after an unexpected error, or a database that could not save
NO_POLICY: Final = Policy(version=0)


class Control:
    """One agent's control process.

    Args:
        layout: of the state directory.
        config: settings.
        identity: from enrolment.
        database: of the state directory.
        listeners: the bound sockets on which predictions are asked for; TCP first.
    """

    def __init__(
        self,
        layout: Layout,
        config: AgentConfig,
        identity: Identity,
        database: Database,
        listeners: Sequence[socket.socket],
    ) -> None:
        host, port = listeners[0].getsockname()[:2]
        self.http: Final = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        rng = self._rng = random.Random()
        record = identity.record
        config = with_remote(config, database)
        self._layout, self._config, self._identity = layout, config, identity
        self._database = database
        self._device, self._fleet = record.device_id, record.fleet_id
        self._fleet_url = (config.fleet_url or record.fleet_url).rstrip("/")
        self._inventory = take_inventory(layout.root)
        policy = database.get("policy", Policy)
        self._policy = NO_POLICY if policy is None or policy_fault(policy) else policy
        self._trust = Trust(
            layout, config, identity, database,
            fleet_url=self._fleet_url,
            state=lambda: self._machine.state,
            handle=self._handle,
            keys_changed=self._say_hello,
        )  # fmt: skip
        self._status: Status | None = read_status(layout.status)
        self._outbox = Outbox(self._status.acked if self._status else None,
                              resend_s=config.resend_s)  # fmt: skip
        layout.spool.mkdir(exist_ok=True)
        self._spooler = Spooler(layout.spool, self._outbox, batch_bytes=config.batch_max_bytes, gate=Gate(config, layout.hash_key))  # fmt: skip
        self._supervisor = Supervisor(
            listeners, self._serve_config(), layout.root,
            start_timeout_s=config.start_timeout_s,
            crashed=lambda: self._handle(ServeCrashed()),
            unable=lambda message: self._handle(ServeUnable(message)),
        )  # fmt: skip
        self._files = BundleFiles(
            Slots(layout.slots), config, fleet_url=self._fleet_url,
            ca_file=identity.ca_file, device_file=identity.device_file,
            inventory=self._inventory, cache_dir=layout.prepacked.absolute(), spool=layout.spool,
        )  # fmt: skip
        self._installer = Installer(
            self._files, self._supervisor,
            verifier=self._trust.verify,
            state=lambda: self._machine.state,
            handle=self._handle,
            report=self._report,
            rng=rng,
            staging=Staging(
                self._files, Trials(layout.measured, self._inventory, config.threads)
            ),
            permits=Permission(config, layout.consent, self._trust.wall_clock).hold,
        )  # fmt: skip
        self._machine = Machine(self._load_state(), database, self._installer)
        self._uplink = Uplink(
            identity.signer, device=self._device, fleet=self._fleet, shards=record.shards,
            publish=lambda topic, data, qos: self._link.publish(topic, data, qos=qos),
            outbox=self._outbox, spooler=self._spooler, max_bytes_s=config.upload_max_bytes_s,
        )  # fmt: skip
        self._link = Link(self._link_config(), received=self._received, connected=self._connected,
                          rng=rng)  # fmt: skip
        self._link.spread_s = self._policy.spread_s
        self._keeper = Keeper(
            identity, self._fleet_url, now=self._trust.now, rng=rng,
            renewed=lambda: self._link.reconnect("the certificate was renewed"),
            connected=lambda: self._link.connected,
        )  # fmt: skip
        self._orders = Orders(
            layout, database, config=config, report=self._report, apply=lambda config: setattr(self, "_config", config),
            state=lambda: self._machine.state, take_back=self._handle,
        )  # fmt: skip
        self._started = time.monotonic()
        self._health_due = self._started + config.health_s

    async def run(self, stop: asyncio.Event) -> None:
        """Run until `stop` is set; then end within five seconds."""
        self._spooler.look()
        self._handle(Restarted())
        self._installer.begin_serving()
        self._machine.resume()
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._link.run(), name="link"),
                    group.create_task(self._keeper.run(), name="renewal"),
                    group.create_task(self._every(self._config.poll_s, self._ship), name="ship"),
                    group.create_task(self._every(TICK_S, self._tick), name="tick"),
                    group.create_task(self._trust.run(self._rng), name="trust"),
                ]
                await stop.wait()
                log.info("stopping")
                self._say_presence(online=False)
                for task in tasks:
                    task.cancel()
        finally:
            await self._installer.stop()
            await self._supervisor.stop(STOP_S)
            self._spooler.close()

    # --- what time brings -------------------------------------------------------------

    async def _every(self, seconds: float, work: Callable[[], None]) -> None:
        while True:
            try:
                work()
            except Exception:
                log.exception("unexpected error; going on")
                await asyncio.sleep(AGAIN_S)
            await asyncio.sleep(seconds)

    def _ship(self) -> None:
        now = time.monotonic()
        self._spooler.look()
        if self._link.connected:
            self._outbox.expire(now)
            self._uplink.telemetry(self._policy, now)

    def _tick(self) -> None:
        now, state = time.monotonic(), self._machine.state
        if jump := self._trust.jump_s():
            self._handle(ClockJumped(jump))
        if any(slot.work for slot in state.slots.values()):
            self._handle(Ticked())
        for wish in take_wishes(self._layout.taken_back):
            self._handle(wish)
        self._trust.raise_time()
        if self._link.connected:
            if state.reported_version > state.acked_version:
                self._uplink.reported_again(self._reported, now)
            if self._trust.clock.due():
                self._say_hello(again=not self._trust.clock.waits)
            if now >= self._health_due:
                self._health_due = now + self._config.health_s
                self._uplink.health(self._health(now))
        self._spooler.forget()
        self._write_status()

    # --- what comes down ---------------------------------------------------------------

    def _connected(self) -> None:
        state = self._machine.state
        self._outbox.connected()
        self._say_presence(online=True)
        self._say_hello()
        if state.reported_version > state.acked_version:
            self._report()
        for result in self._database.results():
            self._uplink.result(result)

    def _received(self, _topic: str, payload: bytes) -> None:
        opened = self._uplink.open(payload, self._trust.keys, self._trust.now())
        if opened is None:
            if self._uplink.refusal == "unknown_key":
                self._trust.doubt()
            return
        self._link.proven()
        down, body = opened
        match body:
            case Ack():
                self._take_ack(body)
                self._trust.heard(body, payload)
            case Desired():
                self._handle(DesiredArrived(down.version, body, signed_by(payload)))
                self._trust.wake()
            case Policy():
                self._take_policy(body, signed_by(payload))
            case Cmd():
                self._take_command(body)

    def _take_ack(self, ack: Ack) -> None:
        self._outbox.acknowledged(ack.upto, ack.credit)
        self._uplink.mark = ack.mark or self._uplink.mark
        state = self._machine.state
        if ack.reported > state.acked_version:
            self._handle(Acknowledged(ack.reported))
        if ack.results:
            self._database.acknowledge(ack.results)

    def _take_policy(self, policy: Policy, key_id: str) -> None:
        stands = self._database.get("policy_key", str) in {None, *self._trust.keys}
        if not accepts_version(self._policy.version if stands else 0, policy.version):
            return
        self._database.put_all({"policy": policy, "policy_key": key_id})
        self._policy = policy
        self._supervisor.set_recording(policy.window_s, input_settings(policy, self._config))
        self._link.spread_s = policy.spread_s

    def _take_command(self, command: Cmd) -> None:
        if not self._database.begin_command(command.id):
            return  # its result is said again until the fleet has it
        result = self._orders.run(command)
        self._database.end_command(result)
        self._uplink.result(result)

    # --- the update machine ---------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        """Take an event in; if the state cannot be saved, again a little later."""
        try:
            self._machine.handle(event, self._trust.now())
        except (sqlite3.Error, OSError) as error:
            log.warning("cannot save the state: %s; trying again", error)
            # these two come again by themselves
            if not isinstance(event, Ticked | ProbationObserved):
                asyncio.get_running_loop().call_later(AGAIN_S, self._handle, event)

    def _load_state(self) -> State:
        host = Host(self._device, hw_class(self._inventory), self._inventory.agent)
        state = self._database.load()
        return State(host) if state is None else msgspec.structs.replace(state, host=host)

    # --- what goes up -------------------------------------------------------------------

    def _say_hello(self, *, again: bool = False) -> None:
        if not self._link.connected:
            return  # it will be said
        self._uplink.hello(
            agent=self._inventory.agent,
            desired=self._machine.state.desired_version,
            reported=self._machine.state.reported_version,
            os_boot=os_boot_id(),
            nonce=self._trust.clock.ask(),
            again=again,
        )

    def _report(self) -> None:
        self._uplink.reported(self._reported(), time.monotonic())

    def _reported(self) -> Reported:
        return reported(self._machine.state, vital_signs(self._inventory, self._layout.root))

    def _health(self, now: float) -> Health:
        return Health(
            outbox_records=self._outbox.waiting,
            outbox_bytes=self._spooler.size_bytes(),
            dropped_records=self._supervisor.unrecorded,
            serve_restarts=self._supervisor.restarts,
            uptime_s=round(now - self._started, 1),
            trust=self._trust.summary(),
        )

    def _say_presence(self, *, online: bool) -> None:
        topic = topics.presence(self._fleet, self._device)
        self._link.publish(topic, self._presence(online=online), retain=True)

    def _presence(self, *, online: bool) -> bytes:
        return to_json(
            {"online": online, "boot": self._uplink.boot, "since": round(self._trust.now())}
        )

    def _write_status(self) -> None:
        status = Status(
            control_pid=os.getpid(),
            serve_pid=self._supervisor.pid,
            http=self.http,
            connected=self._link.connected,
            acked={boot: cursor.acked for boot, cursor in self._outbox.cursors.items()},
            waiting=self._outbox.waiting,
            under_way=self._outbox.under_way,
            serve_restarts=self._supervisor.restarts,
            refused=self._uplink.refused,
            stale=self._trust.stale(),
            trust_code=self._trust.code,
            clock_off_s=self._trust.clock_off_s(),
            patched=self._files.patches.made,
            patch_failed=self._files.patches.failed,
            patch_saved_bytes=self._files.patches.saved_bytes,
            unrecorded=self._supervisor.unrecorded,
            certificate_expires=self._keeper.expires,
            doing={name: doing(slot) for name, slot in self._machine.state.slots.items()},
        )
        if status != self._status:
            self._status = status
            with contextlib.suppress(OSError):  # a full disk; nothing rests on this file
                write_status(self._layout.status, status)

    # --- how it is put together -------------------------------------------------------------

    def _serve_config(self) -> ServeConfig:
        config = self._config
        return ServeConfig(
            device_id=self._device,
            spool_dir=str(self._layout.spool.absolute()),
            slots=[],
            window_s=self._policy.window_s,
            threads=config.threads,
            cache_dir=str(self._layout.prepacked.absolute()),
            segment_bytes=config.segment_bytes,
            spool_max_bytes=config.spool_max_bytes,
            max_body_bytes=config.max_body_bytes, drain_s=config.drain_s,
            feedback=feedback_settings(config, self._layout),
            inputs=input_settings(self._policy, config), version=self._inventory.agent,
            status_file=str(self._layout.status.absolute()),
        )  # fmt: skip

    def _link_config(self) -> LinkConfig:
        record, config = self._identity.record, self._config
        return LinkConfig(
            address=parse_broker_url(config.broker_url or record.broker_url),
            client_id=record.client_id,
            filters=(topics.down_filter(self._fleet, self._device), topics.policy(self._fleet)),
            will_topic=topics.presence(self._fleet, self._device),
            will=self._presence(online=False),
            keepalive_s=config.keepalive_s,
            base_s=config.reconnect_base_s,
            cap_s=config.reconnect_cap_s,
            ca_file=self._identity.ca_file,
            cert_file=self._identity.device_file,
            key_file=self._identity.device_file,
        )
