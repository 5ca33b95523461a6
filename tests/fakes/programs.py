"""Where the foreign programs are that some tests drive: a broker, a browser, a database server, a
security module, an emulator.
"""

import os
import shutil
from pathlib import Path

# Debian keeps servers out of a user's PATH.
PLACES = (
    "/usr/sbin",
    "/usr/local/sbin",
    *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"))),
)

# Marker -> the programs that a test with it starts, and the Debian packages that bring them.
NEEDS = {
    "mosquitto": (("mosquitto",), "mosquitto"),
    "chromium": (("chromium", "chromedriver"), "chromium chromium-driver"),
    "postgres": (("initdb", "postgres"), "postgresql"),
    "softhsm": (("softhsm2-util",), "softhsm2"),
    "mlflow": (("mlflow",), "python3-venv, then pip install mlflow in an environment on PATH"),
    "qemu": (("qemu-x86_64",), "qemu-user"),
}


# Programs without which CI goes on: they come from elsewhere than Debian.
OPTIONAL = frozenset({"mlflow"})


def find_program(name: str) -> Path | None:
    """The program's path, looking on PATH first."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *PLACES))
    found = shutil.which(name, path=path)
    return Path(found) if found else None


def why_missing(marker: str) -> str | None:
    """Say what a test with this marker lacks here and what to install, or nothing."""
    programs, packages = NEEDS[marker]
    missing = [program for program in programs if find_program(program) is None]
    if not missing:
        return None
    return f"needs {' and '.join(missing)}; on Debian: apt-get install {packages}"
