"""What the operator API asks of the service behind it, and nothing more."""

from collections.abc import Mapping
from typing import BinaryIO, Protocol

from fleet.api.views import TokenView
from fleet.bundles import Published
from fleet.catalog import Catalog
from fleet.database import Database
from fleet.plan import Plan
from skerry.wire import Policy

__all__ = ["Backend", "Commands"]


class Commands(Protocol):
    """What operators do. Every call checks, stores, and writes who did it to the audit."""

    def create_rollout(self, plan: Plan, actor: str) -> str:
        """Store a rollout and return its id."""
        ...

    def pause(self, rollout_id: str, actor: str) -> None:
        """Hold a rollout."""
        ...

    def resume(self, rollout_id: str, actor: str) -> None:
        """Go on with a paused rollout."""
        ...

    def abort(self, rollout_id: str, actor: str) -> None:
        """End a rollout; what is committed stays."""
        ...

    def rollback(self, rollout_id: str, actor: str) -> None:
        """Take every device of a rollout back."""
        ...

    def preauthorize(self, device_id: str, tags: Mapping[str, str], actor: str) -> TokenView:
        """Allow a device to enrol, and return its one-time token."""
        ...

    def publish(self, bundle: BinaryIO, metadata: bytes, actor: str) -> Published:
        """Verify and keep a signed bundle."""
        ...

    def policy(self) -> Policy:
        """Return the policy that holds."""
        ...

    def set_policy(self, policy: Policy, actor: str) -> Policy:
        """Put a policy in force and return it with its version."""
        ...

    def acknowledge_alert(self, alert_id: str, actor: str) -> None:
        """Note that somebody is looking at an alert."""
        ...


class Backend(Protocol):
    """The service, as the API sees it."""

    @property
    def database(self) -> Database:
        """Where everything is kept."""
        ...

    @property
    def commands(self) -> Commands:
        """What operators do."""
        ...

    @property
    def catalog(self) -> Catalog | None:
        """The catalog, None before the key ceremony."""
        ...

    @property
    def admin_token(self) -> str:
        """The operators' token."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether broker, ingest and engine are at work."""
        ...
