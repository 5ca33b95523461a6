"""The commands inspect, verify and publish: what is done with a bundle once it is built.

Data goes to stdout and everything for people to stderr.
"""

from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from compiler.believe import parse_targets
from compiler.command import (
    PATH,
    Command,
    fleet_option,
    json_option,
    load_bundle,
    load_public,
    load_token,
    passphrase_option,
    read_file,
)
from compiler.handover import CATALOG, count_signatures, progress
from compiler.patches import patch_file, signed_patches
from compiler.publish import check_url, fetch, upload_patch
from compiler.publish import publish as run_publish
from compiler.sign import release_of
from compiler.verify import verify_in_catalog, verify_with_key
from skerry.bundle import Bundle
from skerry.canonical import from_json
from skerry.errors import TrustError, UsageError
from skerry.manifest import Evaluation, parse_baseline
from skerry.release_file import MAX_FILE_BYTES, ReleaseFile, read_release_file

__all__ = ["inspect", "publish", "verify"]


@click.command(cls=Command)
@click.argument("bundle", type=PATH)
@json_option
def inspect(bundle: Path, as_json: bool) -> None:
    """Show what BUNDLE says of itself, once every digest in it was checked."""
    content = load_bundle(bundle)
    manifest = content.manifest
    if as_json:
        facts = {
            "digest": content.digest,
            "manifest": manifest,
            "evaluation": from_json(content.blobs[manifest.evaluation.digest], Evaluation),
        }
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
    if manifest.needs:
        console.print(escape(f"devices need: {', '.join(manifest.needs)}"))
    report = from_json(content.blobs[manifest.evaluation.digest], Evaluation)
    for part in report.slices:
        console.print(
            escape(f"{part.slice} {part.group}: {report.metric} {part.value:.4f} (n={part.n})")
        )
    for candidate in report.candidates:
        console.print(escape(f"{candidate.precision}: {candidate.reason}"))
        if candidate.left_float:
            console.print(escape(f"  left in float: {', '.join(candidate.left_float)}"))
    console.print(
        f"measured on {escape(report.isa or '?')}; other classes of hardware are unmeasured until a "
        "device of theirs has run the golden set"
    )
    for name, value in sorted(manifest.lineage.data.items()):
        console.print(escape(f"data {name}: {value}"))
    for name, groups in parse_baseline(content.blobs[manifest.baseline.digest]).slices.items():
        parts = ", ".join(f"{group} {part.n}" for group, part in groups.items())
        console.print(escape(f"baseline by {name}: {parts or 'no group is large enough'}"))
    watched = ", ".join(f"{f.name} ({f.kind})" for f in manifest.features)
    console.print(f"watched: {escape(watched) or 'predictions only'}")
    click.echo(content.digest)


@click.command(cls=Command)
@click.argument("bundle", type=PATH)
@click.option("--publisher", help="The publisher's name, as in the catalog.")
@click.option("--metadata", type=PATH, help="The publisher's signed metadata.")
@click.option(
    "--key", metavar="KEY", help="The publisher's key: its .pub file, or the private key."
)
@passphrase_option
@click.option("--root", type=PATH, help="The catalog's root metadata that you trust.")
@fleet_option
@json_option
def verify(
    bundle: Path,
    publisher: str | None,
    metadata: Path | None,
    key: str | None,
    passphrase_file: Path | None,
    root: Path | None,
    fleet: str | None,
    as_json: bool,
) -> None:
    """Verify BUNDLE: every digest, and who signed it.

    Either with --metadata and --key, or, once published, with --root and --fleet: then
    as a device does, from the trusted root down.
    """
    content = load_bundle(bundle)
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
        public = load_public(key, passphrase_file)
        counter = verify_with_key(
            release, read_file(metadata, "metadata", MAX_FILE_BYTES), public, now=datetime.now(UTC)
        )
    else:
        assert root is not None
        assert fleet is not None
        base = check_url(fleet) + CATALOG
        counter = verify_in_catalog(release, read_file(root, "root metadata"), base, fetch)
    if as_json:
        facts = {"digest": content.digest, "target": release.path, "release_counter": counter}
        click.echo(msgspec.json.encode(facts))
        return
    click.echo(f"good: {release.path}, release {counter}", err=True)
    click.echo(content.digest)


@click.command(cls=Command)
@click.argument("bundle", type=PATH)
@click.argument("metadata", type=PATH, required=False, metavar="METADATA")
@fleet_option
@click.option("--token-file", type=PATH, help="File with the operator's token (or $SKERRY_TOKEN).")
@json_option
def publish(
    bundle: Path, metadata: Path | None, fleet: str | None, token_file: Path | None, as_json: bool
) -> None:
    """Hand BUNDLE and its signed METADATA to a fleet, which verifies and keeps them."""
    content = load_bundle(bundle)
    if metadata is None:
        raise TrustError(
            f"{bundle.name} comes without signed METADATA; make it with: skerry sign {bundle} "
            "--publisher NAME --key FILE --out METADATA",
            "unsigned",
        )
    file = read_release_file(read_file(metadata, "a release file", MAX_FILE_BYTES))
    count, needed = count_signatures(file)
    if needed is not None and count < needed:
        raise TrustError(progress(file, bundle, metadata), "too_few_signatures")
    if not fleet:
        raise UsageError("expected the fleet's URL: give --fleet, or set SKERRY_FLEET")
    url, token = check_url(fleet), load_token(token_file)
    answer = run_publish(bundle, file.for_fleet(), url, token)
    handed = _hand_over_patches(content, file, metadata, url, token)
    if as_json:
        facts = {"digest": content.digest, "fleet": answer, "patches": handed}
        click.echo(msgspec.json.encode(facts))
        return
    manifest = content.manifest
    click.echo(f"published {manifest.model} {manifest.model_version}", err=True)
    click.echo(content.digest)


def _hand_over_patches(
    bundle: Bundle, file: ReleaseFile, metadata: Path, fleet: str, token: str
) -> list[str]:
    """Upload the patches that the release lists and that lie beside it; return their digests."""
    targets = {
        path for data in file.metadata.values() for path in parse_targets(data).signed.targets
    }
    manifest = bundle.manifest
    name = f"/{manifest.model}@{manifest.model_version}"
    handed: list[str] = []
    for path in sorted(path for path in targets if path.endswith(name)):
        for patch in signed_patches(file, path):
            place = patch_file(metadata, patch.digest)
            if place.is_file():
                upload_patch(place, patch.digest, fleet, token)
                handed.append(patch.digest)
            else:
                click.echo(
                    f"the release lists a patch that is not at {place}: devices fetch the whole "
                    "file; publish again where it is",
                    err=True,
                )
    return handed
