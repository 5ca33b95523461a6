"""A build, from a recipe to a bundle: this file explains the rest of the compiler.

    recipe.py       what to build, from which files, and what it must reach
    materials.py    everything read and checked:
        passes.py      the model checked, in opset 17; external.py: one file
        preprocess.py  what is done to raw inputs, in the graph; parity.py: as in training
        data.py        its data sets, from files or functions
        ports.py       how their samples go into its inputs
    search.py       forms in order of worth, within a budget:
        candidates.py  each made, compared with fp32, timed, judged
        calibrate.py   ranges of its tensors
        quantize.py    8 bits; saturation.py: that none overflows; pack.py: fewer bytes, and float as it runs
        sensitivity.py which layers must stay in float
        metrics.py     how good; evaluate.py: against fp32, paired; interval.py: how surely
        latency.py     CPU time against fp32; footprint.py: memory
        gate.py        whether it ships, and why
    assemble.py     the manifest and the layers:
        golden.py      what every variant must answer
        baseline.py    what ordinary data looks like
        card.py        what people read
    lock.py         what cannot be computed again
    elsewhere.py    the metric on CPUs that this machine is not
    record.py       what was measured, and where; report.py: for people

fp32 is always built and ships last, unless a limit on bytes keeps it out; of the forms
that pass the gate the one of most worth goes before it. The manifest and every layer
are functions of recipe, data and lock alone: no timing, no date, no path.
"""

import io
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from compiler.assemble import assemble, reason_of
from compiler.candidates import Candidate, Workshop
from compiler.elsewhere import measure_elsewhere
from compiler.host import Host, this_host, tools
from compiler.lock import Choice, Lock, check_lock
from compiler.materials import Materials, gather
from compiler.recipe import Recipe, Source
from compiler.record import ElsewhereRecord, Record, VariantRecord
from compiler.search import Tell, best, quietly, repeat, search, suggested
from skerry.bundle import oci_manifest, write_bundle
from skerry.canonical import sha256, to_json
from skerry.errors import GateError, UsageError
from skerry.manifest import Manifest
from skerry.profile import DeviceProfile

__all__ = ["Built", "build"]

PROVIDER: Final = "CPUExecutionProvider"


@dataclass(frozen=True, slots=True)
class Built:
    """What a build gives.

    Attributes:
        digest: the bundle's name.
        bundle: the bundle file's bytes.
        manifest: what the bundle says of itself.
        lock: to repeat the build with.
        record: what was measured.
    """

    digest: str
    bundle: bytes
    manifest: Manifest
    lock: Lock
    record: Record


def build(
    source: Source,
    *,
    now: datetime,
    profile: DeviceProfile | None = None,
    lock: Lock | None = None,
    emulate: str | None = None,
    tell: Tell = quietly,
) -> Built:
    """Build a recipe's bundle.

    Args:
        source: the recipe and its files.
        now: for the record.
        profile: hardware to build for; this machine, where left out.
        lock: repeat its choices instead of deciding by new measurements.
        emulate: a class of CPU on which what ships is measured too (`emulate.CPUS`).
        tell: called with each step, for a person who waits.

    Raises:
        GateError: even fp32 is not good enough, nothing fits the limits, or what ships does
            not hold on the emulated CPU.
        RefusedError: the model is none that Skerry ships.
        FormatError: a file is damaged.
        UsageError: recipe, data and model do not fit together, or the lock is another's.
    """
    began = time.monotonic()
    host = this_host()
    if profile is not None and PROVIDER not in profile.providers:
        raise UsageError(f"profile {profile.id}: the compiler builds for {PROVIDER} only so far")
    tell("check the model")
    materials = gather(source)
    if lock is not None:
        check_lock(lock, materials.inputs)
    workshop = Workshop(
        materials, elsewhere=profile is not None and profile.platform != host.platform
    )
    workshop.notes += materials.graph.notes
    tell("evaluate fp32")
    reference = workshop.fitted(None if lock is None else lock.fp32)
    if lock is not None:
        tried = repeat(workshop, lock.choices, tell)
    else:
        tried = search(workshop, _forms(workshop, source.recipe), source.recipe.search, tell)
    if workshop.elsewhere:
        workshop.notes.append("latency was measured on another platform than the profile's")
    first = _first(tried, lock, source.recipe)
    shipped = [c for c in (first, reference if reference.accepted else None) if c is not None]
    if not shipped:
        raise GateError(_nothing_fits(source.recipe, [*tried, reference]))
    elsewhere = []
    if emulate is not None:
        tell(f"measure on an emulated {emulate}")
        elsewhere = measure_elsewhere(materials, shipped, emulate)
    tell("assemble the bundle")
    everything = [*tried, reference]
    measured_on = lock.hw_class if lock is not None else host.hw_class
    manifest, layers = assemble(source, materials, everything, shipped, measured_on)
    if lock is not None and lock.bundle != sha256(oci_manifest(to_json(manifest), layers)):
        # what was measured there is not what is measured here, so it must not say so
        measured_on = host.hw_class
        manifest, layers = assemble(source, materials, everything, shipped, measured_on)
        workshop.notes.append(
            f"differs from the lock's bundle {lock.bundle}, which was built on {lock.hw_class} "
            f"with onnxruntime {lock.tools.onnxruntime}"
        )
    file = io.BytesIO()
    digest = write_bundle(file, to_json(manifest), layers)
    new_lock = Lock(
        model=manifest.model,
        model_version=manifest.model_version,
        inputs=materials.inputs,
        choices=[Choice(c.form, c.verdict, list(c.left), c is first) for c in tried],
        bundle=digest,
        hw_class=measured_on,
        tools=tools(),
        fp32=reference.verdict,
    )
    record = _record(
        digest, workshop, everything, shipped, host, now,
        profile="this machine" if profile is None else profile.id,
        seconds=time.monotonic() - began, elsewhere=elsewhere,
    )  # fmt: skip
    return Built(digest, file.getvalue(), manifest, new_lock, record)


