"""Every table of the fleet, in SQLAlchemy Core: the words of the design, one row one fact.

Times are Unix seconds (double), values with structure are canonical JSON in text or, where
they come in numbers (sketch columns, features), MessagePack in bytes. What devices send is
keyed by ``(device, boot, seq)``: the same record cannot be stored twice.
The same statements run on SQLite and on PostgreSQL.
"""

from typing import Final

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

__all__ = ["METADATA"]

METADATA: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)
Id = String(63)
Digest = String(71)  # sha256:<64 hex>
Short = String(128)
# SQLite numbers rows by itself only in a column that is exactly INTEGER PRIMARY KEY
Serial = BigInteger().with_variant(Integer, "sqlite")

# --- devices and their identity -------------------------------------------------

devices = Table(
    "devices",
    METADATA,
    Column("device", Id, primary_key=True),
    Column("state", Short, nullable=False),  # skerry.states.DeviceState
    Column("tags", Text, nullable=False, server_default="{}"),  # JSON object, by operators
    Column("inventory", Text, nullable=False, server_default="{}"),  # wire Inventory, by the device
    Column("hw_class", Short, nullable=False, server_default=""),
    Column("report_key", LargeBinary),  # 32 raw bytes, Ed25519
    Column("client_id", Short),  # under which it speaks MQTT
    Column("certificate", Text),  # PEM: the device's, then the issuing authority's
    Column("certificate_expires", Double),
    Column("previous_certificate", Text),  # PEM; good until the new one was first used
    Column("state_reason", Text, nullable=False, server_default=""),  # why it may not speak
    Column("created_at", Double, nullable=False),
    Column("enrolled_at", Double),
)

