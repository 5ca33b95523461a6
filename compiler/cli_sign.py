"""The command sign: the first signature on a release, and every further one.

The first signer starts from what the fleet has. Each further one works on the file that the one
before wrote (`skerry.release_file`), needs no network, and is shown what it is about to sign.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

import click
import msgspec

from compiler.believe import parse_holding, parse_targets
from compiler.command import (
    PATH,
    Command,
    fleet_option,
    json_option,
    key_option,
    load_bundle,
    load_token,
    open_key,
    passphrase_option,
    read_file,
    write_file,
)
from compiler.cosign import Review, add_signature, review
from compiler.handover import (
    CATALOG,
    as_current,
    count_signatures,
    fetch_release_file,
    progress,
    trust_in,
)
from compiler.patches import (
    in_service,
    make_patches,
    patch_file,
    signed_patches,
)
from compiler.publish import check_url, fetch
from compiler.sign import add_release, release_of
from skerry.bundle import Bundle
from skerry.errors import ConflictError, FormatError, UsageError
from skerry.io.signers import read_public
from skerry.release_file import MAX_FILE_BYTES, ReleaseFile, read_release_file
from skerry.trust import PatchRef

__all__ = ["sign"]


@click.command(cls=Command)
@click.argument("bundle", type=PATH)
@click.option("--publisher", help="The publisher's name, as in the catalog; not with --add.")
@key_option
@passphrase_option
@fleet_option
@click.option("--metadata", type=PATH, help="The last release's file, instead of asking a fleet.")
@click.option("--add", type=PATH, help="A release that somebody else began: add a signature to it.")
@click.option("--root", type=PATH, help="The catalog's root metadata that you trust.")
@click.option(
    "--trusted", type=PATH, multiple=True,
    help="Public key of somebody who signs for this publisher; may be repeated.",
)  # fmt: skip
@click.option(
    "--patch-from", type=PATH, multiple=True, metavar="BUNDLE",
    help="An earlier bundle that devices have: make patches from it; may be repeated.",
)  # fmt: skip
@click.option(
    "--patches", is_flag=True,
    help="Make patches from what the fleet's devices run, with --fleet and an operator's token.",
)  # fmt: skip
@click.option("--token-file", type=PATH, help="File with the operator's token (or $SKERRY_TOKEN).")
@click.option("--out", type=PATH, required=True, help="File for the signed release.")
@json_option
def sign(
    bundle: Path,
    publisher: str | None,
    key: str,
    passphrase_file: Path | None,
    fleet: str | None,
    metadata: Path | None,
    add: Path | None,
    root: Path | None,
    trusted: tuple[Path, ...],
    patch_from: tuple[Path, ...],
    patches: bool,
    token_file: Path | None,
    out: Path,
    as_json: bool,
) -> None:
    """Sign BUNDLE: add it to the publisher's metadata, one version higher.

    The current metadata comes from --fleet or --metadata; with neither, this is the
    publisher's first release. Where the publisher needs several signatures, the next
    person signs with --add the file that this one wrote, without a network.

    Patches lie in OUT.patches until `skerry publish` hands them over; the release lists
    their digests, so that devices that have the earlier file fetch the difference only.
    """
    if (publisher is None) == (add is None) or (add is not None and metadata is not None):
        raise UsageError(
            "expected --publisher to begin a release, or --add to sign one that was begun"
        )
    if add is not None and (patches or patch_from):
        raise UsageError("patches are made by whoever begins a release; leave them out with --add")
    if patches and not fleet:
        raise UsageError("expected --fleet, to make patches from what its devices run")
    now = datetime.now(UTC)
    content = load_bundle(bundle)
    start = _begun(add) if add is not None else _current(str(publisher), fleet, metadata)
    trust = trust_in(
        start,
        root=None if root is None else read_file(root, "root metadata"),
        keys=[read_public(path) for path in trusted],
        now=now,
    )
    if add is not None:
        reviewed = review(start, content, trust, now)
        for line in _shown(reviewed, content):
            click.echo(line, err=True)
        signed = add_signature(reviewed, open_key(key, passphrase_file))
    else:
        signer = open_key(key, passphrase_file)
        release = release_of(content, start.publisher)
        released = parse_holding(start.publisher, start.before).releases
        parents: Iterable[Bundle] = map(load_bundle, patch_from)
        if patches:
            known = {"sha256:" + target.sha256 for target in released.values()}
            url, model = check_url(str(fleet)), content.manifest.model
            running = in_service(url, load_token(token_file), model, known)
            parents = chain(parents, running)
        if (patches or patch_from) and release.path in released:
            click.echo("released already: its patches stay those that were signed", err=True)
        elif patches or patch_from:
            release = replace(release, patches=_make_patches(content, parents, out))
        signed = add_release(start.before, release, signer, now=now, trust=trust)
    file = replace(start, metadata=signed)
    _refuse_older(out, file, at_most=add is not None)
    write_file(out, file.to_bytes())
    _tell(bundle, content, file, out, as_json)


def _make_patches(bundle: Bundle, parents: Iterable[Bundle], out: Path) -> tuple[PatchRef, ...]:
    """Make patches and keep them beside the release; tell what each saves."""
    refs: list[PatchRef] = []
    earlier: list[str] = []

    def noted() -> Iterator[Bundle]:
        for parent in parents:
            earlier.append(parent.manifest.model_version)
            yield parent

    for made in make_patches(bundle, noted()):
        write_file(patch_file(out, made.ref.digest), made.data)
        refs.append(made.ref)
        click.echo(
            f"patch from {made.parent_version} for {made.variant}: "
            f"{made.ref.size_bytes:,} bytes, {made.share:.1%} of the file",
            err=True,
        )
    if not earlier:
        click.echo("no patches: the fleet's devices run no version that was signed here", err=True)
    elif not refs:
        versions = ", ".join(earlier)
        click.echo(f"no patches: none from {versions} saves a tenth of a file", err=True)
    return tuple(refs)


def _begun(path: Path) -> ReleaseFile:
    file = _read(path)
    if not file.publisher:
        raise FormatError(f"expected in {path} what `skerry sign` wrote, got plain TUF metadata")
    return file


def _current(publisher: str, fleet: str | None, metadata: Path | None) -> ReleaseFile:
    if metadata is not None:
        return as_current(_read(metadata), publisher)
    if fleet:
        return fetch_release_file(publisher, check_url(fleet) + CATALOG, fetch)
    return ReleaseFile(publisher, {})


def _read(path: Path) -> ReleaseFile:
    try:
        return read_release_file(read_file(path, "a release file", MAX_FILE_BYTES))
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None


def _refuse_older(out: Path, file: ReleaseFile, *, at_most: bool) -> None:
    """A fleet that hands out old metadata would have a counter given twice."""
    if not out.is_file():
        return
    there = _read(out)
    held = there.metadata[there.publisher]
    last, version = parse_targets(held).signed.version, _version(file)
    if last > version or (last == version and not at_most):
        raise ConflictError(
            f"{out} holds metadata version {last}, and this would be version {version}: the "
            "current metadata is older than what was signed last. Give that as --metadata"
        )


def _version(file: ReleaseFile) -> int:
    return parse_targets(file.metadata[file.publisher]).signed.version


def _shown(reviewed: Review, bundle: Bundle) -> list[str]:
    """Say in plain words what is about to be signed."""
    release, manifest = reviewed.release, bundle.manifest
    what = "new" if reviewed.is_new else "released already; only signed anew"
    lines = [
        f"publisher  {reviewed.publisher}",
        f"model      {manifest.model} {manifest.model_version}, "
        f"release {release.release_counter} of this model ({what})",
        f"bundle     sha256:{release.sha256}, the one at hand",
        f"runs on    {', '.join(release.hw_classes)}; agent {release.min_agent} or later",
        f"metadata   version {reviewed.version - 1} becomes {reviewed.version}",
    ]
    if release.patches:
        size = sum(patch.size_bytes for patch in release.patches)
        lines.append(f"patches    {len(release.patches)}, {size:,} bytes, which make files of it")
    if reviewed.moved:
        lines.append(f"besides    {reviewed.moved} releases move into bins, unchanged")
    elif reviewed.renewed:
        lines.append(f"besides    {reviewed.renewed} bins are signed anew, unchanged")
    else:
        lines.append("besides    nothing changes")
    lines.append(f"signed by  {', '.join(reviewed.signer_ids)}")
    return lines


def _tell(bundle: Path, content: Bundle, file: ReleaseFile, out: Path, as_json: bool) -> None:
    path = release_of(content, file.publisher).path
    roles = {name: parse_targets(data) for name, data in file.metadata.items()}
    found = [role.signed.targets[path] for role in roles.values() if path in role.signed.targets]
    counter = (found[0].custom or {})["release_counter"]
    version = _version(file)
    if as_json:
        count, needed = count_signatures(file)
        facts = {
            "metadata": str(out), "target": path, "version": version, "release_counter": counter,
            "digest": content.digest, "signatures": count, "threshold": needed,
            "patches": signed_patches(file, path),
        }  # fmt: skip
        click.echo(msgspec.json.encode(facts))
        return
    click.echo(f"signed {path}, release {counter}, metadata version {version}", err=True)
    click.echo(progress(file, bundle, out), err=True)
    click.echo(out)
