"""Make `.venv` agree with the lock, or say what is missing on this machine.

Runs on the system's interpreter, with nothing but the standard library, and in words that an old
Python can still parse: it is what tells its reader that the Python is too old. It is quick when there
is nothing to do, safe to interrupt, and safe to run twice at the same time.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOCK = ROOT / "requirements" / "dev.txt"
PROJECT = ROOT / "pyproject.toml"
STAMP = VENV / ".skerry-stamp"  # written last, so an interrupted set-up starts over
OLDEST = (3, 11)

TOO_OLD = """\
Expected Python {oldest} or newer, but {executable} is {found}.
Install a newer one and name it:  make PYTHON=/path/to/python3.11 {goal}
"""

NO_VENV = """\
{executable} cannot make virtual environments: its module `{module}` is missing.
On Debian or Ubuntu:  apt-get install python3-venv
For a Python that is not the system's default:  apt-get install python{version}-venv
"""


def main() -> int:
    """Bring `.venv` up to date; the exit code says whether it is."""
    problem = missing()
    if problem:
        sys.stderr.write(problem)
        return 1
    with open(str(ROOT / ".venv.lock"), "w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        return update()


def missing() -> str:
    """Say what this machine lacks, or nothing."""
    version = "{}.{}".format(*sys.version_info[:2])
    if sys.version_info[:2] < OLDEST:
        return TOO_OLD.format(
            oldest="{}.{}".format(*OLDEST),
            executable=sys.executable,
            found=version,
            goal=os.environ.get("GOAL", ""),
        )
    for module in ("venv", "ensurepip"):  # Debian splits them off the interpreter
        try:
            __import__(module)
        except ImportError:
            return NO_VENV.format(executable=sys.executable, module=module, version=version)
    return ""


def update() -> int:
    """Do what the stamp says is still to be done."""
    environment, project = wanted()
    found = STAMP.read_text().split("\n") if STAMP.exists() else []
    if found == [environment, project]:
        return 0
    if found[:1] != [environment]:
        code = rebuild()
        if code:
            return code
    code = pip("install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    if code:
        return code
    STAMP.write_text(environment + "\n" + project)
    say("ready")
    return 0


def wanted() -> "tuple[str, str]":
    """Digest what the environment and the editable install depend on."""
    base = "{} {} {}".format(sys.base_prefix, sys.version, VENV)
    environment = hashlib.sha256(base.encode() + LOCK.read_bytes()).hexdigest()
    return environment, hashlib.sha256(PROJECT.read_bytes()).hexdigest()


def rebuild() -> int:
    """Make the environment from nothing, with exactly what the lock names."""
    say("setting up with Python {}.{}.{}, once; about a minute".format(*sys.version_info[:3]))
    if VENV.exists():
        shutil.rmtree(str(VENV))
    code = subprocess.call([sys.executable, "-m", "venv", str(VENV)])
    if code:
        return code
    say("installing {} packages, pinned by hash".format(LOCK.read_text().count("==")))
    return pip("install", "--require-hashes", "--requirement", str(LOCK))


def pip(*arguments: str) -> int:
    """Run the environment's pip; its errors go to the terminal, its remarks nowhere."""
    python = str(VENV / "bin" / "python")
    code = subprocess.call([python, "-m", "pip", "-qq", "--no-input", *arguments])
    if code:
        say("pip failed (exit code {}); the lines above say why".format(code))
    return code


def say(text: str) -> None:
    """Tell the person waiting, on stderr: stdout belongs to the program that follows."""
    sys.stderr.write(".venv: " + text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        say("interrupted; run again to start over")
        sys.exit(130)
