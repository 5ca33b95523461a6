"""What operators ask of a running fleet: models, rollout, drift, alerts, policy (`fleet.cli_devices`: devices)."""

import time
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click

from fleet.cli_devices import devices
from fleet.client import quoted
from fleet.command import (
    PATH,
    Group,
    client,
    plain,
    print_json,
    print_lines,
    print_table,
    remote,
    show_list,
    when,
)
from skerry.errors import NotFoundError, SkerryError, UsageError
from skerry.states import ROLLOUT_ENDS, RolloutState
from skerry.toml import MAX_TOML_BYTES, from_toml

__all__ = ["alerts", "devices", "drift", "models", "policy", "rollout"]

WATCH_EVERY_S: Final = 1.0


# --- models ------------------------------------------------------------------------------


@click.group(cls=Group)
def models() -> None:
    """Show models and their versions."""


@models.command("list")
@remote
def models_list(url: str, token_file: Path | None, as_json: bool) -> None:
    """List the published versions of every model."""
    items = client(url, token_file).get("/models")["items"]
    show_list(
        items,
        as_json,
        ("model", "version", "release", "variants", "bundle", "published"),
        lambda r: (
            r["model"], r["model_version"], str(r["release_counter"]),
            ", ".join(v["id"] for v in r["variants"]), r["bundle"][:19], when(r["published_at"]),
        ),
    )  # fmt: skip


# --- rollouts ----------------------------------------------------------------------------


@click.group(cls=Group)
def rollout() -> None:
    """Create, watch, pause and undo rollouts."""


@rollout.command("create")
@click.argument("plan", type=PATH)
@remote
def rollout_create(plan: Path, url: str, token_file: Path | None, as_json: bool) -> None:
    """Start a rollout from PLAN, a TOML file, and print its id.

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
    made = client(url, token_file).post("/rollouts", _read_plan(plan))
    if as_json:
        print_json(made)
        return
    click.echo(made["rollout_id"])
    click.echo(f"next: skerry rollout watch {made['rollout_id']}", err=True)


@rollout.command("list")
@remote
def rollout_list(url: str, token_file: Path | None, as_json: bool) -> None:
    """List the rollouts, newest first."""
    items = client(url, token_file).get("/rollouts")["items"]
    show_list(
        items,
        as_json,
        ("rollout", "model", "version", "state", "since", "reason"),
        lambda r: (
            r["rollout_id"], r["model"], r["model_version"], _state(r), when(r["updated_at"]),
            r["reason"],
        ),
    )  # fmt: skip


@rollout.command("show")
@click.argument("rollout_id")
@remote
def rollout_show(rollout_id: str, url: str, token_file: Path | None, as_json: bool) -> None:
    """Show a rollout with its stages and devices."""
    found = client(url, token_file).get(f"/rollouts/{quoted(rollout_id)}")
    if as_json:
        print_json(found)
        return
    print_lines(f"{found['model']} {found['model_version']}: {_state(found)}. {found['reason']}")
    for stage in found["stages"]:
        print_lines(_stage(stage), *([f"  {stage['reason']}"] if stage["reason"] else []))
    print_table(
        ("device", "stage", "state", "variant", "what happened"),
        [
            (a["device"], a["stage"], a["state"], a["variant"] or "", a["message"] or _took(a))
            for a in found["assignments"]
        ],
    )


@rollout.command("watch")
@click.argument("rollout_id")
@remote
def rollout_watch(rollout_id: str, url: str, token_file: Path | None, as_json: bool) -> None:
    """Tell what a rollout does until it ends, or waits for an operator.

    The exit code is 0 only if it completed.
    """
    fleet, told = client(url, token_file), ""
    while True:
        found = fleet.get(f"/rollouts/{quoted(rollout_id)}")
        under_way = [s for s in found["stages"] if s["state"] not in ("pending", "passed")]
        now = "; ".join([_state(found), *(_stage(stage) for stage in under_way)])
        if now != told:
            told = now
            click.echo(now, err=True)
        if _at_rest(found):
            break
        time.sleep(WATCH_EVERY_S)
    if as_json:
        print_json(found)
    elif found["state"] == RolloutState.COMPLETED:
        print_lines(f"completed: {found['reason']}")
    if found["state"] != RolloutState.COMPLETED:
        raise SkerryError(f"{_state(found)}: {found['reason']}")


def _verb(name: str, words: str) -> None:
    @rollout.command(name.replace("_", "-"), help=words)
    @click.argument("rollout_id")
    @remote
    def act(rollout_id: str, url: str, token_file: Path | None, as_json: bool) -> None:
        done = client(url, token_file).post(f"/rollouts/{quoted(rollout_id)}/{name}")
        print_json(done) if as_json else click.echo(done["state"])


_verb("approve", "Let a rollout start that waits for approval.")
_verb("deny", "Refuse a rollout that waits for approval.")
_verb("pause", "Hold a rollout; devices under way go on.")
_verb("resume", "Go on with a paused rollout.")
_verb("skip_stage", "Leave out the stage at which a rollout is paused.")
_verb("abort", "End a rollout; what is committed stays.")
_verb("rollback", "Take every device of a rollout back to what it ran before.")
_verb("archive", "Put away a rollout that has ended.")


def _read_plan(plan: Path) -> Any:
    """Return a plan as JSON has it; times with a zone become Unix seconds."""
    try:
        with plan.open("rb") as stream:
            return _jsonable(from_toml(stream.read(MAX_TOML_BYTES + 1), str(plan)))
    except FileNotFoundError:
        raise NotFoundError(f"expected a plan at {plan}, and there is no such file") from None
    except OSError as error:
        raise UsageError(f"cannot read {plan}: {error.strerror}") from None


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _jsonable(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_jsonable(item) for item in value]
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.timestamp()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise UsageError(f"expected a date with a time and a zone (2030-01-31T08:00:00Z), got {value}")


def _took(assignment: Any) -> str:
    steps = assignment["steps"]
    return f"in {steps[-1]['at'] - steps[0]['at']:.1f} s" if len(steps) > 1 else ""


def _state(found: Any) -> str:
    return f"{found['state']}" + (f" ({found['pause_reason']})" if found["pause_reason"] else "")


def _stage(stage: Any) -> str:
    counts = ", ".join(f"{count} {state}" for state, count in stage["counts"].items())
    return f"stage {stage['name']}: {stage['state']} ({counts or 'no device'})"


def _at_rest(found: Any) -> bool:
    """Tell whether only an operator, or nothing, moves this rollout on."""
    state = RolloutState(found["state"])
    waiting = {RolloutState.PAUSED, RolloutState.AWAITING_APPROVAL, RolloutState.DRAFT}
    return state in waiting or state in ROLLOUT_ENDS


# --- drift, alerts, policy ---------------------------------------------------------------


@click.group(cls=Group)
def drift() -> None:
    """Show what drifted, where, by how much."""


@drift.command("show")
@click.argument("model")
@remote
def drift_show(model: str, url: str, token_file: Path | None, as_json: bool) -> None:
    """Show the latest look at a model's devices."""
    report = client(url, token_file).get("/drift", model=model)
    if as_json:
        print_json(report)
        return
    if report["at"] is None:
        click.echo("no look yet: devices must have sent a few full windows first", err=True)
    for group in report["groups"]:
        moved = ", ".join(f"{name} {effect:+.1f} sd" for name, effect in group["features"].items())
        print_lines(f"the whole {group['level']} {group['name']}: {moved}")
    print_table(
        ("device", "site", "verdict", "in words"),
        [(d["device"], d["site"], d["verdict"], d["words"]) for d in report["devices"]],
    )


