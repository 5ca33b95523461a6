"""The certificates that a running fleet shows: its listeners', and its own broker clients'.

They are made anew at each start, into ``<data>/tls``, and live far longer than a process should.
"""

import ssl
from datetime import datetime
from pathlib import Path
from typing import Final

from fleet.broker_config import TlsFiles
from fleet.ca import Authority, Credential
from fleet.config import FleetConfig
from fleet.files import make_folder, write_atomic
from skerry.errors import UsageError
from skerry.io.tls import client_context

__all__ = ["context_of", "make_client", "make_server", "reached_as", "server_names"]

CA_FILE: Final = "ca.pem"
WILDCARDS: Final = frozenset({"", "0.0.0.0", "::"})  # noqa: S104 - compared, not listened on


def server_names(config: FleetConfig) -> list[str]:
    """Return the names and addresses by which a fleet is reached."""
    names = [config.host, config.advertise_host, "localhost", "127.0.0.1"]
    return [*dict.fromkeys(name for name in names if name not in WILDCARDS)]


def reached_as(config: FleetConfig) -> str:
    """Return the name or address by which devices reach this machine.

    Raises:
        UsageError: the settings do not say; devices would refuse every certificate.
    """
    host = config.advertise_host or config.host
    if host in WILDCARDS:
        raise UsageError(
            f"expected advertise_host in {config.file}, the name or address by which devices reach "
            f"this machine, since host is {host!r}; they check it"
        )
    return host


def make_server(
    config: FleetConfig, authority: Authority, now: datetime, folder: Path | None = None
) -> TlsFiles:
    """Make the listeners' certificate, for every name of this fleet.

    Args:
        config: where it listens.
        authority: issues it.
        now: aware UTC.
        folder: where it goes; the fleet's own if not given.
    """
    folder = folder or config.tls_dir
    return _write(folder, "server", authority.server(server_names(config), now), authority)


def make_client(folder: Path, authority: Authority, name: str, now: datetime) -> TlsFiles:
    """Make a certificate for a client of the fleet itself.

    Args:
        folder: where it goes.
        authority: issues it.
        name: no device id can be one.
        now: aware UTC.
    """
    return _write(folder, name, authority.service(name, now), authority)


def context_of(files: TlsFiles) -> ssl.SSLContext:
    """Return how a client of the fleet itself speaks TLS with a certificate."""
    return client_context(files.ca, files.certificate, files.key)


def _write(folder: Path, name: str, made: Credential, authority: Authority) -> TlsFiles:
    make_folder(folder, mode=0o700)
    files = TlsFiles(folder / f"{name}.crt", folder / f"{name}.key", folder / CA_FILE)
    write_atomic(files.certificate, made.chain, mode=0o600)
    write_atomic(files.key, made.key, mode=0o600)
    write_atomic(files.ca, authority.pem.encode(), mode=0o600)
    return files
