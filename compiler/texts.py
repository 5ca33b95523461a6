"""Tokenizers before a model: texts go in, numbers of words reach the model's own inputs.

The files that training has are read: `vocab.txt`, a `tokenizer.json` of BERT's WordPiece, of
byte-level BPE or of Unigram, or a SentencePiece `*.model`. `compiler.wordpiece` and operators of
onnxruntime-extensions split texts; `compiler.ragged` lays them out. A device needs that library,
so the manifest says it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper

from compiler.nodes import Nodes
from compiler.pieces import read_pieces
from compiler.ragged import Frame, lay_out
from compiler.steps import Preprocess
from compiler.unigram import unigram_model
from compiler.wordpiece import CUSTOM, TABLES, WordPiece, split_texts
from skerry.canonical import sha256
from skerry.errors import NotFoundError, UsageError

__all__ = [
    "REQUIREMENT",
    "Tokenizer",
    "digests_of",
    "put_tokenizers",
    "read_tokenizer",
    "tokenizers_of",
]

REQUIREMENT: Final = "onnxruntime-extensions>=0.14"
MAX_FILE_BYTES: Final = 64 << 20
BERT_SPECIAL: Final = ("[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]")


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A tokenizer as it was trained.

    Attributes:
        vocabulary: word or piece -> number.
        split: WordPiece, merges of byte-level BPE, or the bytes of a SentencePiece model.
        special: words that training knows wherever they occur.
        begin: words before every text; `end` of those behind it.
        padding: fills short texts.
    """

    vocabulary: Mapping[str, int]
    split: WordPiece | str | bytes
    special: tuple[str, ...]
    begin: tuple[str, ...]
    end: tuple[str, ...]
    padding: str


def tokenizers_of(steps: Mapping[str, Preprocess]) -> dict[str, Preprocess]:
    """Return the steps that are tokenizers, by the name of the input that takes texts."""
    return {name: wanted for name, wanted in sorted(steps.items()) if wanted.kind == "tokenizer"}


def digests_of(steps: Mapping[str, Preprocess], folder: Path) -> dict[str, str]:
    """Return the digest of each tokenizer's file, by the name of the input that takes texts.

    Args:
        steps: of a recipe.
        folder: of the recipe.

    Raises:
        NotFoundError: a file is not there.
    """
    return {
        name: sha256(_file(folder / wanted.file, f"preprocess.{name}").read_bytes())
        for name, wanted in tokenizers_of(steps).items()
    }


def put_tokenizers(
    model: onnx.ModelProto, steps: Mapping[str, Preprocess], folder: Path
) -> list[str]:
    """Put tokenizers before inputs of a model, in place; return what was done, in words.

    Args:
        model: that takes numbers of words.
        steps: of `tokenizers_of`.
        folder: of the recipe.

    Raises:
        NotFoundError: a file of a tokenizer is not there.
        UsageError: inputs that the model does not have, or a file that is no such tokenizer.
    """
    done = []
    for name, wanted in steps.items():
        tokenizer = read_tokenizer(name, wanted, folder)
        taken = _inputs(model, name, wanted)
        graph = Nodes(name, {kind: value.name for kind, value in taken.items()})
        frame = _frame(name, wanted, tokenizer, taken["ids"])
        kinds = {kind: value.type.tensor_type.elem_type for kind, value in taken.items()}
        _add(graph, name, tokenizer, frame, kinds)
        rows = taken["ids"].type.tensor_type.shape.dim[0]
        n: int | str = rows.dim_value if rows.dim_value > 0 else rows.dim_param or "n"
        at = list(model.graph.input).index(taken["ids"])
        inputs = [v for v in model.graph.input if v.name not in graph.outputs.values()]
        inputs.insert(
            min(at, len(inputs)), helper.make_tensor_value_info(name, TensorProto.STRING, [n])
        )
        nodes = [*graph.nodes, *model.graph.node]
        del model.graph.input[:], model.graph.node[:]
        model.graph.input.extend(inputs)
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(graph.weights)
        _import(model, CUSTOM, 1)
        _import(model, TABLES, 2)
        done.append(
            f"input {name}: a tokenizer of {len(tokenizer.vocabulary)} words is a part of the "
            f"model; devices need {REQUIREMENT}"
            + (
                f"; it may differ from training's on {', '.join(wanted.differs)}"
                if wanted.differs
                else ""
            )
        )
    return done


