"""What trust costs: a look for news, a full verification, memory, and signing in the fleet.

    python benchmarks/trust.py [--repeat 21] [--out trust]

Catalogs of 1, 100 and 5,000 releases (above 300 they lie in 64 bins) are signed by the fleet's own
code and served over plain HTTP: bytes are counted before TLS, by a relay that both ends speak
through. What a device does is the agent's own: its request for news, and its verifier as a child
process. CPU time comes from the kernel, by thread or by child; medians and quartiles.
"""

import argparse
import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from aiohttp import web  # noqa: E402 - after the path is set
from tuf.api.metadata import Metadata, MetaFile, Snapshot, TargetFile, Targets, Timestamp  # noqa: E402

from agent.download import Fetcher  # noqa: E402
from agent.trust import _News  # noqa: E402
from agent.verify_protocol import VerifyAnswer, VerifyRequest  # noqa: E402
from benchmarks.outcome import write  # noqa: E402
from compiler.believe import Trust  # noqa: E402
from compiler.sign import Release, add_release  # noqa: E402
from fleet.api.problems import problems  # noqa: E402
from fleet.catalog import Catalog  # noqa: E402
from fleet.device_api import add_catalog_routes  # noqa: E402
from fleet.director import assign  # noqa: E402
from fleet.roles import sign  # noqa: E402
from skerry.canonical import from_msgpack, sha256, to_msgpack  # noqa: E402
from skerry.custom import catalog_custom  # noqa: E402
from skerry.holding import SPLIT_ABOVE, Delegation  # noqa: E402
from skerry.trust import CatalogTarget  # noqa: E402
from tests.fakes.trusted import TrustedFleet, make_fleet  # noqa: E402

SIZES = (1, 100, 5_000)
MIB = 1 << 20
GOALS = {
    "no_change_bytes": 700,
    "verification_cpu_ms_besides_start": 30,
    "verification_cpu_ms_with_start": 250,
    "resting_mib": 10,
    "transient_mib": 40,
}


# --- a catalog of any size --------------------------------------------------------------------


