"""ClustPy's deep clusterers without torchvision, of which they use nothing here.

ClustPy 0.0.3 imports torchvision for its image data sets and augmentations. The wheel on the package index is built for
CUDA and breaks transformers beside a CPU build of torch, so empty modules stand in for it.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

__all__ = ["deep"]


class _Empty(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def deep() -> Any:
    """Return the module ``clustpy.deep``."""
    names = ["torchvision", "torchvision.datasets", "torchvision.models", "torchvision.models._api"]
    missing = [name for name in names if name not in sys.modules]
    for name in missing:
        sys.modules[name] = _Empty(name)
    try:
        import clustpy.deep
    finally:
        for name in missing:
            del sys.modules[name]
    return clustpy.deep
