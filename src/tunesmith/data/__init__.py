"""Data: reading rows of any known format, canonical rows, and `Pool`, a dataset with cached features."""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

if TYPE_CHECKING:
    from tunesmith.data import demo, formats, preflight, rows, templates, vision
    from tunesmith.data.phases import phased, stacked
    from tunesmith.data.pool import Pool
    from tunesmith.data.reader import ReadReport, ReadResult, read
    from tunesmith.data.subset import write_subset

__all__ = [
    "Pool",
    "ReadReport",
    "ReadResult",
    "demo",
    "formats",
    "phased",
    "preflight",
    "read",
    "rows",
    "stacked",
    "templates",
    "vision",
    "write_subset",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Pool": "pool",
        "ReadReport": "reader",
        "ReadResult": "reader",
        "demo": "demo",
        "formats": "formats",
        "phased": "phases",
        "preflight": "preflight",
        "read": "reader",
        "rows": "rows",
        "stacked": "phases",
        "templates": "templates",
        "vision": "vision",
        "write_subset": "subset",
    },
)
