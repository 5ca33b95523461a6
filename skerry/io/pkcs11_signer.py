"""Keys on tokens and in security modules, through PKCS#11: ECDSA P-256, and Ed25519 where it is known.

The key never leaves the token. Each signature logs in and out again: a login counts for the whole
process, and two keys may be on one token. A PIN is tried once, for a token may lock after three.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from securesystemslib.signer import Key, SecretsHandler, Signature, Signer, SSlibKey

from skerry.errors import NotFoundError, SkerryError, TrustError, UnreachableError, UsageError
from skerry.io.key_files import Passphrase, TokenName, checked, public_key
from skerry.pkcs11_uri import KeyUri, parse_key_uri

try:
    import pkcs11
    from pkcs11 import (
        Attribute,
        KeyType,
        Mechanism,
        ObjectClass,
        SignMixin,
        TokenFlag,
        exceptions,
    )

    MISSING = ""
except ImportError as error:
    MISSING = str(error)

if TYPE_CHECKING:
    from pkcs11 import PrivateKey, PublicKey, Session, Token

__all__ = ["MODULE_VARIABLE", "Pkcs11Signer", "open_pkcs11"]

MODULE_VARIABLE: Final = "SKERRY_PKCS11_MODULE"
MAX_LISTED: Final = 10
OCTET_STRING: Final = 0x04
P256: Final = bytes.fromhex("06082a8648ce3d030107")
ED25519: Final = (
    bytes.fromhex("06032b6570"),  # the object identifier of RFC 8410
    b"\x13\x0cedwards25519",  # the name of PKCS#11 3.0, section 6.3.5
)


class Pkcs11Signer(Signer):
    """Signs with one key of one token; made by `open_pkcs11`."""

    def __init__(self, token: "Token", uri: KeyUri, pin: str, key: SSlibKey) -> None:
        self._token = token
        self._uri = uri
        self._pin = pin
        self._key = key

    @property
    def public_key(self) -> SSlibKey:
        """The public half, as TUF metadata names it."""
        return self._key

    @classmethod
    def from_priv_key_uri(
        cls, priv_key_uri: str, public_key: Key, secrets_handler: SecretsHandler | None = None
    ) -> "Signer":
        """Open a key by its URI, as the base class promises.

        Raises:
            UsageError: no way to ask for the PIN.
            TrustError: it is another key than the one given.
        """
        ask = secrets_handler
        if ask is None:
            raise UsageError("expected a function that asks for the PIN")
        signer = open_pkcs11(priv_key_uri, lambda what: ask(what).encode())
        if signer.public_key.keyid != public_key.keyid:
            raise TrustError(f"expected key {public_key.keyid} at {priv_key_uri}", "key_type")
        return signer

    def sign(self, payload: bytes) -> Signature:
        """Return a signature over exactly these bytes.

        Raises:
            NotFoundError: the token or the key is gone.
            TrustError: the token refused, or its answer is no signature by this key.
        """
        with _refusals(self._token.label), _login(self._token, self._pin) as session:
            private = _private(session, self._uri, self._token.label)
            assert isinstance(private, SignMixin)
            again = {"pin": self._pin} if _asks_each_time(private) else {}
            if self._key.keytype == "ed25519":
                signature = private.sign(payload, mechanism=Mechanism.EDDSA, **again)
            else:
                digest = sha256(payload).digest()
                raw = private.sign(digest, mechanism=Mechanism.ECDSA, **again)
                half = len(raw) // 2
                signature = encode_dss_signature(
                    int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big")
                )
        return checked(self._key, payload, signature, f"token {self._token.label}")


def open_pkcs11(spec: str, passphrase: Passphrase) -> Pkcs11Signer:
    """Return the signer of a key on a token.

    Args:
        spec: `pkcs11:token=NAME;object=NAME`, with `?module-path=FILE` unless SKERRY_PKCS11_MODULE
            names the module.
        passphrase: returns the PIN, given the `TokenName`; asked once the token was found.

    Raises:
        UsageError: a wrong URI, no module, or several tokens or keys that it fits.
        NotFoundError: no such module, token or key.
        TrustError: `key_unreadable`: the PIN was refused; `key_type`: neither Ed25519 nor ECDSA
            P-256, or a key that may not sign; `signer_failed`: the token refused otherwise.
        UnreachableError: the module does not start.
    """
    uri = parse_key_uri(spec)
    if MISSING:
        raise UsageError(f'a key on a token needs python-pkcs11: pip install "skerry[pkcs11]" ({MISSING})')  # fmt: skip
    token = _find_token(uri)
    label = token.label
    with _refusals(label):
        with token.open() as session:  # a key of a wrong type is named before anybody is asked
            for public in _find(session, ObjectClass.PUBLIC_KEY, uri):
                _key(public, label)
        pin = _pin(token, passphrase)
        with _login(token, pin) as session:
            private = _private(session, uri, label)
            key = _key(_public(session, private, label), label)
    return Pkcs11Signer(token, uri, pin, key)


# --- finding ------------------------------------------------------------------------


def _find_token(uri: KeyUri) -> "Token":
    module = uri.module_path or os.environ.get(MODULE_VARIABLE, "")
    if not module:
        raise UsageError(
            "expected the PKCS#11 module of the token, which comes with its driver: set "
            f"{MODULE_VARIABLE}, or add ?module-path=FILE to the URI"
        )
    if "/" in module and not Path(module).is_file():
        raise NotFoundError(f"expected a PKCS#11 module at {module}, and there is no such file")
    try:
        tokens = list(pkcs11.lib(module).get_tokens(token_flags=TokenFlag.TOKEN_INITIALIZED))
    except exceptions.PKCS11Error as error:
        raise UnreachableError(
            f"expected the PKCS#11 module {module} to start, got {_said(error)}; "
            "check the file and its configuration"
        ) from None
    fitting = [token for token in tokens if _fits(token, uri)]
    if len(fitting) == 1:
        return fitting[0]
    listed = _listed(f"{token.label!r} (serial {_serial(token)})" for token in tokens)
    if not fitting:
        raise NotFoundError(f"expected the token that the URI names, found {listed}; insert it")
    raise UsageError(f"expected one token, and the URI fits {len(fitting)} of {listed}; "
                     "add token=NAME or serial=NUMBER")  # fmt: skip


def _fits(token: "Token", uri: KeyUri) -> bool:
    pairs = (
        (uri.token, token.label),
        (uri.serial, _serial(token)),
        (uri.manufacturer, token.manufacturer_id),
        (uri.model, token.model),
    )
    return all(wanted is None or wanted == found for wanted, found in pairs)


def _serial(token: "Token") -> str:
    return token.serial.decode(errors="replace")


def _find(session: "Session", kind: "ObjectClass", uri: KeyUri) -> list[Any]:
    wanted: dict[Attribute, Any] = {Attribute.CLASS: kind}
    if uri.object is not None:
        wanted[Attribute.LABEL] = uri.object
    if uri.id is not None:
        wanted[Attribute.ID] = uri.id
    return list(session.get_objects(wanted))


def _private(session: "Session", uri: KeyUri, token: str) -> "PrivateKey":
    found: list[PrivateKey] = _find(session, ObjectClass.PRIVATE_KEY, uri)
    if len(found) != 1:
        listed = _listed(
            f"object {key.label!r} (id {key.id.hex() or 'none'})"
            for key in found or _find(session, ObjectClass.PRIVATE_KEY, KeyUri())
        )
        if found:
            raise UsageError(f"expected one key, and the URI fits {listed} on token {token}; "
                             "name both object and id")  # fmt: skip
        raise NotFoundError(f"expected the key that the URI names on token {token}, found {listed}")
    if not isinstance(found[0], SignMixin):
        raise TrustError(f"expected a key that may sign on token {token}", "key_type")
    return found[0]


def _public(session: "Session", private: "PrivateKey", token: str) -> "PublicKey":
    """The two halves share an id, or, where there is none, a label."""
    same = KeyUri(id=private.id) if private.id else KeyUri(object=private.label)
    found: list[PublicKey] = _find(session, ObjectClass.PUBLIC_KEY, same)
    if len(found) != 1:
        raise NotFoundError(
            f"expected one public key with id {private.id.hex() or 'none'} on token {token}, found "
            f"{len(found)}; write the public half to the token, under the same id"
        )
    return found[0]


def _key(public: "PublicKey", token: str) -> SSlibKey:
    """Return a public key of the token, its point in DER or, as some write it, bare."""
    where = f"token {token}"
    if public.key_type not in (KeyType.EC, KeyType.EC_EDWARDS):
        kind = getattr(public.key_type, "name", public.key_type)
        raise TrustError(
            f"expected an Ed25519 or ECDSA P-256 key on {where}, got {kind}", "key_type"
        )
    curve, point = bytes(public[Attribute.EC_PARAMS]), bytes(public[Attribute.EC_POINT])
    if len(point) > 2 and point[0] == OCTET_STRING and point[1] == len(point) - 2:
        point = point[2:]
    try:
        if curve == P256:
            return public_key(EllipticCurvePublicKey.from_encoded_point(SECP256R1(), point), where)
        if curve in ED25519:
            return public_key(Ed25519PublicKey.from_public_bytes(point), where)
    except ValueError as error:
        raise TrustError(f"expected a public key on {where}: {error}", "key_unreadable") from None
    raise TrustError(
        f"expected an Ed25519 or ECDSA P-256 key on {where}, got curve {curve.hex()}", "key_type"
    )


def _asks_each_time(key: "PrivateKey") -> bool:
    try:
        return bool(key[Attribute.ALWAYS_AUTHENTICATE])
    except exceptions.AttributeTypeInvalid:  # the token does not know the attribute
        return False


# --- the PIN ------------------------------------------------------------------------


def _pin(token: "Token", passphrase: Passphrase) -> str:
    if token.flags & TokenFlag.USER_PIN_LOCKED:
        raise _locked(token.label)
    last = " (one try left before it locks)" if token.flags & TokenFlag.USER_PIN_FINAL_TRY else ""
    try:
        pin = passphrase(TokenName(f"token {token.label}{last}")).decode()
    except UnicodeDecodeError:
        pin = ""
    if not pin:  # an empty one would count as a try
        raise TrustError(f"expected the PIN of token {token.label}, got none", "key_unreadable")
    return pin


@contextmanager
def _login(token: "Token", pin: str) -> "Iterator[Session]":
    try:
        session = token.open(user_pin=pin)
    except (exceptions.PinIncorrect, exceptions.PinInvalid, exceptions.PinLenRange):
        raise TrustError(
            f"expected the PIN of token {token.label}, got another, and did not try again: how "
            "many tries are left is not known. Check it; after too many the token locks",
            "key_unreadable",
        ) from None
    except exceptions.PinLocked:
        raise _locked(token.label) from None
    except exceptions.UserPinNotInitialized:
        raise TrustError(
            f"expected a PIN on token {token.label}: set one", "key_unreadable"
        ) from None
    with session:
        yield session


def _locked(label: str) -> TrustError:
    return TrustError(
        f"token {label} is locked after too many wrong PINs; unlock it with its PUK or SO PIN",
        "key_unreadable",
    )


# --- refusals -----------------------------------------------------------------------


@contextmanager
def _refusals(label: str) -> Iterator[None]:
    """Turn what else a token may say into our errors."""
    try:
        yield
    except SkerryError:
        raise
    except (exceptions.DeviceRemoved, exceptions.TokenNotPresent):
        raise NotFoundError(f"token {label} was taken out; insert it and try again") from None
    except exceptions.PKCS11Error as error:
        raise TrustError(
            f"expected token {label} to sign, got {_said(error)}", "signer_failed"
        ) from None


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


def _listed(names: Iterator[str]) -> str:
    known = sorted(names)  # a token lists its objects in any order
    more = f" and {len(known) - MAX_LISTED} more" if len(known) > MAX_LISTED else ""
    return ", ".join(known[:MAX_LISTED]) + more or "none"
