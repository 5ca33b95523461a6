"""The registry of devices: who may enrol, who has, and what each is known by.

    preauthorize   an operator names a device  ->  one token: 256 bits, one use, 24 hours
    enrol          the device spends the token ->  its certificate, and a record of its keys

The rules:

1. A device's name is the one that the token was made for. What a request calls itself is ignored.
2. The fleet keeps the sha256 of a token's secret, never the secret.
3. A token is spent in the same transaction that writes the record: no crash can leave a spent token
   without its device, or a device without its spent token.
4. The same request may be made again while the token lasts, and gets the same answer: an answer may
   be lost on its way. It holds nothing secret, and is of no use without the device's keys.
5. A device with other keys needs a new token, which an operator must ask for knowingly.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Protocol

from skerry.profile import Inventory
from skerry.states import DeviceState

__all__ = ["Claim", "DeviceRecord", "Registry", "RegistryStore"]

TOKEN_TTL: Final = timedelta(hours=24)
SECRET_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Claim:
    """A token as the fleet keeps it: for which device, and until when."""

    device_id: str
    secret_hash: str  # 64 hex digits
    expires: datetime  # aware UTC
    spent: bool = False


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """What the fleet knows of a device since its enrolment."""

    device_id: str
    state: DeviceState
    client_id: str  # under which it speaks MQTT
    report_key: bytes  # 32 raw bytes, Ed25519
    certificate: str  # PEM: the device's, then the issuing authority's
    certificate_expires: datetime  # aware UTC
    inventory: Inventory
    enrolled_at: datetime  # aware UTC


class RegistryStore(Protocol):
    """What the registry asks of a store; each method is one transaction."""

    def device_state(self, device_id: str) -> DeviceState | None:
        """Return the state of a device, None if nobody has named it."""
        ...

    def record(self, device_id: str) -> DeviceRecord | None:
        """Return the record of a device that has enrolled."""
        ...

    def preauthorize(self, claim: Claim, *, tags: Mapping[str, str], now: datetime) -> None:
        """Keep a claim in place of the device's former ones; name the device if it is new.

        A new device is `preauthorized`; the state of a known one stays. Tags replace the old ones.
        """
        ...

    def claim(self, secret_hash: str) -> Claim | None:
        """Return the claim of a secret, spent or not."""
        ...

    def enrol(self, secret_hash: str, record: DeviceRecord) -> bool:
        """Spend the claim and write the record, both or neither; False if it was spent already."""
        ...

    def move(self, device_id: str, old: DeviceState, new: DeviceState, now: datetime) -> bool:
        """Change a device's state if it still is `old`; tell whether it was."""
        ...
