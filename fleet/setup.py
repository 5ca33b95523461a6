"""Makes a new fleet: settings, online keys, the operators' token and an empty database."""

import os
import secrets
from datetime import datetime
from pathlib import Path
from typing import Final

from fleet.config import FleetConfig, write_config
from fleet.files import make_folder, write_atomic
from fleet.keystore import make_online_keys
from fleet.store import open_store

__all__ = ["init_fleet"]

TOKEN_BYTES: Final = 32


def init_fleet(data: Path, fleet_id: str, *, now: datetime) -> FleetConfig:
    """Make a fleet in an empty or new directory.

    Args:
        data: the data directory.
        fleet_id: the fleet's name on the wire.
        now: aware UTC, for the audit trail.

    Raises:
        UsageError: the fleet id is none.
        ConflictError: there is a fleet in this directory already.
    """
    config = FleetConfig(data=data, fleet_id=fleet_id)
    make_folder(data, mode=0o700)
    write_config(config)
    make_online_keys(config.keys_dir, fleet_id, os.environ)
    token = secrets.token_urlsafe(TOKEN_BYTES)
    write_atomic(config.admin_token_file, token.encode() + b"\n", mode=0o600)
    store = open_store(config.db_url)
    try:
        store.alerts.note("setup", "fleet.init", fleet_id, {}, now.timestamp())
    finally:
        store.close()
    return config
