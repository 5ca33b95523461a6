"""The command gate: a candidate against the version in service, for pipelines."""

import io
import os
from pathlib import Path
from urllib.parse import quote

import click
import msgspec

from compiler.against import Comparison, against, comparison_markdown
from compiler.command import (
    PATH,
    TOKEN,
    Command,
    fleet_option,
    json_option,
    load_bundle,
    load_token,
    write_file,
)
from compiler.materials import gather
from compiler.publish import check_url, fetch_bundle
from compiler.recipe import read_recipe
from skerry.bundle import Bundle, read_bundle
from skerry.errors import GateError, UsageError

__all__ = ["gate"]

LATEST = "latest"


@click.command(cls=Command)
@click.argument("recipe", type=PATH)
@click.option(
    "--against",
    "other",
    required=True,
    metavar="BUNDLE|VERSION",
    help="A bundle file, or a version that the fleet has; latest is the newest.",
)
@fleet_option
@click.option("--token-file", type=PATH, help=f"File with the operator's token (or ${TOKEN}).")
@click.option("--report", type=PATH, help="Directory for the report, as Markdown and JSON.")
@click.option("--strict", is_flag=True, help="Fail too where the samples do not decide.")
@json_option
def gate(
    recipe: Path,
    other: str,
    fleet: str | None,
    token_file: Path | None,
    report: Path | None,
    strict: bool,
    as_json: bool,
) -> None:
    """Compare RECIPE's model with the version in service, on the recipe's evaluation data.

    Ends with exit code 6 where the candidate is shown to be worse than the recipe's gate lets.
    """
    source = read_recipe(recipe)
    service = _service(other, source.recipe.model.name, fleet, token_file)
    found = against(gather(source), service)
    text = comparison_markdown(found)
    if report is not None:
        stem = f"{found.model}-{found.candidate}-against-{found.in_service}"
        write_file(report / f"{stem}.md", text.encode())
        write_file(report / f"{stem}.json", msgspec.json.format(msgspec.json.encode(found)) + b"\n")
    _summary(text)
    click.echo(msgspec.json.encode(found) if as_json else text, nl=as_json)
    if found.outcome == "refused" or (strict and found.outcome == "undecided"):
        raise GateError(_failed(found))
    if found.outcome == "undecided":
        click.echo(f"skerry gate: undecided: {found.reason}", err=True)


def _service(other: str, model: str, fleet: str | None, token_file: Path | None) -> Bundle:
    if Path(other).exists() or other.endswith(".skerry"):
        return load_bundle(Path(other))
    if not fleet:
        raise UsageError(
            f"expected a bundle file at {other}, or the fleet's URL to ask for that version: "
            "give --fleet, or set SKERRY_FLEET"
        )
    data = fetch_bundle(check_url(fleet), quote(model), quote(other), load_token(token_file))
    return read_bundle(io.BytesIO(data))


def _summary(text: str) -> None:
    """Put the report where a pipeline shows it: GitHub Actions names a file for that."""
    place = os.environ.get("GITHUB_STEP_SUMMARY")
    if place:
        try:
            with Path(place).open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:  # the verdict does not hang on where it is shown
            click.echo(f"skerry gate: cannot write the summary: {error}", err=True)


def _failed(found: Comparison) -> str:
    what = "is worse than" if found.outcome == "refused" else "is not shown to be as good as"
    return f"{found.model} {found.candidate} {what} {found.in_service}: {found.reason}"
