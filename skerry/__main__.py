"""The command `skerry`: a table of sub-commands and where each lives, imported on use.

This is the one place where the library names the programs: `skerry --help` imports
none of them, and a command whose extra is not installed says which one to install.
"""

import importlib
import sys
from typing import Final, NamedTuple

__all__ = ["main"]


class Entry(NamedTuple):
    """Where a sub-command lives, which extra it needs, and its line in the help."""

    target: str  # module:object
    extra: str
    help: str


COMMANDS: Final = {
    "keys": Entry("fleet.cli_keys:keys", "fleet", "Make, list and replace signing keys."),
    "build": Entry("compiler.cli:build", "compiler", "Build a bundle from a recipe."),
    "sign": Entry("compiler.cli_sign:sign", "compiler", "Sign a bundle as a publisher."),
    "verify": Entry("compiler.cli_release:verify", "compiler", "Check a bundle and its signature."),
    "gate": Entry(
        "compiler.cli_gate:gate", "compiler", "Compare a model with the version in service."
    ),
    "explain": Entry("compiler.cli_explain:explain", "compiler", "Show why a model answered so."),
    "diff": Entry("compiler.cli_diff:diff", "compiler", "Compare two bundles."),
    "inspect": Entry("compiler.cli_release:inspect", "compiler", "Show what is in a bundle."),
    "publish": Entry(
        "compiler.cli_release:publish", "compiler", "Hand a signed bundle to a fleet."
    ),
    "fleet": Entry("fleet.cli:fleet", "fleet", "Set up and run a fleet service."),
    "models": Entry("fleet.cli_operate:models", "fleet", "Show models and their versions."),
    "rollout": Entry(
        "fleet.cli_operate:rollout", "fleet", "Create, watch, pause and undo rollouts."
    ),
    "devices": Entry("fleet.cli_devices:devices", "fleet", "Enrol and show devices."),
    "drift": Entry("fleet.cli_operate:drift", "fleet", "Show what drifted, where, by how much."),
    "alerts": Entry("fleet.cli_operate:alerts", "fleet", "Show and acknowledge alerts."),
    "policy": Entry("fleet.cli_operate:policy", "fleet", "Show or set what devices record."),
    "demo": Entry("devices.cli:demo", "dev", "Tell the whole story on real digits."),
}

# A device's install is the base dependencies, and click is not among them.
NO_CLICK: Final = """\
Error: `skerry` needs click, which a device's install leaves out: pip install "skerry[fleet]"
(or "skerry[compiler]"). On a device the command is `skerry-agent`.
"""


def main() -> None:
    """Run one of the sub-commands."""
    try:
        import click
    except ModuleNotFoundError:
        sys.stderr.write(NO_CLICK)
        raise SystemExit(2) from None

    class Lazy(click.Group):
        """A group that imports a command when it is asked for."""

        def list_commands(self, ctx: click.Context) -> list[str]:
            return list(COMMANDS)

        def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
            entry = COMMANDS.get(cmd_name)
            if entry is None:
                return None
            module, _, name = entry.target.partition(":")
            try:
                command: click.Command = getattr(importlib.import_module(module), name)
            except ModuleNotFoundError as missing:
                raise click.UsageError(
                    f"`skerry {cmd_name}` needs {missing.name}, which is not installed: "
                    f'pip install "skerry[{entry.extra}]"'
                ) from None
            return command

        def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
            with formatter.section("Commands"):
                formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])

    group = Lazy(
        "skerry",
        help="Run machine-learning models on many small machines, and keep them honest.",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    click.version_option(package_name="skerry")(group)
    group(prog_name="skerry")


if __name__ == "__main__":
    main()
