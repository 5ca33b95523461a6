"""A fleet's certificate authority for tests: what it issues, and what it would never issue."""

import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fleet.broker_config import TlsFiles
from fleet.tls_files import context_of

DAY = timedelta(days=1)
CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH


class Pki:
    """Two tiers, as `fleet.ca` has them; every file lies in one folder."""

    def __init__(self, folder: Path, name: str = "skerry demo") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.serials: dict[str, int] = {}
        root_key, self._key = _key(), _key()
        root_name, self._name = _name(f"{name} root"), _name(f"{name} issuing")
        now = datetime.now(UTC)
        root = _signed(root_name, root_key.public_key(), root_name, root_key, now, 1, ca=1)
        self.issuing = _signed(
            self._name, self._key.public_key(), root_name, root_key, now, 2, ca=0
        )
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(root.public_bytes(Encoding.PEM))

    def client(
        self,
        common_name: str,
        *,
        file: str = "",
        start: timedelta = -DAY,
        end: timedelta = DAY,
        usage: x509.ObjectIdentifier = CLIENT,
    ) -> TlsFiles:
        """Issue a client's certificate, valid from `start` to `end` as seen from now."""
        return self._issue(common_name, file or common_name, [usage], (), start, end)

    def server(self, *names: str) -> TlsFiles:
        """Issue a server's certificate for names and addresses."""
        return self._issue("server", "server", [SERVER], names or ("127.0.0.1", "localhost"))

    def context(self, common_name: str) -> ssl.SSLContext:
        """Issue a client's certificate, and return how to speak TLS with it."""
        return context_of(self.client(common_name))

    def revocation_list(self, serials: Sequence[int]) -> Path:
        """Write the list of revoked certificates."""
        now = datetime.now(UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._name)
            .last_update(now - DAY)
            .next_update(now + DAY)
        )
        for serial in serials:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(serial)
                .revocation_date(now - DAY)
                .build()
            )
        path = self.folder / "revoked.pem"
        crl = builder.sign(self._key, hashes.SHA256())
        path.write_bytes(crl.public_bytes(Encoding.PEM))
        return path

    def _issue(
        self,
        common_name: str,
        file: str,
        usage: Sequence[x509.ObjectIdentifier],
        names: Sequence[str],
        start: timedelta = -DAY,
        end: timedelta = DAY,
    ) -> TlsFiles:
        key, now = _key(), datetime.now(UTC)
        certificate = _signed(
            _name(common_name), key.public_key(), self._name, self._key, now,
            x509.random_serial_number(), names=names, usage=usage, start=start, end=end,
        )  # fmt: skip
        self.serials[file] = certificate.serial_number
        chain = self.folder / f"{file}.crt"
        chain.write_bytes(
            certificate.public_bytes(Encoding.PEM) + self.issuing.public_bytes(Encoding.PEM)
        )
        key_file = self.folder / f"{file}.key"
        key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return TlsFiles(chain, key_file, self.ca)


def _key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _signed(
    subject: x509.Name,
    public: ec.EllipticCurvePublicKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    now: datetime,
    serial: int,
    *,
    ca: int | None = None,
    names: Sequence[str] = (),
    usage: Sequence[x509.ObjectIdentifier] = (),
    start: timedelta = -DAY,
    end: timedelta = DAY,
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(serial)
        .not_valid_before(now + start)
        .not_valid_after(now + end)
        .add_extension(x509.BasicConstraints(ca=ca is not None, path_length=ca), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=ca is None, content_commitment=False, key_encipherment=False,
                data_encipherment=False, key_agreement=False, key_cert_sign=ca is not None,
                crl_sign=ca is not None, encipher_only=False, decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    )  # fmt: skip
    if usage:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
    if names:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([_general(name) for name in names]), critical=False
        )
    return builder.sign(issuer_key, hashes.SHA256())


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)
