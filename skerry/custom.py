"""What Skerry adds to TUF metadata: two `custom` fields of targets, and one field of a root.

    catalog target    custom {release_counter, hw_classes, min_agent, may_fall_back_to, patches}
    director target   custom {device, slot, rollout, nonce}
    director root     x-skerry-message-keys {key id: 64 hex digits of the raw Ed25519 key}

TUF signs these fields and does not look into them; here they get their types. Whoever reads them
has verified the metadata first.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from skerry.canonical import check_digest
from skerry.errors import FormatError, TrustError, UsageError
from skerry.ids import check_id, check_version
from skerry.keys import PublicKey
from skerry.trust import CatalogTarget, DirectorTarget, PatchRef, parse_target

__all__ = [
    "MAX_PATCHES",
    "MAX_PATCH_BYTES",
    "MESSAGE_KEYS_FIELD",
    "catalog_custom",
    "catalog_target",
    "director_custom",
    "director_target",
    "message_keys",
    "message_keys_field",
]

MESSAGE_KEYS_FIELD: Final = "x-skerry-message-keys"
MAX_CLASSES: Final = 64
MAX_FALL_BACKS: Final = 64
MAX_PATCHES: Final = 16  # 4 kB of metadata
MAX_PATCH_BYTES: Final = 1 << 30


class _CatalogCustom(msgspec.Struct, frozen=True):
    release_counter: int
    hw_classes: list[str]
    min_agent: str
    may_fall_back_to: list[str] = []
    patches: list[PatchRef] = []


class _DirectorCustom(msgspec.Struct, frozen=True):
    device: str
    slot: str
    rollout: str
    nonce: str


def catalog_custom(target: CatalogTarget) -> dict[str, Any]:
    """Return the `custom` field of a release; one without patches says nothing of them."""
    custom: dict[str, Any] = {
        "release_counter": target.release_counter,
        "hw_classes": list(target.hw_classes),
        "min_agent": target.min_agent,
        "may_fall_back_to": list(target.may_fall_back_to),
    }
    if target.patches:
        custom["patches"] = msgspec.to_builtins(target.patches)
    return custom


def catalog_target(
    path: str, length: int, hashes: Mapping[str, str], custom: object
) -> CatalogTarget:
    """Return a release as verified catalog metadata states it.

    Raises:
        TrustError: code ``custom``: a field is missing or has not the promised form.
    """
    parse_target(path)
    fields = _typed(custom, _CatalogCustom, path)
    try:
        check_version(fields.min_agent)
    except UsageError as error:
        raise TrustError(f"target {path}: min_agent: {error}", "custom") from None
    if fields.release_counter < 1 or not fields.hw_classes:
        raise TrustError(
            f"target {path}: expected a release counter from 1 and a hardware class", "custom"
        )
    if len(fields.hw_classes) > MAX_CLASSES or len(fields.may_fall_back_to) > MAX_FALL_BACKS:
        raise TrustError(f"target {path}: lists too many classes or releases", "custom")
    _check_patches(path, fields.patches)
    return CatalogTarget(
        path=path,
        length=length,
        sha256=_digest(path, hashes),
        release_counter=fields.release_counter,
        hw_classes=fields.hw_classes,
        min_agent=fields.min_agent,
        may_fall_back_to=fields.may_fall_back_to,
        patches=fields.patches,
    )


def director_custom(target: DirectorTarget) -> dict[str, Any]:
    """Return the `custom` field of an assignment."""
    return {
        "device": target.device,
        "slot": target.slot,
        "rollout": target.rollout,
        "nonce": target.nonce,
    }


def director_target(
    path: str, length: int, hashes: Mapping[str, str], custom: object
) -> DirectorTarget:
    """Return an assignment as verified director metadata states it.

    Raises:
        TrustError: code ``custom``: a field is missing or has not the promised form.
    """
    parse_target(path)
    fields = _typed(custom, _DirectorCustom, path)
    return DirectorTarget(
        path=path,
        length=length,
        sha256=_digest(path, hashes),
        device=fields.device,
        slot=fields.slot,
        rollout=fields.rollout,
        nonce=fields.nonce,
    )


def message_keys_field(keys: Iterable[PublicKey]) -> dict[str, str]:
    """Return the director root's field that names the fleet's message keys."""
    return {key.key_id: key.raw.hex() for key in keys}


def message_keys(unrecognized: Mapping[str, object]) -> dict[str, PublicKey]:
    """Return the message keys that a verified director root names, by key id.

    Args:
        unrecognized: the root's fields that TUF does not know.

    Raises:
        TrustError: code ``message_keys``: the field is missing or damaged.
    """
    field = unrecognized.get(MESSAGE_KEYS_FIELD)
    try:
        raws = msgspec.convert(field, dict[str, str])
        keys = [PublicKey(bytes.fromhex(text)) for text in raws.values()]
    except (msgspec.ValidationError, ValueError):
        raise TrustError(
            f"expected the director root to name message keys in {MESSAGE_KEYS_FIELD}",
            "message_keys",
        ) from None
    if not keys or any(len(key.raw) != 32 for key in keys) or {k.key_id for k in keys} != set(raws):
        raise TrustError("the director root names a message key by a wrong id", "message_keys")
    return {key.key_id: key for key in keys}


def _check_patches(path: str, patches: list[PatchRef]) -> None:
    if len(patches) > MAX_PATCHES:
        raise TrustError(f"target {path}: expected at most {MAX_PATCHES} patches", "custom")
    for patch in patches:
        try:
            for digest in (patch.old, patch.new, patch.digest):
                check_digest(digest)
        except FormatError as error:
            raise TrustError(f"target {path}: a patch: {error}", "custom") from None
        if not 0 < patch.size_bytes <= MAX_PATCH_BYTES:
            raise TrustError(
                f"target {path}: expected patches of 1 to {MAX_PATCH_BYTES} bytes, "
                f"got {patch.size_bytes}",
                "custom",
            )


def _typed(custom: object, kind: type[Any], path: str) -> Any:
    try:
        fields = msgspec.convert(custom, kind)
        for name in ("device", "slot"):
            if hasattr(fields, name):
                check_id(getattr(fields, name), name)
    except (msgspec.ValidationError, UsageError) as error:
        raise TrustError(f"target {path}: {error}; sign it again", "custom") from None
    return fields


def _digest(path: str, hashes: Mapping[str, str]) -> str:
    digest = hashes.get("sha256", "")
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise TrustError(f"target {path}: expected its sha256 in 64 hex digits", "custom")
    return digest
