"""The command `skerry fleet broker-config`: what the brokers are told, to read or to install."""

import dataclasses
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fleet.command import PATH, data_option, json_option, print_json

if TYPE_CHECKING:
    from fleet.config import FleetConfig

__all__ = ["broker_config"]

UNTOLD = "(a new one at each start)"


@click.command("broker-config")
@click.argument("kind", type=click.Choice(["nats", "mosquitto"]))
@data_option
@click.option("--out", type=PATH, help="Directory to write to, instead of printing.")
@json_option
def broker_config(kind: str, data: Path, out: Path | None, as_json: bool) -> None:
    """Print or write the configuration of a broker.

    nats is what the fleet starts its own broker with. mosquitto is for a broker of yours: with
    its certificate, its access rules and the list of what was revoked; write it again and send
    Mosquitto a SIGHUP whenever a device is rejected, decommissioned or shut out.
    """
    from fleet.config import load_config

    config = load_config(data)
    now = datetime.now(UTC)
    files = _nats(config) if kind == "nats" else _mosquitto(config, out, now)
    if out is None:
        if as_json:
            print_json({name: text.decode() for name, text in files.items()})
            return
        for name, text in files.items():
            if not name.endswith(".pem"):
                click.echo(f"# --- {name}")
                click.echo(text.decode())
        return
    from fleet.files import make_folder, write_atomic

    make_folder(out, mode=0o700)

    for name, text in files.items():
        write_atomic(out / name, text, mode=0o600)
    if as_json:
        print_json({"written": sorted(str(out / name) for name in files)})
        return
    click.echo(f"wrote {', '.join(sorted(files))} to {out}", err=True)


def _nats(config: "FleetConfig") -> dict[str, bytes]:
    from fleet.broker import broker_settings
    from fleet.broker_config import TlsFiles, render_nats, render_nats_users
    from fleet.callout import load_issuer

    asks = config.broker_auth == "callout"
    issuer = load_issuer(config.keys_dir).public if asks else ""
    folder = config.tls_dir
    tls = TlsFiles(folder / "server.crt", folder / "server.key", folder / "ca.pem")
    settings = dataclasses.replace(broker_settings(config, tls, issuer), password=UNTOLD)
    files = {"nats.conf": render_nats(settings).encode()}
    if not asks:
        accepted = [device for device, state, _ in _devices(config) if state == "accepted"]
        users = render_nats_users(config.fleet_id, config.shards, accepted)
        files["users.conf"] = users.encode()
    return files


def _mosquitto(config: "FleetConfig", out: Path | None, now: datetime) -> dict[str, bytes]:
    from fleet.broker_config import FLEET_USER, TlsFiles, render_mosquitto, render_mosquitto_acl
    from fleet.ca import Authority
    from fleet.certificates import serial_of
    from fleet.files import make_folder
    from fleet.keystore import load_online_keys
    from fleet.process import read_key_file
    from fleet.tls_files import make_client, make_server

    issuing = load_online_keys(config.keys_dir, os.environ).issuing
    authority = Authority(
        issuing, read_key_file(config, "issuing.crt"), read_key_file(config, "authority.crt")
    )
    folder = config.data / "mosquitto" if out is None else make_folder(out, mode=0o700)
    tls = TlsFiles(folder / "server.crt", folder / "server.key", folder / "ca.pem")
    if out is not None:
        make_server(config, authority, now, folder)
        make_client(folder, authority, FLEET_USER, now)
    refused = [(name, pems) for name, state, pems in _devices(config) if state != "accepted"]
    revoked = authority.revocation_list(
        [serial_of(pem) for _, pems in refused for pem in pems], now
    )
    acl, crl = folder / "mosquitto.acl", folder / "revoked.pem"
    text = render_mosquitto(config.host, config.broker_port or 8883, tls, acl=acl, revoked=crl)
    return {
        "mosquitto.conf": text.encode(),
        acl.name: render_mosquitto_acl(
            config.fleet_id, denied=[name for name, _ in refused]
        ).encode(),
        crl.name: revoked,
    }


def _devices(config: "FleetConfig") -> list[tuple[str, str, list[str]]]:
    """Return id, state and certificates of every device: the current one, and one before it."""
    from sqlalchemy import select

    from fleet.schema import devices
    from fleet.store import open_store

    of = devices.c
    query = select(of.device, of.state, of.certificate, of.previous_certificate)
    store = open_store(config.db_url)
    try:
        with store.database.read() as connection:
            rows = connection.execute(query.order_by(of.device)).all()
    finally:
        store.close()
    return [
        (row.device, row.state, [pem for pem in (row.certificate, row.previous_certificate) if pem])
        for row in rows
    ]
