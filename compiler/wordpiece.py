"""BERT's WordPiece tokenizer as a graph, exact where the ready-made operators are not.

onnxruntime-extensions has an operator `BertTokenizer`; measured, it differs from the training
library on words with one unknown letter (pieces and an unknown, where training has one
unknown), zero-width signs, soft hyphens, letters outside Latin-1 with accents, and names of
special words. So the graph is built from its small operators, which are exact: regular
expressions of RE2, joining, and the greedy search for pieces; the rest is plain ONNX.

    clean           controls and private use go; special words become one sign each
    join            all texts in one line, each ended by a mark that no text can contain
    letters         lowered and without accents, white space, punctuation and formats told: ASCII
                    by an operator, every other letter by a table of Unicode
    split           at white space, around signs of ASCII and ideographs
    pieces          longest first; a word with a piece unknown is one unknown word
    lay out         `compiler.ragged`

Source: Devlin et al. 2018 with the reference implementation's rules; Unicode of Python.
"""

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Final

import numpy as np

from compiler.nodes import Nodes

__all__ = ["WordPiece", "split_texts"]

CUSTOM: Final = "ai.onnx.contrib"
TABLES: Final = "ai.onnx.ml"
MARK: Final = "\x01"  # ends a text; cleaning takes it out of texts
MARK_ID: Final = -1
SPECIAL: Final = 0xF0000  # private use: the first special word's sign
MOST_SPECIAL: Final = 0x100
# as the reference has them, blocks that it forgot included
IDEOGRAPHS: Final = (
    r"\x{3400}-\x{4DBF}\x{4E00}-\x{9FFF}\x{F900}-\x{FAFF}\x{20000}-\x{2A6DF}"
    r"\x{2A700}-\x{2B81F}\x{2B920}-\x{2CEAF}\x{2F800}-\x{2FA1F}"
)
SIGNS: Final = r"!-/:-@\[-`{-~"  # of ASCII; others are set apart by the table
OWN: Final = rf"\x{{{SPECIAL:X}}}-\x{{{SPECIAL + MOST_SPECIAL - 1:X}}}"
# controls of ASCII but \t \n \r, and private use but our own signs; the table takes the rest
UNWRITTEN: Final = (
    r"[\x{0}-\x{8}\x{B}\x{C}\x{E}-\x{1F}\x{7F}\x{E000}-\x{F8FF}"
    rf"\x{{{SPECIAL + MOST_SPECIAL:X}}}-\x{{FFFFD}}\x{{100000}}-\x{{10FFFD}}]"
)


@dataclass(frozen=True, slots=True)
class WordPiece:
    """A tokenizer.

    Attributes:
        vocabulary: piece -> number.
        unknown: the piece for words that have none.
        special: words that stand for themselves wherever they occur, such as ``[SEP]``.
        lower_case: whether letters are lowered.
        strip_accents: whether combining marks are taken off.
        ideographs: whether each of them is a word.
        prefix: of pieces within a word.
        longest: letters of a word; a longer one is unknown.
    """

    vocabulary: Mapping[str, int]
    unknown: str = "[UNK]"
    special: Sequence[str] = field(default_factory=list)
    lower_case: bool = True
    strip_accents: bool = True
    ideographs: bool = True
    prefix: str = "##"
    longest: int = 100


def split_texts(graph: Nodes, texts: str, words: WordPiece) -> tuple[str, str, str]:
    """Add the nodes that turn texts into numbers of pieces.

    Args:
        graph: that they are added to.
        texts: the name of a string tensor [n].
        words: the tokenizer.

    Returns:
        The names of all texts' pieces [k], the place of each text's first [n], and how many
        each text has [n], all int64.
    """
    line = _one_line(graph, texts, words)
    if words.lower_case:
        line = _custom(graph, "StringLower", [line])
    line = _letters(graph, line, words)
    if words.ideographs:
        line = _replace(graph, line, f"([{IDEOGRAPHS}])", r" \1 ")
    parts = rf"[{SIGNS}{OWN}\x{{1}}]"
    split = _split(graph, line, rf"[\t\n\r ]+|{parts}", parts)
    pieces = graph.several(
        "WordpieceTokenizer", [split, graph.weight([], np.int64)], 4, domain=CUSTOM,
        vocab=_pieces(words), suffix_indicator=words.prefix, unknown_token=words.unknown,
        max_input_chars_per_word=words.longest,
    )  # fmt: skip
    numbers = dict(words.vocabulary) | _own_signs(words) | {MARK: MARK_ID}
    unknown = words.vocabulary[words.unknown]
    ids = _look_up(graph, pieces[0], numbers, unknown)
    ids = _whole_words(graph, ids, pieces[2], unknown)
    marks = graph.node("Equal", [ids, graph.weight(MARK_ID, np.int64)])
    ends = graph.node("Squeeze", [graph.node("NonZero", [marks]), graph.weight([0], np.int64)])
    behind = graph.node("Add", [ends, graph.weight(1, np.int64)])
    starts = graph.node("Concat", [graph.weight([0], np.int64), behind], axis=0)
    starts = graph.node(
        "Slice", [starts, graph.weight([0], np.int64), graph.weight([-1], np.int64)]
    )
    return ids, starts, graph.node("Sub", [ends, starts])


