"""The releases of the simulated world, and how each behaves once it serves."""

import hashlib
from dataclasses import dataclass
from typing import Literal

from skerry.states import AnalysisState
from skerry.trust import CatalogTarget, target_path

Manner = Literal["good", "worse", "errors", "crashes", "smoke", "first_variant"]
VARIANTS = ("int8-cpu", "fp32-cpu")
HW_CLASS = "linux-x86_64-avx2"


@dataclass(frozen=True, slots=True)
class ReleaseTruth:
    """What the catalog says of a release, and what is true of it."""

    model: str
    model_version: str
    released: CatalogTarget
    manner: Manner

    @property
    def bundle(self) -> str:
        return "sha256:" + self.released.sha256

    def verdict(self) -> AnalysisState:
        """What an analysis of its canaries would find."""
        return AnalysisState.FAILED if self.manner == "worse" else AnalysisState.SUCCESSFUL


def history(model: str, manners: list[Manner]) -> list[ReleaseTruth]:
    """Return releases 1.0.0, 1.1.0 ... of a model; each may fall back to the one before it."""
    made: list[ReleaseTruth] = []
    for position, manner in enumerate(manners):
        version = f"1.{position}.0"
        released = CatalogTarget(
            path=target_path("acme", model, version),
            length=1000 + position,
            sha256=hashlib.sha256(f"{model} {version}".encode()).hexdigest(),
            release_counter=position + 1,
            hw_classes=["any"],
            min_agent="0.1.0",
            may_fall_back_to=[made[-1].bundle] if made else [],
        )
        made.append(ReleaseTruth(model, version, released, manner))
    return made
