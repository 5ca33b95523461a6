"""Answers the broker's login questions: which device is this, and what may it say and hear.

nats-server asks about each MQTT login, with the certificate that TLS has verified. The answer is a
token for exactly one device:

1. the connection speaks MQTT, and its certificate was verified up to our root;
2. the MQTT client id is the certificate's name, so that nobody takes another's session;
3. the registry lets this certificate in (`Gate`);
4. the token ends when the certificate ends, and the broker ends the connection with it.

Whatever cannot be answered is refused. The issuer's key can make any identity: it stays in the keys
folder, and the broker knows only its public half.

Source: NATS ADR-26 "Authorization Callout"; nkeys: base32 of prefix, key and CRC-16/XMODEM.
"""

import base64
import binascii
import json
import logging
import secrets
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Protocol

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fleet.broker_config import MAX_PAYLOAD, Rights
from fleet.certificates import subject_of
from fleet.files import write_atomic
from skerry.errors import RefusedError, TrustError
from skerry.ids import is_id

__all__ = ["SELF_TEST_USER", "Callout", "Gate", "Issuer", "Refusals", "load_issuer"]

log = logging.getLogger(__name__)

SUBJECT: Final = "$SYS.REQ.USER.AUTH"
ACCOUNT: Final = "SKERRY"
SELF_TEST_USER: Final = "_selftest"  # may connect, and neither say nor hear anything
SEED_BYTES: Final = 32
TELL_EVERY_S: Final = 60.0
TELL_AT_MOST: Final = 20  # refusals in that time
MAX_QUESTION_BYTES: Final = 64 * 1024
_ACCOUNT_PREFIX: Final = 0
_NOTHING: Final = Rights((), ())


class Gate(Protocol):
    """Who may connect."""

    def may_connect(self, device_id: str, serial: int) -> bool:
        """Tell whether a device may connect with the certificate of this serial number."""
        ...


class Issuer:
    """The key that the broker takes answers from."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.public: Final = _nkey(_ACCOUNT_PREFIX, raw)

    def sign(self, claims: dict[str, Any]) -> str:
        """Return a token of these claims."""
        body = {"iss": self.public, "jti": secrets.token_hex(16), **claims}
        head = {"typ": "JWT", "alg": "ed25519-nkey"}
        text = f"{_b64(json.dumps(head).encode())}.{_b64(json.dumps(body).encode())}"
        return f"{text}.{_b64(self._key.sign(text.encode()))}"


def load_issuer(folder: Path) -> Issuer:
    """Return the issuer of this fleet; its key is made once.

    Raises:
        TrustError: the file is not such a key.
    """
    path = folder / "callout.seed"
    try:
        seed = path.read_bytes()
    except FileNotFoundError:
        seed = secrets.token_bytes(SEED_BYTES)
        write_atomic(path, seed, mode=0o600)
    if len(seed) != SEED_BYTES:
        raise TrustError(
            f"expected {SEED_BYTES} bytes in {path}, got {len(seed)}; "
            "remove the file, and a new key is made at the next start",
            "key_type",
        )
    return Issuer(Ed25519PrivateKey.from_private_bytes(seed))


class Refusals:
    """Writes refused logins to the log, a few each minute: whoever tries may try for ever."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since, self._count = 0.0, 0

    def tell(self, why: str, now: float) -> None:
        """Write a refusal, or count it.

        Args:
            why: it was refused.
            now: Unix seconds.
        """
        with self._lock:
            if not 0.0 <= now - self._since < TELL_EVERY_S:
                unsaid = max(0, self._count - TELL_AT_MOST)
                self._since, self._count = now, 0
                if unsaid:
                    log.warning("%d more logins were refused", unsaid)
            self._count += 1
            if self._count <= TELL_AT_MOST:
                log.warning("a login was refused: %s", why)


