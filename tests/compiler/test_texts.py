"""A tokenizer is a part of the model, and the same as in training; or there is no bundle."""

import contextlib
import json
import subprocess
import sys
import unicodedata
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto

from compiler.baseline import summarise
from compiler.build import Built, build
from compiler.cli_explain import explain
from compiler.footprint import measure_mb
from compiler.recipe import read_recipe
from compiler.runtime import open_session
from compiler.starter import starter_recipe
from compiler.steps import Preprocess
from compiler.text_parity import ODD_TEXTS, tokenizer_alone
from compiler.texts import put_tokenizers, read_tokenizer
from skerry.bundle import read_bundle
from skerry.canonical import sha256, to_json
from skerry.errors import GateError, NotFoundError, RefusedError, SkerryError, UsageError
from skerry.explain_text import parts_of
from skerry.onnx_outline import DEVICE, DEVICE_TEXTS, EXTENSIONS, check_outline
from tests.compiler.conftest import NOW
from tests.fakes.pieces import Pairs, Unigram, bpe_json, sentencepiece_model, unigram_json
from tests.fakes.texts import (
    Bert,
    sentiment,
    tokenizer_json,
    vocabulary,
    write_text_recipe,
)

STEPS = Preprocess("tokenizer", file="vocab.txt", max_length=16, reference="training:tokenize")
REAL = ["hello world", "The cafe was AWFUL!", "it is fines, unx 5", "caf\u00e9 na\u00efve"]


def tokens(folder: Path, steps: Preprocess, texts: list[str]) -> dict[str, np.ndarray]:
    inputs = sentiment(51).graph.input
    session = open_session(tokenizer_alone("text", steps, folder, inputs))
    names = [port.name for port in session.get_outputs()]
    found = session.run(names, {"text": np.array(texts, dtype=object)})
    return dict(zip(names, found, strict=True))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")
    (tmp_path / "words.model").write_bytes(sentencepiece_model())
    return tmp_path


def of(**changes: object) -> Preprocess:
    return msgspec.structs.replace(STEPS, **changes)


# --- the same as a tokenizer in plain Python ------------------------------------------------


@pytest.mark.parametrize(
    ("lower", "strip"), [(True, True), (False, False), (True, False), (False, True)]
)
def test_every_text_is_split_as_in_training(folder: Path, lower: bool, strip: bool) -> None:
    steps = of(lower_case=lower, strip_accents=strip)
    reference = Bert(vocabulary(), lower=lower, strip=strip)
    texts = [*ODD_TEXTS.values(), *REAL]
    together = tokens(folder, steps, texts)
    for name, values in reference(texts).items():
        assert (together[name] == values).all(), name
    for text in texts:
        assert tokens(folder, steps, [text])["input_ids"].tolist() == [reference.row(text)], text


def test_every_letter_there_is_goes_as_in_training(folder: Path) -> None:
    reference = Bert(vocabulary())
    # the operators' Unicode is older than Python's: of letters that both know and class alike
    old = unicodedata.ucd_3_2_0
    every = [chr(c) for c in range(1, 0x110000) if not 0xD800 <= c < 0xE000]
    letters = [c for c in every if unicodedata.category(c) == old.category(c) not in ("Cn", "Co")]
    assert len(letters) > 90_000
    rows = [
        "".join(f"a{letter}b " for letter in letters[i : i + 4]) for i in range(0, len(letters), 4)
    ]
    found = tokens(folder, of(), rows)["input_ids"]
    for text, row in zip(rows, found.tolist(), strict=True):
        wanted = reference.row(text)
        assert row == wanted + [0] * (len(row) - len(wanted)), [hex(ord(c)) for c in text]


def test_pieces_of_a_unigram_model_are_those_of_training(folder: Path) -> None:
    steps = of(file="words.model", end=["</s>"])
    reference = Unigram()
    texts = ["the fine fines", "", "  two   spaces ", "finest, unknown \u6f22\u6f22!", "\u2581a"]
    found = tokens(folder, steps, texts)
    assert (found["input_ids"] == reference(texts)).all()
    assert found["attention_mask"].sum(axis=1).tolist() == [
        len(reference(t)[0]) for t in ([t] for t in texts)
    ]


