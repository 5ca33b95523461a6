"""Unigram tokenizers of a `tokenizer.json` (XLM-R, T5, ALBERT), as the SentencePiece model that they came from.

Such a file holds what a SentencePiece model holds: pieces with their scores, and the map of letters
that is applied first. Here it is put together again, with the file's own numbers. Two things
differ from the training library, and the parity gate tells them: names of special words in a
text are ordinary letters here, and marks are combined letter by letter, not by what is seen as one.

Source: sentencepiece_model.proto; protobuf's encoding guide.
"""

import base64
import struct
from collections.abc import Mapping
from typing import Any

from skerry.errors import UsageError

__all__ = ["unigram_model"]

NORMAL, UNKNOWN, CONTROL = 1, 2, 3  # kinds of pieces


def unigram_model(said: Mapping[str, Any], where: str) -> tuple[dict[str, int], bytes]:
    """Return piece -> number, and a SentencePiece model.

    Args:
        said: the file.
        where: its name, for messages.

    Raises:
        UsageError: rules that SentencePiece does not have.
    """
    model, added = said["model"], said.get("added_tokens") or []
    letters = _letters(said.get("normalizer"), where)
    _check_spaces(said.get("pre_tokenizer"), where)
    pieces = [(str(piece), float(score)) for piece, score in model["vocab"]]
    pieces += [(word["content"], 0.0) for word in added if word["id"] >= len(pieces)]
    if model.get("byte_fallback") or model.get("unk_id") is None:
        raise UsageError(
            f"{where}: expected a unigram tokenizer with an unknown word, without bytes"
        )
    own = {word["content"] for word in added}
    parts = []
    for number, (piece, score) in enumerate(pieces):
        kind = UNKNOWN if number == model["unk_id"] else CONTROL if piece in own else NORMAL
        parts.append(
            _field(
                1, _field(1, piece.encode()) + b"\x15" + struct.pack("<f", score) + _number(3, kind)
            )
        )
    parts.append(_field(2, _number(3, 1) + _number(40, model["unk_id"])))  # unigram
    # a space before the first word, and never two
    rules = _field(1, b"own") + _field(2, letters) + _number(3, 1) + _number(4, 1) + _number(5, 1)
    parts.append(_field(3, rules))
    return {piece: number for number, (piece, _) in enumerate(pieces)}, b"".join(parts)


def _letters(said: Mapping[str, Any] | None, where: str) -> bytes:
    """Return the compiled map of letters; spaces may be joined besides, which is done anyway."""
    steps = (said.get("normalizers") or [said]) if said else []
    maps = [step["precompiled_charsmap"] for step in steps if step["type"] == "Precompiled"]
    others = [step for step in steps if step["type"] not in ("Precompiled", "Strip", "Replace")]
    joins = [step["pattern"] for step in steps if step["type"] == "Replace"]
    if len(maps) > 1 or others or any(pattern != {"Regex": " {2,}"} for pattern in joins):
        kinds = ", ".join(str(step["type"]) for step in steps)
        raise UsageError(
            f"{where}: expected a unigram tokenizer with a Precompiled normalizer, got {kinds}"
        )
    return base64.b64decode(maps[0]) if maps else b""


def _check_spaces(said: Mapping[str, Any] | None, where: str) -> None:
    steps = (said.get("pretokenizers") or [said]) if said else []
    kinds = [step["type"] for step in steps]
    marks = [step for step in steps if step["type"] == "Metaspace"]
    plain = kinds == ["WhitespaceSplit", "Metaspace"]
    if not plain or marks[0].get("prepend_scheme", "always") == "never":
        raise UsageError(
            f"{where}: expected a unigram tokenizer with WhitespaceSplit and Metaspace, "
            f"got {', '.join(kinds) or 'none'}"
        )


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
