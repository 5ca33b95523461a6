"""The certificate authority replaced in steps, so that no device and no fleet is shut out meanwhile.

    new        offline: another root authority, its key encrypted, its certificate to be carried
    trust      fleet:   it is trusted besides the present one; devices learn of it as they renew
    certify    offline: it signs the fleet's issuing authority (or a new issuing key that waits)
    install    fleet:   certificates are issued under it from the next start on
    distrust   fleet:   the former one counts no more

Devices hear of a new authority with their next certificate, so a month lies between `trust` and
`install`, and another between `install` and `distrust`.
"""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.ca import make_root, sign_issuing
from fleet.ceremony import check_phrase
from fleet.certificates import (
    certified_key_id,
    load_certificate,
    load_certificates,
    load_ec_key,
    make_ec_key,
    requested_key_id,
    to_pem,
)
from fleet.files import make_folder, write_atomic
from fleet.keystore import read_next, read_public
from skerry.canonical import sha256
from skerry.errors import ConflictError, NotFoundError, RefusedError, TrustError, UsageError
from skerry.io.key_files import Passphrase

__all__ = ["Trusted", "certify", "distrust", "install", "make", "trust", "trusted"]

PRIVATE: Final = 0o600
MAX_CERTIFICATE_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Trusted:
    """A root authority that a fleet trusts."""

    fingerprint: str  # sha256:<64 hex> of its certificate's DER
    expires: datetime  # aware UTC
    issues: bool  # whether it signed the fleet's issuing authority


def make(data: Path, out: Path, *, passphrase: Passphrase, now: datetime) -> str:
    """Make another root authority offline, and return its fingerprint.

    Args:
        data: the fleet's data directory, or a copy that holds keys/public.json.
        out: where ``authority.pem`` and ``authority.crt`` go.
        passphrase: returns the passphrase for the new key.
        now: aware UTC.

    Raises:
        ConflictError: `out` holds an authority already.
    """
    fleet_id = read_public(data / "keys" / "public.json").fleet_id
    key_file, certificate_file = out / "authority.pem", out / "authority.crt"
    if there := [path for path in (key_file, certificate_file) if path.exists()]:
        raise ConflictError(f"expected a new folder for the authority, found {there[0]}")
    phrase = check_phrase(passphrase("authority"), "authority")
    key = make_ec_key()
    certificate = make_root(key, fleet_id, now)
    make_folder(out, mode=0o700)
    write_atomic(key_file, to_pem(key, phrase), mode=PRIVATE)
    load_ec_key(key_file.read_bytes(), phrase)
    write_atomic(certificate_file, certificate)
    return _fingerprint(load_certificate(certificate, "root authority"))


def trust(data: Path, certificate: Path) -> list[Trusted]:
    """Trust another root authority besides those that are, and return all of them.

    Raises:
        TrustError: it is not a root authority of this fleet.
    """
    found = load_certificate(_read(certificate), "root authority")
    name = f"skerry {read_public(data / 'keys' / 'public.json').fleet_id} root"
    names = [part.value for part in found.subject]
    try:
        found.verify_directly_issued_by(found)
    except (ValueError, TypeError, InvalidSignature):
        names = []
    if names != [name]:
        raise TrustError(
            f"expected the certificate of a root authority named {name!r}, signed by itself; "
            "make one with: skerry keys authority new",
            "certificate",
        )
    present = _present(data)
    if found not in present:
        _write(data, [*present, found])
    return trusted(data)