def test_a_json_of_unigram_says_the_same_as_its_model(folder: Path) -> None:
    (folder / "words.json").write_text(unigram_json(), encoding="utf-8")
    reference = Unigram()
    texts = ["the fine fines", "", "  two   spaces ", "finest, unknown \u6f22\u6f22!", "\u2581a"]
    assert (tokens(folder, of(file="words.json"), texts)["input_ids"] == reference(texts)).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalizer": {"type": "NFKC"}}, "with a Precompiled normalizer, got NFKC"),
        ({"pre_tokenizer": {"type": "Metaspace"}}, "with WhitespaceSplit and Metaspace, got Meta"),
        ({"pre_tokenizer": None}, "with WhitespaceSplit and Metaspace, got none"),
    ],
)
def test_another_kind_of_unigram_is_told(
    folder: Path, changes: dict[str, object], message: str
) -> None:
    (folder / "words.json").write_text(unigram_json(**changes), encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        tokens(folder, of(file="words.json"), REAL)


def test_pairs_of_bytes_are_merged_as_in_training(folder: Path) -> None:
    (folder / "bpe.json").write_text(bpe_json(), encoding="utf-8")
    steps, reference = of(file="bpe.json"), Pairs()
    texts = [*ODD_TEXTS.values(), *REAL, "hello  in the world, don't <|endoftext|> x"]
    for text in texts:
        found = tokens(folder, steps, [text])["input_ids"]
        assert found.tolist() == reference([text]).tolist(), text
    together = tokens(folder, steps, texts)
    assert (together["input_ids"] == reference(texts)).all()
    assert together["attention_mask"].sum(axis=1).tolist() == [
        min(16, len(reference.row(text))) for text in texts
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}},
    ],
)
def test_another_kind_of_pairs_is_told(folder: Path, changes: dict[str, object]) -> None:
    (folder / "bpe.json").write_text(bpe_json(**changes), encoding="utf-8")
    with pytest.raises(UsageError, match="expected byte-level BPE as of GPT-2"):
        tokens(folder, of(file="bpe.json"), REAL)


def broken_json() -> list[str]:
    """Files of JSON that are nearly a tokenizer."""
    found = []
    for text in (tokenizer_json(), bpe_json(), unigram_json()):
        said = json.loads(text)
        for path in (
            "model.vocab",
            "model.merges",
            "normalizer.lowercase",
            "added_tokens",
            "pre_tokenizer",
        ):
            for value in (None, 5, [], "x", [5], {"type": 3}):
                other = json.loads(text)
                *way, last = path.split(".")
                inner = (other.get(way[0]) or other.setdefault(way[0] + "!", {})) if way else other
                inner[last] = value
                found.append(json.dumps(other))
        found.append(json.dumps({**said, "post_processor": {"single": [{"SpecialToken": {}}]}}))
    return [*found, "5", "[]", "{", '"x"', "{}", "\ud800"]


def test_no_file_of_json_ends_the_build_unsaid(folder: Path) -> None:
    for text in broken_json():
        (folder / "broken.json").write_text(text, encoding="utf-8", errors="surrogatepass")
        with contextlib.suppress(UsageError, RefusedError):
            read_tokenizer("text", of(file="broken.json"), folder)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
def test_half_a_model_of_pieces_is_told(folder: Path, share: float) -> None:
    data = sentencepiece_model()
    (folder / "half.model").write_bytes(data[: int(len(data) * share)])
    with pytest.raises((UsageError, RefusedError)):
        tokens(folder, of(file="half.model"), REAL)


def test_texts_reach_the_children_of_the_compiler(made: Built, tmp_path: Path) -> None:
    (tmp_path / "b.tar").write_bytes(made.bundle)
    with (tmp_path / "b.tar").open("rb") as file:
        data = read_bundle(file).blobs[made.manifest.variants[0].file.digest]
    assert measure_mb(data, {"text": np.array(REAL, dtype=object)}) > 0