def releases(count: int) -> list[CatalogTarget]:
    """Releases of ten models, each naming four to which a device may fall back."""
    made: list[CatalogTarget] = []
    for n in range(count):
        digest = sha256(b"%d" % n).removeprefix("sha256:")
        earlier = ["sha256:" + old.sha256 for old in made[-40::10]]
        path = f"models/acme/model-{n % 10}@1.{n}.0"
        made.append(CatalogTarget(path, 2_000, digest, n // 10 + 1, ["any"], "0.1.0", earlier))
    return made


def make_catalog(folder: Path, count: int, now: datetime) -> TrustedFleet:
    """A fleet whose publisher has released so often."""
    made = make_fleet(folder, now=now)
    place, signer = made.data / "tuf" / "catalog", made.publisher()
    files = {
        one.path: TargetFile(
            one.length, {"sha256": one.sha256}, one.path, {"custom": catalog_custom(one)}
        )
        for one in releases(count)
    }
    expires = now + timedelta(days=90)
    own = Targets(version=1, expires=expires)
    roles = {"acme": own}
    if count > SPLIT_ABOVE:
        top = Metadata[Targets].from_bytes(made.catalog.metadata("targets.json")).signed
        own.delegations = Delegation.of(top, "acme").bins("acme")
        bins = own.delegations.succinct_roles
        assert bins is not None
        roles |= {name: Targets(version=1, expires=expires) for name in bins.get_roles()}
        for path, file in files.items():
            roles[bins.get_role_for_target(path)].targets[path] = file
    else:
        own.targets = files
    for name, role in roles.items():
        (place / f"1.{name}.json").write_bytes(sign(role, [signer]))
    meta = {"targets.json": MetaFile(1)} | {f"{name}.json": MetaFile(1) for name in roles}
    snapshot = Snapshot(version=2, expires=now + timedelta(days=30), meta=meta)
    timestamp = Timestamp(version=2, expires=now + timedelta(days=7), snapshot_meta=MetaFile(2))
    (place / "2.snapshot.json").write_bytes(sign(snapshot, [made.keys.snapshot]))
    (place / "timestamp.json").write_bytes(sign(timestamp, [made.keys.timestamp]))
    made.catalog = Catalog(place, made.keys, now)
    return made


@contextmanager
def served(made: TrustedFleet) -> Iterator[int]:
    """Serve the catalog as the fleet does; the port."""
    loop, ready, ports = asyncio.new_event_loop(), threading.Event(), []

    async def start() -> web.AppRunner:
        app = web.Application(middlewares=[problems])
        add_catalog_routes(app, made.catalog, made.director)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        listening = socket.create_server(("127.0.0.1", 0))
        await web.SockSite(runner, listening).start()
        ports.append(listening.getsockname()[1])
        ready.set()
        return runner

    def work() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait()
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


class Relay:
    """Passes bytes on, one connection at a time, and counts them."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.bytes = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            near, _ = self._listening.accept()
            far = socket.create_connection(("127.0.0.1", self._port))
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        while data := source.recv(1 << 16):
            self.bytes += len(data)
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


# --- what is measured ----------------------------------------------------------------------------


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": round(middle, 2), "q1": round(low, 2), "q3": round(high, 2)}


def no_change(made: TrustedFleet, folder: Path, repeat: int) -> dict[str, object]:
    """A look for news where there is none."""
    verified = folder / "timestamp.json"
    verified.write_bytes(made.catalog.metadata("timestamp.json"))
    with served(made) as port:
        relay = Relay(port)
        base = f"http://127.0.0.1:{relay.port}/tuf/catalog/metadata"
        news = _News(Fetcher(base, timeout_s=10), verified)
        assert not news.any()  # learns the tag
        processes = 0

        def watch(event: str, _: object) -> None:
            nonlocal processes
            processes += event in {"subprocess.Popen", "os.fork", "os.posix_spawn"}

        sys.addaudithook(watch)
        cpu, before = [], relay.bytes
        for _ in range(repeat):
            began = time.thread_time()
            assert not news.any()
            cpu.append((time.thread_time() - began) * 1000)
        time.sleep(0.1)
        return {
            "bytes": (relay.bytes - before) / repeat,
            "cpu_ms": spread(cpu),
            "processes_started": processes,
        }


CHILD = "from agent import verifier_child as c; c._leave_out(); "
IN_CHILD = (
    CHILD
    + """
import sys, time
from agent.verifier import verify_request
from agent.verify_protocol import VerifyRequest
from skerry.canonical import from_msgpack
request = from_msgpack(sys.stdin.buffer.read(), VerifyRequest, limit=1 << 24)
began = time.process_time()
answer = verify_request(request)
assert not answer.code, answer
print((time.process_time() - began) * 1000)
"""
)


# From a small process: what starts a child counts as the child's until its own program is loaded.
LAUNCH = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, *sys.argv[1:]], stdin=0, stdout=subprocess.PIPE)
sys.stdout.buffer.write(child.stdout.read())
_, status, used = os.wait4(child.pid, 0)
sys.stderr.write(f"{(used.ru_utime + used.ru_stime) * 1000} {used.ru_maxrss / 1024}")
sys.exit(status != 0)
"""


def child(arguments: list[str], given: bytes) -> tuple[bytes, float, float]:
    """Run a child; what it said, its CPU milliseconds, and the most memory it had, in MiB."""
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH, *arguments], input=given, capture_output=True, check=False,
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    cpu, peak = done.stderr.split()[-2:]
    return done.stdout, float(cpu), float(peak)


def verification(made: TrustedFleet, folder: Path, repeat: int, now: datetime) -> dict[str, object]:
    """Director and catalog verified for an assignment, from nothing and again."""
    release = made.catalog.releases()[-1]
    order = assign(release, device="cam-1", slot="main", rollout="r-1", assignment_id="a-1")
    files = made.director.sign("cam-1", [order], version=1, now=now)
    found: dict[str, object] = {}
    with served(made) as port:
        relay = Relay(port)

        def request(place: str) -> bytes:
            return to_msgpack(
                VerifyRequest(
                    target=release.path,
                    director=files,
                    catalog_url=f"http://127.0.0.1:{relay.port}/tuf/catalog/metadata",
                    catalog_root=made.catalog.root,
                    director_root=made.director.root,
                    directory=str(folder / place),
                    now=now.timestamp(),
                    timeout_s=30,
                )
            )

        whole, peaks = [], []
        relay.bytes = 0
        for n in range(repeat):
            out, cpu, peak = child(["-m", "agent.verifier_child"], request(f"first-{n}"))
            answer = from_msgpack(out, VerifyAnswer, limit=MIB)
            assert answer.released == release, answer
            whole.append(cpu)
            peaks.append(peak)
        found["bytes"] = round(relay.bytes / repeat)
        found["cpu_ms_with_start"] = spread(whole)
        found["peak_mib"] = spread(peaks)
        inside = [float(child(["-c", IN_CHILD], request(f"inside-{n}"))[0]) for n in range(repeat)]
        found["cpu_ms_besides_start"] = spread(inside)
        again = [float(child(["-c", IN_CHILD], request("first-0"))[0]) for n in range(repeat)]
        found["unchanged_cpu_ms_besides_start"] = spread(again)
    return found


def signing(made: TrustedFleet, count: int, now: datetime) -> dict[str, float]:
    """What the fleet signs in a second on one core, and what a publisher's signing takes."""
    release = made.catalog.releases()[-1]
    order = assign(release, device="cam-1", slot="main", rollout="r-1", assignment_id="a-1")
    version = iter(range(1, 1 << 30))
    sets = rate(lambda: made.director.sign("cam-1", [order], version=next(version), now=now))
    day = iter(range(1, 1 << 30))
    renewals = rate(lambda: made.catalog.renew(now + timedelta(days=2 * next(day))))
    current = made.roles()
    trust = Trust(made.delegation(), is_verified=True)
    new = Release(f"models/acme/model-0@2.{count}.0", 2_000, "ab" * 32, ["any"], "0.1.0")
    began = time.process_time()
    add_release(current, new, made.publisher(), now=now, trust=trust)
    added = time.process_time() - began
    return {
        "director_sets_per_s": round(sets),
        "catalog_renewals_per_s": round(renewals),
        "publisher_adds_a_release_ms": round(added * 1000, 1),
    }


def rate(work: Callable[[], object]) -> float:
    """So often in a second of CPU."""
    began, done = time.process_time(), 0
    while (spent := time.process_time() - began) < 1.0:
        work()
        done += 1
    return done / spent


RESTING = """
import asyncio, gc, hashlib, ssl, sys, urllib.request
import msgspec, paho.mqtt.client
import skerry.wire, skerry.canonical, agent.config, agent.state, agent.outbox, agent.device_state
{trust}
gc.collect()
for line in open("/proc/self/smaps_rollup"):
    if line.startswith("Pss:"):
        print(int(line.split()[1]))
"""
TRUST = """
import agent.trust, agent.identity, agent.renewal, agent.enroll, skerry.trust
from skerry.keys import Signer
from skerry.wire import Ack, open_down, seal_down
signer = Signer.generate()
sealed = seal_down(signer, dev="cam-1", type="ack", body=Ack())
open_down(sealed, {signer.key_id: signer.public}, device="cam-1", now=1.0)
"""


def memory(repeat: int) -> dict[str, object]:
    """What trust adds to a control process at rest, beside what control needs anyway."""
    without = [int(child(["-c", RESTING.format(trust="")], b"")[0]) / 1024 for _ in range(repeat)]
    with_it = [
        int(child(["-c", RESTING.format(trust=TRUST)], b"")[0]) / 1024 for _ in range(repeat)
    ]
    bare = [child(["-c", "pass"], b"")[2] for _ in range(repeat)]
    return {
        "resting_mib": round(statistics.median(with_it) - statistics.median(without), 1),
        "control_without_trust_mib": spread(without),
        "control_with_trust_mib": spread(with_it),
        "bare_interpreter_peak_mib": spread(bare),
    }


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeat", type=int, default=21)
    parser.add_argument("--out", default="trust")
    given = parser.parse_args()
    now = datetime.now(UTC).replace(microsecond=0)
    found: dict[str, object] = {"goals": GOALS, "repeat": given.repeat}
    with tempfile.TemporaryDirectory() as scratch:
        for count in SIZES:
            folder = Path(scratch, str(count))
            made = make_catalog(folder, count, now)
            found[f"{count} releases"] = {
                "no_change": no_change(made, folder, given.repeat),
                "verification": verification(made, folder, given.repeat, now),
                "signing": signing(made, count, now),
            }
    found["memory"] = memory(given.repeat)
    write(given.out, found)


if __name__ == "__main__":
    main()
