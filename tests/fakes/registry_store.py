"""A registry's store in memory: each method holds a lock, as each would be one transaction."""

import dataclasses
import threading
from collections.abc import Mapping
from datetime import datetime

from fleet.ca import Certificate
from fleet.registry import Claim, DeviceRecord
from skerry.states import DeviceState


class MemoryRegistryStore:
    """Keeps devices, claims and records in dictionaries."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.states: dict[str, DeviceState] = {}
        self.tags: dict[str, dict[str, str]] = {}
        self.claims: dict[str, Claim] = {}
        self.records: dict[str, DeviceRecord] = {}

    def device_state(self, device_id: str) -> DeviceState | None:
        return self.states.get(device_id)

    def record(self, device_id: str) -> DeviceRecord | None:
        record = self.records.get(device_id)
        return record and dataclasses.replace(record, state=self.states[device_id])

    def preauthorize(self, claim: Claim, *, tags: Mapping[str, str], now: datetime) -> None:
        with self._lock:
            self.states.setdefault(claim.device_id, DeviceState.PREAUTHORIZED)
            self.tags[claim.device_id] = dict(tags)
            for key in [k for k, c in self.claims.items() if c.device_id == claim.device_id]:
                del self.claims[key]
            self.claims[claim.secret_hash] = claim

    def claim(self, secret_hash: str) -> Claim | None:
        return self.claims.get(secret_hash)

    def void_claims(self, device_id: str) -> None:
        with self._lock:
            for key in [k for k, c in self.claims.items() if c.device_id == device_id]:
                del self.claims[key]

    def enrol(self, secret_hash: str, record: DeviceRecord) -> bool:
        with self._lock:
            claim = self.claims.get(secret_hash)
            if claim is None or claim.spent:
                return False
            if self.states.get(record.device_id) is DeviceState.DECOMMISSIONED:
                return False
            self.claims[secret_hash] = dataclasses.replace(claim, spent=True)
            self.states[record.device_id] = record.state
            self.records[record.device_id] = record
            return True

    def renew(self, record: DeviceRecord, certificate: Certificate, previous: str) -> bool:
        with self._lock:
            now = self.records[record.device_id]
            accepted = self.states[record.device_id] is DeviceState.ACCEPTED
            if now.certificate != record.certificate or not accepted:
                return False
            self.records[record.device_id] = dataclasses.replace(
                now, certificate=certificate.pem, certificate_expires=certificate.expires,
                previous_certificate=previous,
            )  # fmt: skip
            return True

    def forget_previous(self, record: DeviceRecord) -> None:
        with self._lock:
            now = self.records[record.device_id]
            if now.certificate == record.certificate:
                self.records[record.device_id] = dataclasses.replace(now, previous_certificate=None)

    def move(
        self,
        device_id: str,
        old: DeviceState,
        new: DeviceState,
        now: datetime,
        *,
        reason: str = "",
    ) -> bool:
        with self._lock:
            if self.states.get(device_id) is not old:
                return False
            self.states[device_id] = new
            return True
