"""Every key of a fleet by name: what it signs, how many of its kind are needed, until when."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tuf.api.metadata import Root, Targets

from fleet.certificates import certified_key_id, load_certificate
from fleet.documents import CATALOG_ROOT, DIRECTOR_ROOT, PUBLISHERS
from fleet.keystore import read_next, read_public
from fleet.offline import key_name, publishers_of, root_keys
from fleet.roles import latest, parse
from fleet.rotation import read_standing
from skerry.io.key_files import key_id_of

__all__ = ["KeyRow", "list_keys"]


@dataclass(frozen=True, slots=True)
class KeyRow:
    """One key."""

    name: str
    key_id: str
    signs: str
    threshold: str = ""
    until: str = ""  # the day on which what it has signed must be signed again

    def facts(self) -> dict[str, Any]:
        """Return the row as JSON would say it."""
        return {
            "name": self.name, "key_id": self.key_id, "signs": self.signs,
            "threshold": self.threshold, "until": self.until,
        }  # fmt: skip


def list_keys(data: Path) -> tuple[str, list[KeyRow]]:
    """Return the fleet's id and its keys.

    Args:
        data: the fleet's data directory, before or after the key ceremony.

    Raises:
        NotFoundError: the fleet has no keys yet.
    """
    public = read_public(data / "keys" / "public.json")
    ids = public.key_ids()
    if not (data / "tuf" / "catalog" / "1.root.json").exists():
        return public.fleet_id, [KeyRow(f"online {role}", i, "") for role, i in ids.items()]
    standing = read_standing(data)
    catalog = parse(standing[CATALOG_ROOT], Root, CATALOG_ROOT).signed
    director = parse(standing[DIRECTOR_ROOT], Root, DIRECTOR_ROOT).signed
    targets = parse(standing[PUBLISHERS], Targets, PUBLISHERS).signed
    ends = min(catalog.expires, director.expires, targets.expires)
    of = f"{catalog.roles['root'].threshold} of {len(catalog.roles['root'].keyids)}"
    rows = [
        KeyRow(name, key_id_of(key), "roots, delegations", of, _day(ends))
        for name, key in root_keys(catalog).items()
    ]
    for publisher, given in publishers_of(targets).items():
        of = f"{given.threshold} of {len(given.keys)}"
        path, until = f"models/{publisher}/*", _released_until(data, publisher)
        rows += [KeyRow(key_name(key), key_id_of(key), path, of, until) for key in given.keys]
    what = {
        "snapshot": "the catalog's list", "timestamp": "that the list is fresh",
        "director": "assignments", "message": "messages to devices",
        "issuing": "device certificates",
    }  # fmt: skip
    rows += [KeyRow(f"online {role}", key_id, what[role]) for role, key_id in ids.items()]
    waiting = read_next(data / "keys").key_ids()
    rows += [KeyRow(f"waiting {role}", i, what[role]) for role, i in waiting.items()]
    authority = (data / "keys" / "authority.crt").read_bytes()
    ends = load_certificate(authority, "root authority").not_valid_after_utc
    rows.append(
        KeyRow("authority", certified_key_id(authority, "root authority"), "the issuing authority",
               "", _day(ends))
    )  # fmt: skip
    return public.fleet_id, rows


def _released_until(data: Path, publisher: str) -> str:
    folder = data / "tuf" / "catalog"
    version = latest(folder, publisher)
    if not version:
        return ""
    name = f"{version}.{publisher}.json"
    return _day(parse((folder / name).read_bytes(), Targets, name).signed.expires)


def _day(at: datetime) -> str:
    return f"{at:%Y-%m-%d}"
