"""The verifier: checks director and catalog with python-tuf, says what they state, and ends.

    director   metadata that came with `desired`, for this device alone; later roots over HTTP
    catalog    metadata fetched from the fleet, signed by publishers

Beyond python-tuf's own checks: it always begins from the roots of enrolment, so that lost
files can neither brick nor fool it (`agent.repository`); it judges expiry by a time that never
goes back while the key stands that signed it; and it syncs what python-tuf wrote before it
answers, since floors rise by the answer. `skerry.trust` is applied by the update machine.

Asked for no target it only refreshes: each repository for itself, and it says what it found.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from tuf.api.exceptions import DownloadError, RepositoryError
from tuf.api.metadata import Targets

from agent.download import Fetcher
from agent.repository import Carried, Remote, Repository, is_root, refusal_code
from agent.verify_protocol import MAX_REQUEST_BYTES, VerifyAnswer, VerifyRequest
from skerry.canonical import from_msgpack, to_msgpack
from skerry.custom import catalog_target, director_target, message_keys
from skerry.errors import TrustError
from skerry.trust import CatalogTarget, DirectorTarget, standing_times

__all__ = ["main", "verify_request"]

MAX_MESSAGE = 500  # characters


def verify_request(request: VerifyRequest) -> VerifyAnswer:
    """Verify, and answer; a refusal is an answer too."""
    return _Verification(request).answer()


class _Verification:
    """What was found so far; a step that is refused leaves what the steps before it found."""

    def __init__(self, request: VerifyRequest) -> None:
        self._request = request
        self._now = max(request.now, *(time.at for time in request.signed), 0.0)
        self._made: list[Repository] = []
        self._metadata: dict[str, int] = {}
        self._until: dict[str, float] = {}
        self._keys: dict[str, bytes] = {}
        self._director: Repository | None = None
        self._catalog: Repository | None = None
        self._assigned: DirectorTarget | None = None
        self._released: CatalogTarget | None = None
        self._code, self._message, self._transient = "", "", False

    def answer(self) -> VerifyAnswer:
        wanted = self._request.target
        good = self._attempt("director", self._verify_director)
        if good or not wanted:
            good = self._attempt("catalog", self._verify_catalog) and good
        if good and wanted:
            self._attempt("", self._look_up)
        durable = self._attempt("", self._sync)
        answered = wanted and not self._code
        return VerifyAnswer(
            assigned=self._assigned if answered else None,
            released=self._released if answered else None,
            metadata=self._metadata if durable else {},
            message_keys=self._keys if durable else {},
            until=self._until if durable else {},
            code=self._code,
            message=self._message[:MAX_MESSAGE],
            transient=self._transient,
        )

    def _attempt(self, repository: str, step: Callable[[], None]) -> bool:
        try:
            step()
        except (TrustError, RepositoryError, DownloadError) as error:
            self._refuse(repository, error, refusal_code(error))
        except OSError as error:
            text = f"cannot keep metadata in {self._request.directory}: {error}"
            self._refuse(repository, OSError(text), "state_unwritable")
        else:
            return True
        return False

    def _refuse(self, repository: str, error: Exception, code: str) -> None:
        if self._code:
            return
        self._code = code
        self._message = f"{repository}: {error}" if repository else str(error)
        self._transient = code in {"unreachable", "state_unwritable"}

    def _verify_director(self) -> None:
        request = self._request
        place = Path(request.directory) / "director"
        roots = Remote(self._fetcher(request.director_url)) if request.director_url else None
        director = Repository(place, Carried(request.director, roots), request.director_root)
        self._made.append(director)
        first = director.versions("director")["director/root"]
        root = director.load_root()
        keys = message_keys(root.unrecognized_fields)
        self._keys = {key_id: key.raw for key_id, key in keys.items()}
        self._metadata["director/root"] = root.version
        newer = root.version > max(request.root_floor, first)
        signed = standing_times(request.signed, keys) if newer else request.signed
        self._now = max(request.now, *(time.at for time in signed), 0.0)
        carried = [int(name.partition(".")[0]) for name in request.director if is_root(name)]
        if max(carried, default=0) > root.version:
            raise TrustError(
                f"expected every root up to {max(carried)}, which the message carries, "
                f"got none after {root.version}",
                "root_missing",
            )
        if not request.director and not request.target:
            return  # nothing was ever assigned here
        director.refresh(self._now)
        _check_director(director.targets())
        self._metadata |= director.versions("director")
        self._until["director"] = director.until()
        self._director = director

    def _verify_catalog(self) -> None:
        request = self._request
        place = Path(request.directory) / "catalog"
        remote = Remote(self._fetcher(request.catalog_url))
        catalog = Repository(place, remote, request.catalog_root)
        self._made.append(catalog)
        catalog.refresh(self._now)
        if request.target:
            catalog.target(request.target)  # brings the publisher's metadata
        self._metadata |= catalog.versions("catalog")
        self._until["catalog"] = catalog.until()
        self._catalog = catalog

    def _look_up(self) -> None:
        assert self._director is not None
        assert self._catalog is not None
        path = self._request.target
        assigned, released = self._director.target(path), self._catalog.target(path)
        if assigned is None:
            raise TrustError(f"the director assigns no {path}", "not_assigned")
        if released is None:
            raise TrustError(f"the catalog has no {path}", "not_in_catalog")
        self._assigned = director_target(path, assigned.length, assigned.hashes, assigned.custom)
        self._released = catalog_target(path, released.length, released.hashes, released.custom)

    def _sync(self) -> None:
        for repository in self._made:
            repository.sync()

    def _fetcher(self, url: str) -> Fetcher:
        request = self._request
        return Fetcher(
            url,
            timeout_s=request.timeout_s,
            ca_file=_path(request.ca_file),
            cert_file=_path(request.cert_file),
            key_file=_path(request.key_file),
        )


def _path(file: str) -> Path | None:
    return Path(file) if file else None


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


def main() -> None:
    """Read a request from standard input, write the answer to standard output."""
    request = from_msgpack(sys.stdin.buffer.read(), VerifyRequest, limit=MAX_REQUEST_BYTES)
    sys.stdout.buffer.write(to_msgpack(verify_request(request)))
