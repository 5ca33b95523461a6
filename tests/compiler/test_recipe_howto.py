"""The document on recipes names every key, every form and every metric there is."""

import types
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from compiler.recipe import FORMS, METRICS, Recipe
from skerry.features import EXTRACTORS

TEXT = (Path(__file__).parents[2] / "docs" / "howto" / "write-a-recipe.md").read_text()


def keys(kind: type, path: str = "") -> list[str]:
    """Return every key below a table, those of tables in tables with it."""
    found = []
    for field in msgspec.structs.fields(kind):
        inner: list[Any] = [field.type, *get_args(field.type)]
        structs = [
            t for t in inner if isinstance(t, type) and not isinstance(t, types.GenericAlias)
        ]
        structs = [t for t in structs if issubclass(t, msgspec.Struct)]
        found += [field.encode_name]
        for struct in structs:
            found += keys(struct, f"{path}{field.encode_name}.")
    return found


@pytest.mark.parametrize("word", sorted({*keys(Recipe), *FORMS, *METRICS, *EXTRACTORS}))
def test_it_names(word: str) -> None:
    assert any(
        mark in TEXT
        for mark in (f"`{word}`", f"`{word} =", f"`[{word}", f"{word}.NAME", f"{{ {word}")
    ) or (word in TEXT and "." in word)
