"""What a run of the demo can be asked for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from skerry.errors import NotFoundError, UsageError

__all__ = ["CANARIES", "DEVICES", "SITES", "DemoOptions", "check_examples", "smudged_devices"]

SITES: Final = {"harbour": 6, "airport": 6}  # site -> devices
DEVICES: Final = tuple(
    f"{site}-{number:02d}" for site, count in SITES.items() for number in range(1, count + 1)
)
CANARIES: Final = 3  # devices of a canary stage; the others are its controls
NEEDED: Final = ("camera.py", "live.npz", "reader-1.0.0.toml")
DEFAULT_SMUDGE: Final = ("airport-02", "airport-05")


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """How the story is to be told.

    Attributes:
        seed: of the traffic; the same seed asks for the same digits.
        smudge: ``default``, ``none``, or devices joined by commas.
        release: ``bad`` rolls out 1.2.0, ``good`` the sound 1.2.1 in its place.
        traffic: ``off`` ends all live traffic right after the start.
        headless: leave at the end instead of keeping the console up.
        json: print one summary as the last line of stdout.
        examples: the folder with the digits.
        rate_hz: predictions per second and device.
    """

    seed: int = 1
    smudge: str = "default"
    release: Literal["bad", "good"] = "bad"
    traffic: Literal["on", "off"] = "on"
    headless: bool = False
    json: bool = False
    examples: Path = Path("examples/digits")
    rate_hz: float = 36.0


def check_examples(folder: Path) -> None:
    """Check that the folder holds the digits, before anything is started.

    Raises:
        NotFoundError: it does not.
    """
    for name in NEEDED:
        if not (folder / name).is_file():
            raise NotFoundError(
                f"expected the digits in {folder}, found no {name} there; run from the root of "
                "the repository, or name its examples/digits with --examples"
            )


def smudged_devices(smudge: str) -> tuple[str, ...]:
    """Return the devices whose lens is to be smudged.

    Raises:
        UsageError: a device that the demo does not have.
    """
    if smudge == "default":
        return DEFAULT_SMUDGE
    if smudge == "none":
        return ()
    named = tuple(sorted({name.strip() for name in smudge.split(",")}))
    strangers = [name for name in named if name not in DEVICES]
    if strangers:
        raise UsageError(
            f"expected devices of {DEVICES[0]} to {DEVICES[-1]}, got {strangers[0]!r}; "
            "for example --smudge harbour-01,harbour-04"
        )
    return named
