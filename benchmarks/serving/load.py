"""The load generator: a lean HTTP/1.1 client in a process of its own.

    python load.py    a line of JSON on standard input is one burst, a line on standard output its result

A burst: {address: [host, port] or path, message: hex of a whole request, clients, requests}. Each
client keeps one connection and asks again as soon as it is answered. A result: seconds, latencies
in microseconds (sorted), this process's own CPU time per request, and the statuses that came.
"""

import collections
import json
import select
import socket
import sys
import time

READ = 1 << 18
WITHIN_S = 60.0


class Connection:
    """A connection and the answer that is on its way."""

    def __init__(self, address) -> None:
        if isinstance(address, str):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(address)
        else:
            self.socket = socket.create_connection(tuple(address))
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""
        self.asked = 0.0

    def ask(self, message: bytes) -> None:
        """Send a request."""
        self.asked = time.perf_counter()
        self.socket.sendall(message)

    def answer(self) -> int:
        """Read what has come; return the status of a whole answer, 0 before that."""
        data = self.socket.recv(READ)
        if not data:
            raise ConnectionError(f"closed after {self.buffer[:200]!r}")
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return 0
        head = self.buffer[:end].lower()
        at = head.find(b"\r\ncontent-length:")
        if at < 0:
            raise ValueError(f"expected a length in {head!r}")
        length = int(head[at + 17 : at + 40].split(b"\r\n")[0])
        if len(self.buffer) < end + 4 + length:
            return 0
        status = int(self.buffer[9:12])
        self.buffer = self.buffer[end + 4 + length :]
        return status


def burst(given: dict) -> dict:
    """Ask so often, with so many connections."""
    message, left = bytes.fromhex(given["message"]), given["requests"]
    connections = {}
    poll = select.epoll()
    for _ in range(given["clients"]):
        one = Connection(given["address"])
        connections[one.socket.fileno()] = one
        poll.register(one.socket.fileno(), select.EPOLLIN)
    latencies, statuses = [], collections.Counter()
    began, own = time.perf_counter(), time.process_time()
    under_way = 0
    for one in connections.values():
        if left:
            one.ask(message)
            left, under_way = left - 1, under_way + 1
    while under_way:
        ready = poll.poll(WITHIN_S)
        if not ready:
            raise TimeoutError(f"no answer in {WITHIN_S:.0f} s")
        for fd, _ in ready:
            one = connections[fd]
            status = one.answer()
            if not status:
                continue
            latencies.append((time.perf_counter() - one.asked) * 1e6)
            statuses[status] += 1
            under_way -= 1
            if left:
                one.ask(message)
                left, under_way = left - 1, under_way + 1
    seconds, own = time.perf_counter() - began, time.process_time() - own
    for one in connections.values():
        one.socket.close()
    poll.close()
    latencies.sort()
    return {
        "seconds": seconds,
        "p50_us": latencies[len(latencies) // 2],
        "p99_us": latencies[int(len(latencies) * 0.99)],
        "client_cpu_us": own / len(latencies) * 1e6,
        "statuses": statuses,
    }


def main() -> None:
    """Answer lines until there are none."""
    for line in sys.stdin:
        given = json.loads(line)
        try:
            result = by_client(given) if "library" in given else burst(given)
        except (OSError, ValueError) as error:
            result = {"error": repr(error)}
        print(json.dumps(result), flush=True)


def by_client(given: dict) -> dict:
    """The same, by one `skerry.io.client.Client`."""
    import numpy as np

    from skerry.io.client import Client

    row = np.frombuffer(bytes.fromhex(given["row"]), np.float32).reshape(given["shape"])
    latencies = []
    with Client(given["address"]) as client:
        client.predict(given["model"], {given["input"]: row})
        began, own = time.perf_counter(), time.process_time()
        for _ in range(given["requests"]):
            asked = time.perf_counter()
            client.predict(given["model"], {given["input"]: row})
            latencies.append((time.perf_counter() - asked) * 1e6)
        seconds, own = time.perf_counter() - began, time.process_time() - own
    latencies.sort()
    return {
        "seconds": seconds,
        "p50_us": latencies[len(latencies) // 2],
        "p99_us": latencies[int(len(latencies) * 0.99)],
        "client_cpu_us": own / len(latencies) * 1e6,
        "statuses": {"200": len(latencies)},
    }


if __name__ == "__main__":
    main()
