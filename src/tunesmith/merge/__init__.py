"""Operations on weights: adapters merged into their base and verified, models averaged."""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

__all__ = ["MergeReport", "merge_adapter"]

if TYPE_CHECKING:
    from tunesmith.merge.adapter import MergeReport, merge_adapter
else:
    __getattr__, __dir__ = lazy_exports(__name__, dict.fromkeys(__all__, "adapter"))
