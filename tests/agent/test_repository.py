"""A repository as a device reads it."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from tuf.api.metadata import Root

from agent.repository import Carried, Repository
from fleet.roles import sign, tuf_key
from skerry.keys import Signer

ROTATIONS = 200  # one a month, for more years than a device lives


def chain(length: int) -> list[bytes]:
    signer, roots = Signer.generate(), []
    for version in range(1, length + 1):
        root = Root(version=version, expires=datetime.now(UTC) + timedelta(days=1))
        for role in ("root", "targets", "snapshot", "timestamp"):
            root.add_key(tuf_key(signer.public), role)
        roots.append(sign(root, [signer]))
    return roots


def test_the_latest_root_is_reached_however_long_ago_the_device_enrolled(tmp_path: Path) -> None:
    first, *later = chain(1 + ROTATIONS)
    files = {f"{number}.root.json": root for number, root in enumerate(later, 2)}
    for files_left in (files, {}):  # the second time from what is kept
        repository = Repository(tmp_path, Carried(files_left), first)
        assert repository.load_root().version == 1 + ROTATIONS
