"""Where onnxruntime-extensions is, without loading it: operators for texts that onnxruntime lacks.

Importing the package loads `onnx` where that is installed, 10 MB and 31 ms; the library file alone,
registered for one session, takes 2.5 MB and 2 ms (`benchmarks/text_cost.py`). So the file is found,
and nothing is imported.
"""

import importlib.util
from pathlib import Path
from typing import Protocol

__all__ = ["add_extensions", "extensions_library", "extensions_version"]

_PACKAGE = "onnxruntime_extensions"


class _Options(Protocol):
    """A session's options, as onnxruntime has them."""

    def register_custom_ops_library(self, path: str) -> None: ...


def add_extensions(options: _Options) -> bool:
    """Register the operators for one session; False where they are not installed.

    No other code registers a library, and none ever comes from a bundle.

    Args:
        options: onnxruntime's `SessionOptions`.
    """
    library = extensions_library()
    if library is not None:
        options.register_custom_ops_library(library)
    return library is not None


def extensions_library() -> str | None:
    """Return the path of the library of operators, None where it is not installed."""
    found = importlib.util.find_spec(_PACKAGE)
    for folder in (found.submodule_search_locations or []) if found is not None else []:
        for file in sorted(Path(folder).glob("_extensions_pydll*")):
            if file.suffix in (".so", ".pyd", ".dylib"):
                return str(file)
    return None


def extensions_version() -> str:
    """Return the installed version, empty where there is none."""
    from importlib import metadata  # takes 1.1 MiB, which a serving process has no use for

    try:
        return metadata.version("onnxruntime-extensions")
    except metadata.PackageNotFoundError:
        return ""
