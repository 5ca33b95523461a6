"""Small tokenizers and models of texts, and tokenizers in plain Python to hold them against."""

import json
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
GOOD, BAD = (
    ("fine", "great", "naive", "sunny", "hello"),
    ("broken", "awful", "cafe", "rainy", "gone"),
)
OTHER = ("the", "a", "it", "is", "was", "very", "not", "un", "world", "5", "x")
ENDS = ("s", "ly", "er", "ing", "a", "b", "e", "5")
SIGNS = (".", ",", "!", "?", "'", "[", "]", "<", ">", "/", "$", "%", "\u6f22", "\u5b57", "\u751f")


def vocabulary() -> dict[str, int]:
    """Word or piece -> number; 0 fills."""
    words = [
        *SPECIAL,
        *GOOD,
        *BAD,
        *OTHER,
        *SIGNS,
        *(f"##{end}" for end in ENDS),
        "caf\u00e9",
        "The",
    ]
    return {word: number for number, word in enumerate(words)}


class Bert:
    """BERT's tokenizer, letter by letter.

    Args:
        vocabulary: word or piece -> number.
        lower: whether letters are lowered.
        strip: whether combining marks are taken off.
        most: words of a row.
        full: whether rows are filled up to `most`.
        forget: special words that it takes apart like others.
    """

    def __init__(
        self,
        vocabulary: Mapping[str, int],
        *,
        lower: bool = True,
        strip: bool = True,
        most: int = 16,
        full: bool = False,
        forget: Sequence[str] = (),
    ) -> None:
        self.vocabulary, self.lower, self.strip = vocabulary, lower, strip
        self.most, self.full = most, full
        self.special = [word for word in SPECIAL if word not in forget]

    def __call__(self, texts: Sequence[str]) -> dict[str, NDArray[np.int64]]:
        rows = [self.row(text) for text in texts]
        width = self.most if self.full else max(map(len, rows))
        ids = np.array([row + [0] * (width - len(row)) for row in rows], np.int64)
        mask = np.array([[1] * len(r) + [0] * (width - len(r)) for r in rows], np.int64)
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}

    def row(self, text: str) -> list[int]:
        pieces = [piece for part in self.parts(text) for piece in self.pieces(part)]
        return [self.vocabulary[piece] for piece in ["[CLS]", *pieces[: self.most - 2], "[SEP]"]]

    def parts(self, text: str) -> list[str]:
        """Special words as they are, and whatever is between them as words."""
        for word in self.special:
            before, found, behind = text.partition(word)
            if found:
                return [*self.parts(before), word, *self.parts(behind)]
        return self.words(text)

    def words(self, text: str) -> list[str]:
        spaced = []
        for letter in text:
            kind = unicodedata.category(letter)
            if letter in "\t\n\r" or kind == "Zs" or letter in "\u2028\u2029":
                spaced.append(" ")
            elif kind in ("Cc", "Cf", "Co") or letter == "\ufffd":
                continue
            elif is_ideograph(letter):
                spaced.append(f" {letter} ")
            else:
                spaced.append(letter)
        clean = "".join(spaced)
        if self.strip:
            apart = unicodedata.normalize("NFD", clean)
            clean = "".join(sign for sign in apart if unicodedata.category(sign) != "Mn")
        if self.lower:
            clean = "".join(sign.lower() for sign in clean)
        isolated = "".join(f" {sign} " if is_sign(sign) else sign for sign in clean)
        return [word for word in isolated.split(" ") if word]

    def pieces(self, word: str) -> list[str]:
        if word in self.special:
            return [word]
        found: list[str] = []
        at = 0
        while at < len(word) <= 100:
            ends = range(len(word), at, -1)
            mark = "##" if at else ""
            end = next((e for e in ends if mark + word[at:e] in self.vocabulary), None)
            if end is None:
                return ["[UNK]"]
            found.append(mark + word[at:end])
            at = end
        return found or ["[UNK]"]


def is_ideograph(letter: str) -> bool:
    blocks = (
        (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF),
        (0x2A700, 0x2B81F), (0x2B920, 0x2CEAF), (0x2F800, 0x2FA1F),
    )  # fmt: skip
    return any(first <= ord(letter) <= last for first, last in blocks)


def is_sign(letter: str) -> bool:
    ascii_sign = (
        letter.isascii() and letter.isprintable() and not letter.isalnum() and letter != " "
    )
    return ascii_sign or unicodedata.category(letter).startswith("P")


# --- a model, and a recipe ------------------------------------------------------------------


