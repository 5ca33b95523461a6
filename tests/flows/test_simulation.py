"""Two hundred simulated worlds keep every law; a world is the same whenever it is played."""

import hashlib
import shutil
from pathlib import Path

import pytest

from tests.flows.laws import LawBroken
from tests.flows.mutants import COPIED, MUTANTS, ROOT, Mutant, applied
from tests.flows.simulate import play
from tests.flows.world import World

SEEDS = 200
SHARE = 25


@pytest.mark.parametrize("first", range(0, SEEDS, SHARE))
def test_every_law_holds_after_every_event(first: int) -> None:
    for seed in range(first, first + SHARE):
        play(seed)


def test_a_world_follows_from_its_seed() -> None:
    def trace(seed: int) -> str:
        told = hashlib.sha256()
        World(seed, lambda line: told.update(line.encode())).run()
        return told.hexdigest()

    assert trace(3) == trace(3)
    assert trace(3) != trace(4)


def test_a_broken_law_says_how_to_see_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.update.accepts_version", lambda stored, arrived: True)
    with pytest.raises(LawBroken, match=r"\w+: .* --seed \d+"):
        any(play(seed) is None for seed in range(20))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_safeguard_is_still_where_its_mutant_expects_it(
    mutant: Mutant, tmp_path: Path
) -> None:
    for file, _, _ in mutant.patches:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
        assert file.split("/")[0] in COPIED
    applied(mutant, tmp_path)
