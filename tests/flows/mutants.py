"""Take safeguards out, one at a time: the simulation must notice each (`make mutants`).

Every mutant is a patch of the source text, applied to a copy of the packages. A patch whose text
is no longer there is an error: whoever changed the safeguard says here what it looks like now.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
COPIED = ("skerry", "agent", "fleet", "tests")
FOUND = re.compile(r"^seed (\d+) breaks (\w+): (.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Mutant:
    """One safeguard, and the patches (file, old text, new text) that take it out."""

    name: str
    patches: tuple[tuple[str, str, str], ...]


MUTANTS = (
    Mutant(
        "dedupe",
        (
            ("fleet/ingest.py", "if seq > cursor and not isinstance", "if not isinstance"),
            ("fleet/ingest.py", " or upto <= cursor:", ":"),
        ),
    ),
    Mutant(
        "marks that both have repeated",
        (
            (
                "fleet/voices.py",
                "if other.boot != known.boot and known.proven >= other.first and other.proven >= known.first:",
                "if other.boot != known.boot and said.seq > known.seq - 1 and other.first > known.first:",
            ),
        ),
    ),
    Mutant(
        "version check",
        (("agent/update.py", "    return stored < arrived <= MAX_VERSION\n", "    return True\n"),),
    ),
    Mutant(
        "floor check",
        (
            (
                "agent/way.py",
                "    return state.floor.releases.get(slot, 0)\n",
                "    return 0\n",
            ),
        ),
    ),
    Mutant(
        "save before act",
        (
            (
                "agent/update.py",
                """\
        if state != self.state:
            self._journal.save(state)
            self.state = state
        for effect in effects:
            self._installer.carry_out(effect)
""",
                """\
        before, self.state = self.state, state
        try:
            for effect in effects:
                self._installer.carry_out(effect)
            if state != before:
                self._journal.save(state)
        except Exception:
            self.state = before
            raise
""",
            ),
        ),
    ),
    Mutant(
        "ack after commit",
        (
            (
                "fleet/ingest.py",
                "        self._answer(answers, now)\n",
                "            self._answer(answers, now)\n",
            ),
        ),
    ),
    Mutant(
        "no gap in what is stored",
        (("fleet/ingest.py", "if batch.first > start + 1 or", "if"),),
    ),
    Mutant(
        "forget only what is acknowledged",
        (("agent/outbox.py", "return last <= acked and last", "return last"),),
    ),
    Mutant(
        "an older report changes nothing",
        (("fleet/ingest.py", "if reported.version <= stored:", "if reported.version == stored:"),),
    ),
    Mutant(
        "leave is waited for",
        (("agent/way.py", "    if event.hold:", "    if False:"),),
    ),
    Mutant(
        "an assignment begins once",
        (("agent/update.py", "if name_of(want) == slot.begun:", "if False:"),),
    ),
    Mutant(
        "stage by stage",
        (("fleet/rollout.py", "    end = None if is_last else taken", "    end = None if True else taken"),),
    ),
    Mutant(
        "a rollout that is over stops",
        (("fleet/returns.py", "    made = withdraw(rollout, assignments)\n", "    made: list[Decision] = []\n"),),
    ),
)  # fmt: skip


def applied(mutant: Mutant, folder: Path) -> None:
    """Patch a copy of the packages.

    Raises:
        SystemExit: the text is not there exactly once.
    """
    for file, old, new in mutant.patches:
        path = folder / file
        text = path.read_text()
        if text.count(old) != 1:
            sys.exit(
                f"mutant {mutant.name!r} no longer fits: expected this once in {file}, "
                f"found it {text.count(old)} times; bring tests/flows/mutants.py up to date:\n{old}"
            )
        path.write_text(text.replace(old, new))


def hunt(mutant: Mutant, seeds: int) -> tuple[int, str, str] | None:
    """Return the first seed that notices, the law it names, and its words."""
    with tempfile.TemporaryDirectory(prefix="skerry-mutant-") as name:
        folder = Path(name)
        for package in COPIED:
            ignored = shutil.ignore_patterns("__pycache__", "*.npz", "*.onnx")
            shutil.copytree(ROOT / package, folder / package, ignore=ignored)
        applied(mutant, folder)
        command = [sys.executable, "-m", "tests.flows.simulate", "--seeds", str(seeds)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    found = FOUND.search(done.stdout)
    if found is not None:
        return int(found[1]), found[2], found[3]
    if done.returncode != 0:
        sys.exit(f"mutant {mutant.name!r} does not even run:\n{done.stdout}{done.stderr}")
    return None


def main() -> int:
    """Hunt all mutants, or those named; 1 where one survives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="worlds to play at most (200)")
    parser.add_argument("--only", default="", help="mutants whose name contains this")
    parser.add_argument("--words", action="store_true", help="also say how each was noticed")
    options = parser.parse_args()
    print(f"{'without':36}{'caught at seed':>16}   {'by the law':28}{'seconds':>8}")
    survivors = 0
    for mutant in MUTANTS:
        if options.only not in mutant.name:
            continue
        began = time.perf_counter()
        caught = hunt(mutant, options.seeds)
        seconds = time.perf_counter() - began
        survivors += caught is None
        seed, law, words = caught or ("never", "SURVIVES", "")
        print(f"{mutant.name:36}{seed:>16}   {law:28}{seconds:>8.1f}", flush=True)
        if options.words and words:
            print(f"    {words}")
    if survivors:
        print(f"{survivors} of {len(MUTANTS)} safeguards can be taken out unnoticed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
