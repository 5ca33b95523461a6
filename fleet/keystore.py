"""The fleet's own keys: made on its machine, kept there encrypted, never copied elsewhere.

    keys/snapshot.pem  timestamp.pem     sign the catalog's two changing roles
    keys/director.pem                    signs what each device shall run
    keys/message.pem                     signs every message to a device
    keys/issuing.pem                     issues device certificates (EC P-256)
    keys/passphrase                      opens them, unless SKERRY_KEY_PASSPHRASE does
    keys/public.json                     what the key ceremony needs to know of them
    keys/next/                           keys that a rotation will bring into use: the same names

Private files have mode 0600. None of these keys can make a model run that a publisher has not
signed: what may exist is signed by keys that never come to this machine.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from fleet.ca import issuing_request
from fleet.certificates import load_ec_key, make_ec_key, requested_key_id, to_pem
from fleet.files import make_folder, write_atomic
from skerry.canonical import from_json, to_json
from skerry.errors import ConflictError, NotFoundError, TrustError, UsageError
from skerry.ids import check_id
from skerry.keys import PublicKey, Signer

__all__ = [
    "ONLINE",
    "OnlineKeys",
    "PublicKeys",
    "load_online_keys",
    "make_next_keys",
    "make_online_keys",
    "passphrase_of",
    "promote",
    "read_next",
    "read_public",
]

ONLINE: Final = ("snapshot", "timestamp", "director", "message")
ISSUING: Final = "issuing"
NEXT: Final = "next"
PASSPHRASE_VARIABLE: Final = "SKERRY_KEY_PASSPHRASE"  # noqa: S105 - a name, no secret
PRIVATE: Final = 0o600


class PublicKeys(msgspec.Struct, frozen=True):
    """What may leave the fleet's machine: raw public keys in hex, and a certificate request.

    Of the keys that wait for a rotation, only those are named that are to be replaced.
    """

    fleet_id: str
    online: dict[str, str]  # role -> 64 hex digits
    issuing_request: str = ""  # PEM

    def key(self, role: str) -> PublicKey:
        """Return the public key of an online role.

        Raises:
            TrustError: the file does not name it, or damaged.
        """
        try:
            raw = bytes.fromhex(self.online.get(role, ""))
        except ValueError:
            raw = b""
        if len(raw) != 32:
            raise TrustError(f"expected the {role} key in 64 hex digits in public.json", "key_type")
        return PublicKey(raw)

    def key_ids(self) -> dict[str, str]:
        """Return every online key's id, 16 hex digits, by role; what people compare."""
        ids: dict[str, str] = {
            role: self.key(role).key_id for role in ONLINE if role in self.online
        }
        if self.issuing_request:
            ids[ISSUING] = requested_key_id(self.issuing_request)
        return ids


@dataclass(slots=True)
class OnlineKeys:
    """The private keys that a running fleet signs with; a rotation replaces them in place."""

    snapshot: Signer
    timestamp: Signer
    director: Signer
    message: Signer
    issuing: EllipticCurvePrivateKey

    def take_over(self, other: "OnlineKeys") -> None:
        """Sign with other keys from now on; `issuing` comes with the fleet's next start."""
        self.snapshot, self.timestamp = other.snapshot, other.timestamp
        self.director, self.message = other.director, other.message


def passphrase_of(folder: Path, environment: Mapping[str, str]) -> bytes:
    """Return the passphrase of the online keys.

    Args:
        folder: the keys' folder.
        environment: variables; SKERRY_KEY_PASSPHRASE comes before the file.

    Raises:
        NotFoundError: it is in neither place.
    """
    if given := environment.get(PASSPHRASE_VARIABLE):
        return given.encode()
    try:
        return (folder / "passphrase").read_bytes().strip()
    except FileNotFoundError:
        raise NotFoundError(
            f"expected the passphrase of the fleet's keys in {PASSPHRASE_VARIABLE} "
            f"or in {folder / 'passphrase'}; found neither"
        ) from None


def make_online_keys(folder: Path, fleet_id: str, environment: Mapping[str, str]) -> PublicKeys:
    """Make the keys of a new fleet and return their public halves.

    Args:
        folder: the keys' folder; made if it is missing.
        fleet_id: named in the certificate request.
        environment: with SKERRY_KEY_PASSPHRASE set, no passphrase is written to disk.

    Raises:
        ConflictError: this folder has keys already.
    """
    check_id(fleet_id, "fleet id")
    make_folder(folder, mode=0o700)
    if (folder / "public.json").exists():
        raise ConflictError(f"{folder} has keys already; a fleet's keys are made once")
    if not environment.get(PASSPHRASE_VARIABLE):
        write_atomic(folder / "passphrase", secrets.token_urlsafe(32).encode(), mode=PRIVATE)
    passphrase = passphrase_of(folder, environment)
    made = _make(folder, fleet_id, (*ONLINE, ISSUING), passphrase)
    # last: its presence says that all of them are there
    write_atomic(folder / "public.json", to_json(made))
    return made


