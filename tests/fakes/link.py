"""A link and a broker in memory: they lose, duplicate, damage, delay and reorder, as they like.

Each copy of a message has a delay of its own, and that is what reorders. The last
`retain`ed message per topic is handed to whoever connects; now and then it is an older
one, as after a broker that lost its disk.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from tests.fakes.clock import Clock

Receive = Callable[[str, bytes], None]


@dataclass
class Weather:
    """How bad the link is; all are probabilities but the delays (seconds)."""

    lose: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    stale: float = 0.0  # of a retained message: the one before it is handed out
    forget: float = 0.0  # of a retained message: nothing is handed out
    delay_s: float = 0.05
    straggle: float = 0.0  # of a copy: it takes up to `straggle_s`
    straggle_s: float = 20.0


class Link:
    """Carries messages between one fleet and its devices under virtual time."""

    def __init__(self, clock: Clock, rng: Random, weather: Weather) -> None:
        self.weather = weather
        self.lost = 0
        self.duplicated = 0
        self.corrupted = 0
        self.straggled = 0
        self.in_flight = 0
        self._clock = clock
        self._rng = rng
        self._inboxes: dict[str, Receive] = {}
        self._retained: dict[str, list[bytes]] = {}

    def listen(self, who: str, receive: Receive | None) -> None:
        """Deliver what is for `who` to this callable, or to nobody."""
        if receive is None:
            self._inboxes.pop(who, None)
        else:
            self._inboxes[who] = receive

    def is_listening(self, who: str) -> bool:
        """Tell whether `who` would get a message now."""
        return who in self._inboxes

    def send(self, who: str, topic: str, payload: bytes) -> None:
        """Send a message; it arrives never, once or twice, and when it likes."""
        if self._rng.random() < self.weather.lose:
            self.lost += 1
            return
        self._carry(who, topic, payload)
        if self._rng.random() < self.weather.duplicate:
            self.duplicated += 1
            self._carry(who, topic, payload)

    def retain(self, topic: str, payload: bytes) -> None:
        """Keep a message for whoever connects later."""
        self._retained.setdefault(topic, []).append(payload)

    def retained(self, topic: str) -> bytes | None:
        """Return what the broker kept of a topic, as far as it can be relied on."""
        kept = self._retained.get(topic, [])
        if not kept or self._rng.random() < self.weather.forget:
            return None
        if len(kept) > 1 and self._rng.random() < self.weather.stale:
            self.straggled += 1
            return self._rng.choice(kept[:-1])
        return kept[-1]

    def _carry(self, who: str, topic: str, payload: bytes) -> None:
        if payload and self._rng.random() < self.weather.corrupt:
            self.corrupted += 1
            at = self._rng.randrange(len(payload))
            payload = payload[:at] + bytes([payload[at] ^ 0x20]) + payload[at + 1 :]
        delay = self._rng.random() * 2 * self.weather.delay_s
        if self._rng.random() < self.weather.straggle:
            self.straggled += 1
            delay = self._rng.random() * self.weather.straggle_s
        self.in_flight += 1

        def arrive() -> None:
            self.in_flight -= 1
            receive = self._inboxes.get(who)
            if receive is not None:  # nobody listens: a message of QoS 1 is sent again later
                receive(topic, payload)

        self._clock.after(delay, f"{topic.rsplit('/', 1)[-1]} to {who}", arrive)
