"""The figures of serve, and what control last said of itself, as Prometheus text, format 0.0.4."""

from collections.abc import Iterable, Sequence
from typing import Final

from agent.http_types import Load
from agent.infer import Served
from agent.observe import Observer
from agent.spool import Spool
from agent.status_file import Status

__all__ = ["control_text", "metrics_text"]

QUANTILES: Final = (0.5, 0.9, 0.99)
REPOSITORIES: Final = ("catalog", "director")


def metrics_text(models: Sequence[Served], observer: Observer, spool: Spool, load: Load) -> str:
    """Return the text of ``/metrics``."""
    labels = [
        f'slot="{s.slot.slot}",model="{s.slot.model}",version="{s.slot.model_version}",'
        f'variant="{s.slot.variant}"'
        for s in models
    ]
    each = list(zip(labels, models, strict=True))
    lines: list[str] = []
    _family(
        lines, "skerry_predictions_total", "counter", "Predictions answered and counted.",
        ((f"{{{label}}}", s.answered) for label, s in each),
    )  # fmt: skip
    _family(
        lines, "skerry_repeated_total", "counter", "Predictions answered again for a known id.",
        ((f"{{{label}}}", s.repeated) for label, s in each),
    )  # fmt: skip
    _family(
        lines, "skerry_errors_total", "counter", "Requests that a model failed to answer.",
        ((f"{{{label}}}", s.errors) for label, s in each),
    )  # fmt: skip
    _family(
        lines, "skerry_expired_total", "counter", "Requests whose time passed while they waited.",
        ((f"{{{label}}}", s.expired) for label, s in each),
    )  # fmt: skip
    lines.append("# HELP skerry_latency_seconds From a request's last byte to its record.")
    lines.append("# TYPE skerry_latency_seconds summary")
    for label, s in each:
        for q in QUANTILES:
            us = s.latencies.quantile(q)
            value = "NaN" if us is None else f"{us / 1e6:.6g}"
            lines.append(f'skerry_latency_seconds{{{label},quantile="{q}"}} {value}')
        lines.append(f"skerry_latency_seconds_sum{{{label}}} {s.latencies.sum_us / 1e6:.6g}")
        lines.append(f"skerry_latency_seconds_count{{{label}}} {s.latencies.n}")
    figures: list[tuple[str, str, str, float]] = [
        ("skerry_windows_total", "counter", "Sketch windows written.", observer.windows),
        ("skerry_windows_lost_total", "counter", "Windows without room.", observer.windows_lost),
        ("skerry_records_total", "counter", "Records appended.", spool.next_seq - 1),
        ("skerry_records_lost_total", "counter", "Records without room.", spool.lost_total),
        (
            "skerry_refused_total",
            "counter",
            "Requests refused while too many waited.",
            load.refused,
        ),
        ("skerry_waiting", "gauge", "Requests not answered yet.", load.waiting),
        ("skerry_connections", "gauge", "Open connections.", len(load.connections)),
    ]
    for name, kind, text, figure in figures:
        _family(lines, name, kind, text, [("", figure)])
    return "\n".join(lines) + "\n"


def control_text(status: Status) -> str:
    """Return what control knows, as further text of ``/metrics``."""
    lines: list[str] = []
    figures: list[tuple[str, str, str, float]] = [
        ("connected", "gauge", "1 while the broker is connected.", status.connected),
        ("outbox_records", "gauge", "Records that the fleet has not stored yet.", status.waiting),
        ("outbox_batches", "gauge", "Batches without an answer.", status.under_way),
        (
            "serve_restarts_total",
            "counter",
            "Serving processes that failed.",
            status.serve_restarts,
        ),
        (
            "unrecorded_total",
            "counter",
            "Predictions without room for a record.",
            status.unrecorded,
        ),
        ("refused_messages_total", "counter", "Messages that were refused.", status.refused),
        ("clock_ahead_seconds", "gauge", "This clock ahead of the fleet's.", status.clock_off_s),
        ("patched_total", "counter", "Files that were made by a patch.", status.patched),
        ("patch_failures_total", "counter", "Patches that failed.", status.patch_failed),
    ]
    if status.certificate_expires:
        figures.append(
            ("certificate_expires_timestamp_seconds", "gauge", "When the certificate ends.",
             round(status.certificate_expires))
        )  # fmt: skip
    for name, kind, text, figure in figures:
        _family(lines, f"skerry_agent_{name}", kind, text, [("", int(figure))])
    _family(
        lines, "skerry_agent_metadata_stale", "gauge", "1 for metadata that is out of date.",
        ((f'{{repository="{name}"}}', int(name in status.stale)) for name in REPOSITORIES),
    )  # fmt: skip
    _family(
        lines, "skerry_agent_slot_state", "gauge", "1 for what a slot is busy with.",
        ((f'{{slot="{slot}",state="{state}"}}', 1) for slot, state in status.doing.items()),
    )  # fmt: skip
    return "\n".join(lines) + "\n"


def _family(
    lines: list[str], name: str, kind: str, text: str, values: Iterable[tuple[str, float]]
) -> None:
    lines.append(f"# HELP {name} {text}")
    lines.append(f"# TYPE {name} {kind}")
    lines.extend(f"{name}{label} {value}" for label, value in values)