def _one_line(graph: Nodes, texts: str, words: WordPiece) -> str:
    line = _replace(graph, texts, f"[{OWN}]", "")
    for sign, number in _own_signs(words).items():
        word = next(w for w in words.special if words.vocabulary[w] == number)
        line = _replace(graph, line, _literal(word), sign)
    line = _replace(graph, line, UNWRITTEN, "")
    axis = graph.weight([0], np.int64)
    joined = _custom(graph, "StringJoin", [line, graph.weight([MARK], object), axis])
    both = graph.node("Concat", [joined, graph.weight([MARK], object)], axis=0)
    return _custom(graph, "StringJoin", [both, graph.weight([""], object), axis])


def _letters(graph: Nodes, line: str, words: WordPiece) -> str:
    """Replace letters beyond ASCII by a table; the operators' classes of them are slow to make."""
    table = _table(words.lower_case, words.strip_accents)
    images = sorted(set(table.values()))
    place = {image: number for number, image in enumerate(images)}
    letters = _split(graph, line, r"[^\x{0}-\x{7F}]", r"[^\x{0}-\x{7F}]")
    found = _look_up(graph, letters, {letter: place[table[letter]] for letter in table}, -1)
    known = graph.node("GreaterOrEqual", [found, graph.weight(0, np.int64)])
    taken = graph.node("Where", [known, found, graph.weight(0, np.int64)])
    image = graph.node("Gather", [graph.weight(images, object), taken])
    letters = graph.node("Where", [known, image, letters])
    axis = graph.weight([0], np.int64)
    return _custom(graph, "StringJoin", [letters, graph.weight([""], object), axis])


def _whole_words(graph: Nodes, ids: str, starts: str, unknown: int) -> str:
    """Make one unknown word of every word that has an unknown piece."""
    number = graph.weight(unknown, np.int64)
    shape = graph.node("Shape", [ids])
    zeros = graph.node("Expand", [graph.weight(0, np.int64), shape])
    ones = graph.node("Expand", [graph.weight(1, np.int64), graph.node("Shape", [starts])])
    first = graph.node("ScatterElements", [zeros, starts, ones], axis=0)
    counted = graph.node("CumSum", [first, graph.weight(0, np.int64)])
    word = graph.node("Sub", [counted, graph.weight(1, np.int64)])
    bad = graph.node("Cast", [graph.node("Equal", [ids, number])], to=7)  # int64
    none = graph.node("Sub", [ones, ones])
    total = graph.node("ScatterElements", [none, word, bad], axis=0, reduction="add")
    broken = graph.node("Greater", [graph.node("Gather", [total, word]), graph.weight(0, np.int64)])
    ids = graph.node("Where", [broken, number, ids])
    firsts = graph.node("Greater", [first, graph.weight(0, np.int64)])
    kept = graph.node("Or", [firsts, graph.node("Not", [broken])])
    return graph.node("Compress", [ids, kept], axis=0)


@cache
def _table(lower_case: bool, strip_accents: bool) -> dict[str, str]:
    """Return the letters beyond ASCII that change, with what they become."""
    table = {}
    for code in range(0x80, 0x110000):
        letter = chr(code)
        kind = unicodedata.category(letter)
        if kind in ("Cs", "Co"):
            continue
        if kind in ("Cc", "Cf") or letter == "\ufffd":
            table[letter] = ""
            continue
        image = letter
        if strip_accents:
            apart = unicodedata.normalize("NFD", letter)
            image = "".join(sign for sign in apart if unicodedata.category(sign) != "Mn")
        if lower_case:
            image = "".join(sign.lower() for sign in image)
        image = "".join(map(_apart, image))
        if image != letter:
            table[letter] = image
    return table


def _apart(sign: str) -> str:
    """Return white space as a space, and punctuation with spaces around it."""
    kind = unicodedata.category(sign)
    if kind[0] == "Z":
        return " "
    return f" {sign} " if kind[0] == "P" and not sign.isascii() else sign


def _own_signs(words: WordPiece) -> dict[str, int]:
    """Return the sign that stands for each special word, with that word's number."""
    return {chr(SPECIAL + n): words.vocabulary[w] for n, w in enumerate(words.special)}


def _pieces(words: WordPiece) -> str:
    known = [*words.vocabulary, *_own_signs(words), MARK]
    # it looks up whether there is such a piece, and never its number
    return json.dumps(dict.fromkeys(known, 0), ensure_ascii=False, separators=(",", ":"))


def _look_up(graph: Nodes, texts: str, numbers: Mapping[str, int], default: int) -> str:
    return graph.node(
        "LabelEncoder", [texts], domain=TABLES, keys_strings=[k.encode() for k in numbers],
        values_int64s=list(numbers.values()), default_int64=default,
    )  # fmt: skip


def _replace(graph: Nodes, texts: str, pattern: str, by: str) -> str:
    given = [texts, graph.weight([pattern], object), graph.weight([by], object)]
    return _custom(graph, "StringRegexReplace", given)


def _split(graph: Nodes, texts: str, at: str, keep: str) -> str:
    # the operator takes the first group for the match
    given = [texts, graph.weight([f"({at})"], object), graph.weight([f"({keep})"], object)]
    return graph.several("StringRegexSplitWithOffsets", given, 4, domain=CUSTOM)[0]


def _custom(graph: Nodes, kind: str, inputs: list[str]) -> str:
    return graph.node(kind, inputs, domain=CUSTOM)


def _literal(text: str) -> str:
    """Return a pattern of RE2 that is this text and nothing else."""
    return "".join(rf"\x{{{ord(sign):X}}}" for sign in text)
