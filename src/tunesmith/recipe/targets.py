"""The stage ``targets``: the answers of the chosen rows, rewritten before training."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import methods
from tunesmith.core.files import atomic_dir, write_json
from tunesmith.core.seeds import child_seed

if TYPE_CHECKING:
    from datasets import Dataset

    from tunesmith.recipe.stages import Work

__all__ = ["build_targets"]

JOURNAL = "targets"


def build_targets(work: Work, folder: Path, selection: Path) -> dict[str, Any]:
    """Let the base model answer the chosen rows, and keep its answers where a judge finds them right.

    What was generated and judged lies in one folder of the run: arms and seeds that chose the same row share it, and a
    run that was killed goes on with it.
    """
    from tunesmith.engine.local_llm import LocalLLM

    spec, model = work.recipe.targets, work.recipe.model
    assert spec is not None
    assert model is not None
    rows = work.chosen_rows(selection)
    if "source" in rows.column_names:  # where the row comes from; here it says where its answer does
        rows = rows.rename_column("source", "row_source")
    llm = LocalLLM(
        model.id, dtype=model.dtype, revision=model.revision, trust_remote_code=model.trust_remote_code
    )
    built = methods.get(f"targets.{spec.type}")(
        rows,
        llm,
        folder=work.root / JOURNAL,
        random_state=child_seed(work.recipe.seed, "targets"),
        log=work.log,
        **spec.parameters,
    )
    with atomic_dir(folder / "dataset") as partial:
        built.save_to_disk(str(partial))
    sources = dict(Counter(built["source"][:]).most_common())
    write_json(folder / "targets.json", _report(built, sources))
    reasons = {f"target: {which}": count for which, count in sources.items()}
    work.log.emit("rows", stage="targets", rows_in=len(rows), rows_out=len(built), reasons=reasons)
    return {"rows": len(built), **sources}


def _report(built: Dataset, sources: dict[str, int]) -> dict[str, Any]:
    from tunesmith.trainers.s3ft import self_target_report
    from tunesmith.trainers.s3ft.rows import AUDIT

    if not set(AUDIT) <= set(built.column_names):
        return {"n_rows": len(built), "sources": sources}
    return self_target_report(built).to_dict()
