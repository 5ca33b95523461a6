"""Runs a staged variant in a watched child against the bundle's golden set.

What a model does there, hang, crash or eat memory, it does to the child alone.
"""

import asyncio
import contextlib
import math
import os

from agent.bundle_files import BundleFiles
from agent.config import AgentConfig
from agent.facts import Release
from agent.serve_protocol import SmokeResult, serve_environment, smoke_command
from agent.slots import variant_of
from skerry.canonical import from_json
from skerry.errors import FormatError, NotFoundError

__all__ = ["memory_limit_mb", "smoke_run"]

MAX_RESULT_BYTES = 64 << 10


async def smoke_run(files: BundleFiles, release: Release, variant: str) -> SmokeResult:
    """Return what a smoke run of a variant found; whatever happens to the child is a result."""
    bundle = release.ref.bundle
    try:
        manifest = files.manifest(bundle)
        model = files.path(bundle, variant_of(manifest, variant).file)
    except (NotFoundError, FormatError) as error:
        return SmokeResult(ok=False, code="bad_files", message=str(error))
    command = smoke_command(
        model=model,
        manifest=files.manifest_path(bundle),
        golden=files.path(bundle, manifest.golden),
        variant=variant,
        cache_dir=files.cache_dir,
        threads=files.config.threads,
        memory_mb=memory_limit_mb(files.config),
        cpu_s=math.ceil(files.config.smoke_timeout_s) + 1,
    )
    try:
        return await _watch(command, files.config.smoke_timeout_s)
    except OSError as error:
        return SmokeResult(ok=False, code="smoke_failed", message=f"cannot start it: {error}")


def memory_limit_mb(config: AgentConfig) -> int:
    """Return what a model that is tried may take; half of the machine would take it down."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    return config.smoke_memory_mb or whole // 2


async def _watch(command: list[str], timeout_s: float) -> SmokeResult:
    child = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=serve_environment(os.environ),
    )
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await child.communicate()
    except TimeoutError:
        message = f"expected the smoke run to end within {timeout_s:.0f} s; it was ended"
        return SmokeResult(ok=False, code="smoke_timeout", message=message)
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    lines = out.strip().splitlines()
    try:
        return from_json(lines[-1] if lines else b"", SmokeResult, limit=MAX_RESULT_BYTES)
    except FormatError:
        last = " ".join(err.decode(errors="replace").strip().splitlines()[-1:])
        message = f"the smoke run ended with {child.returncode} and no result: {last[:300]}"
        return SmokeResult(ok=False, code="smoke_crashed", message=message)
