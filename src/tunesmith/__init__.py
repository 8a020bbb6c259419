"""Fine-tuning research you can run: published methods behind the interfaces people already use.

Everything is imported on first use, so that ``import tunesmith`` stays instant.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0.dev0"

_PACKAGES = [
    "audit",
    "cluster",
    "curate",
    "data",
    "engine",
    "merge",
    "methods",
    "metrics",
    "models",
    "numerics",
    "papers",
    "recipe",
    "select",
    "studio",
    "trainers",
    "tuners",
]

__all__ = ["__version__", *_PACKAGES]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"tunesmith.{name}")
    raise AttributeError(f"module 'tunesmith' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
