"""Parity of tokenizers: the graph against the one that training uses, as a gate.

Two tokenizers of one vocabulary differ where nobody looks: a mark that is combined or not, a
sign of no width, a word that is too long. So both are run on real texts and on odd ones, and
one number that differs fails the build.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from compiler.data import entry_point
from compiler.recipe import Preprocess, Source
from compiler.runtime import open_session
from compiler.texts import Tokenizer, put_tokenizers, read_tokenizer, tokenizers_of
from skerry.errors import GateError, UsageError

__all__ = ["ODD_TEXTS", "check_text_parity", "tokenizer_alone"]

REAL: Final = 64  # texts of the evaluation data, each by itself
TOGETHER: Final = 32  # texts in one call
SHOWN: Final = 16  # words, of each side
SPECIAL: Final = "the special word "  # an odd text for each, allowed with NAMES
NAMES: Final = "names of special words"
# no NUL: a device refuses it, the operators end a text there
ODD_TEXTS: Final[Mapping[str, str]] = {
    "an empty text": "",
    "a space": " ",
    "nothing but white space": "  \t\n\r\n ",
    "odd white space": " a\u00a0b\u2003c\u3000d\te\r\nf\u2028g  ",
    "capitals": "The QUICK brown Fox",
    "letters with accents": "Na\u00efvely, Cr\u00e8me BR\u00dbL\u00c9E, \u00c5ngstr\u00f6m, \u0150r\u00fclt \u0110\u1ec7",
    "combining marks": "nai\u0308vely, Cre\u0300me e\u0301\u0300\u0327, Z\u0351\u036ba\u0321\u034al",
    "compatibility forms": "\ufb01ne \u2168 \u2460 \u00bd \u338f \uff21\uff22\uff11 \u212a\u212b",
    "special cases of capitals": "Stra\u00dfe GRO\u1e9e \u0130stanbul \u0131I \u01c4 \u03a3\u038a\u03a3\u03a5\u03a6\u039f\u03a3",
    "Greek and Cyrillic": "\u0391\u03b2\u03b3 \u03bc\u03ac\u03c3\u03c4\u03bf\u03c1\u03b1\u03c2 \u041f\u0440\u0438\u0432\u0435\u0442 \u041c\u0418\u0420 \u0401\u043b\u043a\u0430 \u0439",
    "right to left": "\u05e9\u05dc\u05d5\u05dd \u0645\u064e\u0631\u0652\u062d\u064e\u0628\u064b\u0627",
    "Indic and Thai": "\u0928\u092e\u0938\u094d\u0924\u0947 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "Hangul, whole and apart": "\uc548\ub155 \u1112\u1161\u11ab",
    "Chinese": "\u751f\u6d3b\u7684\u771f\u8c1b\u662f abc\u6f22\u5b57def",
    "Japanese": "\u6771\u4eac\u30bf\u30ef\u30fc \u3070\u3071\u306f \u304b\u3099",
    "ideographs beyond the basic plane": "\U00020000\U0002a6df \U0002f800",
    "emoji": "\U0001f44d\U0001f3fd smile \U0001f600\U0001f603 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",
    "letters as mathematics": "\U0001d401\U0001d428 \U0001d4af\U0001d452",
    "signs of no width": "a\u200bb\u200dc\ufeffd soft\u00adhyphen",
    "control characters": "ctl\x01\x02\x07\x0b\x1f end del\x7f\x80\x9f",
    "private use and no letters": "\ue000 x\U000f0000y \ufffd z",
    "punctuation": "don't ...!!!??? \u00a1\u00bf\u00ab\u00bb\u201c\u201d\u2014\u2026 $100 +5% =^_~`|<>",
    "an address": "user@example.com https://x.y/z?a=b&c=d",
    NAMES: "[CLS] a [SEP] [MASK] [UNK] [PAD] <s>b</s><unk><pad> <|endoftext|>",
    "the mark of a space": "\u2581low line \u2581\u2581",
    "numbers": "1234567890 3.14 1,000 \u0661\u0662\u0663",
    "a word of 100 letters": "a" * 100,
    "a word of 101 letters": "a" * 101,
    "a word of 5,000 letters": "ab" * 2500,
    "2,000 words": "word " * 2000,
    "500 ideographs": "\u6f22" * 500,
}


def check_text_parity(
    source: Source, inputs: Sequence[onnx.ValueInfoProto], samples: Mapping[str, NDArray[Any]]
) -> None:
    """Refuse tokenizers that do another thing than training did.

    Args:
        source: the recipe.
        inputs: the model's own, as they are without tokenizers.
        samples: texts of the evaluation data [n], by input.

    Raises:
        GateError: one number differs; the message names the text, and what both gave.
        UsageError: the reference raised, or gives something else than numbers.
    """
    for name, steps in tokenizers_of(source.recipe.preprocess).items():
        tokenizer = read_tokenizer(name, steps, source.folder)
        function = entry_point(steps.reference, source.folder)
        session = open_session(tokenizer_alone(name, steps, source.folder, inputs))
        names = [port.name for port in session.get_outputs()]
        _check_known(name, steps)
        for told, texts in _corpus(samples[name], tokenizer.special):
            mine = dict(zip(names, session.run(names, {name: texts}), strict=True))
            if told in steps.differs or (told.startswith(SPECIAL) and NAMES in steps.differs):
                continue
            theirs = _asked(function, steps, texts, told)
            for output in (n for n in names if n in theirs):
                _compare(name, output, steps, tokenizer, told, texts, mine[output], theirs[output])


def tokenizer_alone(
    name: str, steps: Preprocess, folder: Path, inputs: Sequence[onnx.ValueInfoProto]
) -> bytes:
    """Return a model of one tokenizer and nothing else: from texts [n] to the model's inputs.

    Args:
        name: of the input that takes texts.
        steps: of the recipe.
        folder: of the recipe.
        inputs: the model's own, as they are without the tokenizer.
    """
    fed = [value for value in inputs if value.name in (steps.ids, steps.mask, steps.types)]
    model = helper.make_model(
        helper.make_graph([], "texts", fed, fed), opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 8
    put_tokenizers(model, {name: steps}, folder)
    result: bytes = model.SerializeToString()
    return result


def _corpus(samples: NDArray[Any], special: Sequence[str]) -> Iterator[tuple[str, NDArray[Any]]]:
    real = [str(text) for text in samples[:REAL].ravel()]
    for number, text in enumerate(real):
        yield f"sample {number}", _one(text)
    for told, text in ODD_TEXTS.items():
        yield told, _one(text)
    for word in special[:SHOWN]:
        yield f"{SPECIAL}{word}", _one(f"a {word} b{word}c")
    yield "several texts in one call", np.array([*real[:TOGETHER], "", "a b"], dtype=object)


def _check_known(name: str, steps: Preprocess) -> None:
    unknown = [told for told in steps.differs if told not in ODD_TEXTS]
    if unknown:
        raise UsageError(
            f"preprocess.{name}.differs: expected names of odd texts, got {unknown[0]!r}; there "
            f"are: {', '.join(ODD_TEXTS)}"
        )


def _one(text: str) -> NDArray[Any]:
    return np.array([text], dtype=object)


def _asked(
    function: Callable[..., Any], steps: Preprocess, texts: NDArray[Any], told: str
) -> dict[str, NDArray[Any]]:
    try:
        given = function(list(texts))
        found = given if isinstance(given, Mapping) else {steps.ids: given}
        arrays = {str(name): np.asarray(values) for name, values in found.items()}
    except Exception as error:  # the publisher's own code may raise anything
        raise UsageError(
            f"{steps.reference} raised {type(error).__name__} on {told}: {error}"
        ) from error
    if steps.ids not in arrays or any(
        a.size and a.dtype.kind not in "iub" for a in arrays.values()
    ):
        raise UsageError(
            f"{steps.reference}: expected whole numbers [n, words] for {steps.ids!r}, or a "
            f"dictionary of them by the model's inputs; got {', '.join(arrays) or 'none'}"
        )
    return arrays


def _compare(
    name: str,
    output: str,
    steps: Preprocess,
    tokenizer: Tokenizer,
    told: str,
    texts: NDArray[Any],
    mine: NDArray[Any],
    theirs: NDArray[Any],
) -> None:
    if theirs.shape == (len(texts), 0):  # no word at all: the graph fills one place
        filling = tokenizer.vocabulary[tokenizer.padding] if output == steps.ids else 0
        theirs = np.full((len(texts), 1), filling)
    if mine.shape == theirs.shape and (mine == theirs).all():
        return
    row = 0
    if mine.shape == theirs.shape:
        row = int(np.flatnonzero((mine != theirs).any(axis=1))[0])
    spelt = tokenizer.vocabulary if output == steps.ids else {}
    text = texts[row] if len(texts[row]) <= 120 else f"{texts[row][:120]}..."
    raise GateError(
        f"preprocess.{name} differs from {steps.reference} in {output!r} on {told}, {text!r}: "
        f"the graph gives {_told(mine, row, spelt)}, training gives {_told(theirs, row, spelt)}. "
        "What devices would do is not what training did: see to the file, to lower_case and "
        "strip_accents, to begin, end and padding, to max_length and pad; or allow an odd text "
        "knowingly, with differs"
    )


def _told(values: NDArray[Any], row: int, spelt: Mapping[str, int]) -> str:
    if values.ndim != 2 or row >= len(values):
        return f"shape {list(values.shape)}"
    names = {number: word for word, number in spelt.items()}
    words = [str(names.get(v, v)) for v in values[row].tolist()]
    more = f" ... ({len(words)})" if len(words) > SHOWN else f" ({len(words)})"
    return " ".join(words[:SHOWN]) + more
