"""The commands `skerry keys`: the ceremony, and how a key gives way to another.

None of them speaks with a running fleet: what they need is in files, which people carry.
"""

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from fleet.cli_authority import authority
from fleet.cli_public import public
from fleet.command import (
    PATH,
    Group,
    data_option,
    json_option,
    print_json,
    print_lines,
    print_table,
)
from skerry.errors import UsageError
from skerry.io.signers import (
    KEY_HELP,
    PASSPHRASE_HELP,
    Passphrase,
    new_passphrase_from,
    passphrase_from,
    read_key,
)

__all__ = ["keys"]

CHANGE = click.argument("change", type=PATH)


@click.group(cls=Group)
def keys() -> None:
    """Make, list and replace signing keys."""


keys.add_command(public)
keys.add_command(authority)


@keys.command("ceremony")
@data_option
@click.option("--out", type=PATH, required=True, help="Directory for the offline keys.")
@click.option(
    "--publisher", "publishers", multiple=True, required=True, metavar="NAME[:n-of-m]",
    help="A publisher; with n-of-m it has m keys, of which n sign each release.",
)  # fmt: skip
@json_option
def keys_ceremony(data: Path, out: Path, publishers: tuple[str, ...], as_json: bool) -> None:
    """Make the offline keys, and sign the fleet's roots.

    Three root keys, those of each publisher and one of the certificate authority. Asks for
    a passphrase for every key, unless SKERRY_KEY_PASSPHRASE gives one for all.
    """
    from fleet.ceremony import perform

    performed = perform(data, out, publishers, passphrase=_new_phrase, now=datetime.now(UTC))
    if as_json:
        print_json(performed.facts())
        return
    print_lines(performed.checklist())


@keys.command("list")
@data_option
@json_option
def keys_list(data: Path, as_json: bool) -> None:
    """List the fleet's keys: what each signs, and until when."""
    from fleet.key_list import list_keys

    fleet_id, rows = list_keys(data)
    if as_json:
        print_json({"fleet_id": fleet_id, "keys": [row.facts() for row in rows]})
        return
    print_table(
        ("key", "id", "signs", "of these", "good until"),
        [(row.name, row.key_id, row.signs, row.threshold, row.until) for row in rows],
    )


@keys.command("renew")
@click.argument("roles", nargs=-1, required=True, metavar="ROLE...")
@data_option
@json_option
def keys_renew(roles: tuple[str, ...], data: Path, as_json: bool) -> None:
    """Make new online keys on the fleet's machine, which a change will bring into use.

    ROLE is snapshot, timestamp, director, message or issuing. Nothing signs with them until
    `skerry keys rotate` has named them (`skerry keys authority` for issuing).
    """
    from fleet.keystore import make_next_keys

    waiting = make_next_keys(data / "keys", roles, os.environ)
    if as_json:
        print_json({"fleet_id": waiting.fleet_id, "waiting": waiting.key_ids()})
        return
    print_table(("waits", "id"), sorted(waiting.key_ids().items()))
    click.echo(
        f"next: copy {data / 'tuf'}, {data / 'keys' / 'public.json'} and "
        f"{data / 'keys' / 'next' / 'public.json'} to where keys are changed, and there: "
        "skerry keys rotate begin --data COPY --out CHANGE",
        err=True,
    )


@keys.group("rotate", cls=Group)
def rotate() -> None:
    """Replace keys, and sign again before it expires: begin, approve, install."""


@rotate.command("begin")
@data_option
@click.option("--out", type=PATH, required=True, help="New directory for the change and new keys.")
@click.option(
    "--replace", multiple=True, metavar="NAME[=KEY]",
    help="A key to give way, such as root-2: to KEY (a .pub file, or as for approve), or to one "
    "that is made here.",
)  # fmt: skip
@click.option(
    "--publisher", "publishers", multiple=True, metavar="NAME[:n-of-m]",
    help="A new publisher, or one that gets wholly new keys.",
)  # fmt: skip
@click.option(
    "--remove-publisher", "without", multiple=True, metavar="NAME",
    help="A publisher that may release no more.",
)  # fmt: skip
@json_option
def rotate_begin(
    data: Path,
    out: Path,
    replace: tuple[str, ...],
    publishers: tuple[str, ...],
    without: tuple[str, ...],
    as_json: bool,
) -> None:
    """Begin a change of keys; with no option, sign everything again for a year.

    DATA is the fleet's data directory or a copy of its tuf/ and keys/public.json. Online keys
    that `skerry keys renew` made are part of every change.
    """
    from fleet.offline import parse_publisher
    from fleet.rotation import Wanted, begin

    names = [text.partition("=")[::2] for text in replace]
    wanted = Wanted(
        {name: read_key(key, _opener(None)) if key else None for name, key in names},
        [parse_publisher(text) for text in publishers],
        without,
    )
    begun = begin(data, out, wanted, passphrase=_new_phrase, now=datetime.now(UTC))
    files = [str(path) for path in begun.secret_files]
    if as_json:
        print_json(_facts(begun.change) | {"change": str(begun.file), "secret_files": files})
        return
    _show(begun.change)
    for path in files:
        click.echo(f"new key, for its owner: {path}", err=True)
    click.echo(
        "next: their holders look at it and sign, one after another: "
        f"skerry keys rotate approve {begun.file} --key KEY",
        err=True,
    )


