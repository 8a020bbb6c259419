"""Operations on weights: adapters merged into their base or together, models averaged and added; all verified."""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

__all__ = [
    "CombinedAdapters",
    "MergeCheck",
    "MergeReport",
    "Merged",
    "Soup",
    "combine_adapters",
    "merge_adapter",
    "merge_with_mergekit",
    "slerp",
    "slerp_tensors",
    "soup",
    "task_arithmetic",
]

if TYPE_CHECKING:
    from tunesmith.merge.adapter import MergeReport, merge_adapter
    from tunesmith.merge.adapters import CombinedAdapters, combine_adapters
    from tunesmith.merge.checking import MergeCheck
    from tunesmith.merge.model_soup import Soup, soup
    from tunesmith.merge.pairs import Merged, merge_with_mergekit, slerp, slerp_tensors, task_arithmetic
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "CombinedAdapters": "adapters",
            "MergeCheck": "checking",
            "MergeReport": "adapter",
            "Merged": "pairs",
            "Soup": "model_soup",
            "combine_adapters": "adapters",
            "merge_adapter": "adapter",
            "merge_with_mergekit": "pairs",
            "slerp": "pairs",
            "slerp_tensors": "pairs",
            "soup": "model_soup",
            "task_arithmetic": "pairs",
        },
    )
