"""The verifier: checks director and catalog with python-tuf, says what they state, and ends.

    director   metadata that came with `desired`, for this device alone
    catalog    metadata fetched from the fleet, signed by publishers

Beyond python-tuf's own checks: it always begins from the roots of enrolment, so that lost
files can neither brick nor fool it; it judges expiry by a time that never goes back; and
it syncs what python-tuf wrote before it answers, since floors rise by the answer.
`skerry.trust` is applied by the update machine.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import TargetFile, Targets
from tuf.ngclient.config import UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface
from tuf.ngclient.updater import Updater

from agent.clock import at_utc
from agent.download import Fetcher
from agent.slots import fsync_dir
from agent.verify import MAX_REQUEST_BYTES, VerifyAnswer, VerifyRequest
from skerry.canonical import from_msgpack, to_msgpack
from skerry.custom import catalog_target, director_target, message_keys
from skerry.errors import FormatError, NotFoundError, SkerryError, TrustError

__all__ = ["main", "verify_request"]

LIMITS: Final = UpdaterConfig(
    max_root_rotations=32,
    max_delegations=4,
    root_max_length=16 << 10,
    timestamp_max_length=4 << 10,
    snapshot_max_length=256 << 10,
    targets_max_length=1 << 20,
)
_CODES: Final = (
    (ExpiredMetadataError, "metadata_expired"),
    (UnsignedMetadataError, "signature_invalid"),
    (BadVersionNumberError, "metadata_rollback"),
    (LengthOrHashMismatchError, "metadata_mismatch"),
    (DownloadLengthMismatchError, "metadata_too_long"),
    (DownloadHTTPError, "metadata_missing"),
)


class _Carried(FetcherInterface):
    """Reads metadata from the files that a message carried."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self._files = files

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.rpartition("/")[2]
        if name not in self._files:
            raise DownloadHTTPError(f"the message carries no {name}", 404)
        return iter((self._files[name],))


class _Remote(FetcherInterface):
    """Reads metadata from the fleet."""

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


LIMIT_BYTES: Final = LIMITS.targets_max_length


def verify_request(request: VerifyRequest) -> VerifyAnswer:
    """Verify, and answer; a refusal is an answer too."""
    where = Path(request.directory)
    try:
        director = _Repository(
            where / "director", _Carried(request.director), request.director_root, request.now
        )
        _check_director(director.targets())
        assigned_file = director.target(request.target)
    except (RepositoryError, DownloadError) as error:
        return _refusal("director", error, transient=False)
    except TrustError as error:
        return VerifyAnswer(code=error.code, message=f"director: {error}")
    remote = Fetcher(
        request.catalog_url,
        timeout_s=request.timeout_s,
        ca_file=_path(request.ca_file),
        cert_file=_path(request.cert_file),
        key_file=_path(request.key_file),
    )
    try:
        catalog = _Repository(where / "catalog", _Remote(remote), request.catalog_root, request.now)
        released_file = catalog.target(request.target)
    except (RepositoryError, DownloadLengthMismatchError) as error:
        return _refusal("catalog", error, transient=False)
    except DownloadError as error:
        return _refusal("catalog", error, transient=True)
    try:
        if assigned_file is None:
            raise TrustError(f"the director assigns no {request.target}", "not_assigned")
        if released_file is None:
            raise TrustError(f"the catalog has no {request.target}", "not_in_catalog")
        director.sync()
        catalog.sync()
        return VerifyAnswer(
            assigned=director_target(
                request.target, assigned_file.length, assigned_file.hashes, assigned_file.custom
            ),
            released=catalog_target(
                request.target, released_file.length, released_file.hashes, released_file.custom
            ),
            metadata=director.versions("director") | catalog.versions("catalog"),
            message_keys=director.message_keys(),
        )
    except TrustError as error:
        return VerifyAnswer(code=error.code, message=str(error))


def _path(file: str) -> Path | None:
    return Path(file) if file else None


class _Repository:
    """One TUF repository, refreshed."""

    def __init__(self, directory: Path, fetcher: FetcherInterface, root: bytes, now: float) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._updater = Updater(
            str(directory), "http://metadata/", fetcher=fetcher, config=LIMITS, bootstrap=root
        )
        # python-tuf asks the system's clock, and offers no other way to tell it the time
        self._trusted = self._updater._trusted_set
        self._trusted.reference_time = at_utc(now)
        self._updater.refresh()

    def target(self, path: str) -> TargetFile | None:
        """Return what the metadata says of a target, None if it has none."""
        return self._updater.get_targetinfo(path)

    def targets(self) -> Targets:
        """Return the top-level targets, as verified."""
        return self._trusted.targets

    def versions(self, name: str) -> dict[str, int]:
        """Return the versions of the roles that were verified."""
        roles = self._trusted._trusted_set
        return {f"{name}/{role}": signed.version for role, signed in sorted(roles.items())}

    def message_keys(self) -> dict[str, bytes]:
        """Return the message keys that the root names."""
        keys = message_keys(self._trusted.root.unrecognized_fields)
        return {key_id: key.raw for key_id, key in keys.items()}

    def sync(self) -> None:
        """Make durable what python-tuf wrote."""
        for folder, _, files in os.walk(self._directory):
            for file in files:
                fd = os.open(Path(folder, file), os.O_RDONLY)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)
            fsync_dir(Path(folder))


def _check_director(targets: Targets) -> None:
    """Refuse a director that lets others speak for it, or gives one slot two orders.

    Raises:
        TrustError: code ``delegation``, ``slot_twice`` or ``custom``.
    """
    if targets.delegations is not None:
        raise TrustError("expected a director that delegates to nobody", "delegation")
    taken: set[str] = set()
    for path, file in targets.targets.items():
        slot = director_target(path, file.length, file.hashes, file.custom).slot
        if slot in taken:
            raise TrustError(f"expected one assignment of slot {slot}, got two", "slot_twice")
        taken.add(slot)


def _refusal(repository: str, error: Exception, *, transient: bool) -> VerifyAnswer:
    code = next((code for kind, code in _CODES if isinstance(error, kind)), "metadata_invalid")
    return VerifyAnswer(
        code="unreachable" if transient else code,
        message=f"{repository}: {error}"[:500],
        transient=transient,
    )


def main() -> None:
    """Read a request from standard input, write the answer to standard output."""
    request = from_msgpack(sys.stdin.buffer.read(), VerifyRequest, limit=MAX_REQUEST_BYTES)
    sys.stdout.buffer.write(to_msgpack(verify_request(request)))


if __name__ == "__main__":
    main()
