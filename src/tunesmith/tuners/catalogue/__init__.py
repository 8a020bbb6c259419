"""Methods of parameter-efficient tuning by family: what each changes, costs and allows, and what implements it here.

The taxonomy of Zhang, Feng, Xue, Wang, Dong, Tang, "Parameter-Efficient Fine-Tuning for Foundation Models" (2025),
arXiv 2501.13787: five families. Its list of methods, every tuner of the installed PEFT, and our own; the columns of its
Table 1 are computed here per method, not copied.
"""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

if TYPE_CHECKING:
    from tunesmith.tuners.catalogue.entry import FAMILIES, MODELS, MethodEntry
    from tunesmith.tuners.catalogue.search import build, entries, find, get
    from tunesmith.tuners.catalogue.sizes import Size, size_of, table_of_sizes

__all__ = [
    "FAMILIES",
    "MODELS",
    "MethodEntry",
    "Size",
    "build",
    "entries",
    "find",
    "get",
    "size_of",
    "table_of_sizes",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "FAMILIES": "entry",
        "MODELS": "entry",
        "MethodEntry": "entry",
        "Size": "sizes",
        "build": "search",
        "entries": "search",
        "find": "search",
        "get": "search",
        "size_of": "sizes",
        "table_of_sizes": "sizes",
    },
)
