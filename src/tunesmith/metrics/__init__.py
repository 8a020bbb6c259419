"""Measures of a model's answers and likelihoods, and intervals for their differences."""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

__all__ = ["ExactMatch", "HeldOutPerplexity", "TaskScore", "paired_bootstrap", "parse_call", "score_task"]

if TYPE_CHECKING:
    from tunesmith.metrics.bootstrap import paired_bootstrap
    from tunesmith.metrics.calls import parse_call
    from tunesmith.metrics.generation import ExactMatch, TaskScore
    from tunesmith.metrics.perplexity import HeldOutPerplexity
    from tunesmith.metrics.tasks import score_task
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "ExactMatch": "generation",
            "HeldOutPerplexity": "perplexity",
            "TaskScore": "generation",
            "paired_bootstrap": "bootstrap",
            "parse_call": "calls",
            "score_task": "tasks",
        },
    )
