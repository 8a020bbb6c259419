"""Filters and repairs, ``fit`` and ``transform`` from Dataset to Dataset, a reason for each dropped row."""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

if TYPE_CHECKING:
    from tunesmith.curate._base import CurateReport, Curator
    from tunesmith.curate.clear.correcting import AutoCorrect
    from tunesmith.curate.clear.detector import BSDetector
    from tunesmith.curate.clear.filtering import AutoFilter
    from tunesmith.curate.decontaminate import ContaminationFilter, contamination
    from tunesmith.curate.dedup import Deduplicate
    from tunesmith.curate.fine_t2i.curator import TextToImageCurator
    from tunesmith.curate.near.deduplicate import NearDeduplicate

__all__ = [
    "AutoCorrect",
    "AutoFilter",
    "BSDetector",
    "ContaminationFilter",
    "CurateReport",
    "Curator",
    "Deduplicate",
    "NearDeduplicate",
    "TextToImageCurator",
    "contamination",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "ContaminationFilter": "decontaminate",
        "AutoCorrect": "clear.correcting",
        "AutoFilter": "clear.filtering",
        "BSDetector": "clear.detector",
        "CurateReport": "_base",
        "Curator": "_base",
        "Deduplicate": "dedup",
        "NearDeduplicate": "near.deduplicate",
        "TextToImageCurator": "fine_t2i.curator",
        "contamination": "decontaminate",
    },
)
