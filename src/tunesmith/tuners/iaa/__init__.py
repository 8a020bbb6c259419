"""IAA, inside and aside: adapters joined by trainable modules beside the network (a reconstruction).

Loading this package makes it a PEFT method.
"""

from tunesmith.tuners.iaa.config import IAAConfig
from tunesmith.tuners.iaa.model import IAAModel
from tunesmith.tuners.registration import register_tuner

__all__ = ["IAAConfig", "IAAModel"]

register_tuner("iaa", IAAConfig, IAAModel)
