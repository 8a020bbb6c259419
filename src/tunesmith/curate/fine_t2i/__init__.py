"""Fine-T2I (arXiv 2602.09439, 2026): a staged pipeline that makes and filters text-to-image training rows."""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

if TYPE_CHECKING:
    from tunesmith.curate.fine_t2i.curator import TextToImageCurator
    from tunesmith.curate.fine_t2i.grid import Cell, Taxonomy
    from tunesmith.curate.fine_t2i.rules import draw_size, parse_verdict, split_concepts
    from tunesmith.curate.fine_t2i.scorers import (
        ChatJudge,
        ChatWriter,
        CLIPAlignment,
        Sharpness,
        TemplateWriter,
    )
    from tunesmith.curate.fine_t2i.shards import write_shards
    from tunesmith.curate.fine_t2i.stages import Funnel, Stage

__all__ = [
    "CLIPAlignment",
    "Cell",
    "ChatJudge",
    "ChatWriter",
    "Funnel",
    "Sharpness",
    "Stage",
    "Taxonomy",
    "TemplateWriter",
    "TextToImageCurator",
    "draw_size",
    "parse_verdict",
    "split_concepts",
    "write_shards",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "CLIPAlignment": "scorers",
        "Cell": "grid",
        "ChatJudge": "scorers",
        "ChatWriter": "scorers",
        "Funnel": "stages",
        "Sharpness": "scorers",
        "Stage": "stages",
        "Taxonomy": "grid",
        "TemplateWriter": "scorers",
        "TextToImageCurator": "curator",
        "draw_size": "rules",
        "parse_verdict": "rules",
        "split_concepts": "rules",
        "write_shards": "shards",
    },
)
