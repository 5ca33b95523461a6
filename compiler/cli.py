"""The commands build, inspect, sign, verify and publish.

Data goes to stdout and everything for people to stderr. An error is one message on
stderr and the exit code of its class.
"""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from compiler.build import Built
from compiler.build import build as run_build
from compiler.lock import lock_bytes, read_lock
from compiler.publish import check_url, fetch
from compiler.publish import publish as run_publish
from compiler.recipe import load_profile, read_recipe
from compiler.record import VariantRecord, seal_record
from compiler.sign import add_release, parse_targets, release_of
from compiler.verify import verify_in_catalog, verify_with_key
from skerry.bundle import Bundle, read_bundle
from skerry.errors import ConflictError, NotFoundError, SkerryError, TrustError, UsageError
from skerry.keys import PublicKey, Signer

__all__ = ["build", "inspect", "publish", "sign", "verify"]

PASSPHRASE: Final = "SKERRY_KEY_PASSPHRASE"  # noqa: S105 - the variable's name
CATALOG: Final = "/tuf/catalog/metadata/"

T = TypeVar("T")

PATH: Final = click.Path(path_type=Path)


class _Command(click.Command):
    """A command whose `SkerryError` becomes one message and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
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


@click.command(cls=_Command)
@click.argument("recipe", type=PATH)
@click.option("--out", type=PATH, required=True, help="Directory for the bundle.")
@click.option("--profile", type=PATH, help="Device profile to build for; default: this machine.")
@click.option("--lock", type=PATH, help="Repeat the choices of this lock: same bytes again.")
@click.option("--key", type=PATH, help="Private key to sign the evaluation record with.")
@passphrase_option
@json_option
def build(
    recipe: Path,
    out: Path,
    profile: Path | None,
    lock: Path | None,
    key: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Build a bundle from RECIPE: check, quantize, evaluate, gate.

    Writes the bundle, its lock, and a record of what was measured. A variant that is
    not good enough, or not proven faster, is left out with the reason; fp32 always ships.
    """
    signer = _signer(key, passphrase_file) if key is not None else None
    source = read_recipe(recipe)
    console = Console(stderr=True)
    with console.status("") as status:  # draws only on a terminal
        built = run_build(
            source,
            now=datetime.now(UTC),
            profile=load_profile(profile) if profile is not None else None,
            lock=read_lock(lock) if lock is not None else None,
            tell=lambda step: status.update(f"{source.recipe.model.name}: {step}"),
        )
    paths = _write_built(out, built, signer)
    if as_json:
        summary = {
            "bundle": str(paths["bundle"]),
            "digest": built.digest,
            "model": built.record.model,
            "model_version": built.record.model_version,
            "lock": str(paths["lock"]),
            "record": str(paths["record"]),
            "metric": built.record.metric,
            "n": built.record.n,
            "variants": built.record.variants,
            "notes": built.record.notes,
        }
        click.echo(msgspec.json.encode(summary))
        return
    console.print(_variants(built.record.variants, built.record.metric))
    for variant in built.record.variants:
        console.print(f"{variant.precision}: {escape(variant.reason)}", highlight=False)
    click.echo(paths["bundle"])


@click.command(cls=_Command)
@click.argument("bundle", type=PATH)
@json_option
def inspect(bundle: Path, as_json: bool) -> None:
    """Show what BUNDLE says of itself, once every digest in it was checked."""
    content = _bundle(bundle)
    manifest = content.manifest
    if as_json:
        facts = {"digest": content.digest, "manifest": manifest}
        click.echo(msgspec.json.encode(facts))
        return
    console = Console(stderr=True, highlight=False)
    console.print(f"[bold]{manifest.model} {manifest.model_version}[/bold]")
    table = Table("variant", "bytes", "metric", "value", "n", "measured on", "runs on")
    for variant in manifest.variants:
        accuracy = variant.accuracy
        table.add_row(
            escape(variant.id), f"{variant.file.size_bytes:,}", escape(accuracy.metric),
            f"{accuracy.value:.4f}", str(accuracy.n), escape(accuracy.isa),
            escape(", ".join(variant.hw_classes)),
        )  # fmt: skip
    console.print(table)
    for label, specs in (("in", manifest.inputs), ("out", manifest.outputs)):
        for spec in specs:
            console.print(escape(f"{label}: {spec.name} {spec.datatype} {spec.shape}"))
    watched = ", ".join(f"{f.name} ({f.kind})" for f in manifest.features)
    console.print(f"watched: {escape(watched) or 'predictions only'}")
    click.echo(content.digest)


