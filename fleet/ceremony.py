"""The key ceremony: makes the keys that a fleet's machine never sees, and signs what they say.

    made, encrypted, in --out     root-1.pem root-2.pem root-3.pem   two of three sign
                                  publisher-<name>.pem               signs releases
                                  publisher-<name>.pub               its public half, to verify with
                                  authority.pem                      signs the issuing authority
    read from the fleet           keys/public.json                   which keys are online
    written for the fleet         tuf/catalog/1.root.json 1.targets.json
                                  tuf/director/1.root.json
                                  keys/authority.crt keys/issuing.crt

The three root keys belong to three people, each with a passphrase and a place of its own. It may
all happen on a machine without a network: carry public.json there and the written files back.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tuf.api.metadata import DelegatedRole, Delegations, Root, Snapshot, Targets, Timestamp

from fleet.ca import make_root, sign_issuing
from fleet.certificates import load_ec_key, make_ec_key, to_pem
from fleet.files import make_folder, write_atomic
from fleet.keystore import PublicKeys, read_public
from fleet.roles import OFFLINE_VALID, sign, tuf_key, until
from skerry.canonical import sha256
from skerry.custom import MESSAGE_KEYS_FIELD, message_keys_field
from skerry.errors import ConflictError, UsageError
from skerry.ids import check_id
from skerry.keys import PublicKey, Signer

__all__ = ["Ceremony", "perform"]

ROOT_KEYS: Final = 3
ROOT_THRESHOLD: Final = 2
TOP_LEVEL: Final = ("root", "targets", "snapshot", "timestamp")
PRIVATE: Final = 0o600
MIN_PASSPHRASE: Final = 8

Passphrase = Callable[[str], bytes]


@dataclass(frozen=True, slots=True)
class Ceremony:
    """What a key ceremony made, to be read out, compared and written down."""

    fleet_id: str
    fingerprints: dict[str, str]  # name -> key id, or digest of a file
    secret_files: tuple[Path, ...]
    fleet_files: tuple[Path, ...]
    steps: tuple[str, ...]  # what people do next

    def facts(self) -> dict[str, Any]:
        """Return the ceremony as JSON would say it."""
        return {
            "fleet_id": self.fleet_id,
            "fingerprints": self.fingerprints,
            "secret_files": [str(path) for path in self.secret_files],
            "fleet_files": [str(path) for path in self.fleet_files],
        }

    def checklist(self) -> str:
        """Return the ceremony as text to print, read out and sign."""
        width = max(len(name) for name in self.fingerprints)
        return "\n".join(
            (
                f"Key ceremony of fleet {self.fleet_id}",
                "",
                *(f"  {name:{width}}  {value}" for name, value in self.fingerprints.items()),
                "",
                *(f"  [ ] {step}" for step in self.steps),
            )
        )


def perform(
    data: Path,
    out: Path,
    publishers: Sequence[str],
    *,
    passphrase: Passphrase,
    now: datetime,
) -> Ceremony:
    """Make offline keys for a fleet and sign the first roots with them.

    Args:
        data: the fleet's data directory, or a copy that holds keys/public.json.
        out: where the new private keys go.
        publishers: who may release models; each gets a key.
        passphrase: returns the passphrase for a key, by the key's name.
        now: aware UTC.

    Raises:
        NotFoundError: the fleet has no keys yet.
        ConflictError: there was a ceremony already, or `out` holds keys.
        UsageError: no publisher, a wrong name, or a passphrase that is too short.
    """
    _check_publishers(publishers)
    public = read_public(data / "keys" / "public.json")
    catalog, director = data / "tuf" / "catalog", data / "tuf" / "director"
    if (catalog / "1.root.json").exists():
        raise ConflictError(f"{data} has trusted roots already; they are replaced by rotation only")
    make_folder(out, mode=0o700)
    root_names = [f"root-{n}" for n in range(1, ROOT_KEYS + 1)]
    names = [*root_names, *(f"publisher-{name}" for name in publishers)]
    secrets = {name: out / f"{name}.pem" for name in (*names, "authority")}
    if taken := [path for path in secrets.values() if path.exists()]:
        raise ConflictError(f"expected a new folder for keys, found {taken[0]}; choose another")

    phrases = {name: _phrase(passphrase, name) for name in secrets}
    signers = {name: Signer.generate() for name in names}
    roots = [signers[name] for name in root_names]
    released_by = {name: signers[f"publisher-{name}"].public for name in publishers}
    authority = make_ec_key()
    certificate = make_root(authority, public.fleet_id, now)
    files = {
        data / "keys" / "authority.crt": certificate,
        data / "keys" / "issuing.crt": sign_issuing(
            authority, certificate, public.issuing_request, public.fleet_id, now
        ),
        catalog / "1.targets.json": sign(_catalog_targets(released_by, now), roots),
        director / "1.root.json": sign(_director_root(roots, public, now), roots),
        # last: its presence says that the ceremony was held to its end
        catalog / "1.root.json": sign(_catalog_root(roots, public, now), roots),
    }
    for name, signer in signers.items():
        write_atomic(secrets[name], signer.to_pem(phrases[name]), mode=PRIVATE)
    for name, key in released_by.items():
        write_atomic(out / f"publisher-{name}.pub", _public_pem(key))
    write_atomic(secrets["authority"], to_pem(authority, phrases["authority"]), mode=PRIVATE)
    _read_back(secrets, phrases, signers)
    for path, content in files.items():
        make_folder(path.parent)
        write_atomic(path, content)
    return Ceremony(
        fleet_id=public.fleet_id,
        fingerprints=_fingerprints(signers, public, files),
        secret_files=tuple(secrets.values()),
        fleet_files=tuple(files),
        steps=_steps(public, publishers),
    )


def _check_publishers(publishers: Sequence[str]) -> None:
    for name in publishers:
        check_id(name, "publisher")
        if name in TOP_LEVEL:
            raise UsageError(f"expected another publisher name than {name}: it names a role of TUF")
    if not publishers or len(set(publishers)) != len(publishers):
        raise UsageError("expected one or more publishers, each named once: --publisher NAME")


def _phrase(passphrase: Passphrase, name: str) -> bytes:
    given = passphrase(name)
    if len(given) < MIN_PASSPHRASE:
        raise UsageError(
            f"expected a passphrase of {MIN_PASSPHRASE} bytes or more for {name}, got {len(given)}; "
            "choose a longer one (if nobody asked you, it came from SKERRY_KEY_PASSPHRASE)"
        )
    return given


def _root(
    roots: Sequence[Signer], online: dict[str, PublicKey], now: datetime, extra: dict[str, object]
) -> Root:
    root = Root(expires=until(now, OFFLINE_VALID), consistent_snapshot=True,
                unrecognized_fields=extra)  # fmt: skip
    for role in TOP_LEVEL:
        keys = [online[role]] if role in online else [signer.public for signer in roots]
        for key in keys:
            root.add_key(tuf_key(key), role)
        if role not in online:
            root.roles[role].threshold = ROOT_THRESHOLD
    return root


def _catalog_root(roots: Sequence[Signer], public: PublicKeys, now: datetime) -> Root:
    online = {role: public.key(role) for role in (Snapshot.type, Timestamp.type)}
    return _root(roots, online, now, {})


def _director_root(roots: Sequence[Signer], public: PublicKeys, now: datetime) -> Root:
    director = public.key("director")
    online = dict.fromkeys((Targets.type, Snapshot.type, Timestamp.type), director)
    named = {MESSAGE_KEYS_FIELD: message_keys_field([public.key("message")])}
    return _root(roots, online, now, dict(named))


def _catalog_targets(released_by: dict[str, PublicKey], now: datetime) -> Targets:
    keys = {name: tuf_key(key) for name, key in released_by.items()}
    roles = {
        name: DelegatedRole(name, [key.keyid], 1, True, paths=[f"models/{name}/*"])
        for name, key in keys.items()
    }
    delegations = Delegations({key.keyid: key for key in keys.values()}, roles)
    return Targets(expires=until(now, OFFLINE_VALID), delegations=delegations)


def _public_pem(key: PublicKey) -> bytes:
    return Ed25519PublicKey.from_public_bytes(key.raw).public_bytes(
        Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
    )


def _read_back(
    secrets: dict[str, Path], phrases: dict[str, bytes], signers: dict[str, Signer]
) -> None:
    """Open every key as its owner will: a key that does not open is found now, not in a year."""
    for name, signer in signers.items():
        again = Signer.from_pem(secrets[name].read_bytes(), phrases[name])
        assert again.public == signer.public
    load_ec_key(secrets["authority"].read_bytes(), phrases["authority"])


def _fingerprints(
    signers: dict[str, Signer], public: PublicKeys, files: dict[Path, bytes]
) -> dict[str, str]:
    made = {name: signer.key_id for name, signer in signers.items()}
    online = {f"online {role}": key_id for role, key_id in public.key_ids().items()}
    written = {f"{path.parent.name}/{path.name}": sha256(data) for path, data in files.items()}
    return made | online | written


def _steps(public: PublicKeys, publishers: Sequence[str]) -> tuple[str, ...]:
    return (
        "Read the fingerprints aloud; compare `online ...` with what `skerry keys list` prints "
        f"on the machine of fleet {public.fleet_id}.",
        f"Give root-1, root-2 and root-3 to three people; {ROOT_THRESHOLD} of them can replace any "
        "key, one alone can do nothing.",
        *(f"Give publisher-{name}.pem to {name}: it signs releases." for name in publishers),
        "Keep authority.pem with root-1: it is needed when the issuing authority is replaced.",
        "Make two copies of each key on separate media, and open one of them as a test.",
        "Take all of these .pem files off this machine.",
        "Note the day: the roots expire a year from now and are signed again before that.",
    )
