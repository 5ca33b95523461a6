"""The operators' commands: fleet, keys, models, rollout, devices, drift, alerts, policy.

Data goes to stdout and everything for people to stderr. An error is one message on
stderr and the exit code of its class. All but `fleet` and `keys` speak to a running
fleet over its API.
"""

import json
import os
import sys
import tomllib
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fleet.client import FleetClient, read_token
from skerry.errors import NotFoundError, SkerryError, UsageError

__all__ = ["alerts", "devices", "drift", "fleet", "keys", "models", "policy", "rollout"]

PATH: Final = click.Path(path_type=Path)
Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class _Command(click.Command):
    """A command whose `SkerryError` becomes one message and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SkerryError as error:
            click.echo(f"{ctx.command_path}: {error}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            ctx.exit(130)


class _Group(click.Group):
    command_class = _Command


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
data_option = click.option(
    "--data", type=PATH, required=True, help="The fleet's data directory."
)  # fmt: skip


def _remote(command: Decorated) -> Decorated:
    """Add the options of a command that speaks to a running fleet."""
    for option in (
        json_option,
        click.option("--token-file", type=PATH, help="The operator's token (or $SKERRY_TOKEN)."),
        click.option(
            "--fleet",
            "url",
            envvar="SKERRY_FLEET",
            default="http://127.0.0.1:8440",
            show_default=True,
            help="The fleet's address (or $SKERRY_FLEET).",
        ),
    ):
        command = option(command)
    return command


# --- fleet and keys -------------------------------------------------------------------


@click.group(cls=_Group)
def fleet() -> None:
    """Set up and run a fleet service."""


@fleet.command("init")
@data_option
@click.option("--fleet-id", default="main", show_default=True, help="The fleet's name on the wire.")
@json_option
def fleet_init(data: Path, fleet_id: str, as_json: bool) -> None:
    """Make a new fleet: its settings, online keys, certificate authority and database."""
    from fleet.setup import init_fleet

    config = init_fleet(data, fleet_id, now=datetime.now(UTC))
    if as_json:
        click.echo(json.dumps({"data": str(config.data), "fleet_id": config.fleet_id}))
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
def fleet_run(
    data: Path,
    host: str | None,
    port: int | None,
    device_port: int | None,
    broker_port: int | None,
) -> None:
    """Run the fleet service until it is told to stop."""
    from fleet.config import load_config
    from fleet.service import run

    run(
        load_config(
            data, host=host, port=port, device_port=device_port, broker_port=broker_port
        )
    )  # fmt: skip


@click.group(cls=_Group)
def keys() -> None:
    """Make and list signing keys."""


@keys.command("ceremony")
@data_option
@click.option("--out", type=PATH, required=True, help="Directory for the offline keys.")
@click.option("--publisher", "publishers", multiple=True, required=True, help="A publisher's name.")
@json_option
def keys_ceremony(data: Path, out: Path, publishers: tuple[str, ...], as_json: bool) -> None:
    """Make the offline root keys and publishers' keys, and sign the fleet's roots with them."""
    from fleet.ceremony import perform

    performed = perform(data, out, publishers, passphrase=_passphrase, now=datetime.now(UTC))
    if as_json:
        click.echo(json.dumps(performed.facts()))
        return
    click.echo(performed.checklist(), err=True)


@keys.command("list")
@data_option
@json_option
def keys_list(data: Path, as_json: bool) -> None:
    """List the fleet's own keys by their ids, to compare with what the ceremony printed."""
    from fleet.keystore import read_public

    public = read_public(data / "keys" / "public.json")
    ids = public.key_ids()
    if as_json:
        click.echo(json.dumps({"fleet_id": public.fleet_id, "online": ids}))
        return
    _print_table(("key", "id"), [(f"online {role}", key_id) for role, key_id in ids.items()])


def _passphrase(name: str) -> bytes:
    """Return the passphrase for a new key: from the environment, or asked for twice."""
    if given := os.environ.get("SKERRY_KEY_PASSPHRASE"):
        return given.encode()
    if not sys.stdin.isatty():
        raise UsageError("expected passphrases from a terminal, or one in SKERRY_KEY_PASSPHRASE")
    asked = click.prompt(
        f"Passphrase for {name}", hide_input=True, confirmation_prompt=True, err=True
    )
    return str(asked).encode()


# --- models and rollouts ------------------------------------------------------------------


@click.group(cls=_Group)
def models() -> None:
    """Show models and their versions."""


@models.command("list")
@_remote
def models_list(url: str, token_file: Path | None, as_json: bool) -> None:
    """List the published versions of every model."""
    items = _client(url, token_file).get("/models")["items"]
    _show(
        items,
        as_json,
        ("model", "version", "release", "variants", "bundle", "published"),
        lambda r: (
            r["model"], r["model_version"], str(r["release_counter"]),
            ", ".join(v["id"] for v in r["variants"]), r["bundle"][:19], _when(r["published_at"]),
        ),
    )  # fmt: skip