def test_a_json_and_a_directory_say_the_same_as_a_list(folder: Path) -> None:
    wanted = tokens(folder, of(), REAL)["input_ids"]
    other = folder / "other"
    other.mkdir()
    (other / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    for file in ("other/tokenizer.json", "other", "."):
        assert (tokens(folder, of(file=file), REAL)["input_ids"] == wanted).all()
    (other / "tokenizer.json").write_text(tokenizer_json(lower=False), encoding="utf-8")
    assert (tokens(folder, of(file="other"), REAL)["input_ids"] != wanted).any()
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    cased = Bert(vocabulary(), lower=False, strip=False)
    assert (tokens(folder, of(), REAL)["input_ids"] == cased(REAL)["input_ids"]).all()


def test_rows_are_cut_and_filled(folder: Path) -> None:
    found = tokens(folder, of(max_length=4, pad="max_length"), ["a", "a very very very fine"])
    words = vocabulary()
    cls, sep = words["[CLS]"], words["[SEP]"]
    very = words["very"]
    assert found["input_ids"].tolist() == [[cls, words["a"], sep, 0], [cls, words["a"], very, sep]]
    assert found["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert found["token_type_ids"].tolist() == [[0] * 4] * 2


def test_a_model_of_int32_and_fixed_shape_gets_what_it_takes(folder: Path) -> None:
    model = sentiment(51, types=False, dtype=TensorProto.INT32)
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 2
        value.type.tensor_type.shape.dim[1].dim_value = 8
    put_tokenizers(model, {"text": STEPS}, folder)
    assert [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim] == [2]
    session = open_session(model.SerializeToString())
    found = session.run(None, {"text": np.array(["fine", "it was awful"], dtype=object)})[0]
    assert found.argmax(axis=1).tolist() == [1, 0]


# --- in a build -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("mood")
    path = write_text_recipe(folder, try_="'int8-dynamic', 'int8', 'int4', 'fp16'")
    return build(read_recipe(path), now=NOW)


def test_a_model_of_texts_ships_and_says_what_it_needs(made: Built) -> None:
    manifest = made.manifest
    assert manifest.needs == ["onnxruntime-extensions>=0.14"]
    assert [(s.name, s.datatype, s.shape) for s in manifest.inputs] == [("text", "BYTES", [-1])]
    assert manifest.variants[0].precision != "fp32"
    assert {v.accuracy.value for v in manifest.variants} == {1.0}
    tried = {c.precision: c.accuracy for c in made.record.variants}
    assert None not in tried.values(), tried
    assert len(tried) == 5


def test_every_form_has_the_same_tokenizer(made: Built, tmp_path: Path) -> None:
    (tmp_path / "b.tar").write_bytes(made.bundle)
    with (tmp_path / "b.tar").open("rb") as file:
        blobs = read_bundle(file).blobs
    seen = set()
    for variant in made.manifest.variants:
        data = blobs[variant.file.digest]
        check_outline(data, DEVICE_TEXTS)
        with pytest.raises(RefusedError, match=r"ai\.onnx\.contrib"):
            check_outline(data, DEVICE)
        nodes = [
            n for n in onnx.load_model_from_string(data).graph.node if n.name.startswith("text__")
        ]
        assert {n.op_type for n in nodes if n.domain == EXTENSIONS}
        seen.add(b"".join(n.SerializeToString(deterministic=True) for n in nodes))
    assert len(made.manifest.variants) > 1
    assert len(seen) == 1


def test_two_builds_are_equal(tmp_path: Path) -> None:
    one, two = (write_text_recipe(tmp_path / name) for name in ("one", "two"))
    first = build(read_recipe(one), now=NOW)
    again = build(read_recipe(two), now=NOW, lock=first.lock)
    assert again.digest == first.digest


def test_models_without_texts_are_what_they_were_before_one_with_texts(
    made: Built, built: Built, recipe_path: Path
) -> None:
    assert made.manifest.needs
    again = build(read_recipe(recipe_path), now=NOW, lock=built.lock)
    assert again.digest == built.digest


def test_without_extensions_the_build_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skerry.io.extensions.extensions_library", lambda: None)
    with pytest.raises(UsageError, match=r"pip install 'skerry\[extensions\]'"):
        build(read_recipe(write_text_recipe(tmp_path)), now=NOW)


def test_the_lock_and_the_lineage_know_the_tokenizer(tmp_path: Path) -> None:
    path = write_text_recipe(tmp_path)
    first = build(read_recipe(path), now=NOW)
    assert first.lock.inputs.tokenizers == {"text": sha256((tmp_path / "vocab.txt").read_bytes())}
    assert "tokenizer of text" in first.manifest.lineage.data
    with (tmp_path / "vocab.txt").open("a") as file:
        file.write("unheard\n")
    with pytest.raises(UsageError, match="for other inputs: tokenizers changed"):
        build(read_recipe(path), now=NOW, lock=first.lock)


def test_a_first_recipe_names_the_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "bert.onnx").write_bytes(sentiment(51).SerializeToString())
    text = starter_recipe(tmp_path / "bert.onnx")
    assert "# [preprocess.text]" in text
    marked = text[text.index("# [preprocess.text]") :].split("\n\n")[0]
    lines = [line.removeprefix("# ") for line in marked.splitlines() if line.startswith("# ")]
    said = msgspec.toml.decode("\n".join(lines))["preprocess"]["text"]
    assert msgspec.convert(said, Preprocess).kind == "tokenizer"


def test_explain_tells_what_each_word_adds(made: Built, tmp_path: Path) -> None:
    (tmp_path / "b.skerry").write_bytes(made.bundle)
    np.savez(tmp_path / "x.npz", text=np.array(["it was Awful the world", "", "fine"]))
    given = [str(tmp_path / "b.skerry"), str(tmp_path / "x.npz")]
    page = tmp_path / "why.html"
    done = CliRunner().invoke(explain, [*given, "--json", "--out", str(page)])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["words"] == ["it", "was", "Awful", "the", "world"]
    assert int(np.argmax(facts["values"])) == 2
    # exact but for dynamic int8, where the texts of one call change each other a little
    assert sum(facts["values"]) == pytest.approx(facts["answer"] - facts["usual"], abs=0.02)
    assert "Awful" in page.read_text()
    for sample in ("1", "2"):
        assert CliRunner().invoke(explain, [*given, "--sample", sample]).exit_code == 0


def test_many_words_are_explained_some_together() -> None:
    parts = parts_of("word " * 1000)
    assert len(parts) <= 48
    assert " ".join(parts).split() == ["word"] * 1000
    assert parts_of(" \n ") == []


def test_a_manifest_without_needs_keeps_its_bytes(built: Built) -> None:
    assert b"requires" not in to_json(built.manifest)


SKEWED: list[tuple[str, str, str]] = [
    # training lowers letters, the graph does not; and the other way round
    ("lower_case = false\n", "lower=True", "sample 2, 'Fine a it'"),
    ("", "lower=False, strip=False", "sample"),
    ("strip_accents = false\n", "lower=True", "accents"),
    ("max_length = 12\n", "most=16", "punctuation"),
    ("padding = '[MASK]'\n", "lower=True", "several texts"),
    ("end = []\n", "lower=True", "sample 0"),
]


@pytest.mark.parametrize(("more", "training", "message"), SKEWED)
def test_a_tokenizer_that_is_not_that_of_training_fails_the_build(
    tmp_path: Path, more: str, training: str, message: str
) -> None:
    path = write_text_recipe(tmp_path, training=training)
    text = path.read_text()
    text = text.replace("max_length = 16\n", more) if "max_length" in more else text + more
    path.write_text(text)
    with pytest.raises(GateError, match=message) as caught:
        build(read_recipe(path), now=NOW)
    assert "the graph gives" in str(caught.value)
    assert "training gives" in str(caught.value)


def test_a_difference_can_be_allowed_by_name_and_the_card_tells_it(tmp_path: Path) -> None:
    path = write_text_recipe(tmp_path, training="lower=True, forget=('[SEP]',)")
    with pytest.raises(GateError, match="on names of special words"):
        build(read_recipe(path), now=NOW)
    allowed = ["names of special words"]
    path.write_text(path.read_text() + f"differs = {json.dumps(allowed)}\n")
    made = build(read_recipe(path), now=NOW)
    (tmp_path / "b.tar").write_bytes(made.bundle)
    with (tmp_path / "b.tar").open("rb") as file:
        card = read_bundle(file).blobs[made.manifest.card.digest].decode()
    assert f"It may split otherwise than training: {', '.join(allowed)}." in card
    path.write_text(path.read_text().replace("names of special", "names of spatial"))
    with pytest.raises(UsageError, match="expected names of odd texts, got 'names of spatial"):
        build(read_recipe(path), now=NOW)


def test_the_command_says_the_text_and_both_answers(tmp_path: Path) -> None:
    path = write_text_recipe(tmp_path, more="strip_accents = false\n")
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "skerry", "build", path, "--out", tmp_path / "out"],
        capture_output=True, text=True, env={"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"},
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 6
    assert "letters with accents, 'Na\u00efvely" in done.stderr
    assert "the graph gives [CLS] [UNK] , " in done.stderr
    assert "training gives [CLS] naive ##ly , " in done.stderr
    assert not [*tmp_path.glob("out/*")]