tokens = Table(
    "tokens",
    METADATA,
    Column("secret_hash", String(64), primary_key=True),
    Column("device", Id, ForeignKey("devices.device"), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("used_at", Double),
    Index(None, "device"),
)

liveness = Table(  # apart from `devices`: it changes with every message
    "liveness",
    METADATA,
    Column("device", Id, primary_key=True),
    Column("last_seen", Double, nullable=False),  # by the fleet's clock
    Column("device_ts", Double, nullable=False),  # by the device's clock
    Column("boot", String(64), nullable=False),
    Column("agent", Short, nullable=False, server_default=""),
    Column("desired_version", BigInteger, nullable=False, server_default="0"),
    Column("outbox_records", BigInteger, nullable=False, server_default="0"),
    Column("outbox_bytes", BigInteger, nullable=False, server_default="0"),
    Column("dropped_records", BigInteger, nullable=False, server_default="0"),
    Column("serve_restarts", BigInteger, nullable=False, server_default="0"),
    Column("trust", Short, nullable=False, server_default=""),  # wire.Health.trust
)

voices = Table(
    "voices",
    METADATA,
    Column("device", Id, primary_key=True),
    Column("body", LargeBinary, nullable=False),  # fleet.voices.Voice, MessagePack
)

# --- what may run: releases and their bytes -------------------------------------

releases = Table(
    "releases",
    METADATA,
    Column("target", String(255), primary_key=True),  # models/<publisher>/<model>@<version>
    Column("publisher", Id, nullable=False),
    Column("model", Id, nullable=False),
    Column("model_version", Short, nullable=False),
    Column("bundle", Digest, nullable=False),
    Column("length", BigInteger, nullable=False),  # bytes of the OCI manifest
    Column("release_counter", BigInteger, nullable=False),
    Column("hw_classes", Text, nullable=False),  # JSON array
    Column("min_agent", Short, nullable=False),
    Column("may_fall_back_to", Text, nullable=False),  # JSON array of digests
    Column("manifest", Text, nullable=False),  # the Skerry manifest, JSON
    Column("evaluation", Text, nullable=False, server_default="{}"),  # manifest.Evaluation, JSON
    Column("baseline", LargeBinary, nullable=False),  # manifest.Baseline, MessagePack
    Column("published_at", Double, nullable=False),
    UniqueConstraint("model", "model_version"),
    UniqueConstraint("bundle"),
)

blobs = Table(
    "blobs",
    METADATA,
    Column("digest", Digest, primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at", Double, nullable=False),
)

bundle_blobs = Table(
    "bundle_blobs",
    METADATA,
    Column("bundle", Digest, primary_key=True),
    Column("digest", Digest, ForeignKey("blobs.digest"), primary_key=True),
)

# --- what shall run: rollouts, assignments, desired ------------------------------

rollouts = Table(
    "rollouts",
    METADATA,
    Column("rollout", Id, primary_key=True),
    Column("model", Id, nullable=False),
    Column("model_version", Short, nullable=False),
    Column("bundle", Digest, nullable=False),
    Column("slot", Id, nullable=False),
    Column("state", Short, nullable=False),  # skerry.states.RolloutState
    Column("pause_reason", Short),
    Column("reason", Text, nullable=False, server_default=""),
    Column("body", Text, nullable=False),  # the whole fleet.rollout.Rollout with plan and stages
    Column("revision", BigInteger, nullable=False),  # rises at each change, for compare-and-set
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    Index(None, "state"),
    CheckConstraint("(state = 'paused') = (pause_reason IS NOT NULL)", name="paused_has_reason"),
)

assignments = Table(
    "assignments",
    METADATA,
    Column("n", Serial, primary_key=True),  # order of making: the latest of a slot counts
    Column("assignment", Short, nullable=False, unique=True),
    Column("rollout", Id, ForeignKey("rollouts.rollout"), nullable=False),
    Column("stage", Id, nullable=False),
    Column("returns", Short),  # the assignment that this one undoes, NULL for a forward one
    Column("device", Id, ForeignKey("devices.device"), nullable=False),
    Column("slot", Id, nullable=False),
    Column("attempt", Integer, nullable=False, server_default="1"),
    Column("state", Short, nullable=False),  # skerry.states.AssignmentState
    Column("target", String(255), nullable=False),  # empty: the slot is taken out
    Column("bundle", String(71), nullable=False),
    Column("previous", String(255), nullable=False, server_default=""),  # target that ran before
    Column("variant", Short),
    Column("phase", Short),
    Column("code", Short),
    Column("message", Text),
    Column("effect", Short),
    Column("live", Text),  # wire LiveStats, JSON
    Column("trials", Text),  # list of trials.Trial, JSON
    Column("shadow", Text),  # trials.ShadowReport, JSON
    Column("created_at", Double, nullable=False),
    Column("notified_at", Double),
    Column("ended_at", Double),
    Column("updated_at", Double, nullable=False),
    Index(None, "rollout"),
    Index(None, "bundle"),
    Index(None, "device", "slot", "n"),
)

steps = Table(
    "steps",
    METADATA,
    Column("assignment", Short, ForeignKey("assignments.assignment"), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("state", Short, nullable=False),
    Column("at", Double, nullable=False),  # by the clock of who took the step
    Column("stored_at", Double, nullable=False),
)

desired = Table(
    "desired",
    METADATA,
    Column("device", Id, ForeignKey("devices.device"), primary_key=True),
    Column("version", BigInteger, nullable=False),  # of the message and of the director metadata
    Column("slots", Text, nullable=False),  # JSON object: slot -> wire SlotDesired
    Column("director", LargeBinary, nullable=False),  # MessagePack: file name -> signed bytes
    Column("updated_at", Double, nullable=False),
)

commands = Table(
    "commands",
    METADATA,
    Column("command", Short, primary_key=True),
    Column("device", Id, ForeignKey("devices.device"), nullable=False),
    Column("verb", Short, nullable=False),
    Column("args", Text, nullable=False, server_default="{}"),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("finished_at", Double),
    Column("ok", Integer),
    Column("output", Text),
    Index(None, "device"),
)

policies = Table(
    "policies",
    METADATA,
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("body", Text, nullable=False),  # wire Policy, JSON
    Column("created_at", Double, nullable=False),
)

# --- what is: said by devices, stored once ---------------------------------------

reported = Table(
    "reported",
    METADATA,
    Column("device", Id, ForeignKey("devices.device"), primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("slots", Text, nullable=False),  # JSON object: slot -> wire ReleaseRef
    Column("desired_version", BigInteger, nullable=False),
    Column("stored_at", Double, nullable=False),
)

ingest_cursors = Table(
    "ingest_cursors",
    METADATA,
    Column("device", Id, primary_key=True),
    Column("boot", String(64), primary_key=True),
    Column("upto", BigInteger, nullable=False),  # every seq up to this one is accounted for
    Column("skipped", BigInteger, nullable=False),  # of these, dropped by the device
    Column("updated_at", Double, nullable=False),
)

contexts = Table(
    "contexts",
    METADATA,
    Column("context", Serial, primary_key=True),
    Column("slot", Short, nullable=False),
    Column("model", Short, nullable=False),
    Column("model_version", Short, nullable=False),
    Column("bundle", Short, nullable=False),
    Column("variant", Short, nullable=False),
    UniqueConstraint("slot", "model", "model_version", "bundle", "variant"),
)

predictions = Table(
    "predictions",
    METADATA,
    Column("n", Serial, primary_key=True),  # order of storing, for paging
    Column("device", Id, nullable=False),
    Column("boot", String(64), nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("context", BigInteger, nullable=False),
    Column("request", Short, nullable=False),  # the request id
    Column("at", Double, nullable=False),
    Column("prediction", BigInteger, nullable=False),
    Column("confidence", Double),  # NULL where it was no finite number
    Column("latency_us", BigInteger, nullable=False),
    Column("features", LargeBinary, nullable=False),  # MessagePack array of floats
    Column(
        "aside", LargeBinary
    ),  # MessagePack of `skerry.records.Aside`: raw inputs, and what is redacted
    UniqueConstraint("device", "boot", "seq"),
    Index(None, "at"),
    Index(None, "device", "request"),  # what was counted twice is found without its rows
)

windows = Table(
    "windows",
    METADATA,
    Column("device", Id, primary_key=True),
    Column("boot", String(64), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("context", BigInteger, nullable=False),
    Column("start", Double, nullable=False),
    Column("length_s", Double, nullable=False),
    Column("n", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),
    Column("columns", LargeBinary, nullable=False),  # MessagePack: name -> sketch Column
    Column("covers", Text, nullable=False, server_default="{}"),  # JSON: boot -> [first, last]
    Column("stored_at", Double, nullable=False),
    Index(None, "context", "start"),
    Index(None, "context", "device", "n"),  # counts need no row, and a row is a kilobyte
    Index(None, "device", "start"),
    Index(None, "start"),
)

error_windows = Table(  # of predictions whose labels came later
    "error_windows",
    METADATA,
    Column("device", Id, primary_key=True),
    Column("boot", String(64), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("place", Integer, primary_key=True, autoincrement=False),  # in its record
    Column("context", BigInteger, nullable=False),
    Column("start", Double, nullable=False),  # of the window of the predictions
    Column("length_s", Double, nullable=False),
    Column("n", BigInteger, nullable=False),  # labelled predictions
    Column("correct", BigInteger),  # NULL where they are values
    Column("measured", BigInteger, nullable=False),  # whose error is a finite number
    Column("abs_total", Double, nullable=False),  # sum of absolute errors
    Column("sq_total", Double, nullable=False),  # of their squares
    Column("body", LargeBinary, nullable=False),  # feedback.ErrorSketch, MessagePack
    Column("stored_at", Double, nullable=False),
    Index(None, "context", "start"),
    Index(None, "start"),
)

losses = Table(
    "losses",
    METADATA,
    Column("device", Id, primary_key=True),
    Column("boot", String(64), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("lost_boot", Short, nullable=False),
    Column("at_most", BigInteger, nullable=False),
    Column("reason", Short, nullable=False),
    Column("stored_at", Double, nullable=False),
)

refused = Table(
    "refused",
    METADATA,
    Column("device", Id, primary_key=True),  # empty where the message did not prove one
    Column("reason", Short, primary_key=True),
    Column("count", BigInteger, nullable=False),
    Column("first_at", Double, nullable=False),
    Column("last_at", Double, nullable=False),
)

# --- what follows from it ----------------------------------------------------------

verdicts = Table(
    "verdicts",
    METADATA,
    Column("n", Serial, primary_key=True),
    Column("rollout", Id, ForeignKey("rollouts.rollout"), nullable=False),
    Column("stage", Id, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("state", Short, nullable=False),  # skerry.states.AnalysisState
    Column("reason", Text, nullable=False),
    Column("body", Text, nullable=False),  # the whole verdict, JSON
    Column("at", Double, nullable=False),
    Index(None, "rollout", "stage"),
)

drift_reports = Table(
    "drift_reports",
    METADATA,
    Column("model", Id, primary_key=True),
    Column("body", Text, nullable=False),  # the latest report, JSON
    Column("at", Double, nullable=False),
)

alerts = Table(
    "alerts",
    METADATA,
    Column("alert", Id, primary_key=True),
    Column("kind", Short, nullable=False),  # drift, ...
    Column("subject", Short, nullable=False),  # what it is about: of one subject, one is open
    Column("state", Short, nullable=False),  # open, acknowledged, closed
    Column("severity", Short, nullable=False),
    Column("message", Text, nullable=False),
    Column("body", Text, nullable=False),  # model, devices, features with effects: JSON
    Column("raised_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    Column("acknowledged_at", Double),
    Column("acknowledged_by", Short),
    Column("closed_at", Double),
    Index(None, "state"),
)

audit = Table(
    "audit",
    METADATA,
    Column("n", Serial, primary_key=True),
    Column("at", Double, nullable=False),
    Column("actor", Short, nullable=False),
    Column("action", Short, nullable=False),
    Column("subject", Short, nullable=False),
    Column("detail", Text, nullable=False, server_default="{}"),
    Index(None, "subject"),
)
