"""The commands `skerry keys authority`: another certificate authority takes the present one's place."""

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fleet.command import PATH, Group, data_option, json_option, print_json, print_table
from skerry.io.signers import PASSPHRASE_HELP, new_passphrase_from, passphrase_from

if TYPE_CHECKING:
    from fleet.authority import Trusted

__all__ = ["authority"]

RESTART = "next: restart the fleet"


@click.group("authority", cls=Group)
def authority() -> None:
    """Replace the certificate authority: new, trust, certify, install, distrust."""


@authority.command("list")
@data_option
@json_option
def authority_list(data: Path, as_json: bool) -> None:
    """List the root authorities that the fleet trusts."""
    from fleet.authority import trusted

    _show(trusted(data), as_json)


@authority.command("new")
@data_option
@click.option("--out", type=PATH, required=True, help="New directory for its key and certificate.")
@json_option
def authority_new(data: Path, out: Path, as_json: bool) -> None:
    """Make another root authority, offline; DATA may be a copy of keys/public.json."""
    from fleet.authority import make

    phrase = new_passphrase_from(os.environ, _ask_twice if sys.stdin.isatty() else None)
    fingerprint = make(data, out, passphrase=phrase, now=datetime.now(UTC))
    if as_json:
        print_json({"fingerprint": fingerprint, "files": [str(path) for path in out.iterdir()]})
        return
    click.echo(fingerprint)
    click.echo(
        f"next: carry {out / 'authority.crt'} to the fleet, compare the fingerprint, and there: "
        "skerry keys authority trust authority.crt --data DATA",
        err=True,
    )


@authority.command("trust")
@click.argument("certificate", type=PATH)
@data_option
@json_option
def authority_trust(certificate: Path, data: Path, as_json: bool) -> None:
    """Trust the authority of CERTIFICATE besides the present one."""
    from fleet.authority import trust

    _show(trust(data, certificate), as_json)
    if not as_json:
        click.echo(
            f"{RESTART}, and give devices a month to renew; then, offline: "
            "skerry keys authority certify",
            err=True,
        )


@authority.command("certify")
@data_option
@click.option("--key", type=PATH, required=True, help="The authority's private key, a PEM.")
@click.option("--certificate", type=PATH, required=True, help="The authority's certificate.")
@click.option("--out", type=PATH, required=True, help="File for the issuing certificate.")
@click.option("--passphrase-file", type=PATH, help=PASSPHRASE_HELP)
@json_option
def authority_certify(
    data: Path,
    key: Path,
    certificate: Path,
    out: Path,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Sign the fleet's issuing authority, offline.

    DATA may be a copy of keys/public.json, and of keys/next/public.json where
    `skerry keys renew issuing` has made a new issuing key: then that one is signed.
    """
    from fleet.authority import certify

    phrase = passphrase_from(passphrase_file, os.environ, _ask if sys.stdin.isatty() else None)
    key_id = certify(data, key, certificate, out, passphrase=phrase, now=datetime.now(UTC))
    if as_json:
        print_json({"issuing": key_id, "file": str(out)})
        return
    click.echo(f"signed issuing key {key_id}", err=True)
    click.echo(f"next: skerry keys authority install {out} --data DATA, on the fleet", err=True)


@authority.command("install")
@click.argument("issuing", type=PATH)
@data_option
@json_option
def authority_install(issuing: Path, data: Path, as_json: bool) -> None:
    """Issue with the certificate ISSUING from the fleet's next start on."""
    from fleet.authority import install

    _show(install(data, issuing), as_json)
    if not as_json:
        click.echo(
            f"{RESTART}; tokens made before that name the former authority: make them anew",
            err=True,
        )


@authority.command("distrust")
@click.argument("fingerprint")
@data_option
@json_option
def authority_distrust(fingerprint: str, data: Path, as_json: bool) -> None:
    """Trust the authority of FINGERPRINT no more."""
    from fleet.authority import distrust

    _show(distrust(data, fingerprint), as_json)
    if not as_json:
        click.echo(
            f"{RESTART}; a device whose certificate is older than the change enrols again", err=True
        )


def _show(every: "list[Trusted]", as_json: bool) -> None:
    if as_json:
        print_json(
            [
                {
                    "fingerprint": one.fingerprint, "expires": one.expires.timestamp(),
                    "issues": one.issues,
                }
                for one in every
            ]
        )  # fmt: skip
        return
    rows = [(o.fingerprint, f"{o.expires:%Y-%m-%d}", "yes" if o.issues else "") for o in every]
    print_table(("authority", "good until", "issues"), rows)


def _ask(what: str) -> str:
    return str(click.prompt(f"Passphrase of {what}", hide_input=True, err=True))


def _ask_twice(what: str) -> str:
    return str(
        click.prompt(f"Passphrase for {what}", hide_input=True, confirmation_prompt=True, err=True)
    )