FAULTS: list[tuple[str, str, type[SkerryError], str]] = [
    ('reference = "training:tokenize"', "", UsageError, "expected reference = module:function"),
    ('file = "vocab.txt"', "", UsageError, "expected file = a vocab.txt"),
    ('file = "vocab.txt"', 'file = "gone.txt"', NotFoundError, "there is no such file"),
    ('file = "vocab.txt"', 'file = "model.onnx"', UsageError, "UTF-8|no|the word"),
    ('file = "vocab.txt"', 'file = "bad.model"', UsageError, "expected a SentencePiece model"),
    ('file = "vocab.txt"', 'file = "bpe.json"', UsageError, "expected byte-level BPE"),
    ('file = "vocab.txt"', 'file = "other.json"', UsageError, "expected BERT's tokenizer"),
    (
        'file = "vocab.txt"',
        'file = "words.json"\nlower_case = true',
        UsageError,
        "rules of its own",
    ),
    ('file = "vocab.txt"', 'file = "vocab.txt"\nbegin = ["<s>"]', UsageError, "the word '<s>'"),
    ("max_length = 16", "max_length = 2", UsageError, "no word of a text has room in 2 words"),
    ("max_length = 16", "max_length = 0", UsageError, "at least 1, got 0"),
    ("max_length = 16", 'ids = "tokens"', UsageError, "got ids = 'tokens'; it has input_ids"),
    ("[preprocess.text]", "[preprocess.sum]", UsageError, "inside the model has this name"),
    ('"text.length"', '"mean"', UsageError, "needs numbers; the input is object"),
    ("training:tokenize", "training:fails", UsageError, "raised KeyError on sample 0"),
    ("training:tokenize", "training:words", UsageError, "expected whole numbers"),
]


