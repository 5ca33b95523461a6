"""The command line of the agent: enrol a device, run it, look at it."""

import argparse
import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from agent.config import Layout, load_config
from agent.inventory import agent_version
from skerry.errors import NotFoundError, SkerryError, UsageError

__all__ = ["main"]

INTERRUPTED = 130
FROM_STDIN = "-"
STATE_VARIABLE = "SKERRY_STATE"
DEFAULT_URL = "http://127.0.0.1:8450"
MAX_BATCH = 4096
WATCH_S = 0.5


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except SkerryError as error:
        _say(f"error: {error}")
        return error.exit_code
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        _say(f"error: {error.strerror or error}{where}; check --state, its rights and its disk")
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="skerry-agent", description="Run models on this device, and keep them up to date."
    )
    parser.add_argument("--version", action="version", version=agent_version())
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    enrol = commands.add_parser("enroll", help="make this device a member of a fleet")
    enrol.add_argument("--token", required=True, help="from an operator; - reads standard input")
    enrol.add_argument(
        "--again", action="store_true", help="also if it has enrolled; it keeps its state"
    )
    enrol.set_defaults(run=_enroll)

    run = commands.add_parser("run", help="run the agent until SIGTERM")
    run.add_argument("--config", type=Path, help="settings in TOML")
    run.add_argument("--port", type=int, help="of the prediction endpoint; 0 picks a free one")
    run.set_defaults(run=_run)

    status = commands.add_parser("status", help="say what this device runs and holds")
    status.add_argument("--json", action="store_true", help="one JSON object")
    status.set_defaults(run=_status)

    doctor = commands.add_parser("doctor", help="look for what is wrong, and say what to do")
    doctor.add_argument("--config", type=Path, help="settings in TOML")
    doctor.add_argument("--json", action="store_true", help="one JSON array")
    doctor.set_defaults(run=_doctor)

    rollback = commands.add_parser("rollback", help="take a slot back to what it ran before")
    rollback.add_argument("slot", help="as `status` names it")
    rollback.set_defaults(run=_rollback)

    logs = commands.add_parser("logs", help="show the newest lines of the agent's log")
    logs.add_argument("--lines", type=int, default=50, help="at most 10000 (default %(default)s)")
    logs.add_argument("--level", default="debug", help="of at least debug, info, warning or error")
    logs.add_argument("--json", action="store_true", help="one JSON object a line")
    logs.set_defaults(run=_logs)

    approve = commands.add_parser("approve", help="let an update that waits be activated")
    approve.add_argument("slot", nargs="*", help="all that have one under way, if none is named")
    approve.add_argument(
        "--now", action="store_true", help="also outside of the maintenance windows"
    )
    approve.set_defaults(run=_approve)

    defer = commands.add_parser("defer", help="activate no update for a while")
    defer.add_argument("--hours", type=float, default=24.0, help="at most 168; 0 ends it")
    defer.set_defaults(run=_defer)

    predict = commands.add_parser(
        "predict", help="ask the agent for predictions of files, or of a directory that fills"
    )
    predict.add_argument("model", help="its name, as the agent serves it")
    predict.add_argument("files", nargs="*", type=Path, help="csv, parquet, npy, npz or pictures")
    predict.add_argument("--watch", type=Path, metavar="DIR", help="predict what comes into it")
    predict.add_argument(
        "--url", default=DEFAULT_URL, help="of the agent, or unix:PATH (default %(default)s)"
    )
    predict.add_argument("--out", type=Path, help="a file, which is resumed; else standard output")
    predict.add_argument("--again", action="store_true", help="also if --out is there already")
    predict.add_argument("--batch", type=int, default=32, help="rows of a request")
    predict.add_argument("--outputs", action="store_true", help="write the model's outputs too")
    predict.add_argument(
        "--patience", type=float, default=60.0, metavar="S", help="for an agent that is busy"
    )
    predict.set_defaults(run=_predict)

    state = os.environ.get(STATE_VARIABLE)
    for command in (enrol, run, status, doctor, rollback, logs, approve, defer):
        command.add_argument(
            "--state", type=Path, required=not state, default=state and Path(state), metavar="DIR",
            help=f"this device's directory; else {STATE_VARIABLE} of the environment",
        )  # fmt: skip
    return parser


