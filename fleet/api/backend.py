"""What the operator API asks of the service behind it, and nothing more."""

from typing import Protocol

from fleet.catalog import Catalog
from fleet.commands import Commands
from fleet.store import Store

__all__ = ["Backend"]


class Backend(Protocol):
    """The service, as the API sees it."""

    @property
    def store(self) -> Store:
        """What the fleet keeps."""
        ...

    @property
    def commands(self) -> Commands:
        """What operators do."""
        ...

    @property
    def catalog(self) -> Catalog:
        """What may exist, signed."""
        ...

    @property
    def admin_token(self) -> str:
        """The operators' token."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether broker, ingest and engine are at work."""
        ...
