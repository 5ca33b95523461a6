"""The brokers' configuration, as text: who may connect, and what each may say and hear.

For both brokers the name in a device's certificate is its user, and the user decides its topics:
it speaks below ``up/{shard}/{device}`` and on its presence, it hears what is addressed to it and
to all. The fleet's own client is the certificate `FLEET_USER`, a name no device can have.

    nats-server   asks the fleet about each login (auth callout), which binds the MQTT client id to
                  the certificate; or, for a server before 2.10, knows each device from a file
    mosquitto     one pattern for all devices, deny rules and a revocation list for the refused

Sources: NATS documentation, "Auth Callout" and "MQTT"; mosquitto.conf(5).
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from skerry.topics import shard_of

__all__ = [
    "FLEET_USER",
    "BrokerSettings",
    "Rights",
    "TlsFiles",
    "device_rights",
    "render_mosquitto",
    "render_mosquitto_acl",
    "render_nats",
    "render_nats_users",
]

FLEET_USER: Final = "_fleet"  # the common name of the fleet's own client certificate
LOG_BYTES: Final = 4 << 20
MAX_PAYLOAD: Final = 262144
LOGIN_TIMEOUT_S: Final = 2  # how long nats-server waits for the fleet's answer
AUTH_USER: Final = "auth"
SYSTEM_USER: Final = "sys"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """A certificate with its chain, its key, and the root authority that both sides trust."""

    certificate: Path
    key: Path
    ca: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerSettings:
    """Where a broker listens, whom it asks, and what it may keep.

    Attributes:
        host: where devices reach it.
        service_port: on loopback, for the fleet alone.
        issuer: public key (``A...``) of who answers logins; empty for configured users.
        password: of the service port's two users; a new one for each start.
    """

    name: str
    fleet_id: str
    shards: int
    directory: Path
    tls: TlsFiles
    host: str = "127.0.0.1"
    mqtt_port: int
    service_port: int
    issuer: str = ""
    password: str
    max_store_mb: int = 1024

    @property
    def reachable(self) -> str:
        """The address by which this machine itself reaches the MQTT listener."""
        wildcard = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared
        return wildcard.get(self.host, self.host)

    @property
    def config_file(self) -> Path:
        """The configuration file."""
        return self.directory / "nats.conf"

    @property
    def users_file(self) -> Path:
        """The devices that may connect, where no fleet answers logins."""
        return self.directory / "users.conf"


@dataclass(frozen=True, slots=True)
class Rights:
    """Subjects, in the words of NATS, that a device may publish and subscribe."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


def device_rights(fleet_id: str, shards: int, device: str) -> Rights:
    """Return what a device may say and hear.

    A filter ``x/#`` also matches ``x`` itself, so both subjects are allowed; servers before 2.10
    want a subscription below ``$MQTT.sub`` for QoS 1, which an MQTT client cannot ask for.
    """
    base = f"skerry.v1.{fleet_id}"
    down = (f"{base}.dn.{device}", f"{base}.dn.all")
    return Rights(
        publish=(
            f"{base}.up.{shard_of(device, shards)}.{device}.>",
            f"{base}.presence.{device}",
        ),
        subscribe=(*(subject for name in down for subject in (name, f"{name}.>")), "$MQTT.sub.>"),
    )