@pytest.mark.parametrize(("old", "new", "kind", "message"), FAULTS)
def test_what_is_wrong_is_said_in_one_line(
    tmp_path: Path, old: str, new: str, kind: type[SkerryError], message: str
) -> None:
    path = write_text_recipe(tmp_path)
    (tmp_path / "bad.model").write_bytes(b"\x0a\xff")
    (tmp_path / "bpe.json").write_text(json.dumps({"model": {"type": "BPE"}}))
    (tmp_path / "other.json").write_text(json.dumps({"model": {"type": "WordLevel"}}))
    (tmp_path / "words.json").write_text(unigram_json(), encoding="utf-8")
    with (tmp_path / "training.py").open("a") as file:
        file.write("def fails(texts):\n    raise KeyError('k')\n")
        file.write("def words(texts):\n    return [t.split() for t in texts]\n")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(kind, match=message):
        build(read_recipe(path), now=NOW)


def test_features_of_texts_and_of_numbers_are_told_apart() -> None:
    with pytest.raises(UsageError, match="needs texts; the input is float32"):
        summarise("length", "text.length", np.zeros((3, 2), np.float32))
    with pytest.raises(UsageError, match="needs numbers; the input is object"):
        summarise("mean", "mean", np.array(["a", "b"], dtype=object))