@click.group(cls=_Group)
def rollout() -> None:
    """Create, watch, pause and undo rollouts."""


@rollout.command("create")
@click.argument("plan", type=PATH)
@_remote
def rollout_create(plan: Path, url: str, token_file: Path | None, as_json: bool) -> None:
    """Start a rollout from PLAN, a TOML file.

    \b
    model = "reader"
    model_version = "1.1.0"
    publisher = "acme"
    slot = "reader"
    selector = "site=harbour"
    [[stages]]
    name = "canary"
    count = 3
    bake_s = 600
    [stages.analysis]
    [[stages]]
    name = "rest"
    """  # noqa: D301 - \b is click's mark for lines that it must not fill
    try:
        body = tomllib.loads(plan.read_text())
    except FileNotFoundError:
        raise NotFoundError(f"expected a plan at {plan}, and there is no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"expected TOML in {plan}: {error}") from None
    made = _client(url, token_file).post("/rollouts", body)
    click.echo(json.dumps(made) if as_json else made["rollout_id"])


@rollout.command("list")
@_remote
def rollout_list(url: str, token_file: Path | None, as_json: bool) -> None:
    """List the rollouts, newest first."""
    items = _client(url, token_file).get("/rollouts")["items"]
    _show(
        items,
        as_json,
        ("rollout", "model", "version", "state", "since", "reason"),
        lambda r: (
            r["rollout_id"], r["model"], r["model_version"], _state(r), _when(r["updated_at"]),
            r["reason"],
        ),
    )  # fmt: skip


@rollout.command("show")
@click.argument("rollout_id")
@_remote
def rollout_show(rollout_id: str, url: str, token_file: Path | None, as_json: bool) -> None:
    """Show a rollout with its stages and devices."""
    found = _client(url, token_file).get(f"/rollouts/{rollout_id}")
    if as_json:
        click.echo(json.dumps(found))
        return
    console = Console(stderr=True, highlight=False)
    console.print(
        f"[bold]{found['model']} {found['model_version']}[/bold]: "
        f"{escape(_state(found))}. {escape(found['reason'])}"
    )
    for stage in found["stages"]:
        counts = ", ".join(f"{count} {state}" for state, count in stage["counts"].items())
        console.print(escape(f"stage {stage['name']}: {stage['state']} ({counts or 'no device'})"))
        if stage["reason"]:
            console.print(f"  {escape(stage['reason'])}")
    _print_table(
        ("device", "stage", "state", "variant", "what happened"),
        [
            (a["device"], a["stage"], a["state"], a["variant"] or "", a["message"] or "")
            for a in found["assignments"]
        ],
    )


def _verb(name: str, words: str) -> None:
    @rollout.command(name, help=words)
    @click.argument("rollout_id")
    @_remote
    def act(rollout_id: str, url: str, token_file: Path | None, as_json: bool) -> None:
        done = _client(url, token_file).post(f"/rollouts/{rollout_id}/{name}")
        click.echo(json.dumps(done) if as_json else done["state"])


_verb("pause", "Hold a rollout; devices under way go on.")
_verb("resume", "Go on with a paused rollout.")
_verb("abort", "End a rollout; what is committed stays.")
_verb("rollback", "Take every device of a rollout back to what it ran before.")


# --- devices, drift, alerts, policy ------------------------------------------------------------


@click.group(cls=_Group)
def devices() -> None:
    """Enrol and show devices."""


@devices.command("list")
@_remote
def devices_list(url: str, token_file: Path | None, as_json: bool) -> None:
    """List the devices."""
    items = _client(url, token_file).get("/devices")["items"]
    _show(
        items,
        as_json,
        ("device", "state", "tags", "runs", "seen", "outbox"),
        lambda d: (
            d["device_id"], d["state"] if d["connected"] else f"{d['state']}, silent",
            ", ".join(f"{k}={v}" for k, v in d["tags"].items()),
            ", ".join(f"{s['model']} {s['model_version']} ({s['variant']})"
                      for s in d["slots"].values()),
            _when(d["last_seen"]), str(d["outbox_records"]),
        ),
    )  # fmt: skip


@devices.command("show")
@click.argument("device_id")
@_remote
def devices_show(device_id: str, url: str, token_file: Path | None, as_json: bool) -> None:
    """Show one device."""
    found = _client(url, token_file).get(f"/devices/{device_id}")
    if as_json:
        click.echo(json.dumps(found))
        return
    _print_table(("", ""), [(name, _plain(value)) for name, value in found.items()])


@devices.command("preauthorize")
@click.argument("device_id")
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="A tag; may be repeated.")
@_remote
def devices_preauthorize(
    device_id: str, tags: tuple[str, ...], url: str, token_file: Path | None, as_json: bool
) -> None:
    """Allow a new device to enrol, and print its one-time token."""
    pairs = dict(_pair(tag) for tag in tags)
    body = {"device_id": device_id, "tags": pairs}
    made = _client(url, token_file).post("/devices/preauthorize", body)
    if not as_json:
        click.echo("shown once, good for 24 hours and this device only; on the device:", err=True)
        click.echo("  skerry-agent enroll --state DIR --token TOKEN", err=True)
    click.echo(json.dumps(made) if as_json else made["token"])


