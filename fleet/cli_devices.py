"""What operators ask of a running fleet about its devices: enrol, show, move, command."""

import time
from pathlib import Path
from typing import Any, Final

import click

from fleet.client import quoted
from fleet.command import (
    Group,
    client,
    plain,
    print_json,
    print_table,
    remote,
    show_list,
    when,
)
from skerry.errors import RefusedError, UnreachableError, UsageError

__all__ = ["devices"]

EVERY_S: Final = 0.25


@click.group(cls=Group)
def devices() -> None:
    """Enrol and show devices."""


@devices.command("list")
@remote
def devices_list(url: str, token_file: Path | None, as_json: bool) -> None:
    """List the devices."""
    items = client(url, token_file).get("/devices")["items"]
    show_list(
        items,
        as_json,
        ("device", "state", "tags", "runs", "seen", "outbox", "why"),
        lambda d: (
            d["device_id"], _presence(d),
            ", ".join(f"{k}={v}" for k, v in d["tags"].items()),
            ", ".join(f"{s['model']} {s['model_version']} ({s['variant']})"
                      for s in d["slots"].values()),
            when(d["last_seen"]), str(d["outbox_records"]), d["state_reason"],
        ),
    )  # fmt: skip


@devices.command("show")
@click.argument("device_id")
@remote
def devices_show(device_id: str, url: str, token_file: Path | None, as_json: bool) -> None:
    """Show one device."""
    found = client(url, token_file).get(f"/devices/{quoted(device_id)}")
    if as_json:
        print_json(found)
        return
    print_table(("", ""), [(name, plain(value, name)) for name, value in found.items()])


@devices.command("preauthorize")
@click.argument("device_id")
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="A tag; may be repeated.")
@click.option("--again", is_flag=True, help="Also if the device has enrolled before.")
@remote
def devices_preauthorize(
    device_id: str,
    tags: tuple[str, ...],
    again: bool,
    url: str,
    token_file: Path | None,
    as_json: bool,
) -> None:
    """Allow a new device to enrol, and print its one-time token."""
    pairs = dict(_pair(tag) for tag in tags)
    body = {"device_id": device_id, "tags": pairs, "again": again}
    made = client(url, token_file).post("/devices/preauthorize", body)
    if as_json:
        print_json(made)
        return
    click.echo(made["token"])
    click.echo("shown once, good for 24 hours and this device only; on the device:", err=True)
    click.echo("  skerry-agent enroll --state DIR --token TOKEN", err=True)


def _move(name: str, state: str, words: str) -> None:
    @devices.command(name, help=words)
    @click.argument("device_id")
    @remote
    def act(device_id: str, url: str, token_file: Path | None, as_json: bool) -> None:
        done = client(url, token_file).post(f"/devices/{quoted(device_id)}/{state}")
        print_json(done) if as_json else click.echo(done["state"])


_move("accept", "accepted", "Take in a device that waits, or that was rejected.")
_move("reject", "rejected", "Shut out a device: the fleet takes nothing from it.")
_move("decommission", "decommissioned", "Retire a device for good.")


@devices.command("command")
@click.argument("device_id")
@click.argument("verb")
@click.argument("arguments", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--wait", default=30.0, show_default=True, metavar="S", help="For the answer; 0: none."
)
@remote
def devices_command(
    device_id: str,
    verb: str,
    arguments: tuple[str, ...],
    wait: float,
    url: str,
    token_file: Path | None,
    as_json: bool,
) -> None:
    """Ask a device: ping, report, inventory, logs, config or rollback.

    A command is signed, runs at most once, and expires after five minutes. What may be asked and set
    is a short list that the device keeps.
    """
    fleet = client(url, token_file)
    path = f"/devices/{quoted(device_id)}/commands"
    asked = fleet.post(path, {"verb": verb, "args": dict(_pair(pair) for pair in arguments)})
    until = time.monotonic() + wait
    while (found := fleet.get(f"{path}/{quoted(asked['command_id'])}"))["ok"] is None:
        if time.monotonic() >= until:
            if as_json:
                print_json(found)
            raise UnreachableError(
                f"expected an answer of {device_id} within {wait:g} s, got none; "
                f"{asked['command_id']} runs if it connects in time"
            )
        time.sleep(EVERY_S)
    if as_json:
        print_json(found)
    elif found["ok"]:
        click.echo(found["output"])
    if not found["ok"]:
        raise RefusedError(f"{device_id}: {found['output']}")


def _presence(device: Any) -> str:
    silent = device["state"] == "accepted" and not device["connected"]
    words = [device["state"], "silent" if silent else "", device["trust"]]
    return ", ".join(word for word in words if word)


def _pair(tag: str) -> tuple[str, str]:
    name, found, value = tag.partition("=")
    if not found:
        raise UsageError(f"expected key=value, got {tag!r}")
    return name, value
