"""Optimal transport with duals: entropic (log domain, chunked), exact, and out of sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "COSTS": "costs",
        "cost_matrix": "costs",
        "mean_cost": "costs",
        "solve_exact": "exact",
        "Transport": "iterate",
        "c_transform": "entropic",
        "self_potential": "entropic",
        "sinkhorn": "entropic",
    },
)

if TYPE_CHECKING:
    from tunesmith.numerics.transport.costs import COSTS as COSTS
    from tunesmith.numerics.transport.costs import cost_matrix as cost_matrix
    from tunesmith.numerics.transport.costs import mean_cost as mean_cost
    from tunesmith.numerics.transport.entropic import c_transform as c_transform
    from tunesmith.numerics.transport.entropic import self_potential as self_potential
    from tunesmith.numerics.transport.entropic import sinkhorn as sinkhorn
    from tunesmith.numerics.transport.exact import solve_exact as solve_exact
    from tunesmith.numerics.transport.iterate import Transport as Transport
