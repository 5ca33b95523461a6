"""Write the hash-pinned locks in `requirements/`, or with `--check` say whether they are current.

`dev.txt` holds everything, `base.txt` what a device needs, in the same versions. Both hold for every
platform and every supported Python, and name no index: whoever installs decides where packages come
from, the hashes decide what they are. Writing needs `uv` (`pip install uv`); checking needs nothing.
"""

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "requirements"
LOCKS = {"dev": ("--extra", "dev"), "base": ()}  # base is constrained by dev, so dev comes first
OPTIONS = (
    "--universal",
    "--python-version=3.11",
    "--fork-strategy=fewest",  # one version of a package everywhere, where there is one
    "--generate-hashes",
    "--no-emit-index-url",
    "--no-annotate",
    "--no-header",
    "--quiet",
)
HEADER = """\
# Everything that {name} needs, pinned by hash. Written by `make lock`; do not edit.
# inputs: {digest}
"""
NAMES = {"dev": "`make demo`, `make test` and `make check`", "base": "a device"}
ADDRESS = re.compile(r"://|^\s*--?(?!hash=sha256:)[a-z]", re.MULTILINE)
PIN = re.compile(r"^([a-z0-9][a-z0-9._-]*)==(\S+)", re.MULTILINE)


def main() -> int:
    """Write or check; the exit code says whether the locks are current."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether they are current")
    parser.add_argument("--upgrade", action="store_true", help="take newer versions where allowed")
    options = parser.parse_args()
    if not options.check:
        write(upgrade=options.upgrade)
    problems = check()
    for problem in problems:
        print(f"requirements/{problem}")
    return 1 if problems else 0


def write(*, upgrade: bool) -> None:
    """Resolve with uv; a lock that exists keeps its versions unless `upgrade`."""
    uv = shutil.which("uv")
    if uv is None:
        raise SystemExit("Expected `uv` on PATH to resolve the locks; install it: pip install uv")
    FOLDER.mkdir(exist_ok=True)
    for name, extras in LOCKS.items():
        path = FOLDER / f"{name}.txt"
        command = [uv, "pip", "compile", "pyproject.toml", *OPTIONS, *extras]
        command.append(f"--output-file={path}")
        if name != "dev":
            path.unlink(missing_ok=True)
            command.append(f"--constraints={FOLDER / 'dev.txt'}")
        if upgrade:
            command.append("--upgrade")
        subprocess.run(command, cwd=ROOT, check=True)
        header = HEADER.format(name=NAMES[name], digest=inputs())
        path.write_text(header + path.read_text())


def check() -> list[str]:
    """List what is wrong with the locks as they are in the tree."""
    problems = []
    texts = {name: (FOLDER / f"{name}.txt").read_text() for name in LOCKS}
    for name, text in texts.items():
        if f"# inputs: {inputs()}\n" not in text:
            problems.append(f"{name}.txt: pyproject.toml has other dependencies; run `make lock`")
        body = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
        if ADDRESS.search(body):
            problems.append(f"{name}.txt: names an index or has an option; run `make lock`")
    pins = {name: set(PIN.findall(text)) for name, text in texts.items()}
    problems += [
        f"base.txt: {package}=={version} is not what dev.txt has; run `make lock`"
        for package, version in sorted(pins["base"] - pins["dev"])
    ]
    return problems


def inputs() -> str:
    """Digest the part of pyproject.toml that the locks follow from."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    keys = ("requires-python", "dependencies", "optional-dependencies")
    text = json.dumps([project[key] for key in keys], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
