"""The process that runs models: HTTP in, predictions out, records and counts kept.

    python -m agent.serve CONFIG --listen-fd N [--listen-fd N] --control-fd M

It has no keys and no network beyond the listening socket that control hands it. Its
life: load and warm every model, say `Ready`; on `Accept` open the spool, take over
what dead processes left, and answer; on `Drain`, on SIGTERM or when control is gone,
answer what is open, write the windows, and leave with code 0.
"""

import argparse
import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from agent.endpoint import Endpoint
from agent.feedback import Feedback
from agent.http import HttpServer
from agent.http_types import Limits
from agent.infer import Inference, Served
from agent.inputs import Inputs
from agent.labels import Labels
from agent.logs import log_beside
from agent.loop import Loop
from agent.metrics import control_text, metrics_text
from agent.mirror import Mirror
from agent.observe import Observer, RecentIds, count_plan
from agent.recover import Recovery, foreign_contexts
from agent.runtime import Model, read_manifest
from agent.segments import CountPlan, Header, boots, is_live
from agent.serve_channel import Channel
from agent.serve_protocol import (
    Accept,
    Drain,
    Drained,
    Failed,
    InputSettings,
    MirrorTo,
    Ready,
    ServeConfig,
    ServeSlot,
    Settings,
    Stats,
    ToServe,
    frame,
)
from agent.spool import Spool
from agent.status_file import read_status
from agent.syncing import Syncer
from skerry.canonical import from_json
from skerry.errors import SkerryError
from skerry.manifest import parse_baseline
from skerry.records import Context

__all__ = ["main"]

TICK_S: Final = 0.5
BOOT_BYTES: Final = 8
MAX_WORKERS: Final = 4
OS_BOOT_FILE: Final = Path("/proc/sys/kernel/random/boot_id")
_LOG: Final = logging.getLogger("agent.serve")
Loaded = tuple[ServeSlot, Model, CountPlan]


