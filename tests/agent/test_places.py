"""Mirrors help, and can do no harm: what counts is what the fleet answers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.config import AgentConfig
from agent.download import Fetcher
from agent.places import Places
from skerry.canonical import sha256
from skerry.errors import NotFoundError, RefusedError, TrustError, UnreachableError
from tests.fakes.http_files import FileServer

DATA = bytes(range(256)) * 200
DIGEST = sha256(DATA)


class Town:
    """A fleet and two mirrors, and a device that knows them."""

    def __init__(self, folder: Path, fleet: FileServer, *mirrors: FileServer) -> None:
        self.folder, self.fleet, self.mirrors = folder, fleet, mirrors
        self.now = 0.0
        config = AgentConfig(
            mirrors=tuple(mirror.url for mirror in mirrors),
            download_min_bytes_s=1000, download_slow_s=0.3, disk_reserve_bytes=0,
        )  # fmt: skip
        self.places = Places(
            config, fleet_url=fleet.url, ca_file=folder / "ca", device_file=folder / "device",
            clock=lambda: self.now,
        )  # fmt: skip

    def fetch(self, name: str = "file") -> bytes:
        def work(fetcher: Fetcher) -> None:
            fetcher.blob("/blob", self.folder / name, digest=DIGEST, size_bytes=len(DATA))

        self.places.fetch(work, lambda: False)
        return (self.folder / name).read_bytes()

    def asked(self) -> list[int]:
        return [len(server.requests) for server in (*self.mirrors, self.fleet)]


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    with FileServer() as fleet, FileServer() as near, FileServer() as far:
        for server in (fleet, near, far):
            server.files["/blob"] = DATA
        yield Town(tmp_path, fleet, near, far)


def test_the_first_mirror_serves_and_nobody_else_is_asked(town: Town) -> None:
    assert town.fetch() == DATA
    assert town.asked() == [1, 0, 0]


def test_a_mirror_that_does_not_have_it_gives_way(town: Town) -> None:
    town.mirrors[0].files.clear()
    assert town.fetch() == DATA
    assert town.asked() == [1, 1, 0]


def test_a_mirror_that_drips_gives_way_to_one_that_goes_on_where_it_stopped(town: Town) -> None:
    town.mirrors[0].drip_s, town.mirrors[0].drip_after = 0.05, 20_000
    assert town.fetch() == DATA
    ((_, asked_for),) = town.mirrors[1].requests
    assert asked_for is not None
    assert int(asked_for.removeprefix("bytes=").rstrip("-")) >= 20_000


@pytest.mark.parametrize("cut", [None, 30_000])
def test_a_mirror_that_lies_costs_bytes_and_nothing_else(town: Town, cut: int | None) -> None:
    town.mirrors[0].files["/blob"] = b"x" * len(DATA)
    town.mirrors[0].break_after = cut  # a beginning that is wrong is left for the next to end
    assert town.fetch() == DATA
    assert town.fetch("again") == DATA
    assert town.asked()[0] == 1


def test_a_mirror_that_failed_rests_for_a_while(town: Town) -> None:
    town.mirrors[0].close()
    for name in ("one", "two"):
        assert town.fetch(name) == DATA
    assert town.asked() == [0, 2, 0]
    assert town.places._benched == {town.mirrors[0].url: 600.0}
    town.now = 600.0
    town.fetch("three")
    assert town.places._benched == {town.mirrors[0].url: 1200.0}
    town.mirrors[0].close = lambda: None  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("answer", "error"), [(None, NotFoundError), (b"y" * len(DATA), TrustError)]
)
def test_what_the_fleet_answers_counts(
    town: Town, answer: bytes | None, error: type[Exception]
) -> None:
    for mirror in town.mirrors:
        mirror.files.clear()
    town.fleet.files.clear()
    if answer is not None:
        town.fleet.files["/blob"] = answer
    with pytest.raises(error):
        town.fetch()


def test_mirrors_alone_cannot_have_a_release_rejected(town: Town) -> None:
    for mirror in town.mirrors:
        mirror.files["/blob"] = b"z" * len(DATA)
    town.fleet.break_after = 10
    with pytest.raises(UnreachableError):
        town.fetch()


def test_a_full_disk_is_no_fault_of_a_mirror(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.room.shutil.disk_usage", lambda _: type("Disk", (), {"free": 9}))
    with pytest.raises(RefusedError, match="got 9"):
        town.fetch()
    assert town.asked() == [0, 0, 0]
    assert town.places._benched == {}