def read_tokenizer(name: str, steps: Preprocess, folder: Path) -> Tokenizer:
    """Return the tokenizer of a recipe.

    Args:
        name: of the input, for messages.
        steps: of the recipe.
        folder: of the recipe.

    Raises:
        NotFoundError: the file is not there.
        UsageError: it is no tokenizer that can be built, or lacks a word that is named.
    """
    where = f"preprocess.{name}"
    path = _file(folder / steps.file, where)
    data = path.read_bytes()
    if len(data) > MAX_FILE_BYTES:
        raise UsageError(f"{where}: expected {path.name} of at most {MAX_FILE_BYTES} bytes")
    if path.suffix == ".model":
        vocabulary = read_pieces(data, f"{where}: {path.name}")
        found = Tokenizer(vocabulary, data, (), (), (), "<pad>")
    elif path.suffix == ".json":
        try:
            found = _of_json(data, steps, f"{where}: {path.name}")
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"{where}: expected a tokenizer.json, got another form: "
                f"{type(error).__name__}: {str(error)[:200]}"
            ) from None
    else:
        found = _of_list(path, data, steps, where)
    ruled = (steps.lower_case, steps.strip_accents) != (None, None)
    if ruled and not isinstance(found.split, WordPiece):
        raise UsageError(
            f"{where}: {path.name} has rules of its own for letters; leave out lower_case and "
            "strip_accents"
        )
    tokenizer = Tokenizer(
        found.vocabulary,
        found.split,
        found.special,
        found.begin if steps.begin is None else tuple(steps.begin),
        found.end if steps.end is None else tuple(steps.end),
        found.padding if steps.padding is None else steps.padding,
    )
    needed = [*tokenizer.begin, *tokenizer.end, tokenizer.padding]
    needed += [tokenizer.split.unknown] if isinstance(tokenizer.split, WordPiece) else []
    for word in needed:
        if word not in tokenizer.vocabulary:
            raise UsageError(
                f"{where}: expected the word {word!r} in {path.name}, it has none; name others "
                "with begin, end and padding"
            )
    return tokenizer


def _file(path: Path, where: str) -> Path:
    if not path.is_dir():
        if path.is_file():
            return path
        raise NotFoundError(f"{where}: expected a tokenizer at {path}, and there is no such file")
    for wanted in ("tokenizer.json", "vocab.txt", "*.model"):
        found = sorted(path.glob(wanted))
        if found:
            return found[0]
    raise NotFoundError(f"{where}: expected a tokenizer.json, vocab.txt or *.model in {path}")


def _of_list(path: Path, data: bytes, steps: Preprocess, where: str) -> Tokenizer:
    """Return BERT's tokenizer from its list of words; `tokenizer_config.json` beside it counts."""
    try:
        lines = data.decode().splitlines() if b"\r\n" in data else data.decode().split("\n")
    except UnicodeDecodeError:
        raise UsageError(f"{where}: expected {path.name} in UTF-8, a word in each line") from None
    vocabulary = {word: place for place, word in enumerate(lines) if word}
    config = path.with_name("tokenizer_config.json")
    said = _json(config.read_bytes(), f"{where}: {config.name}") if config.is_file() else {}
    lower = steps.lower_case if steps.lower_case is not None else said.get("do_lower_case", True)
    strip = steps.strip_accents if steps.strip_accents is not None else said.get("strip_accents")
    words = WordPiece(
        vocabulary,
        special=[word for word in BERT_SPECIAL if word in vocabulary],
        lower_case=bool(lower),
        strip_accents=bool(lower if strip is None else strip),
        ideographs=bool(said.get("tokenize_chinese_chars", True)),
    )
    return Tokenizer(vocabulary, words, tuple(words.special), ("[CLS]",), ("[SEP]",), "[PAD]")


