"""The built-in demo data: a messy pool with verifiable answers, and clean rows to measure on.

``load("messy")`` is the pool, ``load("test")`` and ``load("validation")`` are clean and share no source item
with it. Everything is made of real parts found inside two wheels, ``bfcl-eval`` and ``reasoning-gym``.
"""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

__all__ = ["NAMES", "Mix", "load", "render_call"]

if TYPE_CHECKING:
    from tunesmith.data.demo.function_calls import render_call
    from tunesmith.data.demo.source import NAMES, Mix, load
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {"NAMES": "source", "Mix": "source", "load": "source", "render_call": "function_calls"},
    )
