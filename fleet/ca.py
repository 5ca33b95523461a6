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
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from fleet.certificates import (
    certificate_builder,
    common_name_of,
    key_bytes,
    key_usage,
    load_certificate,
    load_certificates,
    make_ec_key,
    requested_key,
)
from skerry.canonical import sha256
from skerry.errors import TrustError
from skerry.ids import check_id, is_id

__all__ = [
    "Authority",
    "Certificate",
    "Credential",
    "issuing_request",
    "make_root",
    "sign_issuing",
]

ROOT_VALID: Final = timedelta(days=20 * 365)
ISSUING_VALID: Final = timedelta(days=5 * 365)
OWN_VALID: Final = timedelta(days=365)
DEVICE_VALID: Final = timedelta(days=30)
SKEW: Final = timedelta(minutes=10)  # a device's clock may be behind


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
        root: certificates of root authorities, PEM: the one that signed `issuing`, and others that
            are trusted besides, while one takes another's place.

    Raises:
        TrustError: the certificates do not belong together, or not to the key.
    """

    def __init__(self, key: ec.EllipticCurvePrivateKey, issuing: bytes, root: bytes) -> None:
        self._key = key
        self._issuing = load_certificate(issuing, "issuing authority")
        roots = load_certificates(root, "root authority")
        signers = [candidate for candidate in roots if self._is_signed_by(candidate)]
        if not signers:
            raise TrustError(
                "expected an issuing authority that the root signed; "
                "put the two certificates of one key ceremony side by side",
                "certificate",
            )
        self._roots = [*signers, *(other for other in roots if other not in signers)]
        if key_bytes(self._issuing.public_key()) != key_bytes(key.public_key()):
            raise TrustError(
                "expected the issuing certificate of this fleet's key, got another's; "
                "run the key ceremony with this fleet's public.json",
                "certificate",
            )

    @property
    def pem(self) -> str:
        """The certificates of all trusted roots, first of the one that counts for new tokens."""
        return "".join(root.public_bytes(Encoding.PEM).decode() for root in self._roots)

    @property
    def fingerprint(self) -> str:
        """The digest of the first root certificate's DER, as an enrolment token carries it."""
        return sha256(self._roots[0].public_bytes(Encoding.DER))

    def issue(self, device_id: str, request: str, now: datetime) -> Certificate:
        """Return a new certificate for a device.

        Args:
            device_id: from the token's claim.
            request: PEM; only its public key is used.
            now: aware UTC.

        Raises:
            TrustError: not a request, not signed by its key, or not a P-256 key; or the issuing
                authority has expired.
        """
        check_id(device_id, "device id")
        start, expires = self._life(now, DEVICE_VALID)
        certificate = (
            certificate_builder(device_id, requested_key(request), start, expires)
            .issuer_name(self._issuing.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage(certificates=False), critical=True)
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

        Raises:
            TrustError: the issuing authority has expired.
        """
        alternatives = x509.SubjectAlternativeName([_general_name(name) for name in names])
        return self._own("skerry fleet", [ExtendedKeyUsageOID.SERVER_AUTH], alternatives, now)

    def service(self, common_name: str, now: datetime) -> Credential:
        """Return a new key with a certificate for a client of the fleet itself.

        Args:
            common_name: what no device can be called.
            now: aware UTC.

        Raises:
            TrustError: the issuing authority has expired.
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

    def _is_signed_by(self, root: x509.Certificate) -> bool:
        try:
            self._issuing.verify_directly_issued_by(root)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True

    def _life(self, now: datetime, valid: timedelta) -> tuple[datetime, datetime]:
        ends = self._issuing.not_valid_after_utc
        if ends <= now:
            raise TrustError(
                f"the issuing authority expired on {ends:%Y-%m-%d}; sign a new one with the key of "
                "the root authority, and check this machine's clock",
                "authority_expired",
            )
        start = now - SKEW
        return start, min(start + valid, ends)

    def _own(
        self,
        common_name: str,
        usage: Sequence[x509.ObjectIdentifier],
        alternatives: x509.SubjectAlternativeName | None,
        now: datetime,
    ) -> Credential:
        key = make_ec_key()
        start, expires = self._life(now, OWN_VALID)
        builder = (
            certificate_builder(common_name, key.public_key(), start, expires)
            .issuer_name(self._issuing.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage(certificates=False), critical=True)
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


def issuing_request(key: ec.EllipticCurvePrivateKey, fleet_id: str) -> str:
    """Return the certificate request of a fleet's issuing authority, PEM."""
    request = x509.CertificateSigningRequestBuilder().subject_name(
        common_name_of(f"skerry {fleet_id} issuing")
    )
    return request.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def make_root(key: ec.EllipticCurvePrivateKey, fleet_id: str, now: datetime) -> bytes:
    """Return the self-signed certificate of a fleet's root authority, PEM."""
    name = f"skerry {fleet_id} root"
    certificate = (
        certificate_builder(name, key.public_key(), now - SKEW, now + ROOT_VALID)
        .issuer_name(common_name_of(name))
        .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        .add_extension(key_usage(certificates=True), critical=True)
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
    issuer = load_certificate(root, "root authority")
    public = requested_key(request)
    certificate = (
        certificate_builder(f"skerry {fleet_id} issuing", public, now - SKEW, now + ISSUING_VALID)
        .issuer_name(issuer.subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(certificates=True), critical=True)
        .add_extension(_client_and_server(), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()),
            critical=False,
        )
        .sign(root_key, hashes.SHA256())
    )
    return certificate.public_bytes(Encoding.PEM)


def _client_only() -> x509.ExtendedKeyUsage:
    return x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])


def _client_and_server() -> x509.ExtendedKeyUsage:
    return x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)
