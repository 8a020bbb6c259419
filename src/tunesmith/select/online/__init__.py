"""Choosing rows while training: policies that keep some rows of each candidate batch, by the model of the moment.

They are registered as ``online.*`` (not ``select.*``): their contract is a decision per batch, not a budget over a
pool. `tunesmith.trainers.OnlineSelectionMixin` puts one into a trainer.
"""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

if TYPE_CHECKING:
    from tunesmith.select.online._base import Candidates, OnlinePolicy
    from tunesmith.select.online.baselines import MaxLossPolicy, RandomPolicy
    from tunesmith.select.online.head import OutputLayer
    from tunesmith.select.online.memory import SketchMemory
    from tunesmith.select.online.nuclear import nuclear_norms
    from tunesmith.select.online.sketch import LogitSketch
    from tunesmith.select.online.uds import UDSPolicy

__all__ = [
    "Candidates",
    "LogitSketch",
    "MaxLossPolicy",
    "OnlinePolicy",
    "OutputLayer",
    "RandomPolicy",
    "SketchMemory",
    "UDSPolicy",
    "nuclear_norms",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Candidates": "_base",
        "LogitSketch": "sketch",
        "MaxLossPolicy": "baselines",
        "OnlinePolicy": "_base",
        "OutputLayer": "head",
        "RandomPolicy": "baselines",
        "SketchMemory": "memory",
        "UDSPolicy": "uds",
        "nuclear_norms": "nuclear",
    },
)
