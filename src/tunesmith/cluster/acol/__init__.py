"""ACOL and GAR: the finer classes hidden inside coarse ones (Kilinc and Uysal 2017, arXiv 1702.08648)."""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

if TYPE_CHECKING:
    from tunesmith.cluster.acol.classifier import ACOLLoss, load_classifier, node_logits, replace_classifier
    from tunesmith.cluster.acol.estimator import ACOLClusterer
    from tunesmith.cluster.acol.head import ACOLHead
    from tunesmith.cluster.acol.objective import (
        affinity,
        balance,
        coactivity,
        gar_loss,
        parent_logits,
        parent_probabilities,
        pooling_matrix,
        range_penalty,
    )
    from tunesmith.cluster.acol.pseudo import PSEUDO_PARENTS, transform_images

__all__ = [
    "PSEUDO_PARENTS",
    "ACOLClusterer",
    "ACOLHead",
    "ACOLLoss",
    "affinity",
    "balance",
    "coactivity",
    "gar_loss",
    "load_classifier",
    "node_logits",
    "parent_logits",
    "parent_probabilities",
    "pooling_matrix",
    "range_penalty",
    "replace_classifier",
    "transform_images",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "PSEUDO_PARENTS": "pseudo",
        "ACOLClusterer": "estimator",
        "ACOLHead": "head",
        "ACOLLoss": "classifier",
        "affinity": "objective",
        "balance": "objective",
        "coactivity": "objective",
        "gar_loss": "objective",
        "load_classifier": "classifier",
        "node_logits": "classifier",
        "parent_logits": "objective",
        "parent_probabilities": "objective",
        "pooling_matrix": "objective",
        "range_penalty": "objective",
        "replace_classifier": "classifier",
        "transform_images": "pseudo",
    },
)
