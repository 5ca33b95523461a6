"""Make the Debian package of the agent: its wheels, its unit, its settings.

    python packaging/make_deb.py [--out dist] [--version 0.1.0]

The package holds the wheels that `requirements/base.txt` pins by hash, for the interpreter that
this program runs under, and depends on that version of Python. Installing it makes an environment
of its own under /usr/lib/skerry-agent and fetches nothing.
"""

import argparse
import gzip
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
ARCHITECTURES = {"linux-x86_64": "amd64", "linux-aarch64": "arm64"}
SCRIPTS = ("postinst", "prerm", "postrm")
CONTROL = """\
Package: skerry-agent
Version: {version}
Architecture: {architecture}
Maintainer: Skerry <skerry@example.org>
Section: science
Priority: optional
Installed-Size: {kib}
Depends: python3 (>= {python}), python3 (<< {next}), python3-venv, adduser
Description: runs machine-learning models on this device and keeps them up to date
 The Skerry agent serves ONNX models on loopback by the Open Inference Protocol,
 takes signed updates from its fleet, keeps what it predicted until the fleet has
 it, and goes back by itself when an update does not hold.
"""


def main() -> int:
    """Make the package and print its path."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--version", help="another than pyproject.toml says")
    given = parser.parse_args()
    version = given.version or _version()
    architecture = ARCHITECTURES.get(sysconfig.get_platform())
    if architecture is None:
        parser.error(
            f"expected one of {', '.join(ARCHITECTURES)}, this is {sysconfig.get_platform()}"
        )
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        _lay_out(root, version, architecture)
        package = given.out / f"skerry-agent_{version}_{architecture}.deb"
        command = ["dpkg-deb", "--root-owner-group", "-Zxz", "--build", str(root), str(package)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    print(package)
    return 0


def _version() -> str:
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def _lay_out(root: Path, version: str, architecture: str) -> None:
    wheels = root / "usr/lib/skerry-agent/wheels"
    wheels.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    locked = [
        "--require-hashes",
        "--only-binary",
        ":all:",
        "-r",
        str(ROOT / "requirements/base.txt"),
    ]
    subprocess.run([*pip, "download", "--no-deps", "-d", str(wheels), *locked], check=True)
    subprocess.run([*pip, "download", "--no-deps", "-d", str(wheels), "pip"], check=True)
    _own_wheel(wheels, version)
    _put(HERE / "skerry-agent.service", root / "usr/lib/systemd/system/skerry-agent.service")
    _put(HERE / "agent.toml", root / "etc/skerry/agent.toml")
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/skerry-agent").symlink_to("../lib/skerry-agent/current")
    about = root / "usr/share/doc/skerry-agent"
    _put(ROOT / "LICENSE", about / "copyright")
    (about / "changelog.gz").write_bytes(
        gzip.compress((ROOT / "CHANGELOG.md").read_bytes(), mtime=0)
    )
    control = root / "DEBIAN"
    control.mkdir()
    for name in SCRIPTS:
        script = control / name
        script.write_text((HERE / "debian" / name).read_text().replace("@VERSION@", version))
        script.chmod(0o755)
    (control / "conffiles").write_text("/etc/skerry/agent.toml\n")
    major, minor = sys.version_info[:2]
    size = sum(f.stat().st_size for f in root.rglob("*") if f.is_file() and not f.is_symlink())
    text = CONTROL.format(
        version=version, architecture=architecture, kib=4 * size // 1024,
        python=f"{major}.{minor}", next=f"{major}.{minor + 1}",
    )  # fmt: skip
    (control / "control").write_text(text)


def _own_wheel(wheels: Path, version: str) -> None:
    """Build the project's wheel from a copy, of the version that was asked for."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "source"
        names = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout
        for name in filter(None, names.split("\0")):
            if (ROOT / name).is_file():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, copy / name)
        project = copy / "pyproject.toml"
        project.write_text(
            project.read_text().replace(f'version = "{_version()}"', f'version = "{version}"', 1)
        )
        build = [
            sys.executable,
            "-m",
            "pip",
            "--quiet",
            "wheel",
            "--no-deps",
            "-w",
            str(wheels),
            str(copy),
        ]
        subprocess.run(build, check=True, env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"})


def _put(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)
    target.chmod(0o644)


if __name__ == "__main__":
    sys.exit(main())
