"""Write docs/reference/cli.md from the commands themselves: every command, argument and option.

With `--check` it only says whether the page in the tree is current. It reads the commands'
own descriptions, not their help pages, whose layout differs between versions of Python.
"""

import argparse
import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from agent.__main__ import _parser as agent_parser
from skerry.__main__ import COMMANDS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "cli.md"

HEAD = """\
# Commands

Every command with its options, written from the programs by `tools/generate_cli_reference.py`.

What was asked for goes to standard output, with `--json` as JSON; hints, progress and errors go to standard error. An
error is one message that says what was expected, what came, and what to do.

| exit code | meaning |
|---|---|
| 0 | ok |
| 1 | failed |
| 2 | wrong usage: an argument, a setting, a key in a file |
| 3 | the thing named does not exist |
| 4 | understood, and refused |
| 5 | it exists already, or somebody was faster |
| 6 | a model did not pass its gate |
| 7 | a signature, digest or trust check failed |
| 8 | a fleet, broker or device did not answer |
| 130 | interrupted |

`skerry` is for operators and publishers, `skerry-agent` for devices.
"""

SHARED = {  # options that many commands have, told once
    "--json": "Print JSON on standard output.",
    "--fleet": "The fleet's address (or `$SKERRY_FLEET`).",
    "--token-file": "File with the operator's token (or `$SKERRY_TOKEN`).",
}


def main() -> int:
    """Write the page, or check it; the exit code says whether it is current."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether the page is current")
    options = parser.parse_args()
    text = "\n".join([HEAD, *_skerry(), *_agent()])
    if not options.check:
        PAGE.parent.mkdir(parents=True, exist_ok=True)
        PAGE.write_text(text)
    elif not PAGE.exists() or PAGE.read_text() != text:
        print(
            "docs/reference/cli.md is not current; "
            "run: .venv/bin/python tools/generate_cli_reference.py"
        )
        return 1
    return 0


# --- skerry, in click ----------------------------------------------------------------


def _skerry() -> Iterator[str]:
    yield "## `skerry`\n"
    yield "| command | what for |\n|---|---|"
    for name, entry in COMMANDS.items():
        yield f"| [`skerry {name}`](#skerry-{name}) | {entry.help} |"
    yield ""
    for name, entry in COMMANDS.items():
        module, _, attribute = entry.target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        yield f"### `skerry {name}`\n"
        if isinstance(command, click.Group):
            yield f"{command.help}\n"
            for below, child in command.commands.items():
                yield f"#### `skerry {name} {below}`\n"
                yield from _command(child, f"skerry {name} {below}")
        else:
            yield from _command(command, f"skerry {name}")


def _command(command: click.Command, path: str) -> Iterator[str]:
    arguments = [p for p in command.params if isinstance(p, click.Argument)]
    options = [p for p in command.params if isinstance(p, click.Option)]
    words = [path, *(argument.make_metavar(click.Context(command)) for argument in arguments)]
    yield f"```\n{' '.join([*words, '[OPTIONS]'])}\n```\n"
    yield from _paragraphs(command.help or "")
    own = [option for option in options if option.opts[0] not in SHARED]
    shared = [option.opts[0] for option in options if option.opts[0] in SHARED]
    yield from _table([(_names(option), _meaning(option)) for option in own])
    if shared:
        yield f"Also {', '.join(f'`{name}`' for name in sorted(shared))}.\n"


def _paragraphs(text: str) -> Iterator[str]:
    """A command's description; what click must not fill is a block of code."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        block = paragraph.removeprefix("\b\n")
        yield f"{paragraph}\n" if block == paragraph else f"```toml\n{block}\n```\n"


def _names(option: click.Option) -> str:
    names = ", ".join([*option.opts, *option.secondary_opts])
    if option.is_flag:
        return names
    kind = option.type
    choices = "|".join(map(str, kind.choices)) if isinstance(kind, click.Choice) else ""
    return f"{names} {option.metavar or choices or kind.name.upper()}"


def _meaning(option: click.Option) -> str:
    said = [option.help] if option.help else []
    if option.required:
        said.append("Required.")
    if option.multiple and "repeated" not in (option.help or ""):
        said.append("May be repeated.")
    if option.show_default and option.default is not None:
        said.append(f"Default: `{option.default}`.")
    return " ".join(said)


# --- skerry-agent, in argparse ---------------------------------------------------------


def _agent() -> Iterator[str]:
    parser = agent_parser()
    yield f"## `skerry-agent`\n\n{parser.description}\n"
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            continue
        told = {choice.dest: choice.help or "" for choice in action._choices_actions}
        for name, child in action.choices.items():
            yield f"### `skerry-agent {name}`\n"
            yield f"```\nskerry-agent {name} [OPTIONS]\n```\n"
            yield f"{told[name][:1].upper()}{told[name][1:]}.\n"
            yield from _table([_flag(flag) for flag in child._actions if flag.dest != "help"])


def _flag(action: argparse.Action) -> tuple[str, str]:
    names = ", ".join(action.option_strings)
    if action.nargs != 0:
        names += f" {action.metavar or action.dest.upper()}"
    help_text = action.help or ""
    meaning = f"{help_text[:1].upper()}{help_text[1:]}."
    return names, f"{meaning} Required." if action.required else meaning


def _table(rows: list[tuple[str, str]]) -> Iterator[str]:
    if not rows:
        return
    yield "| option | meaning |\n|---|---|"
    for names, meaning in rows:
        cell = names.replace("|", "\\|")
        yield f"| `{cell}` | {meaning} |"
    yield ""


if __name__ == "__main__":
    sys.exit(main())
