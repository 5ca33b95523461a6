"""Build the wheel and check it as a device gets it: base dependencies only, x86-64 and ARM.

1. The wheel holds every file of the five packages and nothing else.
2. In a fresh environment with the base lock, every module of `skerry` and `agent` imports, none of the
   extras' packages is there, and `skerry-agent --help` answers.
3. The base lock has wheels, with the pinned hashes, for 64-bit ARM Linux.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements" / "base.txt"
PACKAGES = ("skerry", "agent", "fleet", "compiler", "devices")
ARM = ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
PYTHONS = ("3.11", "3.12", "3.13")

IMPORT_ALL = """
import importlib, importlib.util, pkgutil
names = []
for package in ("skerry", "agent"):
    root = importlib.import_module(package)
    names += [package, *(m.name for m in pkgutil.walk_packages(root.__path__, package + "."))]
for name in names:
    importlib.import_module(name)
extras = ("aiohttp", "click", "rich", "onnx", "sqlalchemy", "sqlite_utils", "nats")
present = [name for name in extras if importlib.util.find_spec(name)]
assert not present, f"expected only base dependencies, found {present}"
print(len(names))
"""


def main() -> int:
    """Check all three; the first that fails ends the run with its own output."""
    with tempfile.TemporaryDirectory(prefix="skerry-wheel-") as folder:
        work = Path(folder)
        try:
            wheel = build(work)
            contents(wheel)
            install(wheel, work)
            arm(work)
        except subprocess.CalledProcessError as error:
            print(f"check-wheel: failed: {' '.join(map(str, error.cmd))}", file=sys.stderr)
            return 1
        except ValueError as error:
            print(f"check-wheel: failed: {error}", file=sys.stderr)
            return 1
    print("check-wheel: all good")
    return 0


def build(work: Path) -> Path:
    """Build the wheel with the build back end that the lock pins."""
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", work, ROOT)
    (wheel,) = work.glob("*.whl")
    print(f"built {wheel.name}, {wheel.stat().st_size / 1024:.0f} KiB")
    return wheel


def contents(wheel: Path) -> None:
    """Compare the wheel's files with the packages' files in the tree."""
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    tree = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    if inside != tree:
        missing, extra = sorted(tree - inside), sorted(inside - tree)
        raise ValueError(f"expected the packages' files; missing {missing}, not expected {extra}")
    print(f"holds all {len(tree)} files of {', '.join(PACKAGES)}")


def install(wheel: Path, work: Path) -> None:
    """Install with base dependencies only, import everything, and ask the agent for help."""
    run(sys.executable, "-m", "venv", work / "venv")
    scripts = work / "venv" / "bin"
    python = scripts / "python"
    run(python, "-m", "pip", "-qq", "install", "--require-hashes", "-r", LOCK)
    run(python, "-m", "pip", "-qq", "install", "--no-deps", wheel)
    run(python, "-m", "pip", "-qq", "check")
    count = run(python, "-W", "error", "-c", IMPORT_ALL, cwd=work).strip()
    print(f"imports {count} modules with base dependencies only")
    text = run(scripts / "skerry-agent", "--help", cwd=work)
    if "usage: skerry-agent" not in text:
        raise ValueError(f"expected the usage of skerry-agent, got {text[:200]!r}")
    print("skerry-agent --help answers")


def arm(work: Path) -> None:
    """Fetch the base lock for ARM: fails when a package has no wheel, or one with another hash."""
    platforms = [f"--platform={tag}" for tag in ARM]
    for version in PYTHONS:
        run(
            sys.executable, "-m", "pip", "-qq", "download", "--no-deps", "--require-hashes", "-r", LOCK,
            "--only-binary=:all:", *platforms, f"--python-version={version}", "--implementation=cp",
            "--dest", work / "arm" / version,
        )  # fmt: skip
    wheels = list((work / "arm" / PYTHONS[0]).iterdir())
    size = sum(path.stat().st_size for path in wheels) / 2**20
    print(f"{ARM[0]}: {len(wheels)} wheels, {size:.0f} MiB, for Python {', '.join(PYTHONS)}")


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Run a command and return its output; on failure show what it said."""
    done = subprocess.run(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        sys.stderr.write(done.stdout)
    done.check_returncode()
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
