"""Operations on weights: adapters merged into their base and verified, models averaged."""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

__all__ = ["MergeReport", "Soup", "merge_adapter", "soup"]

if TYPE_CHECKING:
    from tunesmith.merge.adapter import MergeReport, merge_adapter
    from tunesmith.merge.model_soup import Soup, soup
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "MergeReport": "adapter",
            "Soup": "model_soup",
            "merge_adapter": "adapter",
            "soup": "model_soup",
        },
    )