@click.command(cls=_Command)
@click.argument("bundle", type=PATH)
@click.option("--publisher", required=True, help="The publisher's name, as in the catalog.")
@click.option("--key", type=PATH, required=True, help="The publisher's private key, a PEM.")
@passphrase_option
@fleet_option
@click.option("--metadata", type=PATH, help="The current metadata, instead of asking a fleet.")
@click.option("--out", type=PATH, required=True, help="File for the new metadata.")
@json_option
def sign(
    bundle: Path,
    publisher: str,
    key: Path,
    passphrase_file: Path | None,
    fleet: str | None,
    metadata: Path | None,
    out: Path,
    as_json: bool,
) -> None:
    """Sign BUNDLE: add it to the publisher's metadata, one version higher.

    The current metadata comes from --fleet or --metadata; with neither, this is the
    publisher's first release.
    """
    content = _bundle(bundle)
    signer = _signer(key, passphrase_file)
    release = release_of(content, publisher)
    current = _current(publisher, fleet, metadata)
    signed = add_release(current, release, signer, now=datetime.now(UTC))
    version = parse_targets(signed).signed.version
    _refuse_older(out, version)
    _write(out, signed)
    target = parse_targets(signed).signed.targets[release.path]
    counter = (target.custom or {})["release_counter"]
    if as_json:
        facts = {
            "metadata": str(out), "target": release.path, "version": version,
            "release_counter": counter, "digest": content.digest,
        }  # fmt: skip
        click.echo(msgspec.json.encode(facts))
        return
    click.echo(f"signed {release.path}, release {counter}, metadata version {version}", err=True)
    click.echo(out)


@click.command(cls=_Command)
@click.argument("bundle", type=PATH)
@click.option("--publisher", help="The publisher's name, as in the catalog.")
@click.option("--metadata", type=PATH, help="The publisher's signed metadata.")
@click.option("--key", type=PATH, help="The publisher's key, a PEM: public, or private.")
@passphrase_option
@click.option("--root", type=PATH, help="The catalog's root metadata that you trust.")
@fleet_option
@json_option
def verify(
    bundle: Path,
    publisher: str | None,
    metadata: Path | None,
    key: Path | None,
    passphrase_file: Path | None,
    root: Path | None,
    fleet: str | None,
    as_json: bool,
) -> None:
    """Verify BUNDLE: every digest, and who signed it.

    Either with --metadata and --key, or, once published, with --root and --fleet: then
    as a device does, from the trusted root down.
    """
    content = _bundle(bundle)
    by_key, by_catalog = metadata is not None and key is not None, root is not None and bool(fleet)
    if publisher is None or not (by_key or by_catalog):
        raise TrustError(
            f"{bundle.name} is whole, but nothing was given to check its signature with. Give "
            "--publisher with --metadata and --key, or with --root and --fleet; "
            "an unsigned bundle is signed with `skerry sign`",
            "unsigned",
        )
    release = release_of(content, publisher)
    if metadata is not None and key is not None:
        public = _public(key, passphrase_file)
        counter = verify_with_key(
            release, _read(metadata, "metadata"), public, now=datetime.now(UTC)
        )
    else:
        assert root is not None
        assert fleet is not None
        base = check_url(fleet) + CATALOG
        counter = verify_in_catalog(release, _read(root, "root metadata"), base, fetch)
    if as_json:
        facts = {"digest": content.digest, "target": release.path, "release_counter": counter}
        click.echo(msgspec.json.encode(facts))
        return
    click.echo(f"good: {release.path}, release {counter}", err=True)
    click.echo(content.digest)


@click.command(cls=_Command)
@click.argument("bundle", type=PATH)
@click.argument("metadata", type=PATH)
@fleet_option
@click.option("--token-file", type=PATH, help="File with the operator's token (or $SKERRY_TOKEN).")
@json_option
def publish(
    bundle: Path, metadata: Path, fleet: str | None, token_file: Path | None, as_json: bool
) -> None:
    """Hand BUNDLE and its signed METADATA to a fleet, which verifies and keeps them."""
    content = _bundle(bundle)
    signed = _read(metadata, "metadata")
    parse_targets(signed)
    if not fleet:
        raise UsageError("expected the fleet's URL: give --fleet, or set SKERRY_FLEET")
    answer = run_publish(bundle, signed, check_url(fleet), _token(token_file))
    if as_json:
        click.echo(msgspec.json.encode({"digest": content.digest, "fleet": answer}))
        return
    manifest = content.manifest
    click.echo(f"published {manifest.model} {manifest.model_version}", err=True)
    click.echo(content.digest)


