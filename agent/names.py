"""Names of features and inputs, as settings give them.

A name is given by itself, behind a slot (``reader/age``), or as ``*`` for all.
"""

from collections.abc import Collection, Mapping

__all__ = ["is_named", "nobodys"]


def is_named(names: Collection[str], slot: str, *own: str) -> bool:
    """Tell whether one of a thing's own names is among those that were given."""
    return any(name in names for one in ("*", *own) for name in (one, f"{slot}/{one}"))


def nobodys(names: Collection[str], own: Mapping[str, Collection[str]]) -> list[str]:
    """Return the names that were given and that nothing has.

    Args:
        names: as they were given.
        own: by slot, the names of its features and inputs.
    """
    return [
        name for name in names if not any(is_named([name], slot, *has) for slot, has in own.items())
    ]
