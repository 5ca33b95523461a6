"""The commands `skerry fleet`: on the machine that holds the fleet's data.

What operators do with a running fleet is in `fleet.cli_operate`, what is done with keys in
`fleet.cli_keys`.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from fleet.cli_broker import broker_config
from fleet.command import (
    Group,
    data_option,
    json_option,
    print_json,
)

if TYPE_CHECKING:
    from fleet.service import RunInfo

__all__ = ["fleet"]


@click.group(cls=Group)
def fleet() -> None:
    """Set up and run a fleet service."""


@fleet.command("init")
@data_option
@click.option("--fleet-id", default="main", show_default=True, help="The fleet's name on the wire.")
@json_option
def fleet_init(data: Path, fleet_id: str, as_json: bool) -> None:
    """Make a new fleet.

    Its settings, its online keys, the operators' token and an empty database.
    """
    from fleet.setup import init_fleet

    config = init_fleet(data, fleet_id, now=datetime.now(UTC))
    if as_json:
        print_json({"data": str(config.data), "fleet_id": config.fleet_id})
        return
    click.echo(f"made fleet {config.fleet_id} in {config.data}", err=True)
    click.echo(
        f"next: skerry keys ceremony --data {data} --out KEYS --publisher NAME, "
        f"then skerry fleet run --data {data}",
        err=True,
    )


@fleet.command("run")
@data_option
@click.option("--host", help="Address to listen on.")
@click.option("--port", type=int, help="Port for operators; 0 picks a free one.")
@click.option("--device-port", type=int, help="Port for devices; 0 picks a free one.")
@click.option("--broker-port", type=int, help="MQTT port of the embedded broker; 0 as above.")
@json_option
def fleet_run(
    data: Path,
    host: str | None,
    port: int | None,
    device_port: int | None,
    broker_port: int | None,
    as_json: bool,
) -> None:
    """Run the fleet until Ctrl-C or SIGTERM.

    Where it is found is printed once it answers, and kept in DATA/run.json meanwhile.
    """
    from fleet.config import load_config
    from fleet.service import run

    config = load_config(
        data, host=host, port=port, device_port=device_port, broker_port=broker_port
    )

    def announce(info: "RunInfo") -> None:
        if as_json:
            print_json(msgspec.to_builtins(info))
            return
        click.echo(f"fleet {info.fleet_id} is ready; Ctrl-C stops it", err=True)
        click.echo(f"  console  {info.console_url}", err=True)
        click.echo(f"  devices  {info.device_url} and {info.broker_url}", err=True)
        click.echo(f"  token    in {config.admin_token_file}", err=True)

    run(config, announce)


fleet.add_command(broker_config)