def _of_json(data: bytes, steps: Preprocess, where: str) -> Tokenizer:
    """Return the tokenizer of a `tokenizer.json`."""
    said = _json(data, where)
    model, normalizer = said.get("model") or {}, said.get("normalizer") or {}
    if model.get("type") == "BPE":
        return _bpe(said, where)
    if model.get("type") == "Unigram":
        vocabulary, data = unigram_model(said, where)
        special = tuple(word["content"] for word in said.get("added_tokens") or [])
        return Tokenizer(
            vocabulary, data, special, *_around(said.get("post_processor") or {}), "<pad>"
        )
    kinds = [
        model.get("type"),
        normalizer.get("type"),
        (said.get("pre_tokenizer") or {}).get("type"),
    ]
    if kinds != ["WordPiece", "BertNormalizer", "BertPreTokenizer"] or not normalizer["clean_text"]:
        raise UsageError(
            f"{where}: expected BERT's tokenizer (WordPiece, BertNormalizer with clean_text, "
            "BertPreTokenizer), byte-level BPE or Unigram, got "
            f"{', '.join(map(str, kinds))}; for another SentencePiece tokenizer name its *.model"
        )
    lower = normalizer["lowercase"] if steps.lower_case is None else steps.lower_case
    strip = normalizer["strip_accents"] if steps.strip_accents is None else steps.strip_accents
    added = {word["content"]: word["id"] for word in said.get("added_tokens") or []}
    vocabulary = dict(model["vocab"]) | added
    words = WordPiece(
        vocabulary,
        unknown=model.get("unk_token", "[UNK]"),
        special=list(added),
        lower_case=lower,
        strip_accents=lower if strip is None else strip,
        ideographs=normalizer["handle_chinese_chars"],
        prefix=model.get("continuing_subword_prefix", "##"),
        longest=model.get("max_input_chars_per_word", 100),
    )
    begin, end = _around(said.get("post_processor") or {})
    padding = (said.get("padding") or {}).get("pad_token", "[PAD]")
    return Tokenizer(vocabulary, words, tuple(added), begin, end, padding)


def _bpe(said: Mapping[str, Any], where: str) -> Tokenizer:
    """Return GPT-2's tokenizer from a `tokenizer.json`: pairs of bytes, merged by rank."""
    model, before = said["model"], said.get("pre_tokenizer") or {}
    plain = before.get("type") == "ByteLevel" and not before.get("add_prefix_space")
    plain = plain and before.get("use_regex", True) and not said.get("normalizer")
    if not plain or model.get("byte_fallback") or model.get("ignore_merges"):
        raise UsageError(
            f"{where}: expected byte-level BPE as of GPT-2: no normalizer, ByteLevel before it, "
            "without a space put first; this one is another"
        )
    added = {word["content"]: word["id"] for word in said.get("added_tokens") or []}
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    begin, end = _around(said.get("post_processor") or {})
    likely = [(said.get("padding") or {}).get("pad_token"), "<pad>", "<|endoftext|>"]
    vocabulary = dict(model["vocab"]) | added
    padding = next((word for word in likely if word and word in vocabulary), "<pad>")
    return Tokenizer(vocabulary, "\n".join(merges), tuple(added), begin, end, padding)


