"""What the operators' commands share: errors to exit codes, options, and how things are shown.

What was asked for goes to stdout, as a table or with ``--json`` as JSON; hints, progress
and errors go to stderr. Into a pipe, a table has one line a row however long it gets.
"""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fleet.client import FleetClient, read_token
from skerry.errors import SkerryError

__all__ = [
    "PATH",
    "Command",
    "Group",
    "client",
    "data_option",
    "json_option",
    "plain",
    "print_json",
    "print_lines",
    "print_table",
    "remote",
    "show_list",
    "when",
]

PATH: Final = click.Path(path_type=Path)
PIPE_WIDTH: Final = 2000  # columns
MOMENTS: Final = frozenset({"last_seen", "since"})  # Unix seconds
Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class Command(click.Command):
    """A command whose `SkerryError` becomes one message and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; click itself sees to usage errors."""
        try:
            return super().invoke(ctx)
        except SkerryError as error:
            click.echo(f"{ctx.command_path}: {error}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            ctx.exit(130)


class Group(click.Group):
    """A group of such commands."""

    command_class = Command


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
data_option = click.option(
    "--data", type=PATH, required=True, help="The fleet's data directory."
)  # fmt: skip


def remote(command: Decorated) -> Decorated:
    """Add the options of a command that speaks to a running fleet."""
    for option in (
        json_option,
        click.option("--token-file", type=PATH, help="The operator's token (or $SKERRY_TOKEN)."),
        click.option(
            "--fleet",
            "url",
            envvar="SKERRY_FLEET",
            default="http://127.0.0.1:8440",
            show_default=True,
            help="The fleet's address (or $SKERRY_FLEET).",
        ),
    ):
        command = option(command)
    return command


def client(url: str, token_file: Path | None) -> FleetClient:
    """Return a client of the fleet that the options name.

    Raises:
        UsageError: there is no token, or the address is none.
    """
    return FleetClient(url, read_token(token_file))


# --- showing ------------------------------------------------------------------------


def show_list(
    items: Sequence[Any],
    as_json: bool,
    head: Sequence[str],
    cells: Callable[[Any], Sequence[str]],
) -> None:
    """Print a list as JSON or as a table."""
    if as_json:
        print_json(items)
        return
    print_table(head, [cells(item) for item in items])
    if not items:
        click.echo("there are none yet", err=True)


def print_json(value: object) -> None:
    """Print one line of JSON."""
    click.echo(json.dumps(value))


def print_lines(*lines: str) -> None:
    """Print text that was asked for, wrapped only on a terminal."""
    for line in lines:
        _console().print(escape(line))


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; an empty head is left out."""
    table = Table(*head, show_header=any(head))
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    _console().print(table)


def when(seconds: float | None) -> str:
    """Return a time in the reader's own zone."""
    if seconds is None:
        return "never"
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def plain(value: object, name: str = "") -> str:
    """Return a JSON value as a person reads it in a cell; a moment by its name.

    A table within a table has a line for each of its values.
    """
    if isinstance(value, float | int) and not isinstance(value, bool) and name in MOMENTS:
        return when(float(value))
    if isinstance(value, dict):
        lines = (
            f"{key}: {plain(inner, key)}".replace("\n", "\n  ") for key, inner in value.items()
        )
        return "\n".join(lines)
    if isinstance(value, list):
        return ", ".join(map(plain, value))
    if value is None or isinstance(value, bool):
        return {None: "-", True: "yes", False: "no"}[value]
    return str(value)


def _console() -> Console:
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(highlight=False, width=width)
