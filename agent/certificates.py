"""A device's certificate and key: made here, asked for, checked, and read again.

Key and certificate lie in one file, which is replaced as a whole: no crash can leave a key beside
the certificate of another.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from skerry.canonical import sha256
from skerry.errors import FormatError, TrustError

__all__ = [
    "Validity",
    "authority_of",
    "check_certificate",
    "key_pem",
    "make_key",
    "read_key",
    "signing_request",
    "validity_of",
]

MAX_AUTHORITIES: Final = 8
MAX_CHAIN: Final = 8


@dataclass(frozen=True, slots=True)
class Validity:
    """From when until when a certificate is good, in Unix seconds."""

    starts: float
    ends: float


def make_key() -> ec.EllipticCurvePrivateKey:
    """Make a P-256 key from the system's randomness."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a key as unencrypted PKCS#8 PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def read_key(file: Path) -> ec.EllipticCurvePrivateKey:
    """Read a key.

    Raises:
        FormatError: there is none in the file.
    """
    try:
        key = serialization.load_pem_private_key(file.read_bytes(), None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise FormatError(f"expected an EC key in {file}; remove it and enrol again")
    return key


def signing_request(key: ec.EllipticCurvePrivateKey, name: str) -> str:
    """Return a certificate request for a key, PEM."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def authority_of(authorities: str, fingerprint: str) -> str:
    """Return the authority of a fingerprint among several, PEM.

    Raises:
        TrustError: code ``ca``: it is not among them.
    """
    for authority in _load(authorities, MAX_AUTHORITIES):
        if sha256(authority.public_bytes(serialization.Encoding.DER)) == fingerprint:
            return authority.public_bytes(serialization.Encoding.PEM).decode()
    raise TrustError(
        "the fleet's authority is not the one that the token names: somebody may stand between this "
        "device and its fleet, or the token is another fleet's; ask for a new token",
        "ca",
    )


def check_certificate(
    certificate: str, authorities: str, key: ec.EllipticCurvePrivateKey, device_id: str
) -> None:
    """Hold a device's new certificate against its key, its name and the authorities.

    Raises:
        TrustError: code ``certificate``.
    """
    chain, roots = _load(certificate, MAX_CHAIN), _load(authorities, MAX_AUTHORITIES)
    if not any(_leads(chain, root) for root in roots):
        raise TrustError("the certificate is not signed by the authority", "certificate")
    names = [name.value for name in chain[0].subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if _raw(chain[0].public_key()) != _raw(key.public_key()) or names != [device_id]:
        raise TrustError("the certificate is for another key or another name", "certificate")


def validity_of(file: Path) -> Validity:
    """Return how long the first certificate in a file is good.

    Raises:
        FormatError: there is none.
    """
    try:
        certificate = x509.load_pem_x509_certificate(file.read_bytes())
    except (OSError, ValueError, x509.InvalidVersion) as error:
        raise FormatError(f"expected a certificate in {file}: {error}; enrol again") from None
    return Validity(
        certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    )


def _leads(chain: list[x509.Certificate], root: x509.Certificate) -> bool:
    for issued, issuer in itertools.pairwise([*chain, root]):
        if issued == issuer:
            continue
        try:
            issued.verify_directly_issued_by(issuer)
        except (InvalidSignature, ValueError, TypeError):
            return False
    return True


def _load(pem: str, at_most: int) -> list[x509.Certificate]:
    try:
        loaded = x509.load_pem_x509_certificates(pem.encode())
    except (ValueError, x509.InvalidVersion) as error:
        raise TrustError(f"expected certificates in PEM: {error}", "certificate") from None
    if len(loaded) > at_most:
        raise TrustError(f"expected at most {at_most} certificates", "certificate")
    return loaded


def _raw(key: object) -> bytes:
    try:
        encoded: bytes = key.public_bytes(  # type: ignore[attr-defined]  # any kind of key
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    except (AttributeError, ValueError):
        return b""
    return encoded
