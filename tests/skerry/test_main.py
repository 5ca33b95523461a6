"""The command `skerry`: a lazy table of sub-commands."""

import importlib
import json
import subprocess
import sys

import click
import pytest

from skerry.__main__ import COMMANDS

# what a device's install has not, and what makes a command slow to start
HEAVY = ("aiohttp", "sqlalchemy", "onnx", "onnxruntime", "numpy", "fleet", "compiler", "devices")


def skerry(*arguments: str, before: str = "", after: str = "") -> subprocess.CompletedProcess[str]:
    program = (
        f"import sys\n{before}\nfrom skerry.__main__ import main\ntry:\n    main()\nfinally:\n"
    )
    return subprocess.run(
        [sys.executable, "-c", program + f"    sys.stdout.flush()\n    {after or 'pass'}", *arguments],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_every_entry_names_a_command(name: str) -> None:
    module, _, attribute = COMMANDS[name].target.partition(":")
    command = getattr(importlib.import_module(module), attribute)
    assert isinstance(command, click.Command)
    assert command.name == name
    assert command.help


def test_help_lists_every_command_and_imports_none() -> None:
    done = skerry("--help", after="print(__import__('json').dumps(sorted(sys.modules)))")
    text, _, modules = done.stdout.rstrip().rpartition("\n")
    assert done.returncode == 0, done.stderr
    for name, entry in COMMANDS.items():
        assert name in text
        assert entry.help in " ".join(text.split())
    assert not set(HEAVY) & set(json.loads(modules))


@pytest.mark.parametrize("command", [("rollout", "--help"), ("rollout", "create", "--help")])
def test_asking_a_fleet_needs_neither_its_server_nor_its_database(command: tuple[str, ...]) -> None:
    done = skerry(*command, after="print(__import__('json').dumps(sorted(sys.modules)))")
    modules = set(json.loads(done.stdout.rstrip().rpartition("\n")[2]))
    assert not {"aiohttp", "sqlalchemy", "onnx", "numpy"} & modules


def test_an_extra_that_is_missing_is_named() -> None:
    done = skerry("models", "list", before="sys.modules['rich'] = None")
    assert done.returncode == 2
    assert 'pip install "skerry[fleet]"' in done.stderr


def test_without_click_the_devices_command_is_named() -> None:
    done = skerry("--help", before="sys.modules['click'] = None")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: `skerry` needs click")
    assert "skerry-agent" in done.stderr


def test_an_unknown_command_is_a_usage_error() -> None:
    done = skerry("rolout")
    assert done.returncode == 2
    assert "rolout" in done.stderr


def test_the_version_is_told() -> None:
    done = skerry("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("skerry, version ")
