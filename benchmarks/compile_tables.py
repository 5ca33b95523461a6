"""The tables of README.md about the compiler, from results/compile.json."""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
START, END = "<!-- compile: begin -->", "<!-- compile: end -->"

__all__ = ["write_tables"]


def write_tables(name: str) -> None:
    """Write the tables between their marks in README.md.

    Args:
        name: of the results.
    """
    found = json.loads((HERE / "results" / f"{name}.json").read_text())
    readme = HERE / "README.md"
    text = readme.read_text()
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{START}\n{tables(found['zoo'])}\n{END}{after}")


def tables(zoo: dict[str, Any]) -> str:
    """Return the tables as Markdown."""
    return "\n\n".join([sides(zoo), searches(zoo), emulated(zoo)]).rstrip()


def sides(zoo: dict[str, Any]) -> str:
    """Every form of every model."""
    lines = [
        "| model | form | bytes to fp32 | CPU time to fp32 (95 %) | metric | worse than fp32 by (95 %) | gate | load, CPU ms |",
        "|---|---|---:|---|---|---|---|---:|",
    ]
    for name, model in zoo.items():
        whole = model["rows"]["fp32"]["bytes"]
        for form, row in model["rows"].items():
            first = f"{name}" if form == "fp32" else ""
            if "error" in row:
                lines.append(f"| {first} | {form} | - | - | - | {clean(row['error'])} | - | - |")
                continue
            size = f"{whole:,} B" if form == "fp32" else f"{row['bytes'] / whole:.2f}"
            ratio, low, high = row["ratio"]
            drop, drop_low, drop_high = row["drop"]
            shown = "" if form == "fp32" else f"{drop:.4f} ({drop_low:+.4f} to {drop_high:+.4f})"
            speed = (
                f"{row['us']:,.0f} µs"
                if form == "fp32"
                else f"{ratio:.2f} ({low:.2f} to {high:.2f})"
            )
            if form == "skerry build":
                form = f"**skerry build: {model['build']['shipped']}**"
            gate = (
                ""
                if form == "fp32"
                else {"accepted": "holds", "refused": "fails"}.get(row["gate"], row["gate"])
            )
            lines.append(
                f"| {first} | {form} | {size} | {speed} | {model['metric']} {row['value']:.4f} "
                f"| {shown} | {gate} | {row['load_ms']:.1f} |"
            )
    return "\n".join(lines)


def searches(zoo: dict[str, Any]) -> str:
    """What the build took, and how near it comes to the best form of all."""
    lines = [
        "| model | shipped | evaluations | build, s (CPU) | peak, MiB | forms looked at (holding) | fastest of them | shipped to it, CPU time (95 %) |",
        "|---|---|---:|---:|---:|---:|---|---|",
    ]
    for name, model in zoo.items():
        build, best = model["build"], model.get("frontier")
        if best is None:
            lines.append(f"| {name} | {clean(build.get('error', ''))} | | | | | | |")
            continue
        ratio, low, high = best["fastest"]["shipped_to_it"]
        lines.append(
            f"| {name} | {build['shipped']} | {build['evaluations']} "
            f"| {build['seconds']:.0f} ({build['cpu_seconds']:.0f}) | {build['peak_mib']:,} "
            f"| {best['tried']} ({best['holding']}) | {best['fastest']['way']} "
            f"| {ratio:.2f} ({low:.2f} to {high:.2f}) |"
        )
    return "\n".join(lines)


def emulated(zoo: dict[str, Any]) -> str:
    """The same forms on a CPU without VNNI."""
    lines = [
        "| model | form | metric here | on an emulated AVX2 CPU without VNNI |",
        "|---|---|---|---|",
    ]
    for name, model in zoo.items():
        for form, row in model["rows"].items():
            if "avx2" in row:
                there = row["avx2"]
                agree = (
                    "" if there["agreement"] is None else f", {there['agreement']:.3f} as fp32 here"
                )
                lines.append(
                    f"| {name} | {form} | {row['value']:.4f} | {there['value']:.4f}{agree} (n={there['n']}) |"
                )
    return "\n".join(lines) if len(lines) > 2 else ""


def clean(text: str) -> str:
    """Return text for a cell of a table."""
    return text.replace("|", "/").replace("\n", " ")[:120]
