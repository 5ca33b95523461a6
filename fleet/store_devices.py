"""Devices in the database: their enrolment, tags, keys, and what they last said.

`DeviceStore` is what `fleet.registry` asks for (`RegistryStore`), and the look-up of
report keys for ingest, which is kept in memory for a few seconds.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec
from sqlalchemy import Connection, Row, delete, insert, select, update

from fleet.assignment_steps import end_open
from fleet.ca import Certificate
from fleet.database import Database
from fleet.registry import Claim, DeviceRecord
from fleet.schema import devices, liveness, reported, tokens, voices
from fleet.voices import Voice, start_over
from skerry.canonical import from_json, from_msgpack, to_json, to_msgpack
from skerry.keys import PublicKey
from skerry.profile import Inventory, hw_class
from skerry.states import AssignmentState, DeviceState
from skerry.wire import ReleaseRef

__all__ = ["DeviceStore", "DeviceView"]

KEY_CACHE_S: Final = 5.0  # another process of this fleet may have changed the device
MAX_CACHED: Final = 100_000


class DeviceView(msgspec.Struct, frozen=True):
    """A device as operators and selectors see it."""

    device: str
    state: str
    state_reason: str  # why it may not speak
    tags: dict[str, str]
    hw_class: str
    inventory: Inventory
    slots: dict[str, ReleaseRef]  # as reported
    reported_version: int
    enrolled_at: float | None
    last_seen: float | None
    agent: str
    desired_version: int  # that the device holds
    outbox_records: int
    outbox_bytes: int
    dropped_records: int
    serve_restarts: int


class DeviceStore:
    """Reads and writes devices; each writing method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._keys: dict[str, tuple[float, PublicKey | None]] = {}
        self._keys_lock = threading.Lock()

    def device_state(self, device_id: str) -> DeviceState | None:
        """Return the state of a device, None if nobody has named it."""
        with self._db.read() as connection:
            state = connection.scalar(select(devices.c.state).where(devices.c.device == device_id))
        return None if state is None else DeviceState(state)

    def record(self, device_id: str) -> DeviceRecord | None:
        """Return the record of a device that has enrolled."""
        with self._db.read() as connection:
            row = connection.execute(
                select(devices).where(devices.c.device == device_id)
            ).one_or_none()
        if row is None or row.report_key is None:
            return None
        return DeviceRecord(
            device_id=row.device,
            state=DeviceState(row.state),
            client_id=row.client_id,
            report_key=row.report_key,
            certificate=row.certificate,
            certificate_expires=datetime.fromtimestamp(row.certificate_expires, UTC),
            inventory=from_json(row.inventory.encode(), Inventory),
            enrolled_at=datetime.fromtimestamp(row.enrolled_at, UTC),
            previous_certificate=row.previous_certificate,
        )

    def preauthorize(self, claim: Claim, *, tags: Mapping[str, str], now: datetime) -> None:
        """Keep a claim in place of the device's former ones; name the device if it is new."""
        at = now.timestamp()
        text = to_json(dict(tags)).decode()
        with self._db.write() as connection:
            changed = connection.execute(
                update(devices).where(devices.c.device == claim.device_id).values(tags=text)
            )
            if changed.rowcount == 0:
                connection.execute(
                    insert(devices).values(
                        device=claim.device_id,
                        state=DeviceState.PREAUTHORIZED,
                        tags=text,
                        created_at=at,
                    )
                )
            connection.execute(delete(tokens).where(tokens.c.device == claim.device_id))
            connection.execute(
                insert(tokens).values(
                    secret_hash=claim.secret_hash,
                    device=claim.device_id,
                    created_at=at,
                    expires_at=claim.expires.timestamp(),
                    used_at=at if claim.spent else None,
                )
            )

    def claim(self, secret_hash: str) -> Claim | None:
        """Return the claim of a secret, spent or not."""
        with self._db.read() as connection:
            row = connection.execute(
                select(tokens).where(tokens.c.secret_hash == secret_hash)
            ).one_or_none()
        if row is None:
            return None
        expires = datetime.fromtimestamp(row.expires_at, UTC)
        return Claim(row.device, row.secret_hash, expires, spent=row.used_at is not None)

    def void_claims(self, device_id: str) -> None:
        """Forget the claims of a device."""
        with self._db.write() as connection:
            connection.execute(delete(tokens).where(tokens.c.device == device_id))

    def enrol(self, secret_hash: str, record: DeviceRecord) -> bool:
        """Spend the claim and write the record, both or neither; False if it was spent already."""
        at = record.enrolled_at.timestamp()
        with self._db.write() as connection:
            state = select(devices.c.state).where(devices.c.device == record.device_id)
            if connection.scalar(state) == DeviceState.DECOMMISSIONED:
                return False  # at this very moment: its name is not used again
            spent = connection.execute(
                update(tokens)
                .where(
                    tokens.c.secret_hash == secret_hash,
                    tokens.c.device == record.device_id,
                    tokens.c.used_at.is_(None),
                )
                .values(used_at=at)
            )
            if spent.rowcount == 0:
                return False
            former = select(devices.c.report_key).where(devices.c.device == record.device_id)
            if connection.scalar(former) != record.report_key:
                # another machine counts its reports anew, however far the one before it has come
                connection.execute(
                    update(reported).where(reported.c.device == record.device_id).values(version=0)
                )
            connection.execute(
                update(devices)
                .where(devices.c.device == record.device_id)
                .values(
                    state=record.state,
                    state_reason="",
                    client_id=record.client_id,
                    report_key=record.report_key,
                    certificate=record.certificate,
                    certificate_expires=record.certificate_expires.timestamp(),
                    previous_certificate=None,
                    inventory=to_json(record.inventory).decode(),
                    hw_class="".join(filter(str.isprintable, hw_class(record.inventory)))[:128],
                    enrolled_at=at,
                )
            )
            _start_over(connection, record.device_id)
        self.forget_key(record.device_id)
        return True

    def renew(self, record: DeviceRecord, certificate: Certificate, previous: str) -> bool:
        """Replace a device's certificate, and keep the one that it may still use."""
        with self._db.write() as connection:
            changed = connection.execute(
                update(devices)
                .where(
                    devices.c.device == record.device_id,
                    devices.c.certificate == record.certificate,
                    devices.c.state == DeviceState.ACCEPTED,
                )
                .values(
                    certificate=certificate.pem,
                    certificate_expires=certificate.expires.timestamp(),
                    previous_certificate=previous,
                )
            )
        return changed.rowcount == 1

    def forget_previous(self, record: DeviceRecord) -> None:
        """Forget the previous certificate, if the device still has the record's as its current."""
        with self._db.write() as connection:
            connection.execute(
                update(devices)
                .where(
                    devices.c.device == record.device_id,
                    devices.c.certificate == record.certificate,
                )
                .values(previous_certificate=None)
            )

    def move(
        self,
        device_id: str,
        old: DeviceState,
        new: DeviceState,
        now: datetime,
        *,
        reason: str = "",
    ) -> bool:
        """Change a device's state, and why it may not speak, if it still is `old`; tell if it was.

        For a device that is accepted, what was heard of it is looked at anew; one that is
        decommissioned has nothing under way any more.
        """
        with self._db.write() as connection:
            moved = connection.execute(
                update(devices)
                .where(devices.c.device == device_id, devices.c.state == old)
                .values(state=new, state_reason=reason)
            )
            if moved.rowcount == 1 and new is DeviceState.ACCEPTED:
                _start_over(connection, device_id)
            if moved.rowcount == 1 and new is DeviceState.DECOMMISSIONED:
                end, why = AssignmentState.DECOMMISSIONED, "the device was decommissioned"
                end_open(connection, device_id, end, why, now.timestamp())
        self.forget_key(device_id)
        return moved.rowcount == 1

    def set_tags(self, device_id: str, tags: Mapping[str, str]) -> bool:
        """Replace a device's tags; tell whether there is such a device."""
        with self._db.write() as connection:
            changed = connection.execute(
                update(devices)
                .where(devices.c.device == device_id)
                .values(tags=to_json(dict(tags)).decode())
            )
        return changed.rowcount == 1

    def report_key(self, device_id: str) -> PublicKey | None:
        """Return the report key of an accepted device."""
        now = time.monotonic()
        with self._keys_lock:
            known = self._keys.get(device_id)
        if known is not None and now - known[0] < KEY_CACHE_S:
            return known[1]
        with self._db.read() as connection:
            raw = connection.scalar(
                select(devices.c.report_key).where(
                    devices.c.device == device_id, devices.c.state == DeviceState.ACCEPTED
                )
            )
        key = None if raw is None else PublicKey(bytes(raw))
        with self._keys_lock:
            if len(self._keys) >= MAX_CACHED:
                self._keys.clear()
            if key is not None:  # a device that enrols this moment shall not have to wait
                self._keys[device_id] = (now, key)
        return key

    def forget_key(self, device_id: str) -> None:
        """Look the device's key up again next time."""
        with self._keys_lock:
            self._keys.pop(device_id, None)

    def views(self, device_ids: Sequence[str] | None = None) -> list[DeviceView]:
        """Return devices, all or those named, in order of their ids."""
        query = (
            select(devices, liveness, reported.c.slots, reported.c.version)
            .outerjoin(liveness, liveness.c.device == devices.c.device)
            .outerjoin(reported, reported.c.device == devices.c.device)
            .order_by(devices.c.device)
        )
        if device_ids is not None:
            query = query.where(devices.c.device.in_(device_ids))
        with self._db.read() as connection:
            return [_view(row) for row in connection.execute(query)]


