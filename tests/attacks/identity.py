"""What attacks on a device's identity have in common: requests, certificates, and the listener."""

import asyncio
import secrets
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from agent.ask import ask
from agent.certificates import key_pem
from fleet.ca import DEVICE_VALID
from fleet.certificates import certificate_builder, make_ec_key
from skerry.canonical import to_json
from skerry.enrolment import (
    EnrolRequest,
)
from skerry.errors import RefusedError, UnreachableError
from skerry.keys import Signer
from skerry.token import EnrolmentToken
from tests.fakes.listener import Listening, utc_now
from tests.fakes.pki import SERVER

VICTIM, THIEF = "cam-1", "cam-2"
FILE = "/tuf/catalog/metadata/1.root.json"
LIMIT = 1 << 20
OK = ""
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


async def asked(
    listening: Listening, context: ssl.SSLContext, path: str = FILE, body: object = None
) -> str:
    """Ask the listener, and return the code with which it refuses."""
    data = None if body is None else to_json(body)
    try:
        await asyncio.to_thread(ask, listening.url + path, context, body=data, limit=LIMIT)
    except RefusedError as error:
        return error.code
    return OK


def anybody(listening: Listening) -> ssl.SSLContext:
    """Without a certificate."""
    return ssl.create_default_context(cafile=str(listening.identity / "ca.crt"))


def request_of(
    token: EnrolmentToken, *, name: str = VICTIM, key: Key | None = None, csr: str = ""
) -> EnrolRequest:
    return EnrolRequest(token.secret, csr or signed(name, key), Signer.generate().public.raw)


def signed(name: str, key: Key | None = None, *, wishes: bool = False) -> str:
    """A certificate request; it may wish to be an authority, and a server."""
    attribute = x509.NameAttribute(NameOID.COMMON_NAME, name, _validate=False)
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([attribute]))
    if wishes:
        authority = x509.BasicConstraints(ca=True, path_length=3)
        builder = builder.add_extension(authority, critical=True)
        names = x509.SubjectAlternativeName([x509.DNSName("fleet.example")])
        builder = builder.add_extension(names, critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage([SERVER]), critical=False)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    made = builder.sign(key or make_ec_key(), algorithm)
    return made.public_bytes(Encoding.PEM).decode()


def forged(csr: str) -> str:
    """Another's request: one bit of its signature is another."""
    der = bytearray(x509.load_pem_x509_csr(csr.encode()).public_bytes(Encoding.DER))
    der[-1] ^= 1
    return x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM).decode()


def issued(listening: Listening, common_name: str, folder: Path) -> ssl.SSLContext:
    """A certificate that our own authority signed, and never would have."""
    keys, key, now = listening.trusted.keys, make_ec_key(), utc_now()
    issuing = (listening.trusted.data / "keys" / "issuing.crt").read_bytes()
    attribute = x509.NameAttribute(NameOID.COMMON_NAME, common_name, _validate=False)
    made = (
        certificate_builder("x", key.public_key(), now - DEVICE_VALID / 2, now + DEVICE_VALID / 2)
        .issuer_name(x509.load_pem_x509_certificate(issuing).subject)
    )  # fmt: skip
    made._subject_name = x509.Name([attribute])
    certificate = made.sign(keys.issuing, hashes.SHA256()).public_bytes(Encoding.PEM)
    file = folder / f"{secrets.token_hex(4)}.pem"
    file.write_bytes(key_pem(key) + certificate + issuing)
    context = anybody(listening)
    context.load_cert_chain(file)
    return context


async def refused_by_tls(listening: Listening, context: ssl.SSLContext) -> None:
    """The connection ends before anything is answered, not even a refusal."""
    with pytest.raises(UnreachableError):
        await asyncio.to_thread(ask, listening.url + FILE, context, limit=LIMIT)