def _around(said: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the words that are put before and behind a text."""
    if said.get("type") in ("BertProcessing", "RobertaProcessing"):
        return (said["cls"][0],), (said["sep"][0],)
    parts = [
        "" if "Sequence" in part else part["SpecialToken"]["id"]
        for part in said.get("single") or []
    ]
    at = parts.index("") if "" in parts else len(parts)
    return tuple(parts[:at]), tuple(parts[at + 1 :])


def _json(data: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: expected JSON: {error}") from None
    if not isinstance(found, dict):
        raise UsageError(f"{where}: expected a JSON object")
    return found


def _inputs(model: onnx.ModelProto, name: str, steps: Preprocess) -> dict[str, onnx.ValueInfoProto]:
    """Return the model's inputs that the tokenizer feeds."""
    have = {value.name: value for value in model.graph.input}
    inner = {output for node in model.graph.node for output in node.output}
    inner |= {tensor.name for tensor in model.graph.initializer}
    if name in inner:
        raise UsageError(
            f"preprocess.{name}: a tensor inside the model has this name; give the texts another"
        )
    if name in have or steps.ids not in have:
        raise UsageError(
            f"preprocess.{name}: expected a new name for the texts and ids = an input of the model, "
            f"got ids = {steps.ids!r}; it has {', '.join(have)}"
        )
    given = {"ids": steps.ids, "mask": steps.mask, "types": steps.types}
    taken = {kind: have[wanted] for kind, wanted in given.items() if wanted in have}
    for value in taken.values():
        tensor = value.type.tensor_type
        integer = tensor.elem_type in (TensorProto.INT64, TensorProto.INT32)
        if not integer or len(tensor.shape.dim) != 2:
            raise UsageError(
                f"preprocess.{name}: expected an input {value.name!r} of whole numbers [n, words]; "
                "the model's is another"
            )
    return taken


def _frame(name: str, steps: Preprocess, tokenizer: Tokenizer, ids: onnx.ValueInfoProto) -> Frame:
    most = steps.max_length
    fixed = ids.type.tensor_type.shape.dim[1].dim_value
    if fixed > 0:
        most = min(most, fixed)
    number = tokenizer.vocabulary
    frame = Frame(
        [number[word] for word in tokenizer.begin],
        [number[word] for word in tokenizer.end],
        number[tokenizer.padding],
        most,
        fixed if fixed > 0 else most if steps.pad == "max_length" else None,
    )
    if frame.room < 1:
        raise UsageError(f"preprocess.{name}: no word of a text has room in {most} words")
    return frame


def _add(
    graph: Nodes, texts: str, tokenizer: Tokenizer, frame: Frame, kinds: Mapping[str, int]
) -> None:
    if isinstance(tokenizer.split, WordPiece):
        parts = split_texts(graph, texts, tokenizer.split)
    elif isinstance(tokenizer.split, str):
        parts = _pairs(graph, texts, tokenizer.vocabulary, tokenizer.split)
    else:
        parts = _sentence_pieces(graph, texts, tokenizer.split)
    lay_out(graph, *parts, frame, kinds)


def _sentence_pieces(graph: Nodes, texts: str, model: bytes) -> tuple[str, str, str]:
    false = [graph.weight([False], np.bool_) for _ in range(4)]  # no words around, no reversing
    given = [texts, graph.weight([0], np.int64), graph.weight([0], np.float32), *false]
    pieces, bounds, _ = graph.several(
        "SentencepieceTokenizer", given, 3, domain=CUSTOM, model=model
    )
    words = graph.node("Cast", [pieces], to=TensorProto.INT64)
    zero, one, last = (graph.weight([at], np.int64) for at in (0, 1, -1))
    starts = graph.node("Slice", [bounds, zero, last])
    ends = graph.node("Slice", [bounds, one, graph.weight([np.iinfo(np.int64).max], np.int64)])
    return words, starts, graph.node("Sub", [ends, starts])


def _pairs(
    graph: Nodes, texts: str, vocabulary: Mapping[str, int], merges: str
) -> tuple[str, str, str]:
    spelt = json.dumps(vocabulary, ensure_ascii=False, separators=(",", ":"))
    rows, mask = graph.several(
        "GPT2Tokenizer", [texts], 2, domain=CUSTOM, vocab=spelt, merges=merges
    )  # both [n, the most words]
    zero, one = graph.weight(0, np.int64), graph.weight(1, np.int64)
    flat = graph.node("Flatten", [rows], axis=0)  # a Reshape cannot where there are no words
    words = graph.node("Squeeze", [flat, graph.weight([0], np.int64)])
    lengths = graph.node("ReduceSum", [mask, graph.weight([1], np.int64)], keepdims=0)
    shape = graph.node("Shape", [rows])
    n, width = (graph.node("Gather", [shape, at]) for at in (zero, one))
    starts = graph.node("Mul", [graph.node("Range", [zero, n, one]), width])
    return words, starts, lengths


def _import(model: onnx.ModelProto, domain: str, version: int) -> None:
    for known in model.opset_import:
        if known.domain == domain:
            known.version = max(known.version, version)
            return
    model.opset_import.append(helper.make_opsetid(domain, version))
