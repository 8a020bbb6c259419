"""GORACS: a set chosen jointly for its transport distance to a validation set and its gradient norms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

__getattr__, __dir__ = lazy_exports(
    __name__, {"GORACSSelector": "selector", "objective_cost": "objective", "poo_score": "objective"}
)

if TYPE_CHECKING:
    from tunesmith.select.goracs.objective import objective_cost as objective_cost
    from tunesmith.select.goracs.objective import poo_score as poo_score
    from tunesmith.select.goracs.selector import GORACSSelector as GORACSSelector
