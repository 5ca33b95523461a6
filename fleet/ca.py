"""The certificate authority of a fleet: an offline root, and an issuing authority below it.

    root      made in the key ceremony, signs the issuing authority once; 20 years
    issuing   on the fleet's machine, may issue no further authority (pathlen 0),
              5 years
    device    common name = device id and nothing else; at most 30 days

All keys are EC P-256. Of a certificate request only the public key is taken, after its proof of
possession: name, extensions and wishes in it are ignored.

Source: RFC 5280, sections 4.1 and 4.2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from skerry.canonical import sha256
from skerry.errors import TrustError
from skerry.ids import check_id, is_id

__all__ = [
    "Authority",
    "Certificate",
    "Credential",
    "issuing_request",
    "load_ec_key",
    "make_ec_key",
    "make_root",
    "requested_key_id",
    "same_key",
    "serial_of",
    "sign_issuing",
    "to_pem",
]

ROOT_VALID: Final = timedelta(days=20 * 365)
ISSUING_VALID: Final = timedelta(days=5 * 365)
OWN_VALID: Final = timedelta(days=365)
DEVICE_VALID: Final = timedelta(days=30)
SKEW: Final = timedelta(minutes=10)  # a device's clock may be behind
MAX_PEM_BYTES: Final = 8 * 1024


@dataclass(frozen=True, slots=True)
class Certificate:
    """A device's certificate: PEM with the issuing authority's after it, and its end."""

    pem: str
    expires: datetime  # aware UTC


@dataclass(frozen=True, slots=True)
class Credential:
    """A certificate of the fleet itself with its key: PEM, the key in the clear."""

    key: bytes
    chain: bytes  # the certificate, then the issuing authority's
    expires: datetime  # aware UTC


class Authority:
    """The issuing authority of a running fleet.

    Args:
        key: the issuing key.
        issuing: its certificate, PEM.
        root: the root's certificate, PEM.

    Raises:
        TrustError: the certificates do not belong together, or not to the key.
    """

    def __init__(self, key: ec.EllipticCurvePrivateKey, issuing: bytes, root: bytes) -> None:
        self._key = key
        self._issuing = _load(issuing, "issuing authority")
        self._root = _load(root, "root authority")
        try:
            self._issuing.verify_directly_issued_by(self._root)
        except (ValueError, TypeError, InvalidSignature):
            raise TrustError(
                "expected an issuing authority that the root signed; "
                "put the two certificates of one key ceremony side by side",
                "certificate",
            ) from None
        if _raw(self._issuing.public_key()) != _raw(key.public_key()):
            raise TrustError(
                "expected the issuing certificate of this fleet's key, got another's; "
                "run the key ceremony with this fleet's public.json",
                "certificate",
            )

    @property
    def pem(self) -> str:
        """The root's certificate."""
        return self._root.public_bytes(Encoding.PEM).decode()

    @property
    def fingerprint(self) -> str:
        """The digest of the root certificate's DER, as an enrolment token carries it."""
        return sha256(self._root.public_bytes(Encoding.DER))

    def issue(self, device_id: str, request: str, now: datetime) -> Certificate:
        """Return a new certificate for a device.

        Args:
            device_id: from the token's claim.
            request: PEM; only its public key is used.
            now: aware UTC.

        Raises:
            TrustError: not a request, not signed by its key, or not a P-256 key.
        """
        check_id(device_id, "device id")
        start = now - SKEW
        expires = min(start + DEVICE_VALID, self._issuing.not_valid_after_utc)
        certificate = (
            _builder(device_id, _requested_key(request), start, expires)
            .issuer_name(self._issuing.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(certificates=False), critical=True)
            .add_extension(_client_only(), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        chain = (certificate, self._issuing)
        pem = "".join(link.public_bytes(Encoding.PEM).decode() for link in chain)
        return Certificate(pem, certificate.not_valid_after_utc)

    def server(self, names: Sequence[str], now: datetime) -> Credential:
        """Return a new key with a certificate for a listener.

        Args:
            names: host names and addresses by which it is reached.
            now: aware UTC.
        """
        alternatives = x509.SubjectAlternativeName([_general_name(name) for name in names])
        return self._own("skerry fleet", [ExtendedKeyUsageOID.SERVER_AUTH], alternatives, now)

    def service(self, common_name: str, now: datetime) -> Credential:
        """Return a new key with a certificate for a client of the fleet itself.

        Args:
            common_name: what no device can be called.
            now: aware UTC.
        """
        if is_id(common_name):
            raise ValueError(f"{common_name} could be a device")
        return self._own(common_name, [ExtendedKeyUsageOID.CLIENT_AUTH], None, now)

    def revocation_list(self, serials: Sequence[int], now: datetime) -> bytes:
        """Return the list of revoked certificates, PEM.

        Args:
            serials: their serial numbers.
            now: aware UTC.
        """
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._issuing.subject)
            .last_update(now - SKEW)
            # a broker refuses everybody when its list is out of date
            .next_update(min(now + OWN_VALID, self._issuing.not_valid_after_utc))
        )
        for serial in serials:
            revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now)
            builder = builder.add_revoked_certificate(revoked.build())
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def _own(
        self,
        common_name: str,
        usage: Sequence[x509.ObjectIdentifier],
        alternatives: x509.SubjectAlternativeName | None,
        now: datetime,
    ) -> Credential:
        key, start = make_ec_key(), now - SKEW
        expires = min(start + OWN_VALID, self._issuing.not_valid_after_utc)
        builder = (
            _builder(common_name, key.public_key(), start, expires)
            .issuer_name(self._issuing.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
        )
        if alternatives is not None:
            builder = builder.add_extension(alternatives, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        chain = (certificate, self._issuing)
        return Credential(
            pem,
            b"".join(link.public_bytes(Encoding.PEM) for link in chain),
            certificate.not_valid_after_utc,
        )


def serial_of(certificate: str) -> int:
    """Return the serial number of a device's certificate.

    Raises:
        TrustError: it is none.
    """
    return _load(certificate.encode(), "device certificate").serial_number


def same_key(certificate: str, request: str) -> bool:
    """Tell whether a certificate is for the key that a request proves to hold.

    Raises:
        TrustError: one of the two is not what it should be.
    """
    known = _load(certificate.encode(), "device certificate").public_key()
    return _raw(known) == _raw(_requested_key(request))


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


def issuing_request(key: ec.EllipticCurvePrivateKey, fleet_id: str) -> str:
    """Return the certificate request of a fleet's issuing authority, PEM."""
    request = x509.CertificateSigningRequestBuilder().subject_name(
        _name(f"skerry {fleet_id} issuing")
    )
    return request.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def requested_key_id(request: str) -> str:
    """Return the first 16 hex digits of the sha256 of a request's public key (DER), to compare.

    Raises:
        TrustError: the request is damaged, or not for a P-256 key.
    """
    return sha256(_raw(_requested_key(request))).removeprefix("sha256:")[:16]


def make_root(key: ec.EllipticCurvePrivateKey, fleet_id: str, now: datetime) -> bytes:
    """Return the self-signed certificate of a fleet's root authority, PEM."""
    name = f"skerry {fleet_id} root"
    certificate = (
        _builder(name, key.public_key(), now - SKEW, now + ROOT_VALID)
        .issuer_name(_name(name))
        .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        .add_extension(_usage(certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(Encoding.PEM)


def sign_issuing(
    root_key: ec.EllipticCurvePrivateKey, root: bytes, request: str, fleet_id: str, now: datetime
) -> bytes:
    """Return the certificate of a fleet's issuing authority, PEM.

    Raises:
        TrustError: the request is damaged, or not for a P-256 key.
    """
    issuer = _load(root, "root authority")
    public = _requested_key(request)
    certificate = (
        _builder(f"skerry {fleet_id} issuing", public, now - SKEW, now + ISSUING_VALID)
        .issuer_name(issuer.subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(certificates=True), critical=True)
        .add_extension(_client_and_server(), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()),
            critical=False,
        )
        .sign(root_key, hashes.SHA256())
    )
    return certificate.public_bytes(Encoding.PEM)


def _builder(
    name: str, key: ec.EllipticCurvePublicKey, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _name(common_name: str) -> x509.Name:
    # RFC 5280 allows a common name 64 characters; a fleet's id may have 63 by itself
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])


def _usage(*, certificates: bool) -> x509.KeyUsage:
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


def _client_only() -> x509.ExtendedKeyUsage:
    return x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])


def _client_and_server() -> x509.ExtendedKeyUsage:
    return x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _load(pem: bytes, what: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except (ValueError, x509.InvalidVersion) as error:
        raise TrustError(
            f"expected the certificate of the {what}: {error}", "certificate"
        ) from None


def _requested_key(pem: str) -> ec.EllipticCurvePublicKey:
    """Return the key of a certificate request whose signature proves that it is held."""
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


def _raw(key: object) -> bytes:
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
