"""Enrolment: a one-time token becomes a device's identity, and nothing is trusted on first use.

1. Both keys are made here, and written before anything is sent: the same request gets the same
   answer, so that a lost answer costs nothing.
2. The fleet's authority is fetched from whoever answers, and believed only if its fingerprint is the
   token's. This is the one place that speaks TLS without checking the other side.
3. From then on TLS is checked against exactly that authority, and the host name with it; only now
   the token's secret is shown.
4. The answer is held against the token before anything of it is kept.
5. A device that enrols again keeps its report key, and so whatever it has not delivered yet; and
   what it knows of metadata and keys, so that roots of another ceremony are none for it.
"""

import ssl
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from agent.ask import ask
from agent.certificates import (
    authority_of,
    check_certificate,
    key_pem,
    make_key,
    read_key,
    signing_request,
)
from agent.identity import (
    RECORD_FILE,
    Identity,
    Record,
    load_identity,
    root_version,
    save_identity,
    write_private,
)
from skerry.canonical import from_json, to_json
from skerry.enrolment import (
    CA_PATH,
    ENROL_PATH,
    MAX_CA_BYTES,
    MAX_ENROL_BYTES,
    EnrolAnswer,
    EnrolRequest,
    roots_digest,
)
from skerry.errors import ConflictError, FormatError, RefusedError, TrustError
from skerry.keys import Signer
from skerry.profile import Inventory
from skerry.token import EnrolmentToken

__all__ = ["enroll"]

MAX_ANSWER_BYTES: Final = 4 * MAX_ENROL_BYTES


def enroll(
    folder: Path, token: EnrolmentToken, inventory: Inventory, *, again: bool = False
) -> Record:
    """Enrol this device.

    Args:
        folder: where the identity is kept.
        token: from an operator.
        inventory: what this device is.
        again: also if the device has an identity, which must be of the same name and fleet.

    Raises:
        ConflictError: the device has an identity already, or one of another name.
        TrustError: the fleet, or its answer, does not fit the token; or the clock is wrong.
        RefusedError: the fleet did not accept the token.
        UnreachableError: the fleet did not answer.
    """
    known = load_identity(folder).record if (folder / RECORD_FILE).exists() else None
    if known is not None and not again:
        raise ConflictError(
            f"this device is enrolled already ({folder / RECORD_FILE}); to enrol it as "
            f"{known.device_id} again add --again, to make another device of it move the state "
            "directory away"
        )
    if known is not None and known.device_id != token.device_id:
        raise ConflictError(
            f"this device is {known.device_id}, and the token is for {token.device_id}; "
            f"ask for a token of {known.device_id}, or move the state directory away"
        )
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    signer = _report_key(folder / "report.pem")
    device_key = _device_key(folder / "enrolling.pem")
    request = EnrolRequest(
        secret=token.secret,
        csr=signing_request(device_key, token.device_id),
        report_key=signer.public.raw,
        inventory=inventory,
    )
    url = token.fleet_url.rstrip("/")
    context = _believing(_authority(url, token))
    try:
        data = ask(url + ENROL_PATH, context, body=to_json(request), limit=MAX_ANSWER_BYTES)
    except RefusedError as error:
        raise RefusedError(f"{error}{_anew(error)}", error.code) from None
    answer = from_json(data, EnrolAnswer, limit=MAX_ANSWER_BYTES)
    check_answer(answer, token, device_key)
    if known is not None and known.fleet_id != answer.fleet_id:
        raise TrustError(
            f"expected a certificate of fleet {known.fleet_id}, got one of {answer.fleet_id[:64]}; "
            "move the state directory away to change fleets",
            "another_fleet",
        )
    if known is not None:
        _check_chain(load_identity(folder), answer)
    record = save_identity(
        folder, answer, fleet_url=url, signer=signer, device_key=key_pem(device_key)
    )
    (folder / "enrolling.pem").unlink(missing_ok=True)
    return record


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
    authority = authority_of(answer.ca, token.ca_fingerprint)
    check_certificate(answer.certificate, authority, device_key, token.device_id)


def _check_chain(known: Identity, answer: EnrolAnswer) -> None:
    """Refuse roots that cannot follow from those known: what they revoke would go on to count.

    Raises:
        TrustError: code ``another_ceremony``.
    """
    for old, new in (
        (known.catalog_root, answer.catalog_root),
        (known.director_root, answer.director_root),
    ):
        if new != old and root_version(new) <= root_version(old):
            raise TrustError(
                f"expected a root after version {root_version(old)}, got version "
                f"{root_version(new)}, of another ceremony or of an old backup; after a new "
                "ceremony move the state directory away, and enrol as a new device",
                "another_ceremony",
            )


def _authority(url: str, token: EnrolmentToken) -> str:
    """Return the authority that the token names, from whoever answers."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    # nothing is sent here, and of the answer only what has the token's fingerprint is taken
    context.verify_mode = ssl.CERT_NONE
    data = ask(url + CA_PATH, context, limit=MAX_CA_BYTES)
    try:
        return authority_of(data.decode(), token.ca_fingerprint)
    except UnicodeDecodeError:
        raise FormatError(f"expected certificates in PEM at {url}{CA_PATH}") from None


def _believing(authority: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=authority)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def _report_key(path: Path) -> Signer:
    if path.exists():
        return Signer.from_pem(path.read_bytes(), None)
    signer = Signer.generate()
    write_private(path, signer.to_pem(None))
    return signer


def _device_key(path: Path) -> ec.EllipticCurvePrivateKey:
    if path.exists():
        return read_key(path)
    key = make_key()
    write_private(path, key_pem(key))
    return key


def _anew(error: RefusedError) -> str:
    return "" if "ask for a new" in str(error) else "; ask for a new token"
