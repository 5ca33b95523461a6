"""The metric of what ships on a class of CPU that this machine is not, by emulation."""

from typing import Final

from compiler.candidates import Candidate
from compiler.data import spread
from compiler.emulate import run_emulated
from compiler.evaluate import compare
from compiler.gate import holds
from compiler.materials import Materials
from compiler.record import ElsewhereRecord
from skerry.errors import GateError

__all__ = ["measure_elsewhere"]

MAX_SAMPLES: Final = 300  # it runs some thirty times slower


def measure_elsewhere(
    materials: Materials, shipped: list[Candidate], isa: str
) -> list[ElsewhereRecord]:
    """Return each shipped variant's metric on an emulated CPU.

    Args:
        materials: of the build.
        shipped: what goes into the bundle.
        isa: of `emulate.CPUS`.

    Raises:
        GateError: one does not hold the gate there, though it does here.
        RefusedError: the emulator failed.
        UsageError: there is none here.
    """
    metric = materials.recipe.metric
    few = spread(materials.n, MAX_SAMPLES)
    samples = {name: values[few] for name, values in materials.evaluation.items()}
    labels = None if materials.labels is None else materials.labels[few]
    found = []
    for c in shipped:
        assert c.outputs is not None
        there = run_emulated(isa, c.data, materials.ports, samples, metric.output)
        here = c.outputs[metric.output][few]
        # against what the same variant answers here: a CPU must not make a difference
        quality = compare(metric, there[metric.output], here, labels, function=materials.function)
        ruling = holds(metric, quality, materials.recipe.gate)
        if ruling.outcome == "refused":
            raise GateError(
                f"{c.name} does not hold on an emulated {isa}: {ruling.reason}; nothing was built"
            )
        found.append(ElsewhereRecord(c.form, isa, quality.value, quality.n, quality.agreement))
    return found
