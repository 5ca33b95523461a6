"""The command `skerry keys public`: the half of a key that may be shown, wherever the key is."""

import os
import sys
from pathlib import Path

import click

from fleet.command import PATH, Command, json_option, print_json
from fleet.files import write_atomic
from skerry.errors import ConflictError, UsageError
from skerry.io.signers import (
    KEY_HELP,
    PASSPHRASE_HELP,
    key_id_of,
    passphrase_from,
    public_pem,
    read_key,
)

__all__ = ["public"]


@click.command("public", cls=Command)
@click.option("--key", metavar="KEY", required=True, help=f"{KEY_HELP} Or a .pub file.")
@click.option("--passphrase-file", type=PATH, help=PASSPHRASE_HELP)
@click.option("--out", type=PATH, help="File for the public key, instead of printing it.")
@json_option
def public(key: str, passphrase_file: Path | None, out: Path | None, as_json: bool) -> None:
    """Show the public half of a key, and the id by which people compare it.

    A key on a token or in a key service is made there. The ceremony, and everybody who verifies,
    needs its public half in a file.
    """
    ask = _ask if sys.stdin.isatty() else None
    found = read_key(key, passphrase_from(passphrase_file, os.environ, ask))
    pem, key_id = public_pem(found), key_id_of(found)
    if out is not None:
        _write(out, pem)
    if as_json:
        facts = {"key_id": key_id, "scheme": found.scheme, "tuf_key_id": found.keyid}
        print_json(facts | {"pem": pem.decode()})
        return
    click.echo(f"key {key_id}, {found.scheme}", err=True)
    click.echo(str(out) if out is not None else pem.decode(), nl=out is not None)


def _write(path: Path, pem: bytes) -> None:
    """Write a new file; the name of the private key, given by mistake, must not cost the key."""
    try:
        if path.exists() and path.read_bytes() != pem:
            raise ConflictError(f"expected a new file for the public key; {path} holds another one")
        write_atomic(path, pem)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None


def _ask(what: str) -> str:
    return str(click.prompt(f"Passphrase or PIN of {what}", hide_input=True, err=True))
