"""The search: forms in order of expected worth, and what of each must stay in float.

    for each form that the recipe names, or that this graph suggests:
        make it, compare its outputs with fp32's
        good enough          -> time it
        not, and static      -> rank its regions by harm, leave out the worst 1, 2, 4, ...
                                until the outputs hold, then as few as do (bisection)
        holds, calibrated    -> the same with one scale per tensor, and with the glue in float:
                                where their outputs hold too, one of them may be faster
    of those that the gate takes: the fastest, or the smallest where bytes were asked for

A form that is slower than fp32 even with everything in 8 bits is not searched further:
floats would only slow it down. What a search may spend is in the recipe; it ends with the best
found so far, and says so.
"""

import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from compiler.candidates import Candidate, Workshop
from compiler.lock import Choice
from compiler.quantize import HEAVY
from compiler.recipe import Gate, Search
from compiler.sensitivity import Region, find_regions, rank

__all__ = ["Tell", "best", "quietly", "repeat", "search", "suggested"]

RANK_SAMPLES: Final = 48
RANK_SHARE: Final = 0.5  # of the seconds that are left, for ranking
SEARCHED: Final = ("int8", "int8-u8u8")  # forms in which regions can stay in float
NEAR_INT8: Final = ("int8-tensor", "int8-heavy")  # tried with the regions that int8 leaves in float


class Tell(Protocol):
    """Called with each step of a build, for a person who waits."""

    def __call__(self, step: str, /, spent: float | None = None) -> None:
        """Take note of a step.

        Args:
            step: what begins now, in words.
            spent: share of the search's budget that is spent, 0 to 1; None outside of a search.
        """


def quietly(_step: str, /, spent: float | None = None) -> None:
    """Tell nobody."""


class Budget:
    """What a search may still spend."""

    def __init__(self, limits: Search, tell: Tell) -> None:
        """Begin to spend.

        Args:
            limits: of the recipe.
            tell: of the build.
        """
        self.evaluations = limits.max_evaluations
        self.began: Final = time.monotonic()
        self.deadline: Final = self.began + limits.max_seconds
        self._limits: Final = limits
        self._tell: Final = tell

    def tell(self, step: str) -> None:
        """Say what begins now, and how much of the budget went into what is done."""
        seconds = (time.monotonic() - self.began) / self._limits.max_seconds
        evaluations = 1 - self.evaluations / self._limits.max_evaluations
        self._tell(step, min(1.0, max(seconds, evaluations)))

    @property
    def spent(self) -> bool:
        """Whether nothing is left."""
        return self.evaluations <= 0 or time.monotonic() >= self.deadline

    def take(self) -> None:
        """Spend one evaluation."""
        self.evaluations -= 1


def suggested(workshop: Workshop, gate: Gate) -> list[str]:
    """Return the forms that this graph suggests, the most promising first.

    Products with constant weights and no convolution: ranges as they come are safest, then
    calibrated ones. Convolutions: calibrated ones. Neither: nothing for 8 bits. Forms that only
    save bytes are tried where bytes were asked for.
    """
    weights = {tensor.name for tensor in workshop.prepared.graph.initializer}
    heavy = [
        node.op_type
        for node in workshop.prepared.graph.node
        if node.op_type in HEAVY and any(name in weights for name in node.input[1:])
    ]
    forms: list[str] = []
    if any(kind.startswith("Conv") for kind in heavy):
        forms = ["int8", *NEAR_INT8]
    elif heavy:
        forms = ["int8-dynamic", "int8"]
    if gate.max_size_ratio is not None or gate.max_bytes is not None:
        forms += ["int8-weights", "fp16"]
    return forms


