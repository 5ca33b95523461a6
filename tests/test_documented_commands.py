"""Every command that a document shows is one that its program takes: its words and its options."""

import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest

import agent.__main__ as agent_command
from skerry.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs" / "howto").glob("*.md"))]
FENCED = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)

OURS = re.compile(r"skerry(-agent)? ")


def shown() -> list[tuple[str, str]]:
    """Return (document, command line) of each in a fenced block, continued lines joined."""
    found = []
    for path in DOCUMENTS:
        for block in FENCED.findall(path.read_text()):
            lines = block.replace("\\\n", " ").splitlines()
            found += [(path.name, alone(line)) for line in lines if OURS.match(line)]
    return found


def alone(line: str) -> str:
    """Return a command without what the shell makes of it."""
    return line.removesuffix(" &").split(" | ")[0]


def parse(line: str) -> None:
    """Have the program's own parser read the line, and run nothing."""
    program, *words = shlex.split(line, comments=True)
    if program == "skerry-agent":
        agent_command._parser().parse_args(words)
        return
    name = words.pop(0)
    module, _, attribute = COMMANDS[name].target.partition(":")
    command = getattr(importlib.import_module(module), attribute)
    context = click.Context(command, info_name=name)
    while isinstance(command, click.Group):
        name = words.pop(0)
        inner = command.get_command(context, name)
        assert inner is not None, f"no command {name}"
        command = inner
        context = click.Context(command, info_name=name, parent=context)
    command.make_context(name, words, parent=context.parent)


@pytest.fixture(autouse=True)
def paths_need_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(self: click.Path, value: Any, *_: object) -> Path:
        return Path(value)

    monkeypatch.setattr(click.Path, "convert", convert)


@pytest.mark.parametrize(("document", "line"), shown())
def test_it_is_taken_as_written(document: str, line: str) -> None:
    parse(line.replace("resume|skip-stage|abort|rollback", "resume"))


def test_one_that_is_not_is_found() -> None:
    with pytest.raises(click.UsageError, match="metadata"):
        parse("skerry publish reader.skerry --metadata acme.json")
    with pytest.raises(AssertionError, match="no command"):
        parse("skerry keys rotate backwards")
