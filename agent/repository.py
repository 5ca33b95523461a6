"""One TUF repository as a device reads it: python-tuf, from the enrolment root on, made durable.

    repository = Repository(folder, Remote(fetcher), root)
    repository.load_root()          the chain of roots, as far as there are later ones
    repository.refresh(now)         timestamp, snapshot, targets; loads the roots if need be
    repository.target("models/...") what a target is said to be, through delegations
    repository.sync()               durable: floors may rise now

Whatever lies in the folder is only a help: it begins anew from the root that it is given, and a
file that is cut, damaged or gone is fetched again. Roots come first and by themselves, since what
they say decides by which time everything else is judged (`skerry.trust.standing_times`).
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Root, TargetFile, Targets
from tuf.ngclient.config import UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface
from tuf.ngclient.updater import Updater

from agent.clock import at_utc
from agent.download import Fetcher
from agent.durable import fsync_dir
from skerry.errors import FormatError, NotFoundError, SkerryError, TrustError

__all__ = ["LIMITS", "Carried", "Remote", "Repository", "is_root", "refusal_code"]

LIMITS: Final = UpdaterConfig(
    max_root_rotations=1024,  # since enrolment, those that are kept here included
    max_delegations=4,
    root_max_length=16 << 10,
    timestamp_max_length=4 << 10,
    snapshot_max_length=256 << 10,
    targets_max_length=1 << 20,
)
LIMIT_BYTES: Final = LIMITS.targets_max_length
_CODES: Final = (
    (ExpiredMetadataError, "metadata_expired"),
    (UnsignedMetadataError, "signature_invalid"),
    (BadVersionNumberError, "metadata_rollback"),
    (LengthOrHashMismatchError, "metadata_mismatch"),
    (DownloadLengthMismatchError, "metadata_too_long"),
    (DownloadHTTPError, "metadata_missing"),
    (DownloadError, "unreachable"),
)
_ROOT_NAME: Final = re.compile(r"[0-9]{1,9}\.root\.json")


class Remote(FetcherInterface):
    """Reads metadata from a place on the network."""

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher

    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            return iter((self._fetcher.small("/" + url.rpartition("/")[2], LIMIT_BYTES),))
        except NotFoundError as error:
            raise DownloadHTTPError(str(error), 404) from None
        except FormatError as error:
            # endless: to ask again would only be to take more of it
            raise DownloadLengthMismatchError(str(error)) from None
        except SkerryError as error:
            raise DownloadError(str(error)) from None


class Carried(FetcherInterface):
    """Reads metadata from the files that a message carried.

    Args:
        files: by name.
        roots: where roots are that the message does not carry, None for nowhere.
    """

    def __init__(self, files: Mapping[str, bytes], roots: Remote | None = None) -> None:
        self._files = files
        self._roots = roots

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.rpartition("/")[2]
        if name in self._files:
            return iter((self._files[name],))
        if self._roots is not None and is_root(name):
            return self._roots.fetch(url)
        raise DownloadHTTPError(f"the message carries no {name}", 404)


class Repository:
    """One TUF repository on a device.

    Args:
        directory: where metadata is kept; made if it is missing.
        fetcher: where metadata comes from.
        root: the root to begin from.

    Raises:
        RepositoryError: that root is none.
        OSError: the directory cannot be written.
    """

    def __init__(self, directory: Path, fetcher: FetcherInterface, root: bytes) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._updater = Updater(
            str(directory), "http://metadata/", fetcher=fetcher, config=LIMITS, bootstrap=root
        )
        self._trusted = self._updater._trusted_set
        self._rooted = False

    def load_root(self) -> Root:
        """Follow the chain of roots to its end, and return the last one; its expiry is not judged.

        Raises:
            RepositoryError: a later root is not signed as both it and the one before demand.
            DownloadError: they could not be asked for.
            OSError: the directory cannot be written.
        """
        if not self._rooted:
            self._updater._load_root()
            self._rooted = True
        return self._trusted.root

    def refresh(self, now: float) -> None:
        """Verify the latest timestamp, snapshot and top-level targets.

        Args:
            now: Unix seconds, by which expiry is judged.

        Raises:
            TrustError: code ``root_expired``: only the holders of root keys can end that.
            RepositoryError, DownloadError, OSError: as `load_root`, and for the other roles.
        """
        root = self.load_root()
        # python-tuf asks the system's clock, and offers no other way to tell it the time
        self._trusted.reference_time = at_utc(now)
        if root.is_expired(self._trusted.reference_time):
            raise TrustError(
                f"root {root.version} expired on {root.expires:%Y-%m-%d}, it is "
                f"{at_utc(now):%Y-%m-%d} here; the root keys must sign the next one",
                "root_expired",
            )
        self._updater._load_timestamp()
        self._updater._load_snapshot()
        self._updater._load_targets(Targets.type, Root.type)

    def target(self, path: str) -> TargetFile | None:
        """Return what the metadata says of a target, None if it has none."""
        return self._updater.get_targetinfo(path)

    def targets(self) -> Targets:
        """Return the top-level targets, as verified."""
        return self._trusted.targets

    def until(self) -> float:
        """Return when the timestamp expires, Unix seconds."""
        return self._trusted.timestamp.expires.timestamp()

    def versions(self, name: str) -> dict[str, int]:
        """Return the versions of the roles that were verified, as ``<name>/<role>``."""
        roles = self._trusted._trusted_set
        return {f"{name}/{role}": signed.version for role, signed in sorted(roles.items())}

    def sync(self) -> None:
        """Make durable what python-tuf wrote; it renames files into place without that.

        Raises:
            OSError: the disk does not take it.
        """
        for folder, _, files in os.walk(self._directory):
            for file in files:
                fd = os.open(Path(folder, file), os.O_RDONLY)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)
            fsync_dir(Path(folder))


def is_root(name: str) -> bool:
    """Tell whether a file name is that of a root, ``<n>.root.json``."""
    return _ROOT_NAME.fullmatch(name) is not None


def refusal_code(error: Exception) -> str:
    """Return the code that names why metadata is refused."""
    if isinstance(error, TrustError):
        return error.code
    return next((code for kind, code in _CODES if isinstance(error, kind)), "metadata_invalid")
