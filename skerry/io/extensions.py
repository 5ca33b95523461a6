"""Where onnxruntime-extensions is, without loading it: operators for texts that onnxruntime lacks.

Importing the package costs 16 MB and 100 ms and brings `onnx` along where that is installed; the
library file alone, registered for one session, costs 4 MB and 7 ms (measured). So the file is
found, and nothing is imported.
"""

import importlib.metadata
import importlib.util
from pathlib import Path

__all__ = ["extensions_library", "extensions_version"]

_PACKAGE = "onnxruntime_extensions"


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
    try:
        return importlib.metadata.version("onnxruntime-extensions")
    except importlib.metadata.PackageNotFoundError:
        return ""
