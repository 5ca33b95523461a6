"""Play simulated worlds: `python -m tests.flows.simulate --seed 7` tells one event by event.

Without --seed it plays `--seeds` of them and stops at the first that breaks a law.
"""

import argparse
import sys
import time

from tests.flows.laws import LawBroken
from tests.flows.world import World

LEAST_EVENTS = 2000
LEAST_FAULTS = 50


def play(seed: int) -> World:
    """Play one world quietly; it was long enough, and bad enough, to mean something.

    Raises:
        LawBroken: the message says how to see it again.
    """
    world = World(seed)
    try:
        world.run()
    except LawBroken as broken:
        again = f"python -m tests.flows.simulate --seed {seed}"
        raise LawBroken(broken.law, f"{broken.message} [replay: {again}]") from broken
    if world.events < LEAST_EVENTS or world.faults < LEAST_FAULTS:
        raise LawBroken(
            "too_quiet", f"seed {seed}: only {world.events} events, {world.faults} faults"
        )
    return world


def main() -> int:
    """Tell one world, or play many; 1 where a law was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="tell this one, event by event")
    parser.add_argument("--seeds", type=int, default=200, help="how many to play (200)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (0)")
    options = parser.parse_args()
    if options.seed is not None:
        world = World(options.seed, print)
        try:
            world.run()
        except LawBroken as broken:
            print(f"seed {options.seed}, event {world.events}: {broken}")
            return 1
        print(f"seed {options.seed}: {world.events} events, {world.faults} faults, every law held")
        return 0
    began, events, faults = time.perf_counter(), 0, 0
    for seed in range(options.first, options.first + options.seeds):
        try:
            world = play(seed)
        except LawBroken as broken:
            print(f"seed {seed} breaks {broken}")
            return 1
        events, faults = events + world.events, faults + world.faults
    seconds = time.perf_counter() - began
    print(
        f"{options.seeds} seeds, {events} events, {faults} faults, {seconds:.0f} s: every law held"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