def make_next_keys(
    folder: Path, roles: Sequence[str], environment: Mapping[str, str]
) -> PublicKeys:
    """Make keys that shall take the place of present ones, and return all that wait.

    They are not used until a root names them (`promote`). A key that waits already is kept: a change
    that names it may be on its way from person to person.

    Args:
        folder: the keys' folder.
        roles: of `ONLINE`, or ``issuing``.
        environment: as for `passphrase_of`.

    Raises:
        UsageError: no such role.
        NotFoundError: the fleet has no keys yet.
        TrustError: the passphrase is not the one of the present keys.
    """
    if strangers := sorted(set(roles) - {*ONLINE, ISSUING}):
        raise UsageError(
            f"expected an online key ({', '.join((*ONLINE, ISSUING))}), got {strangers[0][:40]!r}; "
            "offline keys are replaced with: skerry keys rotate begin --replace NAME"
        )
    public = read_public(folder / "public.json")
    passphrase = passphrase_of(folder, environment)
    _check_opens(folder, passphrase, environment)
    waiting = read_next(folder)
    there = {*waiting.online, *((ISSUING,) if waiting.issuing_request else ())}
    new = [role for role in roles if role not in there]
    beside = make_folder(folder / NEXT, mode=0o700)
    made = _make(beside, public.fleet_id, new, passphrase)
    every = PublicKeys(
        public.fleet_id,
        waiting.online | made.online,
        made.issuing_request or waiting.issuing_request,
    )
    write_atomic(beside / "public.json", to_json(every))
    return every


def read_next(folder: Path) -> PublicKeys:
    """Return the public halves of the keys that wait for a rotation; none, if there are none.

    Raises:
        FormatError: their file is damaged.
    """
    path = folder / NEXT / "public.json"
    if not path.exists():
        return PublicKeys(read_public(folder / "public.json").fleet_id, {})
    return read_public(path)


def promote(folder: Path, named: Mapping[str, PublicKey], issuing_key_id: str) -> list[str]:
    """Bring those waiting keys into use that are named now, and return their roles.

    It can be done twice: what a crash left undone is done at the next call.

    Args:
        folder: the keys' folder.
        named: by role, the key that the latest roots name.
        issuing_key_id: of the key that the issuing certificate certifies.
    """
    waiting, public = read_next(folder), read_public(folder / "public.json")
    due = [role for role in waiting.online if named.get(role) == waiting.key(role)]
    request = waiting.issuing_request
    if request and requested_key_id(request) == issuing_key_id:
        due.append(ISSUING)
    if not due:
        return []
    beside = folder / NEXT
    for role in due:
        write_atomic(folder / f"{role}.pem", _read(beside / f"{role}.pem"), mode=PRIVATE)
    now = PublicKeys(
        public.fleet_id,
        public.online | {role: waiting.online[role] for role in due if role != ISSUING},
        request if ISSUING in due else public.issuing_request,
    )
    write_atomic(folder / "public.json", to_json(now))
    left = {role: raw for role, raw in waiting.online.items() if role not in due}
    still = PublicKeys(public.fleet_id, left, "" if ISSUING in due else request)
    write_atomic(beside / "public.json", to_json(still))
    for role in due:
        (beside / f"{role}.pem").unlink(missing_ok=True)
    return due


def _make(folder: Path, fleet_id: str, roles: Sequence[str], passphrase: bytes) -> PublicKeys:
    public, request = {}, ""
    for role in roles:
        if role != ISSUING:
            signer = Signer.generate()
            write_atomic(folder / f"{role}.pem", signer.to_pem(passphrase), mode=PRIVATE)
            public[role] = signer.public.raw.hex()
    if ISSUING in roles:
        issuing = make_ec_key()
        write_atomic(folder / f"{ISSUING}.pem", to_pem(issuing, passphrase), mode=PRIVATE)
        request = issuing_request(issuing, fleet_id)
    return PublicKeys(fleet_id, public, request)


def load_online_keys(folder: Path, environment: Mapping[str, str]) -> OnlineKeys:
    """Read the keys that a running fleet signs with.

    Raises:
        NotFoundError: a file is missing.
        TrustError: the passphrase does not open it, or it is not the key of public.json.
    """
    public = read_public(folder / "public.json")
    passphrase = passphrase_of(folder, environment)
    _check_opens(folder, passphrase, environment)
    signers = {role: Signer.from_pem(_read(folder / f"{role}.pem"), passphrase) for role in ONLINE}
    for role, signer in signers.items():
        if signer.public != public.key(role):
            raise TrustError(
                f"expected {role}.pem to be key {public.key(role).key_id} of public.json, "
                f"got {signer.key_id}; restore the keys folder as a whole",
                "key_type",
            )
    issuing = load_ec_key(_read(folder / "issuing.pem"), passphrase)
    return OnlineKeys(issuing=issuing, **signers)


def _check_opens(folder: Path, passphrase: bytes, environment: Mapping[str, str]) -> None:
    """Say which passphrase was tried, and why it may be the wrong one."""
    path = folder / f"{ONLINE[0]}.pem"
    try:
        Signer.from_pem(_read(path), passphrase)
    except TrustError as error:
        if not environment.get(PASSPHRASE_VARIABLE):
            raise
        if (folder / "passphrase").exists():
            advice = f"unset it: {folder / 'passphrase'} holds theirs"
        else:
            advice = "set it to the one that they were made with"
        raise TrustError(
            f"expected {PASSPHRASE_VARIABLE} to open the fleet's own keys in {folder}, and it does "
            f"not; {advice}",
            error.code,
        ) from None


def read_public(path: Path) -> PublicKeys:
    """Read the public halves of a fleet's keys.

    Raises:
        NotFoundError: there is no such file.
        FormatError: it is not what `make_online_keys` wrote.
    """
    public = from_json(_read(path), PublicKeys, limit=64 * 1024)
    try:
        check_id(public.fleet_id, "fleet id")
    except UsageError as error:
        raise TrustError(f"{path}: {error}", "key_type") from None
    return public


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise NotFoundError(
            f"expected {path}; make the fleet's keys with: skerry fleet init"
        ) from None
