"""The stage ``audit``: examinations of the best tuned model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import methods
from tunesmith.core.seeds import child_seed

if TYPE_CHECKING:
    from tunesmith.recipe.stages import Work

__all__ = ["build_audit"]


def build_audit(work: Work, folder: Path, tuned: Path, place: int, source: str) -> dict[str, Any]:
    """Examine the tuned model beside its base, and leave the report in ``report/``.

    Args:
        work: what stages share.
        folder: of the stage.
        tuned: what the training left.
        place: of the block in ``recipe.audit``.
        source: folder of that training in the run, for the report's title.
    """
    from tunesmith.trainers.saving import load_tuned

    spec = work.recipe.audit[place]
    model = load_tuned(tuned, work.base_model)
    base = None if hasattr(model, "peft_config") else work.base_model()
    report = methods.get(f"audit.{spec.type}")(
        model,
        base,
        work.tokenizer,
        **{"seed": child_seed(work.recipe.seed, "audit", place), **spec.parameters},
        subject=f"{work.recipe.name}, {source}",
        log=work.log,
    )
    report.save(folder / "report")
    work.log.emit("message", message=f"audit.{spec.type}: {report.verdict}")
    return {"level": report.level, "verdict": report.verdict}
