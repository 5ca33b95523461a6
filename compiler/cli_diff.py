"""The command diff: what two bundles differ in."""

import sys
from pathlib import Path
from typing import Final

import click
import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from compiler.command import PATH, Command, json_option, load_bundle
from compiler.difference import difference

__all__ = ["diff"]

PIPE_WIDTH: Final = 200


@click.command(cls=Command)
@click.argument("before", type=PATH)
@click.argument("after", type=PATH)
@json_option
def diff(before: Path, after: Path, as_json: bool) -> None:
    """Compare two bundles: schema, graph, size, accuracy, baseline and lineage."""
    found = difference(load_bundle(before), load_bundle(after))
    if as_json:
        click.echo(msgspec.json.encode(found))
        return
    console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    console.print(escape(f"{found.before}\n{found.after}"))
    if not found.topics:
        console.print("no difference")
    for topic, changes in found.topics.items():
        table = Table("what", "before", "after", title=topic, title_justify="left")
        for change in changes:
            table.add_row(escape(change.what), escape(change.before), escape(change.after))
        console.print(table)
