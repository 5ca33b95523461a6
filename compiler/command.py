"""What the commands share: errors to exit codes, files, keys, and common options."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from securesystemslib.signer import Signer, SSlibKey

from skerry.bundle import Bundle, read_bundle
from skerry.errors import FormatError, NotFoundError, SkerryError, UsageError
from skerry.io.signers import (
    KEY_HELP,
    PASSPHRASE_HELP,
    Passphrase,
    open_signer,
    passphrase_from,
    read_key,
)

__all__ = [
    "PATH",
    "TOKEN",
    "Command",
    "check_place",
    "fleet_option",
    "json_option",
    "key_option",
    "load_bundle",
    "load_public",
    "load_token",
    "open_key",
    "passphrase_option",
    "read_file",
    "write_file",
]

T = TypeVar("T")

TOKEN: Final = "SKERRY_TOKEN"  # noqa: S105 - the variable's name
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
        except BrokenPipeError:  # who reads it went away: click sees to it
            raise
        except OSError as error:  # a full disk, a file that may not be read
            where = f": {error.filename}" if error.filename else ""
            click.echo(
                f"skerry {self.name}: the system refused{where}: {error.strerror or error}; "
                "free some space, or mend the permissions (TMPDIR names another place for "
                "temporary files)",
                err=True,
            )
            ctx.exit(1)
        except KeyboardInterrupt:
            ctx.exit(130)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
fleet_option = click.option("--fleet", envvar="SKERRY_FLEET", help="URL of the fleet's API.")
passphrase_option = click.option("--passphrase-file", type=PATH, help=PASSPHRASE_HELP)
key_option = click.option("--key", metavar="KEY", required=True, help=KEY_HELP)


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
    except BaseException as error:  # an interruption leaves nothing behind either
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UsageError(f"cannot write {path}: {error.strerror}") from None
        raise


def check_place(folder: Path) -> None:
    """Refuse a folder that cannot be written into, before the work for it is done.

    Raises:
        UsageError: it is a file, or may not be written.
    """
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write {folder}: expected a directory that you may write to")


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


def open_key(key: str, passphrase_file: Path | None) -> Signer:
    """Return the signer that `--key` names: a file's, a token's or a command's.

    Raises:
        SkerryError: as `skerry.io.signers.open_signer` does.
    """
    return open_signer(key, _passphrase(passphrase_file))


def load_public(key: str, passphrase_file: Path | None) -> SSlibKey:
    """Return the public key that `--key` names, of a `.pub` file or of a private key.

    Raises:
        SkerryError: as `skerry.io.signers.read_key` does.
    """
    return read_key(key, _passphrase(passphrase_file))


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


def _passphrase(file: Path | None) -> Passphrase:
    return passphrase_from(file, os.environ, _ask if sys.stdin.isatty() else None)


def _ask(what: str) -> str:
    return str(click.prompt(f"Passphrase or PIN of {what}", hide_input=True, err=True))


def _opened(path: Path, what: str, load: Callable[[], T]) -> T:
    try:
        return load()
    except FileNotFoundError:
        raise NotFoundError(f"expected {what} at {path}, and there is no such file") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
