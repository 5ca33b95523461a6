"""The one line of JSON that a run ends with."""

import msgspec

__all__ = ["Accounting", "BundleSummary", "DriftSummary", "RolloutSummary", "Summary", "Variant"]


class Variant(msgspec.Struct):
    """One variant that the build tried."""

    precision: str
    bytes: int
    accuracy: float | None
    latency_ratio: float | None
    chosen: bool
    reason: str


class BundleSummary(msgspec.Struct):
    """What was built for one version."""

    version: str
    variants: list[Variant]


class RolloutSummary(msgspec.Struct):
    """How one rollout ended, and how many devices ever served its version."""

    version: str
    state: str
    reason: str
    devices_served: int


class DriftSummary(msgspec.Struct):
    """What the drift analysis named."""

    alert: bool = False
    devices: list[str] = msgspec.field(default_factory=list)
    features: list[str] = msgspec.field(default_factory=list)


class Accounting(msgspec.Struct):
    """The client's book against the fleet's.

    sent: requests made; answered: of these with 200; counted: answered and stored by
    the fleet; lost: answered and not stored; double: stored or sketched more than
    once; unconfirmed: stored though the client never saw the answer.
    """

    sent: int = 0
    answered: int = 0
    counted: int = 0
    lost: int = 0
    double: int = 0
    unconfirmed: int = 0


class Summary(msgspec.Struct):
    """The whole story in numbers."""

    ok: bool = False
    seconds: float = 0.0
    devices: int = 0
    bundles: list[BundleSummary] = msgspec.field(default_factory=list)
    rollouts: list[RolloutSummary] = msgspec.field(default_factory=list)
    drift: DriftSummary = msgspec.field(default_factory=DriftSummary)
    accounting: Accounting = msgspec.field(default_factory=Accounting)
