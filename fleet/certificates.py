"""What the fleet's certificates are made of: keys, names, requests, and how they are read.

All keys are EC P-256. `fleet.ca` says who issues what.
"""

from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from skerry.canonical import sha256
from skerry.errors import RefusedError, TrustError

__all__ = [
    "certificate_builder",
    "certified_key_id",
    "common_name_of",
    "key_bytes",
    "key_usage",
    "load_certificate",
    "load_certificates",
    "load_ec_key",
    "make_ec_key",
    "requested_key",
    "requested_key_id",
    "same_key",
    "serial_of",
    "subject_of",
    "to_pem",
]

MAX_PEM_BYTES: Final = 8 * 1024


def serial_of(certificate: str) -> int:
    """Return the serial number of a device's certificate.

    Raises:
        TrustError: it is none.
    """
    return load_certificate(certificate.encode(), "device certificate").serial_number


def subject_of(certificate: x509.Certificate) -> str:
    """Return the name of a certificate whose subject is one common name and nothing else.

    Raises:
        RefusedError: it has another subject.
    """
    parts = list(certificate.subject)
    if len(parts) != 1 or parts[0].oid != NameOID.COMMON_NAME:
        raise RefusedError("a certificate whose subject is not one common name")
    return str(parts[0].value)


def same_key(certificate: str, request: str) -> bool:
    """Tell whether a certificate is for the key that a request proves to hold.

    Raises:
        TrustError: one of the two is not what it should be.
    """
    known = load_certificate(certificate.encode(), "device certificate").public_key()
    return key_bytes(known) == key_bytes(requested_key(request))


def make_ec_key() -> ec.EllipticCurvePrivateKey:
    """Make a P-256 key from the system's randomness."""
    return ec.generate_private_key(ec.SECP256R1())


def to_pem(key: ec.EllipticCurvePrivateKey, passphrase: bytes) -> bytes:
    """Return a key as encrypted PKCS#8 PEM."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(passphrase))


def load_ec_key(pem: bytes, passphrase: bytes) -> ec.EllipticCurvePrivateKey:
    """Read an encrypted P-256 key.

    Raises:
        TrustError: wrong passphrase, not a PEM, or another kind of key.
    """
    try:
        key = load_pem_private_key(pem, passphrase)
    except (ValueError, TypeError) as error:
        raise TrustError(
            f"expected a PEM key that the passphrase opens: {error}; check the passphrase",
            "key_unreadable",
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
        raise TrustError(f"expected an EC P-256 key, got {type(key).__name__}", "key_type")
    return key


def requested_key_id(request: str) -> str:
    """Return the first 16 hex digits of the sha256 of a request's public key (DER), to compare.

    Raises:
        TrustError: the request is damaged, or not for a P-256 key.
    """
    return sha256(key_bytes(requested_key(request))).removeprefix("sha256:")[:16]


def certified_key_id(certificate: bytes, what: str) -> str:
    """Return the same of the public key that a certificate certifies, PEM.

    Raises:
        TrustError: not a certificate, or not of a P-256 key.
    """
    key = load_certificate(certificate, what).public_key()
    return sha256(key_bytes(key)).removeprefix("sha256:")[:16]


def certificate_builder(
    name: str, key: ec.EllipticCurvePublicKey, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    """Begin a certificate: whose, for which key, from when until when, and a random number."""
    return (
        x509.CertificateBuilder()
        .subject_name(common_name_of(name))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def common_name_of(common_name: str) -> x509.Name:
    """Return a name that consists of a common name alone."""
    # RFC 5280 allows a common name 64 characters; a fleet's id may have 63 by itself
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])


def key_usage(*, certificates: bool) -> x509.KeyUsage:
    """Say what a key is for: to sign certificates, or to speak TLS."""
    return x509.KeyUsage(
        digital_signature=not certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certificates,
        crl_sign=certificates,
        encipher_only=False,
        decipher_only=False,
    )


def load_certificate(pem: bytes, what: str) -> x509.Certificate:
    """Read the first certificate of a PEM.

    Raises:
        TrustError: it is none; the message says `what` it should be.
    """
    return load_certificates(pem, what)[0]


def load_certificates(pem: bytes, what: str) -> list[x509.Certificate]:
    """Read all certificates of a PEM, at least one.

    Raises:
        TrustError: one of them is none; the message says `what` they should be.
    """
    try:
        return x509.load_pem_x509_certificates(pem)
    except (ValueError, x509.InvalidVersion) as error:
        raise TrustError(
            f"expected the certificate of the {what}: {error}", "certificate"
        ) from None


def requested_key(pem: str) -> ec.EllipticCurvePublicKey:
    """Return the key of a certificate request whose signature proves that it is held.

    Raises:
        TrustError: the request is damaged, or not for a P-256 key.
    """
    if len(pem) > MAX_PEM_BYTES:
        raise TrustError(f"expected a certificate request below {MAX_PEM_BYTES} bytes", "request")
    try:
        request = x509.load_pem_x509_csr(pem.encode())
        proven, key = request.is_signature_valid, request.public_key()
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise TrustError(f"expected a certificate request in PEM: {error}", "request") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise TrustError("expected a certificate request for an EC P-256 key", "request")
    if not proven:
        raise TrustError("the certificate request is not signed by its own key", "request")
    return key


def key_bytes(key: object) -> bytes:
    """Return a public key as DER, to compare."""
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
