"""Every module of the fleet can be the first that somebody imports."""

import subprocess
import sys

EACH_FIRST = """
import importlib, pkgutil, sys
import fleet
names = [m.name for m in pkgutil.walk_packages(fleet.__path__, "fleet.")]
wrong = []
for name in names:
    if name.startswith("fleet.migrations"):
        continue  # run by Alembic, never imported
    for known in [k for k in sys.modules if k.startswith("fleet.")]:
        del sys.modules[known]
    try:
        importlib.import_module(name)
    except ImportError as error:
        wrong.append(f"{name}: {error}")
print(len(names), *wrong, sep="\\n")
"""


def test_no_module_needs_another_one_imported_before_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", EACH_FIRST], capture_output=True, text=True, check=True, timeout=60
    )
    count, *wrong = done.stdout.splitlines()
    assert int(count) > 50
    assert wrong == []
