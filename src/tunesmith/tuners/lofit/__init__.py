"""LoFiT: find the attention heads that matter for a task, then learn one constant offset for each.

Yin, Ye, Durrett: "LoFiT: Localized Fine-tuning on LLM Representations", NeurIPS 2024, arXiv 2406.01563.
"""

from tunesmith.tuners.lofit.config import LofitConfig
from tunesmith.tuners.lofit.layer import LofitLayer
from tunesmith.tuners.lofit.model import LofitModel
from tunesmith.tuners.lofit.selection import HeadSelection, head_importance, select_heads, with_heads
from tunesmith.tuners.registration import register_tuner

__all__ = [
    "HeadSelection",
    "LofitConfig",
    "LofitLayer",
    "LofitModel",
    "head_importance",
    "select_heads",
    "with_heads",
]

register_tuner("lofit", LofitConfig, LofitModel)
