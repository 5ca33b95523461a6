"""The operators' HTTP API, on aiohttp."""

from fleet.api.app import make_app

__all__ = ["make_app"]