def search(workshop: Workshop, forms: Sequence[str], limits: Search, tell: Tell) -> list[Candidate]:
    """Return every candidate that was tried, in order; the budget is the recipe's.

    Args:
        workshop: makes and measures them.
        forms: to try, in order.
        limits: what may be spent.
        tell: called with each step, for a person who waits.
    """
    budget = Budget(limits, tell)
    tried: list[Candidate] = []
    for form in forms:
        if budget.spent:
            workshop.notes.append(f"the search's budget was spent before {form} was tried")
            break
        left: tuple[str, ...] = ()
        if form in NEAR_INT8 and any(candidate.form == "int8" for candidate in tried):
            found = [c for c in tried if c.form == "int8" and c.accepted]
            if not found:
                continue  # what int8 does not hold, a coarser form of it does not either
            left = found[-1].left
        budget.tell(f"build and measure {form}")
        budget.take()
        leave = tuple(node for name in left for node in _nodes(_by_name(workshop), name))
        whole = workshop.time(workshop.evaluate(form, left=left, leave=leave))
        tried.append(whole.without_outputs())
        if form in SEARCHED and whole.blames == "quality" and _may_gain(whole):
            tried += _leave_out(workshop, form, budget)
    return tried


def repeat(workshop: Workshop, choices: Sequence[Choice], tell: Tell) -> list[Candidate]:
    """Return the candidates of a lock, with its verdicts."""
    made = []
    for choice in choices:
        tell(f"build {choice.form} again")
        nodes = tuple(n for name in choice.left for n in _nodes(_by_name(workshop), name))
        candidate = workshop.evaluate(choice.form, left=tuple(choice.left), leave=nodes)
        made.append(workshop.time(candidate, choice.verdict).without_outputs())
    return made


def best(tried: Sequence[Candidate], gate: Gate) -> Candidate | None:
    """Return the accepted candidate of most worth: the fastest, or the smallest if bytes count."""
    accepted = [c for c in tried if c.accepted]
    if not accepted:
        return None
    if gate.max_size_ratio is not None or gate.max_bytes is not None:
        return min(accepted, key=lambda c: len(c.data))
    return min(accepted, key=lambda c: c.latency.ratio if c.latency is not None else 1.0)


def _may_gain(whole: Candidate) -> bool:
    return whole.verdict not in ("slower", "too_slow")


def _by_name(workshop: Workshop) -> dict[str, Region]:
    return {region.name: region for region in find_regions(workshop.prepared)}


def _nodes(regions: dict[str, Region], name: str) -> tuple[str, ...]:
    return regions[name].nodes if name in regions else ()


def _leave_out(workshop: Workshop, form: str, budget: Budget) -> list[Candidate]:
    """Return the candidates tried on the way to as few regions in float as the gate lets."""
    regions = find_regions(workshop.prepared)
    few = workshop.samples(RANK_SAMPLES)
    output = workshop.materials.recipe.metric.output
    budget.tell(f"{form}: look for the layers that it cannot afford")
    left_s = max(0.0, budget.deadline - time.monotonic())
    ranked = rank(
        regions,
        lambda nodes: workshop.run(workshop.make(form, only=nodes), few)[output],
        workshop.run(workshop.materials.graph.data, few)[output],
        deadline=time.monotonic() + RANK_SHARE * left_s,
        tell=lambda done, all_: budget.tell(f"{form}: layer {done + 1} of {all_} alone"),
    )
    tried: dict[int, Candidate] = {}

    def hold(many: int) -> bool:
        budget.tell(f"{form}: {many} of {len(ranked)} regions in float")
        budget.take()
        worst = ranked[:many]
        candidate = workshop.evaluate(
            form,
            left=tuple(region.name for region in worst),
            leave=tuple(node for region in worst for node in region.nodes),
        )
        tried[many] = candidate
        return candidate.blames == ""

    found = _fewest(len(ranked) - 1, hold, lambda: budget.spent)
    if found is None:
        workshop.notes.append(f"{form}: no set of layers in float was found that the gate takes")
        return [candidate.without_outputs() for candidate in tried.values()]
    if budget.spent:
        workshop.notes.append(f"{form}: the search's budget was spent; fewer layers may do")
    tried[found] = workshop.time(tried[found])
    return [candidate.without_outputs() for candidate in tried.values()]


def _fewest(most: int, hold: Callable[[int], bool], spent: Callable[[], bool]) -> int | None:
    """Return the smallest count that holds: doubling, then bisection; None where none was found."""
    low, high, many = 0, None, 1
    while many <= most and not spent():
        if hold(many):
            high = many
            break
        low, many = many, many * 2
    if high is None:
        if low < most and many > most and not spent() and hold(most):
            high = most
        else:
            return None
    while high - low > 1 and not spent():
        middle = (low + high) // 2
        if hold(middle):
            high = middle
        else:
            low = middle
    return high
