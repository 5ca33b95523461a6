"""Enrolment: a one-time token becomes a device's identity, and nothing is trusted on first use.

The token carries the fingerprint of the fleet's authority and the digest of its roots; an
answer that does not fit them is refused before anything of it is kept. Both keys are made
here, written before they are sent, and used again if the answer was lost: the same request
gets the same answer.
"""

import http.client
import itertools
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.identity import RECORD_FILE, Record, save_identity, write_private
from skerry.canonical import from_json, sha256, to_json
from skerry.enrolment import ENROL_PATH, MAX_ENROL_BYTES, EnrolAnswer, EnrolRequest, roots_digest
from skerry.errors import (
    ConflictError,
    FormatError,
    NotFoundError,
    RefusedError,
    SkerryError,
    TrustError,
    UnreachableError,
)
from skerry.keys import Signer
from skerry.profile import Inventory
from skerry.token import EnrolmentToken

__all__ = ["enroll"]

TIMEOUT_S: Final = 30.0
MAX_ANSWER_BYTES: Final = 4 * MAX_ENROL_BYTES


def enroll(folder: Path, token: EnrolmentToken, inventory: Inventory) -> Record:
    """Enrol this device.

    Args:
        folder: where the identity is kept.
        token: from an operator.
        inventory: what this device is.

    Raises:
        ConflictError: the device has an identity already.
        TrustError: the answer does not fit the token.
        RefusedError: the fleet did not accept the token.
        UnreachableError: the fleet did not answer.
    """
    if (folder / RECORD_FILE).exists():
        raise ConflictError(
            f"this device is enrolled already ({folder / RECORD_FILE}); "
            "move the state directory away to enrol it anew"
        )
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    signer = _report_key(folder / "report.pem")
    device_key = _device_key(folder / "device.pem")
    request = EnrolRequest(
        secret=token.secret,
        csr=_signing_request(device_key, token.device_id),
        report_key=signer.public.raw,
        inventory=inventory,
    )
    answer = _post(token.fleet_url.rstrip("/") + ENROL_PATH, to_json(request))
    check_answer(answer, token, device_key)
    return save_identity(
        folder, answer, fleet_url=token.fleet_url, signer=signer, device_key=_pem(device_key)
    )


def check_answer(
    answer: EnrolAnswer, token: EnrolmentToken, device_key: ec.EllipticCurvePrivateKey
) -> None:
    """Hold an answer against the token, and the certificate against our key.

    Raises:
        TrustError: with a `code` that names the check.
    """
    if roots_digest(answer.catalog_root, answer.director_root) != token.roots_digest:
        raise TrustError("the fleet's roots are not those that the token names", "roots")
    if answer.device_id != token.device_id:
        raise TrustError(
            f"expected to become {token.device_id}, got {answer.device_id[:64]}", "wrong_device"
        )
    try:
        authority = x509.load_pem_x509_certificate(answer.ca.encode())
        chain = x509.load_pem_x509_certificates(answer.certificate.encode())
    except (ValueError, x509.InvalidVersion) as error:
        raise TrustError(f"expected certificates in PEM: {error}", "certificate") from None
    if sha256(authority.public_bytes(serialization.Encoding.DER)) != token.ca_fingerprint:
        raise TrustError("the fleet's authority is not the one that the token names", "ca")
    _check_chain([*chain, authority])
    own = device_key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    certified = (
        chain[0]
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    names = chain[0].subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if certified != own or [name.value for name in names] != [token.device_id]:
        raise TrustError("the certificate is for another key or another name", "certificate")


def _check_chain(chain: list[x509.Certificate]) -> None:
    for issued, issuer in itertools.pairwise(chain):
        if issued == issuer:
            continue
        try:
            issued.verify_directly_issued_by(issuer)
        except (InvalidSignature, ValueError, TypeError):
            raise TrustError(
                "the certificate is not signed by the authority", "certificate"
            ) from None


def _report_key(path: Path) -> Signer:
    if path.exists():
        return Signer.from_pem(path.read_bytes(), None)
    signer = Signer.generate()
    write_private(path, signer.to_pem(None))
    return signer


def _device_key(path: Path) -> ec.EllipticCurvePrivateKey:
    if path.exists():
        key = serialization.load_pem_private_key(path.read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise FormatError(f"expected an EC key in {path}; remove it and enrol again")
        return key
    key = ec.generate_private_key(ec.SECP256R1())
    write_private(path, _pem(key))
    return key


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _signing_request(key: ec.EllipticCurvePrivateKey, name: str) -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def _post(url: str, body: bytes) -> EnrolAnswer:
    if not url.startswith(("http://", "https://")):
        raise RefusedError(f"expected an http or https address in the token, got {url[:120]!r}")
    request = urllib.request.Request(  # noqa: S310 - scheme checked above
        url, data=body, headers={"Content-Type": "application/json"}, method="POST"
    )
    # a proxy of the environment has no business between a device and its fleet
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=TIMEOUT_S) as response:
            data = response.read(MAX_ANSWER_BYTES + 1)
    except urllib.error.HTTPError as error:
        raise _refusal(error) from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise UnreachableError(
            f"no answer from the fleet at {url}: {reason}; check that it runs and is reachable"
        ) from None
    return from_json(data, EnrolAnswer, limit=MAX_ANSWER_BYTES)


def _refusal(error: urllib.error.HTTPError) -> SkerryError:
    try:
        problem = json.loads(error.read(16 << 10))
        detail = str(problem.get("detail") or problem.get("title") or "")[:300]
    except (ValueError, AttributeError, OSError):
        detail = ""
    finally:
        error.close()
    text = f"the fleet did not accept the token: {detail or f'HTTP {error.code}'}"
    anew = "" if "ask for a new" in detail else "; ask for a new token"
    if error.code >= 500:
        return UnreachableError(text + "; try again later")
    if error.code == 404:
        return NotFoundError(text + anew)
    if error.code == 409:
        return ConflictError(text)
    return RefusedError(text + anew)