class Server:
    """Everything between `Accept` and the end."""

    def __init__(
        self, loop: Loop, config: ServeConfig, boot: str, models: Sequence[Loaded]
    ) -> None:
        root = Path(config.spool_dir)
        own = {_context(slot): plan for slot, _, plan in models}
        contexts = own | {c: p for c, p in foreign_contexts(root).items() if c not in own}
        os_boot = OS_BOOT_FILE.read_text().strip() if OS_BOOT_FILE.exists() else ""
        header = Header(
            boot=boot,
            first_seq=1,
            os_boot=os_boot,
            window_s=config.window_s,
            contexts=list(contexts),
            plans=list(contexts.values()),
        )
        self._loop = loop
        self._config = config
        self._spool = Spool(
            root, header,
            segment_bytes=config.segment_bytes, max_bytes=config.spool_max_bytes,
            many_unsynced=self._sync_now,
        )  # fmt: skip
        self._syncer = Syncer(loop, self._take_sync)
        recent = RecentIds(config.recent_ids)
        self._observer = Observer(self._spool, header.plans, config.window_s, recent)
        self._feedback = Feedback(
            config.feedback,
            catch_up=self._catch_up,
            beside=self._beside,
        )
        self._labels = Labels(
            self._spool, config.window_s,
            seen=self._feedback.seen, sync=self._feedback.sync if config.sync_s else None,
        )  # fmt: skip
        self._recovery = Recovery(
            root, self._spool, self._observer, header.contexts, os_boot, self._labels
        )
        self._models = [
            Served(slot, model, ctx, holder=self._feedback.holder(slot, model.manifest, plan))
            for ctx, (slot, model, plan) in enumerate(models)
        ]
        self._feedback.labels = self._labels
        self._inputs = Inputs(
            self._spool, [(slot.slot, model.manifest) for slot, model, _ in models], config.inputs
        )
        self._inference = Inference(
            self._models, self._observer,
            before_look_up=self._recovery.catch_up, call=loop.call,
            workers=_workers(config.threads), max_wait_s=config.max_wait_s,
            inputs=self._inputs, when_safe=self._syncer.when_safe,
        )  # fmt: skip
        self._http = HttpServer(
            loop,
            Endpoint(
                self._inference,
                metrics=self._metrics,
                feedback=self._feedback,
                version=config.version,
            ),
            Limits(config.max_body_bytes, config.max_queue, config.max_connections),
            self._inference.flush,
        )

    def start(self, listeners: Sequence[socket.socket]) -> None:
        """Take over from dead processes, then accept."""
        rebuilt = self._recovery.start()
        if rebuilt:
            _LOG.warning("rebuilt %d windows that dead processes left open", rebuilt)
        self._http.start(listeners)
        if self._config.sync_s:
            self._loop.later(self._config.sync_s, self._sync)

    def set_recording(self, window_s: float, inputs: InputSettings) -> None:
        """Count in windows of this length, and record such inputs, from now on."""
        self._observer.set_window(window_s)
        self._labels.window_s = window_s
        self._inputs.set(inputs)

    def mirror(self, message: MirrorTo) -> None:
        """Show requests of a slot to a shadow, or no more."""
        for served in self._models:
            if served.slot.slot == message.slot:
                if served.mirror is not None:
                    served.mirror.close()
                served.mirror = (
                    Mirror(self._loop, message.path, message.share) if message.path else None
                )

    def stats(self) -> Stats:
        """Return what was done since the start."""
        slots = {served.slot.slot: served.stats() for served in self._models}
        return Stats(slots, unrecorded=self._spool.lost_total)

    def tick(self) -> float:
        """Do what time asks for, and return the seconds until it asks again."""
        now = time.time()
        self._labels.tick(time.monotonic())
        self._observer.close_due(now)
        if self._labels.to_sync and not self._syncer.busy:
            self._syncer.do(self._take_sync())
        self._http.expire()
        self._recovery.look(rebuild=not self._http.load.draining)
        self._feedback.tick(beside=self._recovery.follows)
        if self._inference.longest_s() > self._config.hang_s:
            os.kill(os.getpid(), signal.SIGALRM)  # as the kernel does where the loop stands still
        return min(TICK_S, self._observer.next_due(now))

    def drain(self, done: Callable[[], None]) -> None:
        """Answer what is open, then write every window, end the boot and call back."""
        self._recovery.look(rebuild=False)  # the process that follows records already

        def end() -> None:
            self._syncer.close()
            labelled = self._labels.close()
            self._observer.close_all()
            self._spool.close(counted=self._observer.all_written and labelled)
            done()

        self._http.drain(self._config.drain_s, end)

    def _sync(self) -> None:
        self._sync_now()
        self._loop.later(self._config.sync_s, self._sync)

    def _sync_now(self) -> None:
        """Make records power-safe: after `sync_s`, or earlier when many came."""
        if self._config.sync_s and self._spool.unsynced and not self._syncer.busy:
            self._syncer.do(self._take_sync())

    def _take_sync(self) -> Callable[[], None]:
        """Return the job that makes records power-safe, and the marks of labels."""
        records, labels = self._spool.take_sync(), self._labels.take_sync()

        def job() -> None:
            try:
                records()
            finally:
                if labels is not None:
                    labels()

        return job

    def _catch_up(self) -> None:
        """Take over what others have recorded; also one that has just begun."""
        if self._recovery.follows:
            self._recovery.catch_up()
        elif self._beside():
            self._recovery.look(rebuild=False)

    def _beside(self) -> bool:
        """Tell whether another process records at the same time."""
        root = self._spool.directory.parent
        return any(is_live(root / boot) for boot in boots(root) if boot != self._spool.boot)

    def _metrics(self) -> str:
        text = metrics_text(self._models, self._observer, self._spool, self._http.load)
        text += self._feedback.metrics() + self._inputs.metrics()
        file = self._config.status_file
        status = read_status(Path(file)) if file else None
        return text if status is None else text + control_text(status)


