"""S3FT: targets for supervised tuning that the model itself would say, where they are right.

Each target is rewritten before training: the base model's own answer where a judge finds it right, else its paraphrase
of the gold answer where that is right, else the gold answer. `selective_self_targets` builds the rows; any trainer
learns from them. Judges are in `judges`, `code` and `model_judge`.

References:
    Gupta, Nandwani, Yehudai, Khandelwal, Raghu, Joshi 2025, "Selective Self-to-Supervised Fine-Tuning for
    Generalization in Large Language Models", arXiv 2502.08130 (Figure 1; Tables 1 to 3).

There is no released code. Ours are: greedy decoding, the wording of all prompts, the judges' rules, that an answer
which is empty or cut short is refused without asking the judge, and that a paraphrase which mentions the reference is.
"""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

__all__ = [
    "AnyOf",
    "LLMJudge",
    "NormalisedMatch",
    "NumberMatch",
    "PythonTests",
    "SelfTargetReport",
    "TaskJudge",
    "choose_targets",
    "open_judge",
    "selective_self_targets",
    "self_target_report",
    "target_nll",
]

if TYPE_CHECKING:
    from tunesmith.trainers.s3ft.building import selective_self_targets
    from tunesmith.trainers.s3ft.choosing import choose_targets
    from tunesmith.trainers.s3ft.code import PythonTests
    from tunesmith.trainers.s3ft.judges import AnyOf, NormalisedMatch, NumberMatch, TaskJudge
    from tunesmith.trainers.s3ft.likelihood import target_nll
    from tunesmith.trainers.s3ft.model_judge import LLMJudge
    from tunesmith.trainers.s3ft.naming import open_judge
    from tunesmith.trainers.s3ft.report import SelfTargetReport, self_target_report
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "AnyOf": "judges",
            "LLMJudge": "model_judge",
            "NormalisedMatch": "judges",
            "NumberMatch": "judges",
            "PythonTests": "code",
            "SelfTargetReport": "report",
            "TaskJudge": "judges",
            "choose_targets": "choosing",
            "open_judge": "naming",
            "selective_self_targets": "building",
            "self_target_report": "report",
            "target_nll": "likelihood",
        },
    )
