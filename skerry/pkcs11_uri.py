"""The names of keys on tokens: `pkcs11:` URIs, as far as they find one key (RFC 7512).

    pkcs11:token=acme;object=release
    pkcs11:serial=5ab8c1f2d0351d06;id=%A1%02?module-path=/usr/lib/softhsm/libsofthsm2.so

A PIN is never part of a name: names end up in scripts, in histories and in lists of processes.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

from skerry.errors import UsageError

__all__ = ["KeyUri", "parse_key_uri"]

SCHEME: Final = "pkcs11:"
MAX_CHARS: Final = 4096
PATH: Final = ("token", "serial", "manufacturer", "model", "object", "id", "type")
QUERY: Final = ("module-path",)
PINS: Final = ("pin-value", "pin-source")
TYPES: Final = ("private", "public")  # tools print either half's name, and both mean this pair
BROKEN_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")


@dataclass(frozen=True, slots=True)
class KeyUri:
    """What a key on a token is found by; None matches anything."""

    token: str | None = None  # its label
    serial: str | None = None
    manufacturer: str | None = None
    model: str | None = None
    object: str | None = None  # the key's label
    id: bytes | None = None
    module_path: str | None = None


def parse_key_uri(text: str) -> KeyUri:
    """Read the URI of a key.

    Raises:
        UsageError: not such a URI, an attribute that is not known, given twice or damaged, a PIN in
            it, or neither `object` nor `id`.
    """
    if text[: len(SCHEME)].lower() != SCHEME or len(text) > MAX_CHARS or not text.isprintable():
        raise UsageError(f"expected {SCHEME}token=NAME;object=NAME, got {text[:80]!r}")
    path, _, query = text[len(SCHEME) :].partition("?")
    found = dict(_attributes(path.split(";"), PATH))
    found |= _attributes(query.split("&"), QUERY)
    kind = found.pop("type", b"private").decode("ascii", "replace")
    if kind not in TYPES:
        raise UsageError(f"expected the URI of a private key, got one of type {kind!r}")
    if "object" not in found and "id" not in found:
        raise UsageError("expected object=NAME or id=%XX in the URI: a token may hold many keys")
    identity = found.pop("id", None)
    texts = {name.replace("-", "_"): _text(name, value) for name, value in found.items()}
    return KeyUri(id=identity, **texts)


def _attributes(parts: Iterable[str], known: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    seen = set()
    for part in parts:
        if not part:
            continue
        name, _, value = part.partition("=")
        if name in PINS:
            raise UsageError(f"expected no {name} in the URI: the PIN is asked for, or comes from "
                             "--passphrase-file")  # fmt: skip
        if name not in known:
            raise UsageError(f"expected one of {', '.join(known)} in the URI, got {name[:40]!r}")
        if name in seen or not value or BROKEN_ESCAPE.search(value):
            raise UsageError(f"expected {name}=VALUE in the URI, once, with %XX for special signs")
        seen.add(name)
        yield name, unquote_to_bytes(value)


def _text(name: str, value: bytes) -> str:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise UsageError(f"expected text in UTF-8 for {name} in the URI")
    return text
