"""Candidates: the forms of one model that a build tries, measured on the same samples.

fp32 is the reference and must reach the gate by itself. Another is made, run, compared
with it, and, once its outputs hold, timed against it; one that cannot be made is refused
with the reason, and the build goes on. A form is made of the model prepared once and of
ranges calibrated once (`Workshop`).
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final, Literal

import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from compiler.calibrate import calibrate
from compiler.evaluate import Quality, compare
from compiler.footprint import measure_mb
from compiler.gate import check_reference, holds, rule
from compiler.latency import Latency, Verdict, judge, measure
from compiler.materials import Materials, blame, check_reference_labels
from compiler.pack import pack_weights
from compiler.passes import complete_types, parse, prepare
from compiler.ports import Arrays
from compiler.quantize import Ranges, quantize_dynamic, quantize_static
from compiler.runtime import Outputs, one_call, open_session, run_samples
from compiler.saturation import full_range_weights
from skerry.errors import RefusedError

__all__ = ["Candidate", "Precision", "Workshop", "evaluate_reference", "precision_of"]

Precision = Literal["fp32", "int8", "fp16", "int4"]
Blame = Literal["quality", "size", "speed", "form", ""]

BITS: Final = {"int8-weights": 8, "fp16": 16, "int4": 4}


@dataclass(frozen=True, slots=True)
class Candidate:
    """One form of the model, and what became of it; `data` is empty where it failed.

    Attributes:
        form: of `recipe.FORMS`, or fp32.
        left: names of the regions that were left in float.
        data: the model's bytes.
        reason: why it ships or not, in words, without a timing.
        blames: what is in its way.
    """

    form: str
    data: bytes
    reason: str
    left: tuple[str, ...] = ()
    outputs: Outputs | None = None
    session: ort.InferenceSession | None = None
    quality: Quality | None = None
    latency: Latency | None = None
    verdict: Verdict = "undecided"
    accepted: bool = False
    blames: Blame = ""
    size: int = 0  # bytes, also where they are not kept

    @property
    def name(self) -> str:
        """The form, and how many regions were left in float."""
        many = len(self.left)
        return self.form if not many else f"{self.form}, {many} left in float"

    def without_outputs(self) -> "Candidate":
        """Return it as it is reported: what only a shipped one needs takes memory."""
        return self if self.accepted else replace(self, outputs=None, session=None, data=b"")


def precision_of(form: str) -> Precision:
    """Return the precision of a form, as the manifest says it."""
    return form.split("-")[0]  # type: ignore[return-value] # the forms are checked in the recipe


class Workshop:
    """Makes and measures candidates; prepares and calibrates the model once, when first needed."""

    def __init__(self, materials: Materials, *, elsewhere: bool = False) -> None:
        """Open a workshop.

        Args:
            materials: of the build.
            elsewhere: the profile's platform is not this machine's, so its speed is not known.
        """
        self.materials: Final = materials
        self.notes: list[str] = []
        self.elsewhere: Final = elsewhere
        self.evaluations = 0

    @cached_property
    def prepared(self) -> onnx.ModelProto:
        """The model folded and with shapes, its nodes named."""
        core = self.materials.core
        model, how = prepare(core.graph)
        self.notes.append(how)
        found = complete_types(model, one_call(core.ports, core.calibration))
        if found:
            self.notes.append(f"types of {found} tensors found by running the model")
        return model

    @cached_property
    def ranges(self) -> Ranges:
        """The range of every tensor."""
        core = self.materials.core
        return calibrate(self.prepared, core.ports, core.calibration)

    @cached_property
    def reference(self) -> Candidate:
        """fp32, evaluated."""
        risky = full_range_weights(parse(self.materials.graph.data))
        if risky:
            self.notes.append(
                f"{len(risky)} weights of 8 bits came with the model and use their whole range "
                f"({risky[0]!r} for one): on x86 without VNNI their products may saturate, which "
                "--emulate avx2 shows"
            )
        return evaluate_reference(self.materials)

    def fitted(self, known: Verdict | None = None) -> Candidate:
        """Return fp32, not accepted where it takes more time or memory than the gate lets at all.

        Args:
            known: the lock's verdict.
        """
        candidate, gate = self.reference, self.materials.recipe.gate
        if gate.max_memory_mb is None and gate.max_latency_us is None:
            return candidate
        call = one_call(self.materials.ports, self.materials.evaluation)
        session = candidate.session
        assert session is not None
        verdict = known or self._verdict(candidate, measure(session, session, call), call)
        if verdict == "too_large":
            reason = f"it takes more memory than {gate.max_memory_mb:g} MB"
        elif verdict == "too_slow":
            reason = f"it takes more than {gate.max_latency_us:g} us"
        else:
            return replace(candidate, verdict="undecided")
        return replace(candidate, accepted=False, verdict=verdict, reason=reason)

    def make(self, form: str, *, leave: tuple[str, ...] = (), only: tuple[str, ...] = ()) -> bytes:
        """Return a form's bytes.

        Args:
            form: of `recipe.FORMS`.
            leave: names of nodes to leave in float.
            only: names of the only nodes to quantize.

        Raises:
            RefusedError: the model has no such form.
        """
        if form in BITS:
            made = pack_weights(self.materials.core.graph.data, BITS[form])
        elif form == "int8-dynamic":
            made = quantize_dynamic(self.prepared, leave=leave)
        else:
            made = quantize_static(
                self.prepared, self.ranges, only=only, leave=leave,
                unsigned=form == "int8-u8u8", per_tensor=form == "int8-tensor",
                glue=form != "int8-heavy",
            )  # fmt: skip
        return self.materials.core.finish(made)

    def run(self, data: bytes, samples: Arrays) -> Outputs:
        """Run a model on samples."""
        needed = self.materials.recipe.metric.output
        return run_samples(open_session(data), self.materials.ports, samples, needed)

    def evaluate(
        self, form: str, *, left: tuple[str, ...] = (), leave: tuple[str, ...] = ()
    ) -> Candidate:
        """Make a form and compare its outputs with fp32's; not timed yet.

        Args:
            form: of `recipe.FORMS`.
            left: names of the regions that stay in float, for the report.
            leave: the names of all their nodes.
        """
        materials, metric = self.materials, self.materials.recipe.metric
        self.evaluations += 1
        try:
            data = self.make(form, leave=leave)
            session = open_session(data)
            outputs = run_samples(session, materials.ports, materials.evaluation, metric.output)
            assert self.reference.outputs is not None
            quality = compare(
                metric,
                outputs[metric.output],
                self.reference.outputs[metric.output],
                materials.labels,
                function=materials.function,
                slices=materials.slices,
                least=materials.least,
            )
        except RefusedError as error:
            return Candidate(form, b"", str(error), left, blames="form")
        ruling = holds(metric, quality, materials.recipe.gate)
        return Candidate(
            form, data, ruling.reason, left, outputs, session, quality,
            blames=ruling.blames, size=len(data),
        )  # fmt: skip

    def time(self, candidate: Candidate, known: Verdict | None = None) -> Candidate:
        """Time a candidate against fp32 and judge it.

        Args:
            candidate: evaluated.
            known: the lock's verdict, which holds whatever is measured now.
        """
        if candidate.quality is None or candidate.session is None:
            return candidate
        recipe = self.materials.recipe
        call = one_call(self.materials.ports, self.materials.evaluation)
        assert self.reference.session is not None
        latency = measure(candidate.session, self.reference.session, call)
        verdict = known or self._verdict(candidate, latency, call)
        ruling = rule(
            recipe.metric,
            candidate.quality,
            verdict,
            recipe.gate,
            size=len(candidate.data),
            reference_size=len(self.reference.data),
        )
        return replace(
            candidate,
            reason=ruling.reason,
            latency=latency,
            verdict=verdict,
            accepted=ruling.accepted,
            blames=ruling.blames,
        )

    def _verdict(
        self, candidate: Candidate, latency: Latency, call: dict[str, NDArray[Any]]
    ) -> Verdict:
        gate = self.materials.recipe.gate
        if gate.max_memory_mb is not None:
            took = measure_mb(candidate.data, call)
            self.notes.append(f"{candidate.name} took {took:.1f} MB")
            if took > gate.max_memory_mb:
                return "too_large"
        return "undecided" if self.elsewhere else judge(latency, gate)

    def samples(self, most: int) -> Arrays:
        """Return a few calibration samples, on which regions are ranked."""
        return {name: values[:most] for name, values in self.materials.calibration.items()}


def evaluate_reference(materials: Materials) -> Candidate:
    """Run fp32 and refuse a model that is not good enough even so.

    Raises:
        GateError: it does not reach the gate's value.
        RefusedError: it fails on the samples, or does not give finite numbers.
        UsageError: the labels do not match its output, or the recipe's own metric fails.
    """
    recipe = materials.recipe
    metric = recipe.metric
    session = open_session(materials.graph.data)
    outputs = run_samples(session, materials.ports, materials.evaluation, metric.output)
    output: Any = outputs[metric.output]
    check_reference_labels(materials, output)
    try:
        quality = compare(
            metric,
            output,
            output,
            materials.labels,
            function=materials.function,
            slices=materials.slices,
            least=materials.least,
        )
    except RefusedError as error:  # of fp32: no form of the model is to blame
        raise blame(error, materials) from None
    check_reference(f"{recipe.model.name} {recipe.model.version}", metric, quality, recipe.gate)
    size, most = len(materials.graph.data), recipe.gate.max_bytes
    fits = most is None or size <= most
    reason = "" if fits else f"{size} bytes, more than {most}"
    return Candidate(
        "fp32", materials.graph.data, reason, (), outputs, session, quality,
        accepted=fits, size=size,
    )  # fmt: skip
