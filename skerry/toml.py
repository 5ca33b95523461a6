"""TOML from outside: its length and depth bounded before anything is believed."""

import math
import tomllib
from typing import Any, Final

from skerry.errors import UsageError

__all__ = ["MAX_TOML_BYTES", "from_toml"]

MAX_TOML_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 32


def from_toml(data: bytes, where: str) -> dict[str, Any]:
    """Return the table of a TOML file.

    Args:
        data: the file's bytes.
        where: named in the error.

    Raises:
        UsageError: too long, too deep, not UTF-8, not TOML, or with a number that is none.
    """
    if len(data) > MAX_TOML_BYTES:
        raise UsageError(f"{where}: expected at most {MAX_TOML_BYTES} bytes, got {len(data)}")
    try:
        table = tomllib.loads(data.decode())
    except RecursionError:
        raise UsageError(f"{where}: expected TOML, got brackets nested too deep") from None
    except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError, a number of 5000 digits
        raise UsageError(f"{where}: expected TOML: {str(error)[:300]}") from None
    waiting: list[tuple[object, int]] = [(table, 0)]
    while waiting:  # no setting means NaN or infinity, and every comparison with NaN is false
        value, depth = waiting.pop()
        if depth > MAX_DEPTH:  # dotted keys nest without a bracket
            raise UsageError(f"{where}: expected tables at most {MAX_DEPTH} deep")
        if isinstance(value, dict):
            waiting.extend((item, depth + 1) for item in value.values())
        elif isinstance(value, list):
            waiting.extend((item, depth + 1) for item in value)
        elif isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{where}: expected finite numbers, got {value}")
        elif isinstance(value, int) and value.bit_length() > 63:
            raise UsageError(f"{where}: expected whole numbers of at most 63 bits")
    return table
