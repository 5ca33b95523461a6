"""The key ceremony: makes the keys that a fleet's machine never sees, and signs what they say.

    made, encrypted, in --out     root-1.pem root-2.pem root-3.pem   two of three sign
                                  publisher-<name>.pem               signs releases; with m keys
                                  publisher-<name>-<1..m>.pem        n of them sign each release
                                  publisher-*.pub                    their public halves
                                  authority.pem                      signs the issuing authority
    read from the fleet           keys/public.json                   which keys are online
    written for the fleet         tuf/catalog/1.root.json 1.targets.json
                                  tuf/director/1.root.json
                                  keys/authority.crt keys/issuing.crt

The three root keys belong to three people, each with a passphrase and a place of its own. It may
all happen on a machine without a network: carry public.json there and the written files back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from fleet.ca import make_root, sign_issuing
from fleet.certificates import load_ec_key, make_ec_key, to_pem
from fleet.files import make_folder, write_atomic
from fleet.keystore import PublicKeys, read_public
from fleet.offline import (
    ROOT_THRESHOLD,
    PublisherKeys,
    PublisherWish,
    catalog_root,
    delegations,
    director_root,
    named,
    parse_publisher,
)
from fleet.roles import sign, tuf_key
from skerry.canonical import sha256
from skerry.errors import ConflictError, UsageError
from skerry.io.key_files import Passphrase, public_pem
from skerry.keys import Signer

__all__ = ["Ceremony", "check_phrase", "perform", "write_keys"]

ROOT_KEYS: Final = 3
PRIVATE: Final = 0o600
MIN_PASSPHRASE: Final = 8


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
        publishers: who may release models: ``NAME``, or ``NAME:n-of-m`` for m people of whom n sign
            each release.
        passphrase: returns the passphrase for a key, by the key's name.
        now: aware UTC.

    Raises:
        NotFoundError: the fleet has no keys yet.
        ConflictError: there was a ceremony already, or `out` holds keys.
        UsageError: no publisher, a wrong name, or a passphrase that is too short.
    """
    wishes = _wishes(publishers)
    public = read_public(data / "keys" / "public.json")
    catalog, director = data / "tuf" / "catalog", data / "tuf" / "director"
    if (catalog / "1.root.json").exists():
        raise ConflictError(
            f"{data} has trusted roots already; replace keys with: skerry keys rotate"
        )
    root_names = [f"root-{n}" for n in range(1, ROOT_KEYS + 1)]
    names = [*root_names, *(name for wish in wishes for name in wish.key_names())]
    secrets = {name: out / f"{name}.pem" for name in (*names, "authority")}
    if taken := [path for path in secrets.values() if path.exists()]:
        raise ConflictError(f"expected a new folder for keys, found {taken[0]}; choose another")

    make_folder(out, mode=0o700)
    phrases = {name: check_phrase(passphrase(name), name) for name in secrets}
    signers = {name: Signer.generate() for name in names}
    roots = [signers[name] for name in root_names]
    held = {name: named(tuf_key(signer.public), name) for name, signer in signers.items()}
    root_keys = [held[name] for name in root_names]
    released_by = {
        wish.name: PublisherKeys(wish.threshold, tuple(held[name] for name in wish.key_names()))
        for wish in wishes
    }
    online = {role: public.key(role) for role in public.online}
    authority = make_ec_key()
    certificate = make_root(authority, public.fleet_id, now)
    files = {
        data / "keys" / "authority.crt": certificate,
        data / "keys" / "issuing.crt": sign_issuing(
            authority, certificate, public.issuing_request, public.fleet_id, now
        ),
        catalog / "1.targets.json": sign(delegations(released_by, version=1, now=now), roots),
        director / "1.root.json": sign(director_root(root_keys, online, version=1, now=now), roots),
        # last: its presence says that the ceremony was held to its end
        catalog / "1.root.json": sign(catalog_root(root_keys, online, version=1, now=now), roots),
    }
    write_keys(out, signers, phrases)
    write_atomic(secrets["authority"], to_pem(authority, phrases["authority"]), mode=PRIVATE)
    load_ec_key(secrets["authority"].read_bytes(), phrases["authority"])
    for path, content in files.items():
        make_folder(path.parent)
        write_atomic(path, content)
    return Ceremony(
        fleet_id=public.fleet_id,
        fingerprints=_fingerprints(signers, public, files),
        secret_files=tuple(secrets.values()),
        fleet_files=tuple(files),
        steps=_steps(public, wishes),
    )


def write_keys(out: Path, signers: Mapping[str, Signer], phrases: Mapping[str, bytes]) -> None:
    """Write new offline keys into a folder, publishers' public halves too, and open each again.

    A key that does not open is found now, not in a year.
    """
    make_folder(out, mode=0o700)
    for name, signer in signers.items():
        path = out / f"{name}.pem"
        write_atomic(path, signer.to_pem(phrases[name]), mode=PRIVATE)
        if name.startswith("publisher-"):
            write_atomic(out / f"{name}.pub", public_pem(tuf_key(signer.public)))
        assert Signer.from_pem(path.read_bytes(), phrases[name]).public == signer.public


def check_phrase(given: bytes, name: str) -> bytes:
    """Return a new key's passphrase if it is long enough.

    Raises:
        UsageError: it is not.
    """
    if len(given) < MIN_PASSPHRASE:
        raise UsageError(
            f"expected a passphrase of {MIN_PASSPHRASE} bytes or more for {name}, got {len(given)}; "
            "choose a longer one (if nobody asked you, it came from SKERRY_KEY_PASSPHRASE)"
        )
    return given


def _wishes(publishers: Sequence[str]) -> list[PublisherWish]:
    wishes = [parse_publisher(text) for text in publishers]
    files = [name for wish in wishes for name in wish.key_names()]
    if not wishes or len({w.name for w in wishes}) != len(wishes) or len(set(files)) != len(files):
        raise UsageError(
            "expected one or more publishers, each named once: --publisher NAME, "
            "or --publisher NAME:2-of-3 where two of three people sign each release"
        )
    return wishes


def _fingerprints(
    signers: dict[str, Signer], public: PublicKeys, files: dict[Path, bytes]
) -> dict[str, str]:
    made = {name: signer.key_id for name, signer in signers.items()}
    online = {f"online {role}": key_id for role, key_id in public.key_ids().items()}
    written = {f"{path.parent.name}/{path.name}": sha256(data) for path, data in files.items()}
    return made | online | written


def _steps(public: PublicKeys, publishers: Sequence[PublisherWish]) -> tuple[str, ...]:
    return (
        "Read the fingerprints aloud; compare `online ...` with what `skerry keys list` prints "
        f"on the machine of fleet {public.fleet_id}.",
        f"Give root-1, root-2 and root-3 to three people; {ROOT_THRESHOLD} of them can replace any "
        "key, one alone can do nothing.",
        *(_step(publisher) for publisher in publishers),
        "Keep authority.pem with root-1: it is needed when the issuing authority is replaced.",
        "Make two copies of each key on separate media, and open one of them as a test.",
        "Take all of these .pem files off this machine.",
        "Note the day: the roots expire a year from now; sign them again before that: "
        "skerry keys rotate begin.",
    )


def _step(publisher: PublisherWish) -> str:
    names = publisher.key_names()
    if len(names) == 1:
        return f"Give {names[0]}.pem to {publisher.name}: it signs releases."
    return (
        f"Give {', '.join(names)} to {len(names)} people of {publisher.name}: "
        f"{publisher.threshold} of them sign each release."
    )