def render_nats(settings: BrokerSettings) -> str:
    """Return the configuration file of nats-server."""
    s = settings
    fleet_user = json.dumps(f"CN={FLEET_USER}")
    if s.issuer:
        skerry_users = f"users: [ {{ user: {fleet_user} }} ]"
        service = f"""\
  AUTH {{
    users: [ {{ user: {AUTH_USER}, password: {_quoted(s.password)},
      allowed_connection_types: ["STANDARD"],
      permissions: {{ subscribe: ["$SYS.REQ.USER.AUTH"], allow_responses: true }} }} ]
  }}
"""
        answered = f"""\
  auth_callout {{ issuer: {s.issuer}, account: AUTH,
    auth_users: [ {AUTH_USER}, {SYSTEM_USER}, {fleet_user} ] }}
"""
    else:
        # the path is relative to this file, whatever the directory is called
        skerry_users, service, answered = f'include "./{s.users_file.name}"', "", ""
    return f"""# written by skerry at each start; what is changed here is lost
server_name: {_quoted(s.name)}
listen: "127.0.0.1:{s.service_port}"
pid_file: {_quoted(s.directory / "nats.pid")}
log_file: {_quoted(s.directory / "nats.log")}
logfile_size_limit: {LOG_BYTES}
logfile_max_num: 2
max_payload: {MAX_PAYLOAD}
jetstream {{
  store_dir: {_quoted(s.directory / "store")}
  max_memory_store: 67108864
  max_file_store: {s.max_store_mb << 20}
}}
mqtt {{
  listen: {_quoted(_address(s.host, s.mqtt_port))}
  ack_wait: "10s"
  max_ack_pending: 1024
  tls {{
    cert_file: {_quoted(s.tls.certificate)}
    key_file: {_quoted(s.tls.key)}
    ca_file: {_quoted(s.tls.ca)}
    verify_and_map: true
    timeout: 5
  }}
}}
accounts {{
  SKERRY {{
    jetstream: enabled
    {skerry_users}
  }}
{service}  SYS {{
    users: [ {{ user: {SYSTEM_USER}, password: {_quoted(s.password)},
      allowed_connection_types: ["STANDARD"] }} ]
  }}
}}
system_account: SYS
authorization {{
  timeout: {LOGIN_TIMEOUT_S}
{answered}}}
"""


def render_nats_users(fleet_id: str, shards: int, devices: Iterable[str]) -> str:
    """Return the users of a nats-server that asks nobody: the fleet, and each device."""
    lines = [f'  {{ user: "CN={FLEET_USER}" }}']
    for device in sorted(devices):
        rights = device_rights(fleet_id, shards, device)
        lines.append(
            f'  {{ user: "CN={device}", allowed_connection_types: ["MQTT"], permissions: {{ '
            f"publish: {{ allow: {json.dumps(rights.publish)} }}, "
            f"subscribe: {{ allow: {json.dumps(rights.subscribe)} }} }} }}"
        )
    return "users: [\n" + "\n".join(lines) + "\n]\n"


def render_mosquitto(
    host: str, port: int, tls: TlsFiles, *, acl: Path, revoked: Path | None = None
) -> str:
    """Return the configuration file of Mosquitto.

    Args:
        host: where it listens.
        port: where it listens.
        tls: its certificate.
        acl: the file of `render_mosquitto_acl`.
        revoked: a list of revoked certificates; read again at SIGHUP, as `acl` is.
    """
    crl = f"crlfile {revoked}\n" if revoked is not None else ""
    return f"""# written by skerry fleet broker-config mosquitto
per_listener_settings false
persistence true
persistence_location {acl.parent}/
listener {port} {host}
cafile {tls.ca}
certfile {tls.certificate}
keyfile {tls.key}
{crl}require_certificate true
use_identity_as_username true
use_username_as_clientid true
allow_anonymous false
tls_version tlsv1.3
acl_file {acl}
max_packet_size {MAX_PAYLOAD + 1024}
"""


def render_mosquitto_acl(fleet_id: str, *, denied: Sequence[str] = ()) -> str:
    """Return the access rules of Mosquitto.

    Args:
        fleet_id: in every topic.
        denied: devices that were revoked; their live connections fall silent at SIGHUP.
    """
    base = f"skerry/v1/{fleet_id}"
    users = [f"user {FLEET_USER}\ntopic readwrite {base}/#\n"]
    # a deny comes before whatever a pattern would allow
    users += [f"user {device}\ntopic deny {base}/#\n" for device in sorted(denied)]
    patterns = "\n".join(
        (
            f"pattern write {base}/up/+/%u/#",
            f"pattern write {base}/presence/%u",
            f"pattern read {base}/dn/%u/#",
            f"pattern read {base}/dn/all/#",
        )
    )
    return "\n".join(users) + "\n" + patterns + "\n"


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _quoted(value: object) -> str:
    return json.dumps(str(value))