def sentiment(words: int, *, types: bool = True, dtype: int = TensorProto.INT64) -> onnx.ModelProto:
    """Probabilities [n, 2] of numbers of words [n, s]: bad or good, by the words that occur.

    Args:
        words: of the vocabulary; those of GOOD and BAD have their places in `vocabulary`.
        types: whether there is an input `token_type_ids`, which changes nothing.
        dtype: of the inputs.
    """
    random = np.random.default_rng(3)
    meaning = random.normal(0, 0.05, (words, 64)).astype(np.float32)
    place = vocabulary()
    for good, bad in zip(GOOD, BAD, strict=True):
        meaning[place[good] % words, 0] += 3.0
        meaning[place[bad] % words, 0] -= 3.0
    into = np.eye(64, 512, dtype=np.float32) + random.normal(0, 0.01, (64, 512)).astype(np.float32)
    out = np.zeros((512, 2), np.float32)
    out[0] = (-4.0, 4.0)
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if types else [])]
    nodes = [
        helper.make_node("Gather", ["meaning", "input_ids"], ["each"], name="gather"),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=1, name="cast"),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide"], name="wide"),
        helper.make_node("Mul", ["each", "wide"], ["own"], name="mul"),
        helper.make_node("ReduceMax", ["own"], ["most"], axes=[1], keepdims=0, name="most"),
        helper.make_node("ReduceMin", ["own"], ["least"], axes=[1], keepdims=0, name="least"),
        helper.make_node("Add", ["most", "least"], ["sum"], name="add"),
    ]
    if types:
        nodes += [
            helper.make_node("Cast", ["token_type_ids"], ["kinds"], to=1, name="kinds"),
            helper.make_node("ReduceMax", ["kinds"], ["kind"], axes=[1], keepdims=1, name="kind"),
            helper.make_node("Add", ["sum", "kind"], ["all"], name="all"),
        ]
    nodes += [
        helper.make_node("MatMul", ["all" if types else "sum", "into"], ["hidden"], name="hidden"),
        helper.make_node("MatMul", ["hidden", "out"], ["scores"], name="scores"),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1, name="soft"),
    ]
    weights = {"meaning": meaning, "into": into, "out": out, "last": np.array([2], np.int64)}
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "sentiment",
            [helper.make_tensor_value_info(name, dtype, ["n", "s"]) for name in names],
            [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 2])],
            [numpy_helper.from_array(values, name) for name, values in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.checker.check_model(model)
    return model


def sentences(n: int, seed: int) -> tuple[list[str], NDArray[np.int64]]:
    """Texts with a good or a bad word in each, and which it is."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, n)
    texts = []
    for label in labels.tolist():
        told = str(random.choice(GOOD if label else BAD))
        words = [str(w) for w in random.choice(OTHER, random.integers(1, 6))]
        words.insert(int(random.integers(0, len(words) + 1)), told)
        if random.random() < 0.3:
            words[0] = words[0].capitalize()
        texts.append(" ".join(words) + str(random.choice(["", ".", "!"])))
    return texts, labels.astype(np.int64)


def write_text_recipe(
    folder: Path, *, more: str = "", training: str = "lower=True", try_: str = "'int8-dynamic'"
) -> Path:
    """A recipe of texts: vocab.txt, training.py, data and the model.

    Args:
        folder: for all of it.
        more: further lines of [preprocess.text].
        training: what the tokenizer of training does: arguments of `Bert`.
        try_: precisions.
    """
    folder.mkdir(parents=True, exist_ok=True)
    words = vocabulary()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    (folder / "model.onnx").write_bytes(sentiment(len(words)).SerializeToString())
    for seed, name in enumerate(("calibration", "evaluation", "baseline")):
        texts, labels = sentences(200, seed)
        np.savez(folder / f"{name}.npz", text=np.array(texts), label=labels)
    (folder / "training.py").write_text(
        "from tests.fakes.texts import Bert, vocabulary\n"
        f"tokenize = Bert(vocabulary(), {training})\n"
    )
    path = folder / "recipe.toml"
    path.write_text(
        '[model]\nname = "mood"\nversion = "1.0.0"\nfile = "model.onnx"\n[data]\n'
        'calibration = "calibration.npz"\nevaluation = "evaluation.npz"\n'
        'baseline = "baseline.npz"\n[metric]\noutput = "probabilities"\n'
        "[gate]\nmax_drop = 0.02\nmax_latency_ratio = 100.0\n"
        f"[precisions]\ntry = [{try_}]\n[classes]\nnames = ['bad', 'good']\n"
        '[features]\nlength = "text.length"\nrate = "text.token_rate"\n'
        '[preprocess.text]\nkind = "tokenizer"\nfile = "vocab.txt"\nmax_length = 16\n'
        f'reference = "training:tokenize"\n{more}'
    )
    return path


def tokenizer_json(lower: bool = True) -> str:
    """The same tokenizer as a `tokenizer.json`."""
    words = vocabulary()
    special = [{"SpecialToken": {"id": word, "type_id": 0}} for word in ("[CLS]", "[SEP]")]
    return json.dumps({
        "added_tokens": [{"id": words[w], "content": w, "special": True} for w in SPECIAL],
        "normalizer": {
            "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
            "strip_accents": None, "lowercase": lower,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [special[0], {"Sequence": {"id": "A", "type_id": 0}}, special[1]],
        },
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": words,
        },
    })  # fmt: skip