def _enroll(arguments: argparse.Namespace) -> int:
    # enrolment needs certificates and HTTP, which the other commands do not
    from agent.enroll import enroll
    from agent.inventory import take_inventory
    from skerry.token import parse_token

    layout = Layout(arguments.state)
    text = sys.stdin.read() if arguments.token == FROM_STDIN else arguments.token
    record = enroll(
        layout.identity, parse_token(text), take_inventory(layout.root), again=arguments.again
    )
    _say(f"enrolled as {record.device_id} of fleet {record.fleet_id}")
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from agent.logs import begin_logs
    from agent.run import run_agent

    config = load_config(arguments.config, http_port=arguments.port)
    layout = Layout(arguments.state)
    begin_logs(layout.logs, config.log_level, journal="JOURNAL_STREAM" in os.environ)
    asyncio.run(run_agent(layout, config))
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from agent.status import collect, describe

    found = collect(Layout(arguments.state))
    text = json.dumps(found, sort_keys=True) if arguments.json else describe(found)
    sys.stdout.write(text + "\n")
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from agent.doctor import examine, tell
    from skerry.canonical import to_json

    findings = examine(Layout(arguments.state), load_config(arguments.config))
    text = to_json(findings).decode() if arguments.json else tell(findings)
    sys.stdout.write(text + "\n")
    return 1 if any(finding.state == "bad" for finding in findings) else 0


def _rollback(arguments: argparse.Namespace) -> int:
    from agent.identity import load_identity
    from agent.state import read_state
    from agent.taking_back import wish_for
    from agent.wishes import ask

    layout = Layout(arguments.state)
    load_identity(layout.identity)
    wish, line = wish_for(read_state(layout.database), arguments.slot, "somebody at the device")
    ask(layout.taken_back, wish)
    _say(f"{line}, within seconds of a running agent; the fleet is told")
    return 0


def _logs(arguments: argparse.Namespace) -> int:
    from agent.logs import render, tail

    for entry in tail(Layout(arguments.state).logs, arguments.lines, arguments.level):
        text = json.dumps(entry, sort_keys=True) if arguments.json else render(entry)
        sys.stdout.write(text + "\n")
    return 0


def _approve(arguments: argparse.Namespace) -> int:
    from agent.consent import approve

    for line in approve(Layout(arguments.state), arguments.slot, at_once=arguments.now):
        _say(line)
    return 0


def _defer(arguments: argparse.Namespace) -> int:
    from agent.consent import defer

    _say(defer(Layout(arguments.state), arguments.hours))
    return 0


def _predict(arguments: argparse.Namespace) -> int:
    from agent.predict import Asker, patiently, predict_files, watch
    from skerry.io.client import Client

    if bool(arguments.files) == (arguments.watch is not None):
        raise UsageError("expected files, or --watch DIR, and not both")
    if not 1 <= arguments.batch <= MAX_BATCH:
        raise UsageError(f"expected --batch of 1 to {MAX_BATCH}, got {arguments.batch}")
    if arguments.watch is not None and not arguments.watch.is_dir():
        raise NotFoundError(f"expected a directory at {arguments.watch}, and there is none")
    with Client(arguments.url) as client:
        asker = Asker(
            client, arguments.model,
            patiently(lambda: client.describe(arguments.model), arguments.patience),
            arguments.batch, arguments.patience, arguments.outputs,
        )  # fmt: skip
        if arguments.watch is None:
            predict_files(asker, arguments.files, arguments.out, again=arguments.again)
            return 0
        stopped: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
        _say(f"watching {arguments.watch}; results in {arguments.watch / 'predictions'}")
        try:
            for file, found in watch(
                asker, arguments.watch, every_s=WATCH_S, stop=lambda: bool(stopped)
            ):
                _say(f"{file.name}: {found}" + (" rows" if isinstance(found, int) else ""))
        except KeyboardInterrupt:
            pass
    return 0


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