def main(argv: list[str] | None = None) -> int:
    """Run the process; returns its exit code."""
    parser = argparse.ArgumentParser(prog="agent.serve", description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path, help="a ServeConfig as JSON")
    parser.add_argument(
        "--listen-fd", type=int, action="append", required=True, help="a listening socket"
    )
    parser.add_argument("--control-fd", type=int, required=True, help="the socket to control")
    args = parser.parse_args(argv)
    logging.basicConfig(stream=sys.stderr, format="serve: %(message)s", level=logging.WARNING)
    # features of a strange input may overflow; that is counted as NaN, not written to a log
    np.seterr(all="ignore")
    # an interrupt at the terminal goes to the whole group; control decides what it means
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket(fileno=fd)) for fd in args.listen_fd]
        control = stack.enter_context(socket.socket(fileno=args.control_fd))
        try:
            config = from_json(args.config.read_bytes(), ServeConfig)
            log_beside(Path(config.spool_dir).parent)
            started = time.perf_counter()
            models = [_load(slot, config) for slot in config.slots]
        except (SkerryError, OSError) as error:
            _LOG.error("cannot start: %s", error)
            with contextlib.suppress(OSError):
                control.sendall(frame(Failed(str(error))))
            return 1
        boot = secrets.token_hex(BOOT_BYTES)
        ready = Ready(boot, (time.perf_counter() - started) * 1000)
        _Life(config, boot, models, listeners, control).run(ready)
    return 0


class _Life:
    """From `Ready` to `Drained`: does what control says."""

    def __init__(
        self,
        config: ServeConfig,
        boot: str,
        models: Sequence[Loaded],
        listeners: Sequence[socket.socket],
        control: socket.socket,
    ) -> None:
        self._loop = Loop()
        self._config = config
        self._boot = boot
        self._models = models
        self._listeners = listeners
        self._channel = Channel(self._loop, control, self._take)
        self._server: Server | None = None
        self._leaving = False
        signal.signal(signal.SIGTERM, lambda *_: self._loop.call(lambda: self._take(Drain())))

    def run(self, ready: Ready) -> None:
        self._channel.send(ready)
        self._loop.run()
        self._channel.say_last(Drained())
        self._loop.close()

    def _take(self, message: ToServe) -> None:
        match message:
            case Accept() if self._server is None and not self._leaving:
                self._server = Server(self._loop, self._config, self._boot, self._models)
                self._server.start(self._listeners)
                self._beat()
            case Settings():
                self._config = msgspec.structs.replace(
                    self._config, window_s=message.window_s, inputs=message.inputs
                )
                if self._server is not None:
                    self._server.set_recording(message.window_s, message.inputs)
            case MirrorTo() if self._server is not None:
                self._server.mirror(message)
            case Drain() if not self._leaving:
                self._leaving = True
                if self._server is None:
                    self._loop.stop()
                else:
                    self._server.drain(self._end)

    def _beat(self) -> None:
        assert self._server is not None
        # Nobody handles SIGALRM: if the loop stands still for so long, in native code even,
        # the kernel ends this process and control starts another.
        signal.setitimer(signal.ITIMER_REAL, self._config.hang_s)
        pause_s = self._server.tick()
        self._channel.send(self._server.stats())
        self._loop.later(max(pause_s, 0.0), self._beat)

    def _end(self) -> None:
        assert self._server is not None
        self._channel.send(self._server.stats())
        self._loop.stop()


def _workers(threads: int) -> int:
    """Return how many threads may run one model, each of whose runs takes so many."""
    return max(1, min(MAX_WORKERS, len(os.sched_getaffinity(0)) // max(threads, 1)))


def _load(slot: ServeSlot, config: ServeConfig) -> tuple[ServeSlot, Model, CountPlan]:
    manifest = read_manifest(Path(slot.manifest_file))
    data = Path(slot.baseline_file).read_bytes()
    baseline = parse_baseline(data)
    cache_dir = Path(config.cache_dir) if config.cache_dir else None
    model = Model(
        Path(slot.model_file), manifest, slot.variant, threads=config.threads, cache_dir=cache_dir
    )
    return slot, model, count_plan(manifest, baseline)


def _context(slot: ServeSlot) -> Context:
    return Context(slot.slot, slot.model, slot.model_version, slot.bundle, slot.variant)


if __name__ == "__main__":
    sys.exit(main())
