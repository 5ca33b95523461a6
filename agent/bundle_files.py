"""What an update needs of a bundle: its manifest, the variants that fit here, their files.

Fetching goes through threads, by digest, into the slots; what is there already is not
fetched again, and a model's file is made by a patch where that saves bytes. Which variant is best is the manifest's order among those that fit.
"""

import contextlib
import threading
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from agent import prepacked
from agent.config import AgentConfig
from agent.download import Fetcher
from agent.facts import Release
from agent.patches import Patches
from agent.places import Places
from agent.room import check_room, missing_bytes, used_bytes
from agent.serve_protocol import ServeSlot
from agent.slots import Slots, variant_of
from agent.threads import beside
from skerry.bundle import MAX_MANIFEST_BYTES, OciManifest
from skerry.canonical import sha256
from skerry.errors import FormatError, NotFoundError, RefusedError, TrustError
from skerry.manifest import FileRef, Manifest
from skerry.profile import Inventory, incompatibility
from skerry.trust import PatchRef

__all__ = ["BundleFiles"]

T = TypeVar("T")

MAX_CONFIG_BYTES: Final = 1 << 20


class BundleFiles:
    """Fetches bundles and keeps them in the slots.

    Args:
        slots: where they are kept.
        config: limits.
        fleet_url: of the device listener; mirrors are in the settings.
        ca_file: of the fleet's authorities, for https.
        device_file: this device's key and certificate, for https.
        inventory: of this device.
        cache_dir: where models lie prepacked.
        spool: the outbox on the same disk, whose quota no release takes; None for none.
    """

    def __init__(
        self,
        slots: Slots,
        config: AgentConfig,
        *,
        fleet_url: str,
        ca_file: Path,
        device_file: Path,
        inventory: Inventory,
        cache_dir: Path,
        spool: Path | None = None,
    ) -> None:
        self.config: Final = config
        self._slots = slots
        self._places = Places(config, fleet_url=fleet_url, ca_file=ca_file, device_file=device_file)
        self._spool = spool
        self._inventory = inventory
        self.cache_dir: Final = cache_dir
        self._fetching = threading.Lock()
        self.patches: Final = Patches(slots, config, self._fetch_patch)

    async def fetch_manifest(self, release: Release) -> Manifest:
        """Return the manifest of a verified release.

        Raises:
            TrustError: the bytes are not those that the metadata names.
            SkerryError: see `Fetcher`.
        """
        ref = release.ref
        try:
            manifest = self._slots.manifest(ref.bundle)
        except (NotFoundError, FormatError):
            manifest = await self._in_thread(partial(self._fetch_manifest, release))
        if (manifest.model, manifest.model_version) != (ref.model, ref.model_version):
            raise TrustError(
                f"expected a bundle of {ref.model} {ref.model_version}, its manifest says "
                f"{manifest.model[:64]} {manifest.model_version[:64]}",
                "manifest_mismatch",
            )
        return manifest

    def fitting(self, manifest: Manifest) -> tuple[list[str], list[str]]:
        """Return the variants that fit this device, best first, and why others do not."""
        agent = tuple(int(part) for part in self._inventory.agent.split("-")[0].split("."))
        variants: list[str] = []
        reasons: list[str] = []
        for variant in manifest.variants:
            reason = incompatibility(variant, self._inventory, agent, manifest.needs)
            if reason is None:
                variants.append(variant.id)
            else:
                reasons.append(f"{variant.id}: {reason}")
        return variants, reasons

    async def fetch_variant(self, release: Release, variant: str) -> None:
        """Bring everything here that one variant needs: its file, golden set and baseline.

        Raises:
            TrustError: a file has other bytes than its digest says.
            SkerryError: see `Fetcher`.
        """
        bundle, model = release.ref.bundle, release.ref.model
        manifest = self._slots.manifest(bundle)
        model_file = variant_of(manifest, variant).file
        needed = (model_file, manifest.golden, manifest.baseline)
        if all(self._slots.has(bundle, file.digest) for file in needed):
            return
        oci = self._slots.oci(bundle)
        for file in needed:
            self._check_listed(oci, file)
        await beside(partial(self._check_room, bundle, needed), "room")
        for file in needed:
            if file == model_file and await self.patches.bring(release, file):
                continue
            await self._in_thread(partial(self._fetch_file, model, bundle, file))

    def check(self, release: Release) -> None:
        """Hold what serves a release against its digests; see `Slots.check`."""
        self._slots.check(release.ref.bundle, release.ref.variant)

    def serve_slot(self, slot: str, release: Release) -> ServeSlot:
        """Return what a serving process must be told of a release.

        Raises:
            NotFoundError: a manifest is missing.
            FormatError: a manifest is damaged.
        """
        ref = release.ref
        manifest = self._slots.manifest(ref.bundle)
        return ServeSlot(
            slot=slot,
            model=ref.model,
            model_version=ref.model_version,
            bundle=ref.bundle,
            variant=ref.variant,
            model_file=str(self.path(ref.bundle, variant_of(manifest, ref.variant).file)),
            manifest_file=str(self.manifest_path(ref.bundle)),
            baseline_file=str(self.path(ref.bundle, manifest.baseline)),
        )

    def manifest(self, bundle: str) -> Manifest:
        """Return the manifest of a bundle that is here; see `Slots.manifest`."""
        return self._slots.manifest(bundle)

    def manifest_path(self, bundle: str) -> Path:
        """Return where the manifest of a bundle lies."""
        return self._slots.manifest_path(bundle).absolute()

    def path(self, bundle: str, file: FileRef) -> Path:
        """Return where a file of a bundle lies."""
        return self._slots.path(bundle, file.digest).absolute()

    def keep_only(self, bundles: Iterable[str]) -> list[str]:
        """Remove all other bundles, and what is prepacked of them; see `Slots.keep_only`."""
        kept = list(bundles)
        gone = self._slots.keep_only(kept)
        models: list[str] = []
        for bundle in kept:
            with contextlib.suppress(NotFoundError, FormatError):  # not here, or damaged
                models += [variant.file.digest for variant in self.manifest(bundle).variants]
        prepacked.prune(self.cache_dir, models)
        return gone

    def keep_variant(self, release: Release, variant: str) -> None:
        """Remove the files of a release's other variants."""
        bundle = release.ref.bundle
        manifest = self.manifest(bundle)
        kept = variant_of(manifest, variant).file.digest
        for other in manifest.variants:
            if other.file.digest != kept:
                self.path(bundle, other.file).unlink(missing_ok=True)
                prepacked.drop(self.cache_dir, other.file.digest)

    def _fetch_manifest(self, release: Release, fetcher: Fetcher) -> Manifest:
        bundle, model = release.ref.bundle, release.ref.model
        limit = min(release.length, MAX_MANIFEST_BYTES)
        data = fetcher.small(f"/v2/{model}/manifests/{bundle}", limit)
        if sha256(data) != bundle:
            raise TrustError(f"expected the manifest {bundle}, got other bytes", "digest_mismatch")
        oci = self._slots.put_oci(bundle, data)
        config = fetcher.small(
            f"/v2/{model}/blobs/{oci.config.digest}", min(oci.config.size, MAX_CONFIG_BYTES)
        )
        if sha256(config) != oci.config.digest:
            raise TrustError(
                f"expected the manifest blob {oci.config.digest}, got other bytes",
                "digest_mismatch",
            )
        return self._slots.put_manifest(bundle, config)

    def _fetch_file(self, model: str, bundle: str, file: FileRef, fetcher: Fetcher) -> None:
        fetcher.blob(
            f"/v2/{model}/blobs/{file.digest}",
            self._slots.path(bundle, file.digest),
            digest=file.digest,
            size_bytes=file.size_bytes,
        )

    async def _fetch_patch(self, release: Release, patch: PatchRef) -> Path:
        bundle, model = release.ref.bundle, release.ref.model
        file = FileRef(patch.digest, patch.size_bytes)
        await self._in_thread(partial(self._fetch_file, model, bundle, file))
        return self._slots.path(bundle, patch.digest)

    def _check_room(self, bundle: str, needed: Iterable[FileRef]) -> None:
        """See that the files fit beside everything that the outbox may still take."""
        paths = [(self._slots.path(bundle, file.digest), file.size_bytes) for file in needed]
        config, quota = self.config, 0
        if self._spool is not None:
            quota = max(0, config.spool_max_bytes - used_bytes(self._spool))
        kept_free = config.disk_reserve_bytes + quota
        check_room(self._slots.directory(bundle), missing_bytes(paths), kept_free)

    def _check_listed(self, oci: OciManifest, file: FileRef) -> None:
        sizes = {layer.digest: layer.size for layer in oci.layers}
        if sizes.get(file.digest) != file.size_bytes:
            raise TrustError(f"the bundle does not list {file.digest}", "manifest_mismatch")
        if file.size_bytes > self.config.download_max_bytes:
            raise RefusedError(
                f"expected files of at most {self.config.download_max_bytes} bytes, "
                f"{file.digest} has {file.size_bytes}; raise download_max_bytes"
            )

    async def _in_thread(self, work: Callable[[Fetcher], T]) -> T:
        """Run blocking work; when this task is cancelled, the download stops soon."""
        stopped = threading.Event()

        def one_at_a_time() -> T:
            # one that was cancelled may still write to the same part
            with self._fetching:
                return self._places.fetch(work, stopped.is_set)

        try:
            return await beside(one_at_a_time, "fetch")
        finally:
            stopped.set()
