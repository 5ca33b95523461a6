"""Where bundles come from: this device's mirrors first, its fleet last.

Any of them will do, for what is fetched is known by its digest. A mirror that does not have a
file, sends other bytes, too few, or none at all gives way to the next place, and is left alone for
a while. Only what the fleet itself answers counts as an answer: a mirror can neither have a
release rejected nor fail an update.
"""

import logging
import ssl
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from agent.config import AgentConfig
from agent.download import Fetcher
from agent.pace import Limiter
from agent.room import NO_ROOM
from skerry.errors import NotFoundError, RefusedError, SkerryError

__all__ = ["Places"]

log = logging.getLogger(__name__)

T = TypeVar("T")

BENCH_S: Final = 600.0  # a mirror that failed is left alone for so long
MISSING_S: Final = 30.0  # one that merely does not have a file yet


class Places:
    """Fetches from the first place that can.

    Args:
        config: with mirrors, rates and limits.
        fleet_url: of the fleet's device listener.
        ca_file: of the fleet's authorities; mirrors are known to the system's.
        device_file: this device's certificate and key, shown to the fleet alone.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        config: AgentConfig,
        *,
        fleet_url: str,
        ca_file: Path,
        device_file: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._fleet_url = fleet_url
        self._fleet_files: dict[str, Path] = {
            "ca_file": ca_file, "cert_file": device_file, "key_file": device_file,
        }  # fmt: skip
        self._clock = clock
        self._limiter = Limiter(config.download_max_bytes_s)
        self._benched: dict[str, float] = {}  # until when

    def fetch(self, work: Callable[[Fetcher], T], stopped: Callable[[], bool]) -> T:
        """Return what came of work at the first place where it succeeds. Blocking.

        Raises:
            SkerryError: what the fleet answered, or that there is no room; see `Fetcher`.
        """
        for url in self._mirrors():
            try:
                return work(self._fetcher(url, stopped, {}))
            except (SkerryError, ssl.SSLError) as error:
                if stopped() or (isinstance(error, RefusedError) and error.code == NO_ROOM):
                    raise
                log.warning("mirror %s: %s; trying the next place", url, error)
                rest = MISSING_S if isinstance(error, NotFoundError) else BENCH_S
                self._benched[url] = self._clock() + rest
        return work(self._fetcher(self._fleet_url, stopped, self._fleet_files))

    def _mirrors(self) -> Sequence[str]:
        now = self._clock()
        return [url for url in self._config.mirrors if self._benched.get(url, now) <= now]

    def _fetcher(self, url: str, stopped: Callable[[], bool], files: dict[str, Any]) -> Fetcher:
        config = self._config
        return Fetcher(
            url,
            timeout_s=config.download_timeout_s,
            min_bytes_s=config.download_min_bytes_s,
            slow_s=config.download_slow_s,
            limiter=self._limiter,
            reserve_bytes=config.disk_reserve_bytes,
            stopped=stopped,
            **files,
        )
