"""What the commands share: errors to exit codes, files, keys, and common options."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from skerry.bundle import Bundle, read_bundle
from skerry.errors import FormatError, NotFoundError, SkerryError, TrustError, UsageError
from skerry.keys import PublicKey, Signer

__all__ = [
    "PATH",
    "Command",
    "fleet_option",
    "json_option",
    "load_bundle",
    "load_public",
    "load_signer",
    "load_token",
    "passphrase_option",
    "read_file",
    "write_file",
]

T = TypeVar("T")

PASSPHRASE: Final = "SKERRY_KEY_PASSPHRASE"  # noqa: S105 - the variable's name
TOKEN: Final = "SKERRY_TOKEN"  # noqa: S105 - as above
PATH: Final = click.Path(path_type=Path)


class Command(click.Command):
    """A command whose `SkerryError` becomes one message and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; click itself sees to usage errors."""
        try:
            return super().invoke(ctx)
        except SkerryError as error:
            click.echo(f"skerry {self.name}: {error}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            ctx.exit(130)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
fleet_option = click.option("--fleet", envvar="SKERRY_FLEET", help="URL of the fleet's API.")
passphrase_option = click.option(
    "--passphrase-file", type=PATH, help=f"File with the key's passphrase (or ${PASSPHRASE})."
)


def write_file(path: Path, data: bytes) -> None:
    """Write beside the place, then replace: a reader sees the old file or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise UsageError(f"cannot write {path}: {error.strerror}") from None


def read_file(path: Path, what: str, limit: int = 1 << 20) -> bytes:
    """Return a small file's bytes.

    Raises:
        NotFoundError: no such file.
        UsageError: it cannot be read, or has more than `limit` bytes.
    """

    def load() -> bytes:
        with path.open("rb") as file:
            return file.read(limit + 1)

    data = _opened(path, what, load)
    if len(data) > limit:
        raise UsageError(f"expected {what} of at most {limit} bytes; {path} is longer")
    return data


def load_bundle(path: Path) -> Bundle:
    """Return a bundle with every digest checked.

    Raises:
        NotFoundError: no such file.
        FormatError: not a bundle, or damaged.
    """

    def load() -> Bundle:
        with path.open("rb") as file:
            try:
                return read_bundle(file)
            except FormatError as error:
                raise FormatError(f"{path}: {error}") from None

    return _opened(path, "a bundle", load)


def _passphrase(path: Path | None) -> bytes | None:
    if path is not None:
        return read_file(path, "a passphrase").rstrip(b"\r\n")
    given = os.environ.get(PASSPHRASE)
    if given:
        return given.encode()
    if sys.stdin.isatty():
        return str(click.prompt("Passphrase of the key", hide_input=True, err=True)).encode()
    return None


def load_signer(key: Path, passphrase_file: Path | None) -> Signer:
    """Return a private key; its passphrase is in the file, the environment, or asked for.

    Raises:
        NotFoundError: no such file.
        TrustError: not an Ed25519 key, or the passphrase does not open it.
    """
    pem = read_file(key, "a key")
    passphrase = _passphrase(passphrase_file) if b"BEGIN ENCRYPTED" in pem else None
    if passphrase is None and b"BEGIN ENCRYPTED" in pem:
        raise TrustError(
            f"expected the passphrase of {key}; give --passphrase-file, or set {PASSPHRASE}",
            "key_unreadable",
        )
    try:
        return Signer.from_pem(pem, passphrase)
    except TrustError as error:
        raise TrustError(f"{key}: {error}", error.code) from None


def load_public(key: Path, passphrase_file: Path | None) -> PublicKey:
    """Return a public key, or the public half of a private one.

    Raises:
        NotFoundError: no such file.
        TrustError: not an Ed25519 key.
    """
    pem = read_file(key, "a key")
    if b"PRIVATE KEY" in pem:
        return load_signer(key, passphrase_file).public
    try:
        public = load_pem_public_key(pem)
    except ValueError as error:
        raise TrustError(f"expected a public key PEM in {key}: {error}", "key_unreadable") from None
    if not isinstance(public, Ed25519PublicKey):
        raise TrustError(f"expected an Ed25519 key in {key}", "key_type")
    return PublicKey(public.public_bytes_raw())


def load_token(path: Path | None) -> str:
    """Return an operator's token, from the file or the environment.

    Raises:
        NotFoundError: no such file.
        UsageError: no token, or not one line of text.
    """
    given = read_file(path, "a token").decode(errors="replace") if path else ""
    token = (given or os.environ.get(TOKEN, "")).strip()
    if not token or not token.isascii() or not token.isprintable():
        raise UsageError(f"expected an operator's token: give --token-file, or set {TOKEN}")
    return token


def _opened(path: Path, what: str, load: Callable[[], T]) -> T:
    try:
        return load()
    except FileNotFoundError:
        raise NotFoundError(f"expected {what} at {path}, and there is no such file") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
