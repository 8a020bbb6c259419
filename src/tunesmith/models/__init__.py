"""Architectures that papers bring."""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

__all__ = ["LEVI", "LeviConfig"]

if TYPE_CHECKING:
    from tunesmith.models.levi.config import LeviConfig
    from tunesmith.models.levi.model import LEVI
else:
    __getattr__, __dir__ = lazy_exports(__name__, {"LEVI": "levi", "LeviConfig": "levi"})