def _start_over(connection: Connection, device_id: str) -> None:
    """Forget a fork of a device, and keep what tells its new messages from repeated ones."""
    query = select(voices.c.body).where(voices.c.device == device_id).with_for_update()
    body = connection.scalar(query)
    if body is not None:
        voice = to_msgpack(start_over(from_msgpack(bytes(body), Voice)))
        connection.execute(update(voices).where(voices.c.device == device_id).values(body=voice))


def _view(row: Row[tuple[object, ...]]) -> DeviceView:
    slots = row.slots or "{}"
    return DeviceView(
        device=row.device,
        state=row.state,
        state_reason=row.state_reason,
        tags=from_json(row.tags.encode(), dict[str, str]),
        hw_class=row.hw_class,
        inventory=from_json(row.inventory.encode(), Inventory),
        slots=from_json(slots.encode(), dict[str, ReleaseRef]),
        reported_version=row.version or 0,
        enrolled_at=row.enrolled_at,
        last_seen=row.last_seen,
        agent=row.agent or "",
        desired_version=row.desired_version or 0,
        outbox_records=row.outbox_records or 0,
        outbox_bytes=row.outbox_bytes or 0,
        dropped_records=row.dropped_records or 0,
        serve_restarts=row.serve_restarts or 0,
    )
