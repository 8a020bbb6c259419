"""Look inside models and data: backdoors, novelty, drift."""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

__all__ = ["Report", "Table"]

if TYPE_CHECKING:
    from tunesmith.audit._report import Report, Table
else:
    __getattr__, __dir__ = lazy_exports(__name__, {"Report": "_report", "Table": "_report"})