def certify(
    data: Path, key: Path, certificate: Path, out: Path, *, passphrase: Passphrase, now: datetime
) -> str:
    """Sign a fleet's issuing authority offline, and return the id of the key that it certifies.

    Args:
        data: the fleet's data directory, or a copy that holds keys/public.json (and
            keys/next/public.json, if an issuing key waits there: that one is certified then).
        key: the authority's private key, a PEM.
        certificate: the authority's.
        out: file for the issuing authority's certificate.
        passphrase: returns what opens the key.
        now: aware UTC.

    Raises:
        TrustError: the key does not open, or is not the certificate's.
        ConflictError: `out` is there already.
    """
    if out.exists():
        raise ConflictError(f"expected a new file for the certificate, found {out}")
    public, waiting = read_public(data / "keys" / "public.json"), read_next(data / "keys")
    request = waiting.issuing_request or public.issuing_request
    signer, root = load_ec_key(_read(key), passphrase(str(key))), _read(certificate)
    made = sign_issuing(signer, root, request, public.fleet_id, now)
    try:
        load_certificate(made, "issuing authority").verify_directly_issued_by(
            load_certificate(root, "root authority")
        )
    except (ValueError, TypeError, InvalidSignature):
        raise TrustError(f"expected {key} to be the key of {certificate}", "key_type") from None
    write_atomic(out, made)
    return requested_key_id(request)


def install(data: Path, issuing: Path) -> list[Trusted]:
    """Issue under another authority, from the fleet's next start on.

    Raises:
        TrustError: no trusted authority signed it, or it certifies another key than the fleet's
            present or waiting one.
    """
    content = _read(issuing)
    found = load_certificate(content, "issuing authority")
    if not any(_signed(found, root) for root in _present(data)):
        raise TrustError(
            "expected an issuing authority signed by one that the fleet trusts; "
            "trust it first, and give devices a month: skerry keys authority trust",
            "certificate",
        )
    public, waiting = read_public(data / "keys" / "public.json"), read_next(data / "keys")
    requests = [r for r in (public.issuing_request, waiting.issuing_request) if r]
    if certified_key_id(content, "issuing authority") not in map(requested_key_id, requests):
        raise TrustError(
            "expected a certificate of this fleet's issuing key, got another's; "
            "sign it with this fleet's public.json",
            "certificate",
        )
    write_atomic(data / "keys" / "issuing.crt", content)
    return trusted(data)


def distrust(data: Path, fingerprint: str) -> list[Trusted]:
    """Trust a root authority no more, and return those that are left.

    Raises:
        NotFoundError: no such authority.
        RefusedError: the fleet issues under it.
    """
    present = _present(data)
    going = [root for root in present if _fingerprint(root) == fingerprint]
    if not going:
        known = ", ".join(map(_fingerprint, present))
        raise NotFoundError(f"no authority {fingerprint[:80]!r}; there are {known}")
    issuing = load_certificate(_read(data / "keys" / "issuing.crt"), "issuing authority")
    if _signed(issuing, going[0]):
        raise RefusedError(
            "this authority signed the present issuing authority; install another one first: "
            "skerry keys authority install",
            "authority_in_use",
        )
    _write(data, [root for root in present if root not in going])
    return trusted(data)


def trusted(data: Path) -> list[Trusted]:
    """Return the root authorities that a fleet trusts."""
    issuing = load_certificate(_read(data / "keys" / "issuing.crt"), "issuing authority")
    return [
        Trusted(_fingerprint(root), root.not_valid_after_utc, _signed(issuing, root))
        for root in _present(data)
    ]


def _present(data: Path) -> list[x509.Certificate]:
    return load_certificates(_read(data / "keys" / "authority.crt"), "root authority")


def _write(data: Path, roots: list[x509.Certificate]) -> None:
    pems = (root.public_bytes(Encoding.PEM) for root in roots)
    write_atomic(data / "keys" / "authority.crt", b"".join(pems))


def _signed(issuing: x509.Certificate, root: x509.Certificate) -> bool:
    try:
        issuing.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _fingerprint(certificate: x509.Certificate) -> str:
    return sha256(certificate.public_bytes(Encoding.DER))


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CERTIFICATE_BYTES + 1)
    except FileNotFoundError:
        raise NotFoundError(f"expected a file at {path}; there is none") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > MAX_CERTIFICATE_BYTES:
        raise UsageError(f"expected at most {MAX_CERTIFICATE_BYTES} bytes in {path}")
    return data
