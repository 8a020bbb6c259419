"""Measures of a model's answers, likelihoods and of clusterings, and intervals for their differences."""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

__all__ = [
    "Accuracy",
    "ExactMatch",
    "HeldOutPerplexity",
    "TaskScore",
    "clustering",
    "clustering_accuracy",
    "novel_class_accuracy",
    "paired_bootstrap",
    "parse_call",
    "purity",
    "score_task",
]

if TYPE_CHECKING:
    from tunesmith.metrics import clustering
    from tunesmith.metrics.bootstrap import paired_bootstrap
    from tunesmith.metrics.calls import parse_call
    from tunesmith.metrics.classes import Accuracy
    from tunesmith.metrics.clustering import clustering_accuracy, novel_class_accuracy, purity
    from tunesmith.metrics.generation import ExactMatch, TaskScore
    from tunesmith.metrics.perplexity import HeldOutPerplexity
    from tunesmith.metrics.tasks import score_task
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "Accuracy": "classes",
            "ExactMatch": "generation",
            "HeldOutPerplexity": "perplexity",
            "TaskScore": "generation",
            "clustering": "clustering",
            "clustering_accuracy": "clustering",
            "novel_class_accuracy": "clustering",
            "paired_bootstrap": "bootstrap",
            "parse_call": "calls",
            "purity": "clustering",
            "score_task": "tasks",
        },
    )
