"""Contrastive generative exploration (CGE): what a fine-tuning set added, seen through the model.

Isonuma and Titov, "What's New in My Data? Novelty Exploration via Contrastive Generation", ICLR 2025, arXiv 2410.14765.
"""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

__all__ = [
    "CGEConfig",
    "ContrastiveLogitsProcessor",
    "Generation",
    "NoveltyExplorer",
    "audit_novelty",
    "contrastive_score",
    "step_scores",
]

if TYPE_CHECKING:
    from tunesmith.audit.novelty.auditing import audit_novelty
    from tunesmith.audit.novelty.core import step_scores
    from tunesmith.audit.novelty.exploring import CGEConfig, Generation, NoveltyExplorer
    from tunesmith.audit.novelty.processor import ContrastiveLogitsProcessor
    from tunesmith.audit.novelty.scoring import contrastive_score
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "CGEConfig": "exploring",
            "ContrastiveLogitsProcessor": "processor",
            "Generation": "exploring",
            "NoveltyExplorer": "exploring",
            "audit_novelty": "auditing",
            "contrastive_score": "scoring",
            "step_scores": "core",
        },
    )