@rotate.command("show")
@CHANGE
@json_option
def rotate_show(change: Path, as_json: bool) -> None:
    """Show what CHANGE does, and who has signed it."""
    from fleet.rotation import load_change

    loaded = load_change(change)
    if as_json:
        print_json(_facts(loaded))
        return
    _show(loaded)


@rotate.command("approve")
@CHANGE
@click.option("--key", required=True, metavar="KEY", help=KEY_HELP)
@click.option("--passphrase-file", type=PATH, help=PASSPHRASE_HELP)
@click.option("--yes", is_flag=True, help="Do not ask whether to sign.")
@json_option
def rotate_approve(
    change: Path, key: str, passphrase_file: Path | None, yes: bool, as_json: bool
) -> None:
    """Look at CHANGE and sign it with one key; the file holds all signatures so far."""
    from fleet.change import owed
    from fleet.rotation import approve_file, load_change

    looked_at = load_change(change)
    if not as_json:
        _show(looked_at)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("expected somebody to say yes at a terminal; or add --yes")
        click.confirm("Sign this change?", abort=True, err=True)
    opener = _opener(passphrase_file)
    signed = approve_file(change, key, opener, datetime.now(UTC), shown=looked_at)
    if as_json:
        print_json(_facts(signed))
        return
    for quorum in owed(signed):
        click.echo(str(quorum), err=True)
    whom = ", ".join(_holders(signed))
    click.echo(
        f"next: hand {change} to one of {whom}, who approves it" if whom else
        f"next: skerry keys rotate install {change} --data DATA, on the fleet's machine", err=True,
    )  # fmt: skip


@rotate.command("install")
@CHANGE
@data_option
@json_option
def rotate_install(change: Path, data: Path, as_json: bool) -> None:
    """Hand CHANGE to the fleet, once enough people have approved it."""
    from fleet.rotation import install

    installed = install(change, data, datetime.now(UTC))
    if as_json:
        print_json(_facts(installed))
        return
    _show(installed)
    click.echo(
        "installed; a running fleet takes it up within a minute, another at its next start",
        err=True,
    )


def _facts(change: Any) -> dict[str, Any]:
    from fleet.change import owed
    from fleet.change_words import describe

    return {
        "fleet_id": change.fleet_id,
        "changes": describe(change),
        "signatures": [
            {
                "documents": list(quorum.documents), "group": quorum.group,
                "threshold": quorum.threshold, "signed": list(quorum.signed),
                "missing": list(quorum.missing),
            }
            for quorum in owed(change)
        ],
    }  # fmt: skip


def _show(change: Any) -> None:
    from fleet.change import owed
    from fleet.change_words import describe

    print_lines("\n".join(describe(change)))
    for quorum in owed(change):
        click.echo(f"{quorum}; not yet: {', '.join(quorum.missing) or 'nobody'}", err=True)


def _holders(change: Any) -> list[str]:
    """Return whose keys still count for something that lacks signatures."""
    from fleet.change import owed

    return sorted({name for quorum in owed(change) if quorum.lacks for name in quorum.missing})


def _new_phrase(name: str) -> bytes:
    """Return the passphrase for a new key: from the environment, or asked for twice."""

    def ask(what: str) -> str:
        question = f"Passphrase for {what}"
        return str(click.prompt(question, hide_input=True, confirmation_prompt=True, err=True))

    return new_passphrase_from(os.environ, ask if sys.stdin.isatty() else None)(name)


def _opener(file: Path | None) -> Passphrase:
    """Return what asks for the passphrase or PIN of a key that is there."""

    def ask(what: str) -> str:
        return str(click.prompt(f"Passphrase or PIN of {what}", hide_input=True, err=True))

    return passphrase_from(file, os.environ, ask if sys.stdin.isatty() else None)
