"""HFT: a random half of every layer is trained per round, the other half stays as it is.

Paper: Hui, Zhang, Wang, Xu, Sun, Wu, "HFT: Half Fine-Tuning for Large Language Models", ACL 2025, arXiv 2404.18466.
`selection` draws the halves (the algorithm), `rounds` puts them on a model, `callback` guards a training and
its checkpoints, `resetting` is the paper's pilot experiment: half of a tuned model set back to its base.
"""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

__all__ = [
    "HalfFineTuning",
    "HalfFineTuningCallback",
    "Matrix",
    "Round",
    "half_reset",
    "matrices_of",
    "select_half",
]

if TYPE_CHECKING:
    from tunesmith.tuners.hft.callback import HalfFineTuningCallback
    from tunesmith.tuners.hft.resetting import half_reset
    from tunesmith.tuners.hft.rounds import HalfFineTuning, Round
    from tunesmith.tuners.hft.selection import Matrix, matrices_of, select_half
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "HalfFineTuning": "rounds",
            "HalfFineTuningCallback": "callback",
            "Matrix": "selection",
            "Round": "rounds",
            "half_reset": "resetting",
            "matrices_of": "selection",
            "select_half": "selection",
        },
    )
