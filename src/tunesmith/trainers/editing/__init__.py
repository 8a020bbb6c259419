"""Model editing by fine-tuning: LocFT-BF and the depth-first baseline it corrects.

Paper: Yang, Tang, Zang, Su, Cao, Wang, Shen, Cheng, Sun, "Fine-tuning Done Right in Model Editing", ICLR 2026,
arXiv 2509.22072. `loops` holds the two pipelines and `objective` the loss (pure functions), `encoding` the batches,
`tuned` the weights that move, `lower` the cache of the layers that do not, `editor` and `session` the interface.
"""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

__all__ = ["EditResult", "EditSession", "LoopResult", "breadth_first", "depth_first", "edit", "edit_loss"]

if TYPE_CHECKING:
    from tunesmith.trainers.editing.editor import EditResult, edit
    from tunesmith.trainers.editing.loops import LoopResult, breadth_first, depth_first
    from tunesmith.trainers.editing.objective import edit_loss
    from tunesmith.trainers.editing.session import EditSession
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "EditResult": "editor",
            "EditSession": "session",
            "LoopResult": "loops",
            "breadth_first": "loops",
            "depth_first": "loops",
            "edit": "editor",
            "edit_loss": "objective",
        },
    )