@dataclass(frozen=True, slots=True)
class Callout:
    """Answers login questions; from any number of threads.

    Attributes:
        issuer: signs the answers.
        gate: who may connect.
        rights: what a device may say and hear.
        clock: returns the present, aware UTC.
        refusals: what is written to the log.
    """

    issuer: Issuer
    gate: Gate
    rights: Callable[[str], Rights]
    clock: Callable[[], datetime]
    refusals: Refusals = field(default_factory=Refusals)

    def answer(self, question: bytes) -> bytes:
        """Return the signed answer to a question: a user, or why there is none.

        Raises:
            RefusedError: this is not a question of a server.
        """
        asked = _claims(question)
        about = asked["nats"]
        try:
            reply = {"jwt": self._user(about)}
        except RefusedError as error:
            if not _is_self_test(about):  # that asks for what must be refused
                self.refusals.tell(str(error), self.clock().timestamp())
            reply = {"error": str(error)}
        kind = {"type": "authorization_response", "version": 2}
        return self.issuer.sign(
            {
                "sub": about["user_nkey"],
                "aud": about["server_id"]["id"],
                "iat": int(self.clock().timestamp()),
                "nats": kind | reply,
            }
        ).encode()

    def _user(self, about: dict[str, Any]) -> str:
        client = about.get("client_info", {})
        certificate = _certificate(about)
        name = subject_of(certificate)
        mqtt_id = str(client.get("mqtt_id", ""))
        if client.get("type") != "mqtt":
            raise RefusedError(f"{name[:80]!r} does not speak MQTT")
        if mqtt_id != name:
            raise RefusedError(
                f"the client id {mqtt_id[:80]!r} is not the certificate's name {name[:80]!r}"
            )
        if name == SELF_TEST_USER:
            rights = _NOTHING
        elif is_id(name) and self.gate.may_connect(name, certificate.serial_number):
            rights = self.rights(name)
        else:
            raise RefusedError(f"{name[:80]!r} may not connect with this certificate")
        now = self.clock()
        if certificate.not_valid_after_utc <= now:
            raise RefusedError(f"the certificate of {name} has expired")
        return self.issuer.sign(
            {
                "sub": about["user_nkey"],
                "aud": ACCOUNT,
                "name": name,
                "iat": int(now.timestamp()),
                "exp": int(certificate.not_valid_after_utc.timestamp()),
                "nats": {
                    "type": "user",
                    "version": 2,
                    "pub": _only(rights.publish),
                    "sub": _only(rights.subscribe),
                    "subs": -1,
                    "data": -1,
                    "payload": MAX_PAYLOAD,
                    "allowed_connection_types": ["MQTT"],
                },
            }
        )


def _only(subjects: tuple[str, ...]) -> dict[str, list[str]]:
    # no list at all would allow everything
    return {"allow": list(subjects)} if subjects else {"deny": [">"]}


def _is_self_test(about: dict[str, Any]) -> bool:
    try:
        return subject_of(_certificate(about)) == SELF_TEST_USER
    except RefusedError:
        return False


def _certificate(about: dict[str, Any]) -> x509.Certificate:
    try:
        pem = about["client_tls"]["verified_chains"][0][0]
        return x509.load_pem_x509_certificate(pem.encode())
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        raise RefusedError("a connection without a verified certificate") from None


def _claims(token: bytes) -> dict[str, Any]:
    """Return the claims of a server's token, whose signature is its own.

    Raises:
        RefusedError: it is none.
    """
    if len(token) > MAX_QUESTION_BYTES:
        raise RefusedError("a question that is too long")
    try:
        text, _, signature = token.rpartition(b".")
        claims: dict[str, Any] = json.loads(_unb64(text.split(b".")[1]))
        issuer = base64.b32decode(claims["iss"] + "=" * (-len(claims["iss"]) % 8))
        Ed25519PublicKey.from_public_bytes(issuer[1:33]).verify(_unb64(signature), text)
        if claims["iss"] != claims["nats"]["server_id"]["id"]:
            raise RefusedError("a question that its server has not signed")
        str(claims["nats"]["user_nkey"])
    except (ValueError, KeyError, IndexError, TypeError, InvalidSignature):
        raise RefusedError("a question that no server has asked") from None
    return claims


def _nkey(prefix: int, raw: bytes) -> str:
    data = bytes([prefix]) + raw
    # CRC-16/XMODEM, low byte first
    return base64.b32encode(data + struct.pack("<H", binascii.crc_hqx(data, 0))).decode()


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _unb64(data: bytes) -> bytes:
    return base64.urlsafe_b64decode(data + b"=" * (-len(data) % 4))
