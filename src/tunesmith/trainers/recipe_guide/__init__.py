"""Settings, early signals and a search from a study of fine-tuning small models (arXiv 2412.13337)."""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

__all__ = [
    "EarlyRun",
    "EarlySignalCallback",
    "GridSearch",
    "Ranking",
    "RunSignal",
    "grid_search_1d",
    "rank_runs",
    "read_signals",
    "samples_after",
    "sft_recipe",
    "steps_per_epoch",
]

if TYPE_CHECKING:
    from tunesmith.trainers.recipe_guide.ranking import (
        EarlyRun,
        Ranking,
        RunSignal,
        rank_runs,
        read_signals,
    )
    from tunesmith.trainers.recipe_guide.search import GridSearch, grid_search_1d
    from tunesmith.trainers.recipe_guide.settings import samples_after, sft_recipe, steps_per_epoch
    from tunesmith.trainers.recipe_guide.signals import EarlySignalCallback
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "EarlyRun": "ranking",
            "EarlySignalCallback": "signals",
            "GridSearch": "search",
            "Ranking": "ranking",
            "RunSignal": "ranking",
            "grid_search_1d": "search",
            "rank_runs": "ranking",
            "read_signals": "ranking",
            "samples_after": "settings",
            "sft_recipe": "settings",
            "steps_per_epoch": "settings",
        },
    )
