"""Stages a release: tries its variants on this device and takes the best.

The first variant is the one that was downloaded; it fails or it is fit to serve. The others are
tried as well where that costs little (settings `measure_variants`, `measure_max_bytes`): they may
be faster here than the manifest's order says. One that cannot be had, or that fails, is left out,
and is no reason to wait. Files of variants that were not taken are removed.
"""

import logging
from collections.abc import Awaitable, Callable

from agent.bundle_files import BundleFiles
from agent.facts import Stage
from agent.serve_protocol import SmokeResult
from agent.slots import variant_of
from agent.smoke_run import smoke_run
from agent.trials import Trials, best_of
from skerry.errors import SkerryError
from skerry.manifest import Manifest
from skerry.trials import Trial

__all__ = ["Staging", "trial_of"]

log = logging.getLogger(__name__)

Fetch = Callable[[str], Awaitable[SkerryError | None]]


class Staging:
    """Tries variants.

    Args:
        files: of bundles.
        trials: what was measured before.
    """

    def __init__(self, files: BundleFiles, trials: Trials) -> None:
        self._files = files
        self._trials = trials

    def order(self, manifest: Manifest, variants: list[str]) -> list[str]:
        """Return the variants with the one first that was the best here, if all were measured."""
        known = {v: self._recall(manifest, v) for v in variants}
        found = {v: result for v, result in known.items() if result is not None}
        if len(found) < len(variants):
            return variants
        best = best_of(variants, found)
        return [best, *(variant for variant in variants if variant != best)]

    async def run(self, effect: Stage, fetch: Fetch) -> tuple[str, dict[str, SmokeResult]]:
        """Try variants; the first one's file is here.

        Args:
            effect: the release, and its variants, the first choice first.
            fetch: brings a variant's files here, or returns why it cannot.

        Returns:
            The one to take, or the first if that failed, and what came of each.
        """
        first = effect.variant
        manifest = self._files.manifest(effect.release.ref.bundle)
        found = {first: await self._try(effect, manifest, first)}
        if not found[first].ok:
            return first, found
        fresh = {first}
        for other in effect.others if self._files.config.measure_variants else ():
            known = self._recall(manifest, other)
            if known is None and self._is_small(manifest, other):
                known = await self._try_other(effect, manifest, other, fetch)
                fresh.add(other)
            if known is not None:
                found[other] = known
        best = best_of([first, *effect.others], found)
        if best not in fresh:
            # remembered as the best: it must show it again
            again = await self._try_other(effect, manifest, best, fetch)
            found.pop(best)
            found |= {best: again} if again is not None else {}
            best = best_of(
                [first, *effect.others], {v: found[v] for v in found if v in fresh | {best}}
            )
        for variant, result in found.items():
            log.info("%s: variant %s: %s, %.0f us a row, %.1f%% of golden rows differ%s",
                     effect.slot, variant, result.code, result.run_us, 100 * result.disagree,
                     "; taken" if variant == best else "")  # fmt: skip
        self._files.keep_variant(effect.release, best)
        return best, found

    async def _try_other(
        self, effect: Stage, manifest: Manifest, variant: str, fetch: Fetch
    ) -> SmokeResult | None:
        error = await fetch(variant)
        if error is not None:
            log.info("%s: variant %s is not measured: %s", effect.slot, variant, error)
            return None
        return await self._try(effect, manifest, variant)

    async def _try(self, effect: Stage, manifest: Manifest, variant: str) -> SmokeResult:
        result = await smoke_run(self._files, effect.release, variant)
        self._trials.note(variant_of(manifest, variant).file.digest, manifest.golden.digest, result)
        return result

    def _recall(self, manifest: Manifest, variant: str) -> SmokeResult | None:
        file = variant_of(manifest, variant).file
        return self._trials.recall(file.digest, manifest.golden.digest)

    def _is_small(self, manifest: Manifest, variant: str) -> bool:
        size = variant_of(manifest, variant).file.size_bytes
        return size <= self._files.config.measure_max_bytes


def trial_of(variant: str, result: SmokeResult) -> Trial:
    """Return what is told of a variant that was tried."""
    return Trial(variant, result.code, result.rows, result.disagree, result.max_diff, result.run_us)
