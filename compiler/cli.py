"""The command build; the others live in `compiler.cli_release`."""

from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from securesystemslib.signer import Signer

from compiler.build import Built
from compiler.build import build as run_build
from compiler.command import (
    PATH,
    Command,
    json_option,
    open_key,
    passphrase_option,
    write_file,
)
from compiler.lock import lock_bytes, read_lock
from compiler.recipe import load_profile, read_recipe
from compiler.record import VariantRecord, seal_record
from skerry.io.signers import KEY_HELP

__all__ = ["build"]


@click.command(cls=Command)
@click.argument("recipe", type=PATH)
@click.option("--out", type=PATH, required=True, help="Directory for the bundle.")
@click.option("--profile", type=PATH, help="Device profile to build for; default: this machine.")
@click.option("--lock", type=PATH, help="Repeat the choices of this lock: same bytes again.")
@click.option("--key", metavar="KEY", help=f"Signs the evaluation record. {KEY_HELP}")
@passphrase_option
@json_option
def build(
    recipe: Path,
    out: Path,
    profile: Path | None,
    lock: Path | None,
    key: str | None,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Build a bundle from RECIPE: check, quantize, evaluate, gate.

    Writes the bundle, its lock, and a record of what was measured. A variant that is
    not good enough, or not proven faster, is left out with the reason; fp32 always ships.
    """
    signer = open_key(key, passphrase_file) if key is not None else None
    source = read_recipe(recipe)
    console = Console(stderr=True)
    with console.status("") as status:  # draws only on a terminal
        built = run_build(
            source,
            now=datetime.now(UTC),
            profile=load_profile(profile) if profile is not None else None,
            lock=read_lock(lock) if lock is not None else None,
            tell=lambda step: status.update(f"{source.recipe.model.name}: {step}"),
        )
    paths = _write_built(out, built, signer)
    if as_json:
        summary = {
            "bundle": str(paths["bundle"]),
            "digest": built.digest,
            "model": built.record.model,
            "model_version": built.record.model_version,
            "lock": str(paths["lock"]),
            "record": str(paths["record"]),
            "metric": built.record.metric,
            "n": built.record.n,
            "variants": built.record.variants,
            "notes": built.record.notes,
        }
        click.echo(msgspec.json.encode(summary))
        return
    console.print(_variants(built.record.variants, built.record.metric))
    for variant in built.record.variants:
        console.print(f"{variant.precision}: {escape(variant.reason)}", highlight=False)
    click.echo(paths["bundle"])


def _write_built(out: Path, built: Built, signer: Signer | None) -> dict[str, Path]:
    record, lock = built.record, built.lock
    stem = f"{record.model}-{record.model_version}"
    short = built.digest.removeprefix("sha256:")[:16]
    files = {
        "bundle": (out / f"{stem}.skerry", built.bundle),
        "lock": (out / f"{stem}.lock", lock_bytes(lock)),
        "record": (out / f"{stem}.{short}.evaluation.json", seal_record(record, signer)),
    }
    for path, data in files.values():
        write_file(path, data)
    return {name: path for name, (path, _) in files.items()}


def _variants(variants: list[VariantRecord], metric: str) -> Table:
    table = Table("precision", "bytes", metric, "CPU time to fp32 (95 %)", "chosen")
    for v in variants:
        value = "-" if v.accuracy is None else f"{v.accuracy:.4f}"
        ratio = "-" if v.latency_ratio is None else f"{v.latency_ratio:.2f}"
        if v.latency_interval is not None:
            ratio += f" ({v.latency_interval[0]:.2f} to {v.latency_interval[1]:.2f})"
        chosen = "first" if v.chosen else "too" if v.shipped else "no"
        table.add_row(v.precision, f"{v.bytes:,}", value, ratio, chosen)
    return table