@click.group(cls=Group)
def alerts() -> None:
    """Show and acknowledge alerts."""


@alerts.command("list")
@remote
def alerts_list(url: str, token_file: Path | None, as_json: bool) -> None:
    """List the alerts, newest first."""
    items = client(url, token_file).get("/alerts")["items"]
    show_list(
        items,
        as_json,
        ("alert", "kind", "state", "raised", "message"),
        lambda a: (a["alert_id"], a["kind"], a["state"], when(a["raised_at"]), a["message"]),
    )


@alerts.command("acknowledge")
@click.argument("alert_id")
@remote
def alerts_acknowledge(alert_id: str, url: str, token_file: Path | None, as_json: bool) -> None:
    """Say that somebody is looking at an alert."""
    done = client(url, token_file).post(f"/alerts/{quoted(alert_id)}/acknowledge")
    print_json(done) if as_json else click.echo(done["state"])


@click.group(cls=Group)
def policy() -> None:
    """Show or set what devices record."""


@policy.command("show")
@remote
def policy_show(url: str, token_file: Path | None, as_json: bool) -> None:
    """Show the policy that holds for every device."""
    found = client(url, token_file).get("/policy")
    if as_json:
        print_json(found)
        return
    print_table(("", ""), [(name, plain(value, name)) for name, value in found.items()])


@policy.command("set")
@click.option("--window-s", type=float, help="Length of a sketch window in seconds.")
@click.option("--records", type=click.Choice(["none", "sampled", "all"]), help="What leaves.")
@click.option("--sample-rate", type=float, help="Share of predictions sent, with `sampled`.")
@click.option("--features/--no-features", default=None, help="Records have the features.")
@click.option("--inputs/--no-inputs", default=None, help="Records have the raw inputs too.")
@click.option("--input-max-bytes", type=int, help="Of one record; larger inputs are left out.")
@click.option("--withheld", help="Features and inputs that never leave: names with commas between.")
@click.option("--hashed", help="Features of which hashes leave: names with commas between.")
@remote
def policy_set(
    window_s: float | None,
    records: str | None,
    sample_rate: float | None,
    features: bool | None,
    inputs: bool | None,
    input_max_bytes: int | None,
    withheld: str | None,
    hashed: str | None,
    url: str,
    token_file: Path | None,
    as_json: bool,
) -> None:
    """Change the policy; what is not given stays."""
    given = {
        "window_s": window_s,
        "records": records,
        "sample_rate": sample_rate,
        "features": features,
        "inputs": inputs,
        "input_max_bytes": input_max_bytes,
        "withheld": _names(withheld),
        "hashed": _names(hashed),
    }
    changed = {name: value for name, value in given.items() if value is not None}
    if not changed:
        raise UsageError(
            "expected something to set, such as --window-s, --records or --sample-rate; "
            "skerry policy set --help has the rest"
        )
    done = client(url, token_file).put("/policy", changed)
    print_json(done) if as_json else click.echo(f"version {done['version']}")


def _names(text: str | None) -> list[str] | None:
    """Return names that were given with commas between; none of them for an empty text."""
    if text is None:
        return None
    return [name.strip() for name in text.split(",") if name.strip()]
