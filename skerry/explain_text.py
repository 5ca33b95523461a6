"""Why a model answered as it did to a text: what each of its words adds.

A text is cut at white space; the answer is shared among the words as among the features of a row
(`skerry.explain.shapley`), where not to know a word is to leave it out.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from skerry.explain import Attribution, Predict, shapley

__all__ = ["explain_text", "parts_of"]

MOST_PARTS: Final = 48


def parts_of(text: str, most: int = MOST_PARTS) -> list[str]:
    """Return the words of a text, some together where there are more than `most`."""
    words = text.split()
    together = max(1, -(-len(words) // most))
    return [" ".join(words[at : at + together]) for at in range(0, len(words), together)]


def explain_text(
    predict: Predict, text: str, *, rng: np.random.Generator, orders: int = 32
) -> Attribution:
    """Share an answer among the words of a text.

    The values, one for each of `parts_of`, add up to the answer minus that to an empty text.

    Args:
        predict: the model, from texts [n].
        text: that it answered.
        rng: the source of the orders.
        orders: sampled orders of the words.
    """
    parts = parts_of(text)

    def answers(kept: NDArray[Any]) -> NDArray[np.float64]:
        texts = np.empty(len(kept), dtype=object)
        texts[:] = [
            " ".join(part for part, there in zip(parts, row, strict=True) if there)
            for row in kept.tolist()
        ]
        return predict(texts)

    if not parts:
        (alone,) = predict(np.array([text], dtype=object)).tolist()
        return Attribution(np.zeros(0), alone, alone)
    every, none = np.ones(len(parts)), np.zeros((1, len(parts)))
    return shapley(answers, every, none, rng=rng, orders=orders)
