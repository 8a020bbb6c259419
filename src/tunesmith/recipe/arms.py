"""One arm of a run under one seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.recipe.loading import Arm

if TYPE_CHECKING:
    from tunesmith.recipe.stages import Work

__all__ = ["ArmRun"]


@dataclass(frozen=True)
class ArmRun:
    """One arm under one seed, its rows chosen.

    Attributes:
        arm: the arm.
        seed: the seed.
        folder: of the arm and seed, below the run directory.
        work: what its stages share.
        key: hash of what the choice depends on.
        selection: where the choice is.
    """

    arm: Arm
    seed: int
    folder: str
    work: Work
    key: str
    selection: Path
