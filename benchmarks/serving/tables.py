"""The tables of README.md about the agent, from results/agent.json."""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
START, END = "<!-- agent: begin -->", "<!-- agent: end -->"
SERVERS = ("bare", "floor", "skerry-unix", "skerry", "fastapi", "mlserver", "bentoml", "litserve")

__all__ = ["write_tables"]


def write_tables(name: str) -> None:
    """Write the tables between their marks in README.md."""
    found = json.loads((HERE / "results" / f"{name}.json").read_text())
    readme = HERE / "README.md"
    text = readme.read_text()
    before, mark, rest = text.partition(START)
    if not mark:
        raise SystemExit(f"expected {START} in {readme}")
    after = rest.partition(END)[2]
    made = [table(found) for table in (goals, requests, memory, imports)]
    body = "\n\n".join(one for one in made if one)
    readme.write_text(f"{before}{START}\n{body}\n{END}{after}")


def goals(found: dict[str, Any]) -> str:
    """What was aimed at."""
    lines = ["| goal | at | got (95 %) | |", "|---|---|---|---|"]
    for row in found["goals"]:
        word = "met" if row["met"] else f"missed: {row['missed']}"
        lines.append(
            f"| {row['goal']} | {row['bound']} {row['unit']} | {shown(row['got'])} | {word} |"
        )
    return "\n".join(lines)


def requests(found: dict[str, Any]) -> str:
    """CPU, rate and latency."""
    part = found["parts"].get("paired")
    if part is None:
        return ""
    lines = [
        "| server | tensors | model | clients | CPU a request, µs (95 %) | to bare | requests a second | p50, ms | p99, ms |",
        "|---|---|---|---:|---|---:|---:|---:|---:|",
    ]
    order = {name: place for place, name in enumerate(SERVERS)}
    cells = sorted(
        part["cells"].items(),
        key=lambda cell: (cell[0].split()[-2:], order.get(cell[0].split()[0], 2), cell[0]),
    )
    for key, row in sorted(cells, key=lambda cell: cell[0].split()[-2] != "table"):
        server, form, model, clients = key.rsplit(" ", 3)
        cpu, low, high = row["cpu_us"]
        if server == "bare":
            lines.append(
                f"| bare session.run | | {model} | | {cpu:,.1f} ({low:,.1f} to {high:,.1f}) | 1 | | | |"
            )
            continue
        to_bare = part["ratios"][f"{key} to bare"][0]
        lines.append(
            f"| {server} | {form} | {model} | {clients} | {cpu:,.0f} ({low:,.0f} to {high:,.0f}) | {to_bare:.2f} "
            f"| {row['rps'][0]:,.0f} | {row['p50_us'][0] / 1000:.2f} | {row['p99_us'][0] / 1000:.2f} |"
        )
    return "\n".join(lines)


def memory(found: dict[str, Any]) -> str:
    """Start and memory."""
    part = found["parts"].get("alone")
    if part is None:
        return ""
    lines = [
        "| alone, with the tabular model | processes | start to ready, s | memory at rest, MiB | after load, MiB |",
        "|---|---:|---|---:|---|",
    ]
    for name in SERVERS:
        if name not in part:
            continue
        row = part[name]
        rest = f"{row['rest_mib'][0]:.1f}" if "rest_mib" in row else ""
        lines.append(
            f"| {name} | {row['processes'][0]:.0f} | {shown(row['start_s'])} | {rest} | {shown(row['after_load_mib'])} |"
        )
    return "\n".join(lines)


def imports(found: dict[str, Any]) -> str:
    """Memory by import."""
    part = found["parts"].get("imports")
    if part is None:
        return ""
    lines = ["| import | adds, MiB |", "|---|---:|"]
    lines += [f"| {step} | {value[0]:.1f} |" for step, value in part["added_mib"].items()]
    return "\n".join(lines)


def shown(value: float | list[float]) -> str:
    """A figure, with its interval if it has one."""
    if isinstance(value, int | float):
        return f"{value:g}"
    return f"{value[0]:g} ({value[1]:g} to {value[2]:g})"
