"""The command build; the others live in `compiler.cli_release` and `compiler.cli_sign`."""

import os
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from securesystemslib.signer import Signer

from compiler.build import Built
from compiler.build import build as run_build
from compiler.command import (
    PATH,
    Command,
    check_place,
    json_option,
    open_key,
    passphrase_option,
    write_file,
)
from compiler.data import read_data
from compiler.emulate import emulator
from compiler.lock import lock_bytes, read_lock
from compiler.mlflow import Registry, with_lineage
from compiler.recipe import load_profile, read_recipe
from compiler.record import VariantRecord, seal_record
from compiler.report import html_report, markdown_report
from compiler.starter import starter_recipe
from skerry.errors import ConflictError, UsageError
from skerry.io.signers import KEY_HELP

__all__ = ["build"]

LABELS = ("label", "labels", "target", "y")  # what data sets call their right answers


@click.command(cls=Command)
@click.argument("recipe", type=PATH)
@click.option("--out", type=PATH, help="Directory for the bundle.")
@click.option("--profile", type=PATH, help="Device profile to build for; default: this machine.")
@click.option("--lock", type=PATH, help="Repeat the choices of this lock: same bytes again.")
@click.option(
    "--from", "origin", metavar="SOURCE", help="Fetch the model: mlflow:models:/NAME@ALIAS."
)
@click.option("--emulate", metavar="ISA", help="Measure what ships on another CPU too: avx2.")
@click.option("--key", metavar="KEY", help=f"Signs the evaluation record. {KEY_HELP}")
@passphrase_option
@click.option("--init", "init", is_flag=True, help="RECIPE is a model: write a recipe for it.")
@click.option("--data", metavar="DATA", help="With --init: one data set, to be divided.")
@json_option
def build(
    recipe: Path,
    out: Path | None,
    profile: Path | None,
    lock: Path | None,
    origin: str | None,
    emulate: str | None,
    key: str | None,
    passphrase_file: Path | None,
    init: bool,
    data: str | None,
    as_json: bool,
) -> None:
    """Build a bundle from RECIPE: check, quantize, evaluate, gate.

    Writes the bundle, its lock, a record of what was measured, and a report as Markdown and as
    one HTML page. A variant that is not good enough, or not proven faster, is left out with
    the reason; fp32 always ships.

    With --from, the model comes from an MLflow registry (MLFLOW_TRACKING_URI), its run becomes
    lineage, and tags there tell what was built.

    With --init, RECIPE is an ONNX model, and a commented recipe is written beside it.
    """
    if init:
        _init(recipe, data, as_json)
        return
    if out is None:
        raise UsageError("expected a directory for the bundle: give --out")
    if data is not None:
        raise UsageError("--data goes with --init; a recipe names its data itself")
    check_place(out)
    if emulate is not None:
        emulator(emulate)  # a build takes minutes, and it is wanted only after that
    signer = open_key(key, passphrase_file) if key is not None else None
    source = read_recipe(recipe, model_comes_later=origin is not None)
    registry, fetched = None, None
    if origin is not None:
        registry = Registry(os.environ)
        fetched = registry.fetch(origin)
        write_file(source.model, fetched.data)
        source = with_lineage(source, fetched)
    console = Console(stderr=True)
    with _progress(console) as progress:  # draws only on a terminal
        bar = progress.add_task(source.recipe.model.name, total=None, step="")

        def tell(step: str, spent: float | None = None) -> None:
            total = None if spent is None else 1.0
            progress.update(bar, step=escape(step), total=total, completed=spent or 0.0)

        built = run_build(
            source,
            now=datetime.now(UTC),
            profile=load_profile(profile) if profile is not None else None,
            lock=read_lock(lock) if lock is not None else None,
            emulate=emulate,
            tell=tell,
        )
    paths = _write_built(out, built, signer)
    if registry is not None and fetched is not None:
        registry.tag(fetched, _tags(built))
    if as_json:
        summary = {
            "bundle": str(paths["bundle"]),
            "digest": built.digest,
            "model": built.record.model,
            "model_version": built.record.model_version,
            "lock": str(paths["lock"]),
            "record": str(paths["record"]),
            "report": str(paths["page"]),
            "text": str(paths["text"]),
            "metric": built.record.metric,
            "n": built.record.n,
            "variants": built.record.variants,
            "notes": built.record.notes,
        }
        click.echo(msgspec.json.encode(summary))
        return
    console.print(_variants(built.record.variants, built.record.metric))
    for variant in built.record.variants:
        console.print(f"{_named(variant)}: {escape(variant.reason)}", highlight=False)
    console.print(f"report: {escape(str(paths['page']))}", highlight=False)
    click.echo(paths["bundle"])


