"""Names of features and inputs, as settings give them."""

from collections.abc import Collection

__all__ = ["is_named"]


def is_named(names: Collection[str], slot: str, *own: str) -> bool:
    """Tell whether one of a thing's own names is among those that were given.

    A name is given by itself, behind a slot (``reader/age``), or as ``*`` for all.
    """
    return any(name in names for one in ("*", *own) for name in (one, f"{slot}/{one}"))