def _forms(workshop: Workshop, recipe: Recipe) -> list[str]:
    given = recipe.precisions.try_
    if isinstance(given, str):
        return suggested(workshop, recipe.gate)
    return [form for form in dict.fromkeys(given) if form != "fp32"]


def _first(tried: list[Candidate], lock: Lock | None, recipe: Recipe) -> Candidate | None:
    """Return the first choice: as the lock says, where it still passes the gate."""
    if lock is None:
        return best(tried, recipe.gate)
    chosen = [c for c, choice in zip(tried, lock.choices, strict=True) if choice.shipped]
    return next((c for c in chosen if c.accepted), None)


def _nothing_fits(recipe: Recipe, tried: list[Candidate]) -> str:
    told = "; ".join(f"{c.name}: {c.reason}" for c in tried)
    return (
        f"{recipe.model.name} {recipe.model.version}: no form of it passes the gate: {told}. "
        "Nothing was built; make the model smaller, or loosen the gate knowingly"
    )


def _record(
    digest: str,
    workshop: Workshop,
    tried: list[Candidate],
    shipped: list[Candidate],
    host: Host,
    now: datetime,
    *,
    profile: str,
    seconds: float,
    elsewhere: list[ElsewhereRecord],
) -> Record:
    """Return what was measured, timings included."""
    materials: Materials = workshop.materials
    recipe, timed = materials.recipe, [c.latency for c in tried if c.latency is not None]
    reference_us = timed[0].reference_us if timed else None
    return Record(
        bundle=digest,
        model=recipe.model.name,
        model_version=recipe.model.version,
        metric=recipe.metric.name,
        n=materials.n,
        variants=[_measured(c, shipped, reference_us) for c in tried],
        host=host,
        tools=tools(),
        profile=profile,
        latency_rounds=timed[0].rounds if timed else 0,
        latency_runs=timed[0].runs if timed else 0,
        notes=workshop.notes,
        built_at=now.isoformat(),
        evaluations=workshop.evaluations,
        seconds=round(seconds, 2),
        elsewhere=elsewhere,
    )


def _measured(c: Candidate, shipped: list[Candidate], reference_us: float | None) -> VariantRecord:
    quality, latency = c.quality, c.latency
    is_reference = c.form == "fp32"
    return VariantRecord(
        precision=c.form,
        bytes=c.size,
        accuracy=quality.value if quality else None,
        agreement=quality.agreement if quality else None,
        drop_interval=(quality.drop_low, quality.drop_high)
        if quality and not is_reference
        else None,
        latency_ratio=1.0 if is_reference else latency.ratio if latency else None,
        latency_interval=(latency.low, latency.high) if latency else None,
        latency_us=reference_us if is_reference else latency.median_us if latency else None,
        verdict=None if is_reference else c.verdict,
        chosen=c is shipped[0],
        shipped=any(c is other for other in shipped),
        reason=reason_of(c, shipped),
        sqnr_db=quality.sqnr_db if quality and not is_reference else None,
        left_float=list(c.left),
    )
