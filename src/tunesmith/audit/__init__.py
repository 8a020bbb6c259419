"""Look inside models and data: backdoors, novelty, drift."""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

__all__ = [
    "CGEConfig",
    "ContrastiveLogitsProcessor",
    "DriftDetector",
    "NoveltyExplorer",
    "Report",
    "Table",
    "audit_drift",
    "audit_novelty",
    "backdoor",
    "contrastive_score",
    "drift",
]

if TYPE_CHECKING:
    from tunesmith.audit import backdoor, drift
    from tunesmith.audit._report import Report, Table
    from tunesmith.audit.drift import DriftDetector, audit_drift
    from tunesmith.audit.novelty import (
        CGEConfig,
        ContrastiveLogitsProcessor,
        NoveltyExplorer,
        audit_novelty,
        contrastive_score,
    )
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "CGEConfig": "novelty",
            "ContrastiveLogitsProcessor": "novelty",
            "DriftDetector": "drift",
            "NoveltyExplorer": "novelty",
            "Report": "_report",
            "Table": "_report",
            "audit_drift": "drift",
            "audit_novelty": "novelty",
            "backdoor": "backdoor",
            "contrastive_score": "novelty",
            "drift": "drift",
        },
    )
