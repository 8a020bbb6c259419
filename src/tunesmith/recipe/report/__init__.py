"""The report of a run: one self-contained HTML page, made only from the files of the run directory."""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

if TYPE_CHECKING:
    from tunesmith.recipe.report.maps import pool_map
    from tunesmith.recipe.report.page import write_report

__all__ = ["pool_map", "write_report"]

__getattr__, __dir__ = lazy_exports(__name__, {"write_report": "page", "pool_map": "maps"})
