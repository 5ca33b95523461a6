"""What time it is here, by three witnesses: the device's clock, a proof, and the floor.

    clock    the system's; it may have gone back to 1970
    proof    the fleet's signed answer to a nonce of ours, counted on while this process lives
    floor    the highest proven time that was made durable (`skerry.trust.Floor`)

The latest of the three holds. A clock that has gone back is so put right at the first hello; one
that is ahead stops updates until it is set right, for the fleet's message key alone must not be
able to take a device back into a time in which expired metadata was good.
"""

import secrets
import time
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Final

from skerry.trust import Floor, SignedTime

__all__ = ["DeviceClock", "at_utc", "elapsed"]

NONCE_BYTES: Final = 16
ANSWER_S: Final = 600.0  # an answer that took longer says too little of the present
PROOF_S: Final = 12 * 3600.0  # then another is asked for
LAST: Final = 250_000_000_000.0  # calendars end with the year 9999
ASK_AGAIN_S: Final = 60.0
ASK_AGAIN_CAP_S: Final = 3600.0


def elapsed() -> float:
    """Return seconds that go on while the machine sleeps, and never back."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def at_utc(seconds: float) -> datetime:
    """Return Unix seconds as an aware time, without fractions (as TUF writes expiry)."""
    return datetime.fromtimestamp(int(seconds), UTC)


class DeviceClock:
    """Tells the time, and proves it."""

    def __init__(self) -> None:
        self._nonce = b""
        self._asked_at = 0.0
        self._wait_s = ASK_AGAIN_S
        self._proof: SignedTime | None = None
        self._proven_at = 0.0

    @property
    def waits(self) -> bool:
        """Whether the last nonce has no answer yet."""
        return bool(self._nonce)

    def ask(self) -> bytes:
        """Return a fresh nonce for a hello; answers to earlier ones count no more."""
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._asked_at = elapsed()
        return self._nonce

    def due(self) -> bool:
        """Tell whether it is time to say hello again, for want of an answer or of a fresh one."""
        now = elapsed()
        if self._nonce:
            if now < self._asked_at + self._wait_s:
                return False
            self._wait_s = min(2 * self._wait_s, ASK_AGAIN_CAP_S)
            return True
        return self._proof is None or now >= self._proven_at + PROOF_S

    def answered(self, nonce: bytes, at: float, key_id: str) -> bool:
        """Take in the time from a verified message; only the answer to the last nonce counts, once.

        Args:
            nonce: as the message echoes it.
            at: Unix seconds, the fleet's time.
            key_id: of the message key that signed it.
        """
        now = elapsed()
        mine = self._nonce and nonce == self._nonce and now <= self._asked_at + ANSWER_S
        if not mine or not 0.0 < at < LAST:
            return False
        self._nonce, self._wait_s = b"", ASK_AGAIN_S
        self._proof, self._proven_at = SignedTime(at, key_id), now
        return True

    def keep(self, keys: Collection[str]) -> None:
        """Forget a proof by a key that no longer speaks for the fleet."""
        if self._proof is not None and self._proof.key_id not in keys:
            self._proof = None

    def own(self) -> float:
        """Return Unix seconds by the system's clock."""
        return time.time()

    def proven(self) -> SignedTime | None:
        """Return what the proof comes to by now, None without one."""
        if self._proof is None:
            return None
        return SignedTime(self._proof.at + elapsed() - self._proven_at, self._proof.key_id)

    def signed(self, floor: Floor) -> list[SignedTime]:
        """Return proof and floor, each with the key that vouches for it."""
        proven = self.proven()
        return [SignedTime(floor.time, floor.time_key), *([proven] if proven else [])]

    def now(self, floor: Floor) -> float:
        """Return Unix seconds: the latest of clock, proof and floor."""
        return max(self.own(), *(time.at for time in self.signed(floor)))
