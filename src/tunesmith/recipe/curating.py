"""The stage ``curate``: filters and repairs in order, with the recipe's model and training where they need one."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import methods
from tunesmith.core.files import (
    atomic_dir,
    atomic_open,
    hash_file,
    hash_json,
    hash_text,
    hash_tree,
    write_json,
)
from tunesmith.core.seeds import child_seed
from tunesmith.recipe.checking import parameters_of

if TYPE_CHECKING:
    from datasets import Dataset

    from tunesmith.recipe.schema import MethodSpec, Recipe
    from tunesmith.recipe.stages import Work

__all__ = ["build_curate", "depends_on", "make_curator", "train_arguments"]

PREVIEW_ROWS = 1_000  # rows encoded before any scoring, so that a bad template stops the run in seconds


def build_curate(work: Work, folder: Path) -> dict[str, Any]:
    """Run the filters and repairs in order; every dropped and changed row is listed with its reason."""
    from datasets import load_from_disk

    rows = load_from_disk(str(work.root / "data" / "train"))
    reports = []
    with (
        atomic_open(folder / "dropped.jsonl") as dropped,
        atomic_open(folder / "changed.jsonl") as changed,
    ):
        for i, spec in enumerate(work.recipe.curate):
            method = make_curator(work.recipe, spec, i)
            if hasattr(method, "log"):
                method.log = work.log
            if _may_tune(work.recipe, spec):
                method.set_params(finetune=partial(_finetune, work, folder, i))
            n_in = len(rows)
            rows = method.fit(rows).transform(rows)
            report = method.report_
            counts = {"rows_in": n_in, "rows_out": len(rows), "reasons": report.reasons}
            also = {f"{did}: {why}": n for did, why, n in report.table() if did != "dropped"}
            reports.append({"type": spec.type, **counts, **({"also": also} if also else {})})
            work.log.emit("rows", stage=f"curate.{spec.type}", **counts)
            for what, count in also.items():
                work.log.emit("message", message=f"curate.{spec.type}: {count:,} {what}")
            for line in report.lines():
                stream = dropped if line["action"] == "drop" else changed
                place = {"type": spec.type, "row": line.pop("row")}
                if stream is dropped:
                    line.pop("action")
                stream.write(json.dumps({**place, **line}, ensure_ascii=False) + "\n")
    with atomic_dir(folder / "dataset") as partial_folder:
        rows.save_to_disk(str(partial_folder))
    write_json(folder / "report.json", reports)
    if work.recipe.train is not None:
        _preview(work, rows)
    return {"rows": len(rows)}


def make_curator(recipe: Recipe, spec: MethodSpec, place: int) -> Any:
    """Build a filter or repair: seeded where it draws at random, with the recipe's model where it needs one.

    Args:
        recipe: the recipe.
        spec: the block of the method.
        place: its place in ``recipe.curate``.
    """
    method = methods.create(f"curate.{spec.type}", **spec.parameters)
    names = parameters_of("curate", spec.type)
    if "random_state" in names and "random_state" not in spec.parameters:
        method.set_params(random_state=child_seed(recipe.seed, "curate", place))
    if _takes_model(recipe, spec) and recipe.model is not None:
        from tunesmith.engine.local_llm import LocalLLM

        model = recipe.model
        method.set_params(
            llm=LocalLLM(
                model.id,
                dtype=model.dtype,
                revision=model.revision,
                trust_remote_code=model.trust_remote_code,
            )
        )
    return method


def depends_on(recipe: Recipe, hashes: dict[str, str]) -> dict[str, Any]:
    """Return what the stage depends on beside the rows and its own block: the model, training, other rows."""
    found: dict[str, Any] = {}
    for spec in recipe.curate:
        against = spec.parameters.get("against") or []
        for source in against if isinstance(against, list) else [against]:
            found.setdefault("against", []).append(_content(source))
        if _takes_model(recipe, spec):
            found["model"] = [hashes.get("model"), recipe.model.dtype if recipe.model else None]
        if _may_tune(recipe, spec) and recipe.train is not None:
            found["train"] = [
                recipe.train.model_dump(),
                recipe.tuner.model_dump(),
                recipe.preflight.model_dump(),
            ]
    return found


def _content(source: Any) -> str:
    """Return a hash of the rows that a filter compares with; of the name where it is no path."""
    path = Path(str(source)).expanduser()
    return hash_tree(path) if path.is_dir() else hash_file(path) if path.is_file() else hash_text(str(source))


def train_arguments(recipe: Recipe) -> dict[str, Any]:
    """Return the trainer's arguments as the recipe has them."""
    spec = recipe.train
    assert spec is not None
    return {
        "tuner": {"type": recipe.tuner.type, **recipe.tuner.parameters},
        "epochs": spec.epochs,
        "learning_rate": spec.learning_rate,
        "batch_size": spec.batch_size,
        "accumulate": spec.accumulate,
        "schedule": spec.schedule,
        "warmup": spec.warmup,
        "save_every": spec.save_every,
        **spec.parameters,
    }


def _takes_model(recipe: Recipe, spec: MethodSpec) -> bool:
    return "llm" in parameters_of("curate", spec.type) and spec.parameters.get("llm") is None


def _may_tune(recipe: Recipe, spec: MethodSpec) -> bool:
    wanted = "finetune" in parameters_of("curate", spec.type)
    return (
        wanted
        and recipe.train is not None
        and not recipe.classifies
        and spec.parameters.get("candidate") is None
    )


def _finetune(work: Work, folder: Path, place: int, rows: Dataset) -> Any:
    """Tune the base model on rows as the recipe would, and return it as a language model."""
    from tunesmith.data.preflight import encode_dataset
    from tunesmith.engine.local_llm import LocalLLM
    from tunesmith.trainers.sft import load_tuned, save_tuned

    recipe = work.recipe
    spec = recipe.train
    assert spec is not None
    encoded, report = encode_dataset(rows, work.tokenizer, max_length=spec.max_length, loss=spec.loss)
    report.check(recipe.preflight.max_truncated, recipe.preflight.max_dropped)
    here = folder / f"candidate-{place}-{hash_json(encoded['input_ids'][:])[:12]}"
    if not (here / "tuned").exists():  # else a run that was killed while judging goes on
        result = methods.get(f"train.{spec.type}")(
            work.base_model(),
            work.tokenizer,
            encoded,
            output_dir=here / "checkpoints",
            seed=child_seed(recipe.seed, "curate", place, "train"),
            log=work.log,
            **train_arguments(recipe),
        )
        save_tuned(result.model, work.tokenizer, here / "tuned")
        shutil.rmtree(here / "checkpoints", ignore_errors=True)
    return LocalLLM(load_tuned(here / "tuned", work.base_model), work.tokenizer)


def _preview(work: Work, rows: Dataset) -> None:
    """Encode the first rows with the training template and stop when too many are cut or left without labels."""
    from tunesmith.data.preflight import encode_dataset

    train, limits = work.recipe.train, work.recipe.preflight
    assert train is not None
    sample = rows.select(range(min(PREVIEW_ROWS, len(rows))))
    if work.recipe.classifies:
        from tunesmith.recipe.classifying import preview_classes

        preview_classes(work, sample)
        return
    _, report = encode_dataset(sample, work.tokenizer, max_length=train.max_length, loss=train.loss)
    report.check(limits.max_truncated, limits.max_dropped)
    write_json(work.root / "preflight.json", report.to_dict())