def _progress(console: Console) -> Progress:
    """A line that tells the step, how much of the search's budget is spent, and since when."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn(),
        TextColumn("{task.fields[step]}"), console=console, transient=True,
        disable=not console.is_terminal,
    )  # fmt: skip


def _tags(built: Built) -> dict[str, str]:
    first = built.manifest.variants[0]
    return {
        "skerry.bundle": built.digest,
        "skerry.model_version": built.manifest.model_version,
        "skerry.first_choice": first.id,
        f"skerry.{first.accuracy.metric}": f"{first.accuracy.value:.6g}",
    }


def _init(model: Path, data: str | None, as_json: bool) -> None:
    path = model.with_suffix(".toml")
    if path.exists():
        raise ConflictError(f"{path} is there already; remove it, or edit it")
    samples, label, classes = 0, LABELS[0], []
    if data is not None:
        name, bracket, part = data.partition("[")
        if not (model.parent / name).exists() and Path(name).exists():  # as seen from here
            data = os.path.relpath(name, model.parent) + bracket + part
        arrays = read_data(data, model.parent, "--data").arrays
        samples = min((len(values) for values in arrays.values() if values.ndim), default=0)
        label = next((name for name in LABELS if name in arrays), "")
        if label and arrays[label].dtype.kind in "OU":
            classes = sorted(set(arrays[label].reshape(-1).astype(str).tolist()))
    text = starter_recipe(model, data or "", samples, label, classes)
    write_file(path, text.encode())
    if as_json:
        click.echo(msgspec.json.encode({"recipe": str(path)}))
        return
    click.echo(f"next: look at it, then: skerry build {path} --out BUNDLES", err=True)
    click.echo(path)


def _write_built(out: Path, built: Built, signer: Signer | None) -> dict[str, Path]:
    record, lock = built.record, built.lock
    stem = f"{record.model}-{record.model_version}"
    short = built.digest.removeprefix("sha256:")[:16]
    files = {  # the bundle last: where it is, all is
        "lock": (out / f"{stem}.lock", lock_bytes(lock)),
        "record": (out / f"{stem}.{short}.evaluation.json", seal_record(record, signer)),
        "text": (out / f"{stem}.{short}.report.md", markdown_report(record).encode()),
        "page": (out / f"{stem}.{short}.report.html", html_report(record).encode()),
        "bundle": (out / f"{stem}.skerry", built.bundle),
    }
    for path, data in files.values():
        write_file(path, data)
    return {name: path for name, (path, _) in files.items()}


def _variants(variants: list[VariantRecord], metric: str) -> Table:
    table = Table("form", "bytes", metric, "CPU time to fp32 (95 %)", "chosen")
    for v in variants:
        value = "-" if v.accuracy is None else f"{v.accuracy:.4f}"
        ratio = "-" if v.latency_ratio is None else f"{v.latency_ratio:.2f}"
        if v.latency_interval is not None:
            ratio += f" ({v.latency_interval[0]:.2f} to {v.latency_interval[1]:.2f})"
        chosen = "first" if v.chosen else "too" if v.shipped else "no"
        table.add_row(escape(_named(v)), f"{v.bytes:,}", value, ratio, chosen)
    return table


def _named(v: VariantRecord) -> str:
    return v.precision if not v.left_float else f"{v.precision}, {len(v.left_float)} in float"
