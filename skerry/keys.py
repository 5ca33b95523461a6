"""Ed25519 keys: made, kept as encrypted PKCS#8 PEM, used to sign and to verify.

A key id is the first 16 hex digits of the sha256 of the raw public key. Private
bytes never leave a `Signer`; only `to_pem` writes them, encrypted.
"""

import hashlib
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from skerry.errors import TrustError

__all__ = ["PublicKey", "Signer"]

KEY_ID_HEX: Final = 16


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public Ed25519 key: 32 raw bytes."""

    raw: bytes

    @property
    def key_id(self) -> str:
        """The first 16 hex digits of the key's sha256."""
        return hashlib.sha256(self.raw).hexdigest()[:KEY_ID_HEX]

    def verify(self, message: bytes, signature: bytes) -> None:
        """Check a signature over exactly these bytes (RFC 8032).

        Raises:
            TrustError: it is not this key's.
        """
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except (InvalidSignature, ValueError):
            raise TrustError(f"expected a signature by key {self.key_id}, got another") from None


class Signer:
    """A private Ed25519 key that signs."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        raw = private.public_key().public_bytes(
            serialization.Encoding.Raw, serialization.PublicFormat.Raw
        )
        self.public: Final = PublicKey(raw)
        self.key_id: Final = self.public.key_id

    @classmethod
    def generate(cls) -> "Signer":
        """Make a new key from the system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_pem(cls, pem: bytes, passphrase: bytes | None) -> "Signer":
        """Read a PKCS#8 PEM.

        Raises:
            TrustError: wrong passphrase, not a PEM, or not an Ed25519 key.
        """
        try:
            private = serialization.load_pem_private_key(pem, passphrase)
        except (ValueError, TypeError) as error:
            raise TrustError(
                f"expected a private key in PEM that the passphrase opens: {error}; "
                "check the file and the passphrase",
                "key_unreadable",
            ) from None
        if not isinstance(private, Ed25519PrivateKey):
            raise TrustError(f"expected an Ed25519 key, got {type(private).__name__}", "key_type")
        return cls(private)

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature over exactly these bytes (RFC 8032)."""
        return self._private.sign(message)

    def to_pem(self, passphrase: bytes | None) -> bytes:
        """Return the key as PKCS#8 PEM, encrypted unless the passphrase is None."""
        encryption: serialization.KeySerializationEncryption = (
            serialization.NoEncryption()
            if passphrase is None
            else serialization.BestAvailableEncryption(passphrase)
        )
        return self._private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
        )

    @property
    def private_key(self) -> Ed25519PrivateKey:
        """The key itself, for libraries that sign with it (python-tuf)."""
        return self._private
