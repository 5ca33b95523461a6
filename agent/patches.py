"""Brings a model's file here by a patch of one that is here already, or says that it cannot.

1. A patch is tried only if the signed release lists it, its old file is here, and it saves bytes
   against what is still to be fetched of the whole file.
2. It is fetched like any blob: by digest, bounded, from where it stopped.
3. That a try begins is on disk before it begins. After a failure there is none, and after two
   tries that nobody saw the end of, such as a machine that went down, there is none either.
4. What came of it takes its name only with the right digest, as every file does.

Whatever goes wrong, the answer is `False`, it is counted, and the whole file is fetched. Only a
missing connection is an error: the same fetch goes on later, three times.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from agent.config import AgentConfig
from agent.durable import fsync_dir
from agent.facts import Release
from agent.slots import Slots, hash_file
from agent.threads import beside
from skerry.errors import SkerryError, UnreachableError
from skerry.manifest import FileRef
from skerry.trust import PatchRef

__all__ = ["Patches"]

log = logging.getLogger(__name__)

MAX_TRIES: Final = 2  # of which the end was not seen
MAX_UNREACHABLE: Final = 3
CPU_BASE_S: Final = 30
CPU_BYTES_PER_S: Final = 1 << 20  # a slow device makes several times as many
MESSAGE_BYTES: Final = 500

Fetch = Callable[[Release, PatchRef], Awaitable[Path]]


class Patches:
    """Makes files by patches.

    Args:
        slots: where files are kept.
        config: limits.
        fetch: brings a patch into the slot of a release and returns where it lies.
    """

    def __init__(self, slots: Slots, config: AgentConfig, fetch: Fetch) -> None:
        self._slots = slots
        self._config = config
        self._fetch = fetch
        self._unreachable: Counter[str] = Counter()  # by patch
        self._one_at_a_time = asyncio.Lock()
        self.made = 0
        self.failed = 0
        self.saved_bytes = 0

    async def bring(self, release: Release, file: FileRef) -> bool:
        """Make a file of a release by a patch; False if it must be fetched whole.

        Raises:
            UnreachableError: no connection; it may be tried again.
        """
        async with self._one_at_a_time:
            target = self._slots.path(release.ref.bundle, file.digest)
            if target.is_file():
                return True
            found = self._choose(release, file, target)
            if found is None:
                return False
            patch, old = found
            try:
                await self._make(release, patch, old, file, target)
            except UnreachableError as error:
                self._unreachable[patch.digest] += 1
                if self._unreachable[patch.digest] < MAX_UNREACHABLE:
                    raise
                self._give_up(release, patch, target, error)
            except (SkerryError, OSError) as error:
                self._give_up(release, patch, target, error)
            else:
                self.made += 1
                self.saved_bytes += file.size_bytes - patch.size_bytes
                log.info("%s was made of %s by a patch of %d bytes, %d less",
                         file.digest, patch.old, patch.size_bytes,
                         file.size_bytes - patch.size_bytes)  # fmt: skip
                return True
            return False

    def _choose(
        self, release: Release, file: FileRef, target: Path
    ) -> tuple[PatchRef, Path] | None:
        """Return the smallest patch that can be used and saves bytes, and its old file."""
        if not self._config.patches or _size(_beside(target, ".tries")) >= MAX_TRIES:
            return None
        bundle, missing = release.ref.bundle, file.size_bytes - _size(_beside(target, ".part"))
        for patch in sorted(release.patches, key=lambda patch: patch.size_bytes):
            if patch.new != file.digest or patch.size_bytes >= missing:
                continue
            old = self._slots.holding(patch.old)
            if old is None:
                continue
            here = _size(_beside(self._slots.path(bundle, patch.digest), ".part"))
            needed = file.size_bytes + patch.size_bytes - here + self._config.disk_reserve_bytes
            if shutil.disk_usage(target.parent).free >= needed:
                return patch, old
            log.info("no room for a patch beside the file that it makes")
        return None

    async def _make(
        self, release: Release, patch: PatchRef, old: Path, file: FileRef, target: Path
    ) -> None:
        steps = await self._fetch(release, patch)
        _note_try(target)
        made = _beside(target, ".patched")
        cpu_s = CPU_BASE_S + file.size_bytes // CPU_BYTES_PER_S
        command = [
            sys.executable, "-m", "agent.patch_child", str(old.absolute()), str(steps.absolute()),
            str(made.absolute()), file.digest, str(file.size_bytes), str(cpu_s),
        ]  # fmt: skip
        await _run(command, self._config.patch_timeout_s)
        found = await beside(lambda: hash_file(made), "hash")
        if found != file.digest:
            raise SkerryError(f"expected {file.digest} of a patch, got {found}")
        made.replace(target)
        fsync_dir(target.parent)
        self._clean(release, patch, target)

    def _give_up(self, release: Release, patch: PatchRef, target: Path, error: Exception) -> None:
        self.failed += 1
        log.warning("the patch %s is of no use: %s; fetching the whole file", patch.digest, error)
        self._clean(release, patch, target)
        with contextlib.suppress(OSError):
            _beside(target, ".tries").write_bytes(b"." * MAX_TRIES)

    def _clean(self, release: Release, patch: PatchRef, target: Path) -> None:
        steps = self._slots.path(release.ref.bundle, patch.digest)
        for path in (_beside(target, ".patched"), _beside(target, ".tries"), steps,
                     _beside(steps, ".part")):  # fmt: skip
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


async def _run(command: list[str], timeout_s: float) -> None:
    """Run a child to its end.

    Raises:
        SkerryError: it failed, crashed, or took too long.
    """
    child = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert child.stderr is not None
    try:
        async with asyncio.timeout(timeout_s):
            said = await child.stderr.read(MESSAGE_BYTES)
            code = await child.wait()
    except TimeoutError:
        raise SkerryError(f"expected a patch to be applied within {timeout_s:.0f} s") from None
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    if code != 0:
        why = f"signal {-code}" if code < 0 else said.decode(errors="replace").strip()
        raise SkerryError(why or f"exit code {code}")


def _note_try(target: Path) -> None:
    tries = _beside(target, ".tries")
    with tries.open("ab") as file:
        file.write(b".")
        file.flush()
        os.fsync(file.fileno())
    fsync_dir(target.parent)


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
