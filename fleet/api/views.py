"""What the operator API answers with, as types; the OpenAPI document is made from them."""

from typing import Any

import msgspec

__all__ = [
    "Accounting",
    "AlertView",
    "AssignmentView",
    "DeviceView",
    "HardwareView",
    "IdPage",
    "Items",
    "ReleaseView",
    "RolloutSummary",
    "RolloutView",
    "SlotView",
    "StageView",
    "StepView",
    "TokenView",
    "Totals",
    "VerdictView",
]


class Items(msgspec.Struct, frozen=True):
    """A list, with a cursor to its next page or null at its end."""

    items: list[Any]
    next: str | None = None


class SlotView(msgspec.Struct, frozen=True):
    """What runs in one slot of a device."""

    model: str
    model_version: str
    bundle: str
    variant: str
    since: float


class DeviceView(msgspec.Struct, frozen=True):
    """A device as the fleet knows it; times are Unix seconds."""

    device_id: str
    state: str
    state_reason: str  # why it may not speak, empty where it may
    tags: dict[str, str]
    hw_class: str
    inventory: dict[str, Any]
    connected: bool  # heard of lately
    last_seen: float | None
    agent: str
    slots: dict[str, SlotView]
    desired_version: int
    reported_version: int
    in_sync: bool  # it applied the latest desired
    outbox_records: int
    dropped_records: int
    trust: str  # empty, or what keeps the device from updates: stale metadata, a refusal's code


class TokenView(msgspec.Struct, frozen=True):
    """A one-time enrolment token, shown once."""

    device_id: str
    token: str


class StepView(msgspec.Struct, frozen=True):
    """One step of an assignment."""

    state: str
    at: float


class AssignmentView(msgspec.Struct, frozen=True):
    """One device in one rollout."""

    assignment_id: str
    device: str
    stage: str  # a stage's name, or ``rollback``
    attempt: int
    state: str
    target: str
    variant: str | None
    phase: str | None
    code: str | None
    message: str | None
    effect: str | None
    live: dict[str, Any] | None
    trials: list[dict[str, Any]]  # what the golden set showed of each variant
    shadow: dict[str, Any] | None  # what it did beside the one that serves
    steps: list[StepView]


class VerdictView(msgspec.Struct, frozen=True):
    """What an analysis said."""

    at: float
    state: str
    reason: str
    body: dict[str, Any]


class StageView(msgspec.Struct, frozen=True):
    """One stage of a rollout, with its devices counted by the state of their assignment."""

    name: str
    state: str
    reason: str
    devices: list[str]
    counts: dict[str, int]
    verdict: VerdictView | None


class RolloutSummary(msgspec.Struct, frozen=True):
    """A rollout in a list."""

    rollout_id: str
    model: str
    model_version: str
    state: str
    pause_reason: str | None
    reason: str
    created_at: float
    updated_at: float


class RolloutView(msgspec.Struct, frozen=True):
    """A rollout with its plan, stages and assignments."""

    rollout_id: str
    model: str
    model_version: str
    bundle: str
    state: str
    pause_reason: str | None
    reason: str
    created_at: float
    updated_at: float
    revision: int
    plan: dict[str, Any]
    stages: list[StageView]
    assignments: list[AssignmentView]
    devices_served: list[str]  # every device on which the version ever answered


class HardwareView(msgspec.Struct, frozen=True):
    """What is known of one variant on one class of hardware.

    `known` is ``evaluated``: the compiler measured its accuracy there; ``agrees`` or
    ``disagrees``: every, or not every device's golden set does; ``unable``: it did not run
    everywhere; ``unmeasured``: no device of that class has told yet.
    """

    variant: str
    hw_class: str
    known: str
    devices: int  # that reported their golden set
    failed: int  # of these, whose golden set did not pass
    unable: int  # of these, on which it did not run
    rows: int  # of one golden set
    disagree: float  # worst share of its rows
    run_us: float | None  # median over the devices, one row


class ReleaseView(msgspec.Struct, frozen=True):
    """A published version of a model."""

    model: str
    model_version: str
    publisher: str
    target: str
    bundle: str
    release_counter: int
    published_at: float
    may_fall_back_to: list[str]
    variants: list[dict[str, Any]]
    evaluation: dict[str, Any]
    hardware: list[HardwareView]  # what is known of each variant on each class of hardware


class AlertView(msgspec.Struct, frozen=True):
    """An alert; `body` holds the numbers behind the message."""

    alert_id: str
    kind: str
    subject: str
    state: str
    severity: str
    message: str
    devices: list[str]
    body: dict[str, Any]
    raised_at: float
    updated_at: float
    acknowledged_by: str | None
    closed_at: float | None


class IdPage(msgspec.Struct, frozen=True):
    """Request ids of stored predictions, in the order of storing."""

    ids: list[str]
    next: str | None


class Totals(msgspec.Struct, frozen=True):
    """What was ever stored, lost and refused."""

    stored: int  # predictions
    lost_at_most: int  # records
    refused: dict[str, int]  # messages and records, by reason


class Accounting(msgspec.Struct, frozen=True):
    """What was stored: prediction rows, distinct ids, and the rows that sketches hold."""

    rows: int
    distinct_ids: int
    sketch_rows: int
    per_device: dict[str, int]
    lost_at_most: int
    refused: dict[str, int]
