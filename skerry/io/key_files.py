"""Key files: private keys in encrypted PKCS#8, public ones as `.pub`; Ed25519 or ECDSA P-256."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
from securesystemslib.signer import CryptoSigner, Key, Signature, Signer, SSlibKey

from skerry.errors import NotFoundError, TrustError, UsageError
from skerry.keys import KEY_ID_HEX, PublicKey

__all__ = [
    "Passphrase",
    "TokenName",
    "checked",
    "is_public",
    "key_id_of",
    "open_pem",
    "parse_public",
    "public_key",
    "public_pem",
    "read_public",
    "tuf_id_of",
]

MAX_PEM_BYTES: Final = 64 * 1024

# Given what the secret opens, as a person would call it: "keys/root-1.pem", or a `TokenName`.
Passphrase = Callable[[str], bytes]


class TokenName(str):
    """What a PIN opens, such as "token acme": another secret than a file's, and dear to try."""

    __slots__ = ()


def open_pem(path: Path, passphrase: Passphrase) -> Signer:
    """Return the signer of a private key's PEM file.

    Args:
        path: the file.
        passphrase: returns its passphrase, given its name; not called where it is not encrypted.

    Raises:
        UsageError: the file cannot be read.
        NotFoundError: no such file.
        TrustError: `key_unreadable`: not a key, or the passphrase does not open it; `key_type`:
            neither Ed25519 nor ECDSA P-256.
    """
    pem = _read(path, "a private key")
    secret = passphrase(str(path)) if _is_encrypted(pem) else None
    try:
        key = load_pem_private_key(pem, secret)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise TrustError(_why_unreadable(path, pem, secret, error), "key_unreadable") from None
    if isinstance(key, Ed25519PrivateKey) or (
        isinstance(key, EllipticCurvePrivateKey) and isinstance(key.curve, SECP256R1)
    ):
        return CryptoSigner(key)
    raise _wrong_type(str(path), key)


def read_public(path: Path) -> SSlibKey:
    """Return the public key of a `.pub` PEM file.

    Raises:
        UsageError: the file cannot be read.
        NotFoundError: no such file.
        TrustError: `key_unreadable`: not a public key; `key_type`: neither Ed25519 nor ECDSA P-256.
    """
    return parse_public(_read(path, "a public key"), str(path))


def parse_public(pem: bytes, where: str) -> SSlibKey:
    """Return the public key of a PEM (SubjectPublicKeyInfo).

    Raises:
        TrustError: `key_unreadable`: not a public key; `key_type`: neither Ed25519 nor ECDSA P-256.
    """
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        what = "its private half, which stays with its owner" if b"PRIVATE KEY" in pem else error
        raise TrustError(
            f"expected a public key in {where}, got {what}; give the .pub file", "key_unreadable"
        ) from None
    return public_key(key, where)


def is_public(path: Path) -> bool:
    """Say whether a key file holds a public key, by its first line.

    Raises:
        UsageError: the file cannot be read.
        NotFoundError: no such file.
    """
    return b"BEGIN PUBLIC KEY" in _read(path, "a key")


def public_key(key: object, where: str) -> SSlibKey:
    """Return a key of the `cryptography` package as TUF metadata names it.

    Raises:
        TrustError: `key_type`: neither Ed25519 nor ECDSA P-256.
    """
    if isinstance(key, Ed25519PublicKey) or (
        isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1)
    ):
        return SSlibKey.from_crypto(key)
    raise _wrong_type(where, key)


def key_id_of(key: Key) -> str:
    """Return 16 hex digits for people to compare, as `skerry.keys` has them for Ed25519.

    The start of the sha256 of the raw key, or, for ECDSA, of its DER (SubjectPublicKeyInfo). A key
    that cannot be read, in metadata that somebody else wrote, is called by the id that it has there.
    """
    try:
        public = key.keyval["public"]
        if key.keytype == "ed25519":
            return PublicKey(bytes.fromhex(public)).key_id
        der = load_pem_public_key(public.encode()).public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        )
    except (AttributeError, KeyError, TypeError, ValueError, UnsupportedAlgorithm):
        return key.keyid[:KEY_ID_HEX]
    return sha256(der).hexdigest()[:KEY_ID_HEX]


def tuf_id_of(key: Key) -> str:
    """Return the id that a key has in TUF metadata if `public_key` has named it.

    Raises:
        TrustError: neither Ed25519 nor ECDSA P-256.
        ValueError: damaged.
    """
    public = str(key.keyval.get("public"))
    if key.keytype == "ed25519":
        return SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))).keyid
    return parse_public(public.encode(), "the metadata").keyid


def public_pem(key: SSlibKey) -> bytes:
    """Return what `read_public` reads."""
    public = key.keyval["public"]
    if key.keytype != "ed25519":
        return str(public).encode()
    raw = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
    return raw.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def checked(key: SSlibKey, payload: bytes, signature: bytes, whose: str) -> Signature:
    """Return a foreign signer's answer, once it is known to be a signature by this key.

    Raises:
        TrustError: it is none.
    """
    made = Signature(key.keyid, signature.hex())
    try:
        key.verify_signature(made, payload)
    except (UnverifiedSignatureError, VerificationError):
        raise TrustError(
            f"expected a signature by key {key_id_of(key)} from {whose}, got {len(signature)} bytes "
            "that are none; check that the public key is the one of this private key"
        ) from None
    return made


def _is_encrypted(pem: bytes) -> bool:
    return b"BEGIN ENCRYPTED PRIVATE KEY" in pem or b"Proc-Type: 4,ENCRYPTED" in pem


def _why_unreadable(path: Path, pem: bytes, secret: bytes | None, error: Exception) -> str:
    if secret is not None:
        return f"expected the passphrase of {path}, got one that does not open it; try again"
    if b"BEGIN PUBLIC KEY" in pem:
        return f"expected a private key in {path}, got its public half; give the .pem file"
    return f"expected a private key in PEM in {path}: {error}"


def _wrong_type(where: str, key: object) -> TrustError:
    curve = getattr(key, "curve", None)
    got = f"{type(key).__name__} on {curve.name}" if curve else type(key).__name__
    return TrustError(f"expected an Ed25519 or ECDSA P-256 key in {where}, got {got}", "key_type")


def _read(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PEM_BYTES + 1)
    except FileNotFoundError:
        raise NotFoundError(f"expected {what} at {path}, and there is no such file") from None
    except (OSError, ValueError) as error:  # a ValueError: a NUL in the name
        raise UsageError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from None
    if len(data) > MAX_PEM_BYTES:
        raise UsageError(f"expected {what} of at most {MAX_PEM_BYTES} bytes; {path} is longer")
    return data
