"""Adapt-infinity: lifelong selection from a bounded pool ("Adapt-∞", Maharana et al., ICLR 2025, arXiv
2410.10636).

Each round: rows are clustered by their gradients under the current model (pseudo-skills), each cluster is
ranked by the scorer whose values are spread most evenly there, the training budget is spread over clusters
and over strata of that scorer, and near-duplicates leave the pool for good. The parts are usable alone:
`budgets`, `entropy`, `sampling`, `pruning`, `scores`, `features`; `LifelongPool` puts them together.
"""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

if TYPE_CHECKING:
    from tunesmith.select.lifelong.budgets import density_quota, spread_quota, waterfill
    from tunesmith.select.lifelong.entropy import choose_scorer, histogram_entropy
    from tunesmith.select.lifelong.features import project_gradients, unit_rows
    from tunesmith.select.lifelong.pool import LifelongPool
    from tunesmith.select.lifelong.pruning import duplicate_scores, prune_duplicates
    from tunesmith.select.lifelong.sampling import coverage_sample
    from tunesmith.select.lifelong.scores import grounding, token_scores

__all__ = [
    "LifelongPool",
    "choose_scorer",
    "coverage_sample",
    "density_quota",
    "duplicate_scores",
    "grounding",
    "histogram_entropy",
    "project_gradients",
    "prune_duplicates",
    "spread_quota",
    "token_scores",
    "unit_rows",
    "waterfill",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "LifelongPool": "pool",
        "choose_scorer": "entropy",
        "coverage_sample": "sampling",
        "density_quota": "budgets",
        "duplicate_scores": "pruning",
        "grounding": "scores",
        "histogram_entropy": "entropy",
        "project_gradients": "features",
        "prune_duplicates": "pruning",
        "spread_quota": "budgets",
        "token_scores": "scores",
        "unit_rows": "features",
        "waterfill": "budgets",
    },
)
