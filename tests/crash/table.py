"""The table of `make crash` in benchmarks/README.md, from benchmarks/results/crash.json."""

import json
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
RESULTS: Final = ROOT / "benchmarks" / "results" / "crash.json"
README: Final = ROOT / "benchmarks" / "README.md"
START: Final = "<!-- crash: begin -->"
END: Final = "<!-- crash: end -->"
COUNTS: Final = {  # what is counted as one try, and in which words
    "forks": ("deaths", "SIGKILLs by fork"),
    "calls": ("", "file system calls killed or failed"),
    "power": ("deaths", "power cuts"),
    "full": ("sizes", "sizes of free space, 0 to 64 kB"),
    "clocks": ("", "SIGKILLs in 1970, 2038, 2099 and with jumps"),
    "network": ("", "faults of broker and fleet"),
    "real": ("kills", "SIGKILLs of whole processes"),
    "swaps": ("swaps", "hot swaps under load"),
    "labels": ("kills", "SIGKILLs of serving processes while labels come"),
}


def write_table() -> None:
    """Write the table between its marks."""
    found = json.loads(RESULTS.read_text())["sections"]
    before, _, rest = README.read_text().partition(START)
    _, _, after = rest.partition(END)
    README.write_text(f"{before}{START}\n{table(found)}\n{END}{after}")


def table(found: dict[str, Any]) -> str:
    """Return the table as Markdown."""
    rows = [
        "| section | tries | of | answered | lost | reported at most | violations | seconds | commit |",
        "|---|---:|---|---:|---:|---:|---:|---:|---|",
    ]
    for name, (_, what) in COUNTS.items():
        if (result := found.get(name)) is None:
            continue
        if "skipped" in result:
            rows.append(f"| {name} | | {what}: left out, {result['skipped']} | | | | | | |")
            continue
        answered = result.get("answered", result.get("answered_while_full"))
        if name == "clocks":
            answered = sum(part["answered"] for part in _clocks(result))
        cells = [
            name, _said(tries(name, result)), what, _said(answered), _said(result.get("lost")),
            _said(result.get("reported_at_most")), str(len(result["wrong"])),
            f"{result['seconds']:.0f}", result.get("commit", ""),
        ]  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def tries(name: str, result: dict[str, Any]) -> int:
    """Return how many tries a section made."""
    if name == "calls":
        return int(result["killed"] + result["ENOSPC"] + result["EIO"])
    if name == "clocks":
        return sum(int(part["deaths"]) for part in _clocks(result))
    if name == "network":
        return sum(n for key, n in result.items() if key.startswith(("fleet ", "broker ")))
    return int(result[COUNTS[name][0]])


def _clocks(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [part for part in result.values() if isinstance(part, dict)]


def _said(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


if __name__ == "__main__":
    write_table()
