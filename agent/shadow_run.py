"""Runs a candidate beside the model that serves, and says what came of it.

The candidate is a process of its own (`agent.shadow`), to which serve shows a share of the live
requests. Whatever it does, only its own report is at stake.
"""

import asyncio
import contextlib
import logging
import os
import tempfile
from pathlib import Path
from typing import Final

import msgspec

from agent.bundle_files import BundleFiles
from agent.facts import Release
from agent.serve_protocol import MirrorTo, serve_environment, shadow_command
from agent.slots import variant_of
from agent.smoke_run import memory_limit_mb
from agent.supervisor import Supervisor
from skerry.canonical import from_json, to_json
from skerry.errors import FormatError
from skerry.manifest import Manifest
from skerry.trials import Shadow, ShadowReport

__all__ = ["shadow_run", "why_not"]

log = logging.getLogger(__name__)

MAX_LINE_BYTES: Final = 64 << 10
PATIENCE_S: Final = 30.0  # beyond the time that a shadow has, and to start it


def why_not(before: Manifest, after: Manifest) -> str:
    """Return why a model cannot stand in for another on its requests; empty where it can."""
    ours = {spec.name: (spec.datatype, spec.shape) for spec in before.inputs}
    theirs = {spec.name: (spec.datatype, spec.shape) for spec in after.inputs}
    if ours != theirs:
        return f"it takes {theirs}, the model that serves takes {ours}"
    names = [
        next(o.class_names for o in m.outputs if o.name == m.prediction.output)
        for m in (before, after)
    ]
    if names[0] != names[1]:
        return "its classes are not those of the model that serves"
    return ""


async def shadow_run(
    files: BundleFiles,
    supervisor: Supervisor,
    slot: str,
    release: Release,
    variant: str,
    plan: Shadow,
) -> ShadowReport:
    """Return what a variant did beside what serves in its slot.

    Args:
        files: of the bundles.
        supervisor: of the serving process.
        slot: whose requests it sees.
        release: staged.
        variant: of it.
        plan: how much it must show.
    """
    bundle = release.ref.bundle
    manifest = files.manifest(bundle)
    last = ShadowReport(0, 0)
    with tempfile.TemporaryDirectory(prefix="skerry-shadow-") as folder:
        path = Path(folder) / "s"
        command = shadow_command(
            model=files.path(bundle, variant_of(manifest, variant).file),
            manifest=files.manifest_path(bundle),
            variant=variant,
            socket=path,
            plan=to_json(plan).decode(),
            cache_dir=files.cache_dir,
            threads=files.config.threads,
            memory_mb=memory_limit_mb(files.config),
        )
        child = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            env=serve_environment(os.environ),
            limit=MAX_LINE_BYTES,
        )
        assert child.stdout is not None
        try:
            async with asyncio.timeout(plan.max_seconds + PATIENCE_S):
                async for line in child.stdout:
                    if line.strip() == b'"ready"':
                        supervisor.mirror(MirrorTo(slot, str(path), plan.share))
                        continue
                    last = from_json(line, ShadowReport, limit=MAX_LINE_BYTES)
                code = await child.wait()
        except (TimeoutError, FormatError, ValueError) as error:
            log.warning("%s: the shadow did not end well: %r", slot, error)
            code = -1
        finally:
            supervisor.mirror(MirrorTo(slot))
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    child.kill()
                await child.wait()
    if code != 0:
        last = msgspec.structs.replace(last, verdict="failed", errors=last.errors + 1)
    log.info("%s: beside what serves: %s, %d of %d rows agree, %d errors, %d requests skipped",
             slot, last.verdict, last.agree, last.rows, last.errors, last.skipped)  # fmt: skip
    return last
