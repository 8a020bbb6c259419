"""CLEAR: confidence-based filtering and correction of instruction data, with the very model that will be tuned.

`BSDetector` says how sure a model is of a given answer: samples of its own must agree with the answer, and it must
stand by the answer when asked. `AutoFilter` drops the rows below a threshold; `AutoCorrect` also replaces a target by
a candidate where the model is confident that the candidate is better.

References:
    Chen & Mueller 2024, "Automated Data Curation for Robust Language Model Fine-Tuning", arXiv 2403.12776.
    Chen & Mueller 2023, "Quantifying Uncertainty in Answers from any Language Model and Enhancing their
    Trustworthiness" (BSDetector), arXiv 2308.16175.

There is no released code of either. What the papers leave open and we fixed: the median as threshold, 0.8 for a
correction, exact match after folding of case and white space, 0.5 for a reply without a choice, both orders of the
judged answers, and that an exact match needs no inference model. The texts of all questions are ours.
"""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

if TYPE_CHECKING:
    from tunesmith.curate.clear.correcting import AutoCorrect
    from tunesmith.curate.clear.detector import BSDetector
    from tunesmith.curate.clear.filtering import AutoFilter

__all__ = ["AutoCorrect", "AutoFilter", "BSDetector"]

__getattr__, __dir__ = lazy_exports(
    __name__, {"AutoCorrect": "correcting", "AutoFilter": "filtering", "BSDetector": "detector"}
)