@click.group(cls=_Group)
def drift() -> None:
    """Show what drifted, where, by how much."""


@drift.command("show")
@click.argument("model")
@_remote
def drift_show(model: str, url: str, token_file: Path | None, as_json: bool) -> None:
    """Show the latest look at a model's devices."""
    report = _client(url, token_file).get("/drift", model=model)
    if as_json:
        click.echo(json.dumps(report))
        return
    for group in report["groups"]:
        moved = ", ".join(f"{name} {effect:+.1f} sd" for name, effect in group["features"].items())
        click.echo(f"the whole {group['level']} {group['name']}: {moved}", err=True)
    _print_table(
        ("device", "site", "verdict", "in words"),
        [(d["device"], d["site"], d["verdict"], d["words"]) for d in report["devices"]],
    )


@click.group(cls=_Group)
def alerts() -> None:
    """Show and acknowledge alerts."""


@alerts.command("list")
@_remote
def alerts_list(url: str, token_file: Path | None, as_json: bool) -> None:
    """List the alerts, newest first."""
    items = _client(url, token_file).get("/alerts")["items"]
    _show(
        items,
        as_json,
        ("alert", "kind", "state", "raised", "message"),
        lambda a: (a["alert_id"], a["kind"], a["state"], _when(a["raised_at"]), a["message"]),
    )


@alerts.command("acknowledge")
@click.argument("alert_id")
@_remote
def alerts_acknowledge(alert_id: str, url: str, token_file: Path | None, as_json: bool) -> None:
    """Say that somebody is looking at an alert."""
    done = _client(url, token_file).post(f"/alerts/{alert_id}/acknowledge")
    click.echo(json.dumps(done) if as_json else done["state"])


@click.group(cls=_Group)
def policy() -> None:
    """Show or set what devices record."""


@policy.command("show")
@_remote
def policy_show(url: str, token_file: Path | None, as_json: bool) -> None:
    """Show the policy that holds for every device."""
    found = _client(url, token_file).get("/policy")
    if as_json:
        click.echo(json.dumps(found))
        return
    _print_table(("", ""), [(name, _plain(value)) for name, value in found.items()])


@policy.command("set")
@click.option("--window-s", type=float, help="Length of a sketch window in seconds.")
@click.option("--records", type=click.Choice(["none", "sampled", "all"]), help="What leaves.")
@click.option("--sample-rate", type=float, help="Share of predictions sent, with `sampled`.")
@_remote
def policy_set(
    window_s: float | None,
    records: str | None,
    sample_rate: float | None,
    url: str,
    token_file: Path | None,
    as_json: bool,
) -> None:
    """Change the policy; what is not given stays."""
    client = _client(url, token_file)
    given = {"window_s": window_s, "records": records, "sample_rate": sample_rate}
    changed = {name: value for name, value in given.items() if value is not None}
    if not changed:
        raise UsageError("expected something to set: --window-s, --records or --sample-rate")
    done = client.put("/policy", changed)
    click.echo(json.dumps(done) if as_json else f"version {done['version']}")


# --- showing ---------------------------------------------------------------------------------------


def _client(url: str, token_file: Path | None) -> FleetClient:
    return FleetClient(url, read_token(token_file))


def _show(
    items: Sequence[Any],
    as_json: bool,
    head: Sequence[str],
    cells: Callable[[Any], Sequence[str]],
) -> None:
    if as_json:
        click.echo(json.dumps(items))
        return
    _print_table(head, [cells(item) for item in items])


def _print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Table(*head, show_header=any(head))
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    Console(highlight=False).print(table)


def _state(found: Any) -> str:
    reason = found["pause_reason"]
    return f"{found['state']} ({reason})" if reason else str(found["state"])


def _when(seconds: float | None) -> str:
    if seconds is None:
        return "never"
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _pair(tag: str) -> tuple[str, str]:
    name, found, value = tag.partition("=")
    if not found:
        raise UsageError(f"expected a tag as key=value, got {tag!r}")
    return name, value
