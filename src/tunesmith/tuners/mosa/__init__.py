"""MoSA: an adapter is split into sparse parts, trained part by part at random, and merged.

Zhang et al.: "MoSA: Mixture of Sparse Adapters for Visual Efficient Tuning", arXiv 2312.02923.
"""

from tunesmith.tuners.mosa.config import MosaConfig
from tunesmith.tuners.mosa.export import mosa_to_lora
from tunesmith.tuners.mosa.layer import MosaLayer
from tunesmith.tuners.mosa.model import MosaModel, merged_adapter
from tunesmith.tuners.registration import register_tuner

__all__ = ["MosaConfig", "MosaLayer", "MosaModel", "merged_adapter", "mosa_to_lora"]

register_tuner("mosa", MosaConfig, MosaModel)
