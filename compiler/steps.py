"""What a recipe says of the steps before an input: `[preprocess.NAME]`."""

from typing import Literal

import msgspec

from skerry.errors import UsageError

__all__ = ["Preprocess", "check_preprocess"]


class Preprocess(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What becomes a part of the graph before an input of the model.

    ``image``: photos uint8 [n, height, width, channels] of any size -> resized, scaled, ordered.
    ``scale``: numbers -> (x * scale - mean) / std. ``mel``: sound float32 [n, samples] -> log-mel
    spectrogram [n, mels, frames]. ``tokenizer``: texts [n] -> numbers of words [n, words], into up
    to three inputs of the model; its NAME is the new input's, which takes the texts.
    """

    kind: Literal["image", "scale", "mel", "tokenizer"]
    size: list[int] = []  # image: height, width
    order: Literal["rgb", "bgr"] = "rgb"  # image: as the model wants the channels
    layout: Literal["nchw", "nhwc"] = "nchw"  # image: as the model wants the axes
    scale: float = 1.0
    mean: list[float] = msgspec.field(default_factory=lambda: [0.0])
    std: list[float] = msgspec.field(default_factory=lambda: [1.0])
    rate: int = 16000  # mel: samples a second
    window: int = 400  # mel: samples of one frame
    hop: int = 160  # mel: samples from one frame to the next
    mels: int = 80
    low_hz: float = 0.0
    high_hz: float = 0.0  # half the rate where left out
    file: str = ""  # tokenizer: vocab.txt, tokenizer.json, *.model or a directory with one of them
    max_length: int = 128  # tokenizer: words of a text at most, those around it included
    pad: Literal["longest", "max_length"] = "longest"
    lower_case: bool | None = None  # tokenizer: as its files say, where left out
    strip_accents: bool | None = None
    begin: list[str] | None = None  # tokenizer: words put before every text, and behind it
    end: list[str] | None = None
    padding: str | None = None  # the word that fills short texts
    differs: list[str] = []  # tokenizer: odd texts on which it may, knowingly
    ids: str = "input_ids"  # tokenizer: the model's inputs
    mask: str = "attention_mask"
    types: str = "token_type_ids"
    reference: str = ""  # module:function that training uses: raw array [n, ...] -> prepared
    max_difference: float = 1e-3  # of a prepared value, on the parity corpus


def check_preprocess(name: str, steps: Preprocess, where: str) -> None:
    """Refuse steps that cannot be.

    Args:
        name: of the input.
        steps: of the recipe.
        where: the recipe's file name, for messages.

    Raises:
        UsageError: a key that is missing, or of another range.
    """
    place = f"{where}: preprocess.{name}"
    if steps.kind == "image" and (len(steps.size) != 2 or min(steps.size) < 1):
        raise UsageError(f"{place}: expected size = [height, width]")
    if len(steps.mean) != len(steps.std) or not steps.mean or 0.0 in steps.std:
        raise UsageError(f"{place}: expected as many mean as std, and no std of 0")
    if steps.kind == "mel" and not 0 < steps.hop <= steps.window:
        raise UsageError(f"{place}: expected 0 < hop <= window")
    if steps.kind != "tokenizer":
        return
    if not steps.file:
        raise UsageError(
            f"{place}: expected file = a vocab.txt, tokenizer.json or SentencePiece *.model"
        )
    if not steps.reference:
        raise UsageError(
            f"{place}: expected reference = module:function, the tokenizer that training uses: "
            "two tokenizers of one vocabulary are known to differ, so the build compares them"
        )
    if steps.max_length < 1:
        raise UsageError(f"{place}: expected a max_length of at least 1, got {steps.max_length}")
