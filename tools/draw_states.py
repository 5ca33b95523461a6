"""Draw the state machines of `skerry.states` into the documents, from the tables themselves.

docs/reference/states.md shows all of them; docs/ideas/rollout.md shows some, between two marks.
With `--check` it only says whether the pages in the tree are current. A step that nearly every state may
take (to `canceled`, say) is told in a sentence below the diagram, so that the diagram shows the way.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from skerry import states

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = DOCS / "reference" / "states.md"
MARKED = (DOCS / "ideas" / "rollout.md",)
MARK = re.compile(r"(<!-- states: (\w+) -->\n).*?(<!-- end of states -->)", re.DOTALL)
CROWD = 5  # a step taken by so many states leaves the diagram for a sentence

Table = Mapping[Any, frozenset[Any]]  # of one enumeration, which the second half of a pair names

MACHINES: dict[str, tuple[Table, type[StrEnum]]] = {
    "Rollout": (states.ROLLOUT, states.RolloutState),
    "Stage": (states.STAGE, states.StageState),
    "Assignment": (states.ASSIGNMENT, states.AssignmentState),
    "Analysis": (states.ANALYSIS, states.AnalysisState),
    "Device": (states.DEVICE, states.DeviceState),
}

HEAD = """\
# States

What may follow what, drawn from the tables in `skerry/states.py` by `tools/draw_states.py`. A step that is not listed
raises `InvalidTransition`. A state without an arrow out of it is an end.
"""


def main() -> int:
    """Write the page, or check it; the exit code says whether it is current."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether the page is current")
    options = parser.parse_args()
    wanted = {
        PAGE: "\n".join([HEAD, *(section(name, *machine) for name, machine in MACHINES.items())])
    }
    wanted |= {page: MARK.sub(between_marks, page.read_text()) for page in MARKED}
    stale = [page for page, text in wanted.items() if not page.exists() or page.read_text() != text]
    if options.check and stale:
        names = ", ".join(str(page.relative_to(DOCS.parent)) for page in stale)
        print(f"{names}: not current; run: .venv/bin/python tools/draw_states.py")
        return 1
    for page in stale:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(wanted[page])
    return 0


def between_marks(mark: re.Match[str]) -> str:
    """The marks, with the named machine's drawing between them."""
    return f"{mark[1]}{section(mark[2], *MACHINES[mark[2]]).replace('## ', '### ', 1)}{mark[3]}"


def section(name: str, table: Table, kind: type[StrEnum]) -> str:
    """One machine: what it is about, its diagram, and the crowded steps in words."""
    about = (kind.__doc__ or "").strip()
    lines = [f"## {name}", "", about, "", "```mermaid", "stateDiagram-v2"]
    lines += [f"    [*] --> {next(iter(kind))}"]
    crowded = set(crowds(table))
    for state in kind:
        nexts = [after for after in kind if after in table[state] and after not in crowded]
        lines += [f"    {state} --> {after}" for after in nexts]
    lines += ["```", ""]
    told: dict[tuple[StrEnum, ...], list[StrEnum]] = {}
    for after in crowds(table):
        told.setdefault(tuple(s for s in kind if after in table[s]), []).append(after)
    for befores, afters in told.items():
        lines += [f"{listed(afters)} may follow {listed(befores)}.", ""]
    return "\n".join(lines)


def crowds(table: Table) -> Iterator[StrEnum]:
    """States that so many others may step to that arrows would hide the way."""
    for state in table:
        if sum(state in afters for afters in table.values()) >= CROWD:
            yield state


def listed(names: Sequence[StrEnum]) -> str:
    """Names in code type, as a person lists them."""
    quoted = [f"`{name}`" for name in names]
    return " and ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)


if __name__ == "__main__":
    sys.exit(main())