# --- files and keys ---------------------------------------------------------------


def _write_built(out: Path, built: Built, signer: Signer | None) -> dict[str, Path]:
    record, lock = built.record, built.lock
    stem = f"{record.model}-{record.model_version}"
    short = built.digest.removeprefix("sha256:")[:16]
    files = {
        "bundle": (out / f"{stem}.skerry", built.bundle),
        "lock": (out / f"{stem}.lock", lock_bytes(lock)),
        "record": (out / f"{stem}.{short}.evaluation.json", seal_record(record, signer)),
    }
    for path, data in files.values():
        _write(path, data)
    return {name: path for name, (path, _) in files.items()}


def _write(path: Path, data: bytes) -> None:
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


def _read(path: Path, what: str, limit: int = 1 << 20) -> bytes:
    def load() -> bytes:
        with path.open("rb") as file:
            return file.read(limit + 1)

    data = _opened(path, what, load)
    if len(data) > limit:
        raise UsageError(f"expected {what} of at most {limit} bytes; {path} is longer")
    return data


def _bundle(path: Path) -> Bundle:
    def load() -> Bundle:
        with path.open("rb") as file:
            return read_bundle(file)

    return _opened(path, "a bundle", load)


def _opened(path: Path, what: str, load: Callable[[], T]) -> T:
    try:
        return load()
    except FileNotFoundError:
        raise NotFoundError(f"expected {what} at {path}, and there is no such file") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None


def _passphrase(path: Path | None) -> bytes | None:
    if path is not None:
        return _read(path, "a passphrase").rstrip(b"\r\n")
    given = os.environ.get(PASSPHRASE)
    if given:
        return given.encode()
    if sys.stdin.isatty():
        return str(click.prompt("Passphrase of the key", hide_input=True, err=True)).encode()
    return None


def _signer(key: Path, passphrase_file: Path | None) -> Signer:
    pem = _read(key, "a key")
    encrypted = b"BEGIN ENCRYPTED" in pem
    return Signer.from_pem(pem, _passphrase(passphrase_file) if encrypted else None)


def _public(key: Path, passphrase_file: Path | None) -> PublicKey:
    pem = _read(key, "a key")
    if b"PRIVATE KEY" in pem:
        return _signer(key, passphrase_file).public
    try:
        public = load_pem_public_key(pem)
    except ValueError as error:
        raise TrustError(f"expected a public key PEM in {key}: {error}", "key_unreadable") from None
    if not isinstance(public, Ed25519PublicKey):
        raise TrustError(f"expected an Ed25519 key in {key}", "key_type")
    return PublicKey(public.public_bytes_raw())


def _token(path: Path | None) -> str:
    token = (
        _read(path, "a token").decode(errors="replace") if path else os.environ.get("SKERRY_TOKEN")
    )
    token = (token or "").strip()
    if not token or not token.isascii() or not token.isprintable():
        raise UsageError("expected an operator's token: give --token-file, or set SKERRY_TOKEN")
    return token


def _current(publisher: str, fleet: str | None, metadata: Path | None) -> bytes | None:
    if metadata is not None:
        return _read(metadata, "metadata")
    return fetch(f"{check_url(fleet)}{CATALOG}{publisher}.json") if fleet else None


def _refuse_older(out: Path, version: int) -> None:
    """A fleet that hands out old metadata would have a counter given twice."""
    if not out.is_file():
        return
    last = parse_targets(_read(out, "metadata")).signed.version
    if last >= version:
        raise ConflictError(
            f"{out} holds metadata version {last}, and this would be version {version}: the "
            "current metadata is older than what was signed last. Give that as --metadata"
        )


def _variants(variants: list[VariantRecord], metric: str) -> Table:
    table = Table("precision", "bytes", metric, "CPU time to fp32 (95 %)", "chosen")
    for v in variants:
        value = "-" if v.accuracy is None else f"{v.accuracy:.4f}"
        ratio = "-" if v.latency_ratio is None else f"{v.latency_ratio:.2f}"
        if v.latency_interval is not None:
            ratio += f" ({v.latency_interval[0]:.2f} to {v.latency_interval[1]:.2f})"
        chosen = "first" if v.chosen else "too" if v.shipped else "no"
        table.add_row(v.precision, f"{v.bytes:,}", value, ratio, chosen)
    return table
