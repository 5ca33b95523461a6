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
6. A renewed certificate is current at once; the one before it still holds until the new one was used
   for the first time, for the device may never have got its answer. From then on it does not.
7. A device of which there are two (`fleet.quarantine`) is `pending` until an operator accepts it, or a
   machine spends a new token in its name.
"""

import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Protocol

from fleet.ca import Authority, Certificate
from fleet.certificates import same_key, serial_of
from skerry.enrolment import EnrolRequest, roots_digest
from skerry.errors import (
    ConflictError,
    InvalidTransition,
    NotFoundError,
    RefusedError,
    TrustError,
    UsageError,
)
from skerry.ids import check_id
from skerry.profile import Inventory
from skerry.states import DEVICE, DeviceState, advance
from skerry.token import EnrolmentToken, format_token, secret_hash

__all__ = ["Claim", "DeviceRecord", "Enrolled", "Registry", "RegistryStore"]

TOKEN_TTL: Final = timedelta(hours=24)
SECRET_BYTES: Final = 32
REPORT_KEY_BYTES: Final = 32
MAX_TAGS: Final = 32
# what a selector can name (`fleet.targeting`)
_TAG: Final = re.compile(r"[a-z][a-z0-9_]{0,31}")
_VALUE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


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
    previous_certificate: str | None = None  # PEM, until the new one was used


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

    def void_claims(self, device_id: str) -> None:
        """Forget the claims of a device."""
        ...

    def enrol(self, secret_hash: str, record: DeviceRecord) -> bool:
        """Spend the claim and write the record, both or neither; False if it was spent already."""
        ...

    def renew(self, record: DeviceRecord, certificate: Certificate, previous: str) -> bool:
        """Replace a device's certificate, and keep the one that it may still use.

        False if it has another certificate than the record says, or is not accepted any more.
        """
        ...

    def forget_previous(self, record: DeviceRecord) -> None:
        """Forget the previous certificate, if the device still has the record's as its current."""
        ...

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
        ...


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A device that was enrolled: its record, and whether the same request had been made before."""

    record: DeviceRecord
    again: bool


class Registry:
    """Names devices, enrols them, and moves them from state to state.

    Args:
        store: see `RegistryStore`.
        authority: issues their certificates.
        roots: returns the catalog's and the director's latest root.
        client_id: returns a device's MQTT client id. The device id by default: right where the
            broker binds it to the certificate; elsewhere it must be a secret of this enrolment.
        on_cut: called with a device that may not connect any more.
        random_bytes: the source of secrets.
    """

    def __init__(
        self,
        store: RegistryStore,
        authority: Authority,
        roots: Callable[[], tuple[bytes, bytes]],
        *,
        client_id: Callable[[str], str] = str,
        on_cut: Callable[[str], None] = lambda _: None,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._store = store
        self._authority = authority
        self._roots = roots
        self._client_id = client_id
        self._on_cut = on_cut
        self._random_bytes = random_bytes

    def preauthorize(
        self,
        device_id: str,
        *,
        tags: Mapping[str, str],
        fleet_url: str,
        now: datetime,
        again: bool = False,
    ) -> str:
        """Return a new enrolment token for a device; it replaces an older one.

        Args:
            device_id: the name that the device will have.
            tags: what operators write on it.
            fleet_url: of the device listener, as the device reaches it.
            now: aware UTC.
            again: also for a device that has enrolled: whoever spends the token takes its place.

        Raises:
            UsageError: a malformed id or tag.
            ConflictError: the device has enrolled, and `again` was not given.
            RefusedError: the device was decommissioned; its name is not used again.
        """
        check_id(device_id, "device id")
        _check_tags(tags)
        state = self._store.device_state(device_id)
        if state is DeviceState.DECOMMISSIONED:
            raise RefusedError(f"{device_id} was decommissioned; choose another name")
        if state not in (None, DeviceState.PREAUTHORIZED) and not again:
            raise ConflictError(
                f"{device_id} is {state} already; to let another machine take its place, "
                "ask for a token again knowingly (again)"
            )
        secret = self._random_bytes(SECRET_BYTES)
        claim = Claim(device_id, secret_hash(secret), now + TOKEN_TTL)
        self._store.preauthorize(claim, tags=tags, now=now)
        return format_token(
            EnrolmentToken(
                device_id=device_id,
                secret=secret,
                fleet_url=fleet_url,
                ca_fingerprint=self._authority.fingerprint,
                roots_digest=roots_digest(*self._roots()),
            )
        )

    def enrol(self, request: EnrolRequest, now: datetime) -> Enrolled:
        """Spend a token and return the device's record with its new certificate.

        Args:
            request: from the device; nothing of it is trusted but the token's secret.
            now: aware UTC.

        Raises:
            RefusedError: the token is unknown, spent by another key, or expired, or its device is
                not to enrol; the message does not say which.
            TrustError: the certificate request or the report key is none.
        """
        if len(request.report_key) != REPORT_KEY_BYTES:
            raise TrustError(f"expected a report key of {REPORT_KEY_BYTES} bytes", "key_type")
        hashed = secret_hash(request.secret)
        claim = self._store.claim(hashed)
        if claim is None or claim.expires <= now:
            raise _refused()
        if claim.spent:
            return self._repeat(claim, request)
        state = self._store.device_state(claim.device_id)
        if state is None:
            raise _refused()
        if state is not DeviceState.ACCEPTED:
            try:
                state = advance(DEVICE, state, DeviceState.ACCEPTED)
            except InvalidTransition:
                raise _refused() from None
        certificate = self._authority.issue(claim.device_id, request.csr, now)
        record = DeviceRecord(
            device_id=claim.device_id,
            state=state,
            client_id=self._client_id(claim.device_id),
            report_key=request.report_key,
            certificate=certificate.pem,
            certificate_expires=certificate.expires,
            inventory=request.inventory,
            enrolled_at=now,
        )
        known = self._store.record(claim.device_id)
        if not self._store.enrol(hashed, record):  # another request was faster
            return self._repeat(claim, request)
        if known is not None:  # another machine, or other keys, had this name
            self._on_cut(claim.device_id)
        return Enrolled(record, again=False)

    def quarantine(self, device_id: str, reason: str, now: datetime) -> bool:
        """Shut an accepted device out until an operator has looked; tell whether it was accepted.

        Its tokens stay: one may be the answer to this.
        """
        accepted, pending = DeviceState.ACCEPTED, DeviceState.PENDING
        moved = self._store.move(device_id, accepted, pending, now, reason=reason)
        if moved:
            self._on_cut(device_id)
        return moved

    def move(self, device_id: str, state: DeviceState, now: datetime) -> None:
        """Accept, reject or decommission a device.

        Raises:
            NotFoundError: no such device.
            InvalidTransition: it cannot go there from where it is.
            ConflictError: somebody else moved it at the same moment.
        """
        old = self._store.device_state(device_id)
        if old is None:
            raise NotFoundError(f"no device {device_id[:80]!r}; preauthorize it first")
        if state is DeviceState.ACCEPTED and self._store.record(device_id) is None:
            raise RefusedError(f"{device_id} has not enrolled; it is accepted when it does")
        advance(DEVICE, old, state)
        if state is not DeviceState.ACCEPTED:
            # whoever still has a token of it would only come back with that
            self._store.void_claims(device_id)
        if not self._store.move(device_id, old, state, now):
            raise ConflictError(f"{device_id} was changed by somebody else; look at it again")
        if state is not DeviceState.ACCEPTED:
            self._on_cut(device_id)

    def renew(self, device_id: str, serial: int, request: str, now: datetime) -> Certificate:
        """Return a new certificate for a device that shows a current one.

        Args:
            device_id: as its certificate says.
            serial: of the certificate that it shows.
            request: a certificate request in PEM, for a new key.
            now: aware UTC.

        Raises:
            RefusedError: the device may not connect with that certificate.
            TrustError: the request is none, or for the key that the device has already.
        """
        record = self._store.record(device_id)
        shown = None if record is None else _shown(record, serial)
        if record is None or shown is None:
            raise RefusedError(f"{device_id} may not connect with this certificate")
        if same_key(shown, request):
            raise TrustError("expected a certificate request for a new key", "request")
        certificate = self._authority.issue(device_id, request, now)
        if not self._store.renew(record, certificate, shown):
            raise RefusedError(f"{device_id} was changed at the same moment; ask again")
        return certificate

    def may_connect(self, device_id: str, serial: int) -> bool:
        """Tell whether a device may connect with the certificate of this serial number.

        The first use of a renewed certificate ends the one before it.
        """
        record = self._store.record(device_id)
        shown = None if record is None else _shown(record, serial)
        if record is None or shown is None:
            return False
        if shown == record.certificate and record.previous_certificate is not None:
            self._store.forget_previous(record)
        return True

    def _repeat(self, claim: Claim, request: EnrolRequest) -> Enrolled:
        """Answer a request that was answered before; refuse any other that spends the token."""
        record = self._store.record(claim.device_id)
        if (
            record is None
            or record.state is not DeviceState.ACCEPTED
            or record.report_key != request.report_key
            or not same_key(record.certificate, request.csr)
        ):
            raise _refused()
        return Enrolled(record, again=True)


def _shown(record: DeviceRecord, serial: int) -> str | None:
    """Return the certificate of this serial number, if the device may use it."""
    if record.state is DeviceState.ACCEPTED:
        for certificate in (record.certificate, record.previous_certificate):
            if certificate is not None and serial_of(certificate) == serial:
                return certificate
    return None


def _refused() -> RefusedError:
    return RefusedError("the enrolment token is unknown, spent or expired; ask for a new token")


def _check_tags(tags: Mapping[str, str]) -> None:
    if len(tags) > MAX_TAGS:
        raise UsageError(f"expected at most {MAX_TAGS} tags, got {len(tags)}")
    for name, value in tags.items():
        if _TAG.fullmatch(name) is None or _VALUE.fullmatch(value) is None:
            raise UsageError(
                "expected tags such as site=north: a name of up to 32 lower-case letters, digits "
                "and '_', a value of up to 63 letters, digits, '.', '_' and '-'; "
                f"got {name[:40]!r}={value[:80]!r}"
            )
