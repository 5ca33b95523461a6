"""Small tokenizers of pieces and of pairs, and what they do by their definitions, in plain Python."""

import json
import struct
import unicodedata
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

# --- byte-level BPE -----------------------------------------------------------------------

MERGES = (
    "h e",
    "l l",
    "he ll",
    "hell o",
    "\u0120 t",
    "\u0120t he",
    "i n",
    "\u0120 w",
    "o r",
    "\u0120w or",
)


def byte_letters() -> list[str]:
    """The letter that stands for each byte: itself where it prints, else one beyond Latin-1."""
    prints = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in prints else chr(next(others)) for byte in range(256)]


def bpe_json(**changes: object) -> str:
    """A small byte-level tokenizer as a `tokenizer.json`."""
    words = ["<|endoftext|>", *byte_letters(), *(pair.replace(" ", "") for pair in MERGES)]
    model = {"type": "BPE", "vocab": {w: n for n, w in enumerate(words)}, "merges": list(MERGES)}
    return json.dumps({
        "added_tokens": [{"id": 0, "content": "<|endoftext|>", "special": True}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "model": model, **changes,
    })  # fmt: skip


class Pairs:
    """Byte-level BPE by its definition: the pair of the lowest rank first, word by word."""

    def __init__(self, most: int = 16) -> None:
        self.most = most
        self.numbers: dict[str, int] = json.loads(bpe_json())["model"]["vocab"]
        self.ranks = {tuple(pair.split(" ")): rank for rank, pair in enumerate(MERGES)}

    def __call__(self, texts: Sequence[str]) -> NDArray[np.int64]:
        rows = [self.row(text)[: self.most] for text in texts]
        width = max(1, *map(len, rows))
        return np.array([r + [0] * (width - len(r)) for r in rows], np.int64)

    def row(self, text: str) -> list[int]:
        found = []
        for place, part in enumerate(text.split("<|endoftext|>")):
            found += [0] * (place > 0)
            for word in self.words(part):
                found += [self.numbers[piece] for piece in self.merged(word)]
        return found

    def words(self, text: str) -> list[str]:
        """Endings, letters, digits, signs with a space before them; white space but its last."""
        found, at = [], 0
        while at < len(text):
            ending = next((e for e in ENDINGS if text.startswith(e, at)), None)
            start = at + (text[at] == " ")
            kind = of_kind(text[start]) if start < len(text) else "space"
            end = at + len(ending) if ending else start
            while not ending and kind != "space" and end < len(text) and of_kind(text[end]) == kind:
                end += 1
            if not ending and kind == "space":
                end = at
                while end < len(text) and of_kind(text[end]) == "space":
                    end += 1
                if end < len(text) and end - at > 1:
                    end -= 1
            found.append(text[at:end])
            at = end
        return found

    def merged(self, word: str) -> list[str]:
        letters = byte_letters()
        parts = [letters[byte] for byte in word.encode()]
        while True:
            pairs = [pair for pair in pairwise(parts) if pair in self.ranks]
            if not pairs:
                return parts
            best = min(pairs, key=lambda pair: self.ranks[pair])
            at = next(i for i, pair in enumerate(pairwise(parts)) if pair == best)
            parts[at : at + 2] = ["".join(best)]


ENDINGS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")


def of_kind(letter: str) -> str:
    kind = unicodedata.category(letter)
    if letter in "\t\n\x0b\x0c\r \x85\u2028\u2029" or kind == "Zs":
        return "space"
    return {"L": "letter", "N": "digit"}.get(kind[0], "sign")


# --- SentencePiece ------------------------------------------------------------------------

PIECES = ["<unk>", "<s>", "</s>", "<pad>", "\u2581", "\u2581the", "\u2581fine", "fi", "ne", "s"]
SCORES = {piece: -float(3 + number) for number, piece in enumerate(PIECES)} | {
    letter: -20.0 - number / 8 for number, letter in enumerate("abcdefghiklnortuvwy.,!?0123")
}


def sentencepiece_model() -> bytes:
    """A unigram model that leaves letters as they are, in the protobuf of such files."""

    def field(number: int, content: bytes) -> bytes:
        size = b""
        rest = len(content)
        while True:
            size += bytes([rest & 0x7F | (0x80 if rest > 0x7F else 0)])
            rest >>= 7
            if not rest:
                return bytes([number << 3 | 2]) + size + content

    kinds = {"<unk>": 2, "<s>": 3, "</s>": 3, "<pad>": 3}
    parts = []
    for piece, score in SCORES.items():
        kind = b"\x18" + bytes([kinds[piece]]) if piece in kinds else b""
        parts.append(field(1, field(1, piece.encode()) + b"\x15" + struct.pack("<f", score) + kind))
    # unigram; pad_id 3; the letters as they are, a space before the first, no more than one
    parts.append(field(2, b"\x18\x01" + b"\xd8\x02\x03"))
    parts.append(field(3, field(1, b"identity") + b"\x18\x01\x20\x01\x28\x01"))
    return b"".join(parts)


def unigram_json(**changes: object) -> str:
    """The same as a `tokenizer.json`."""
    special = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    spaces = [{"type": "WhitespaceSplit"}, {"type": "Metaspace", "prepend_scheme": "always"}]
    return json.dumps({
        "added_tokens": [{"id": n, "content": w} for n, w in enumerate(PIECES[:4])],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": spaces},
        "post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {}}, special]},
        "model": {"type": "Unigram", "unk_id": 0, "vocab": list(SCORES.items())}, **changes,
    })  # fmt: skip


class Unigram:
    """A unigram tokenizer: the likeliest way to cut a text into pieces.

    Args:
        most: words of a row, the one at the end included.
    """

    def __init__(self, most: int = 16) -> None:
        self.most = most
        self.numbers = {piece: number for number, piece in enumerate(SCORES)}
        self.plain = {p: s for p, s in SCORES.items() if p not in PIECES[:4]}

    def __call__(self, texts: Sequence[str]) -> NDArray[np.int64]:
        rows = [[*self.cut(text)[: self.most - 1], self.numbers["</s>"]] for text in texts]
        width = max(map(len, rows))
        return np.array([row + [self.numbers["<pad>"]] * (width - len(row)) for row in rows])

    def cut(self, text: str) -> list[int]:
        line = " ".join(part for part in text.split(" ") if part)
        if not line:
            return []
        line = "\u2581" + line.replace(" ", "\u2581")
        unknown = min(self.plain.values()) - 10
        best: list[tuple[float, list[int]]] = [(0.0, [])]
        for end in range(1, len(line) + 1):
            found = (float("-inf"), [0])
            for start in range(max(0, end - 8), end):
                piece = line[start:end]
                score = self.plain.get(piece, unknown if end - start == 1 else None)
                if score is None:
                    continue
                way = best[start][0] + score
                if way > found[0]:
                    found = (way, [*best[start][1], self.numbers.get(piece, 0)])
            best.append(found)
        merged: list[int] = []
        for number in best[-1][1]:
            if not (number == 0 and merged[-1:] == [0]):
                merged.append(number)
        return merged
