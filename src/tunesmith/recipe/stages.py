"""What each stage of a run does. A stage reads folders of stages before it and writes its own, nothing else.

The functions take a `Work` and a folder and return the facts that the event log and the report show; which
stages run, and which are already done, is decided in `tunesmith.recipe.runner`.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import methods
from tunesmith.core.events import EventLog
from tunesmith.core.files import atomic_dir, atomic_open, read_json, write_json
from tunesmith.core.seeds import child_seed
from tunesmith.engine.machine import machine_name
from tunesmith.recipe.auditing import build_audit
from tunesmith.recipe.classifying import build_classifier, evaluate_classifier
from tunesmith.recipe.clustering import build_cluster
from tunesmith.recipe.curating import build_curate, train_arguments
from tunesmith.recipe.schema import Recipe, TrainSpec
from tunesmith.recipe.targets import build_targets

if TYPE_CHECKING:
    from datasets import Dataset

    from tunesmith.data import Pool

__all__ = [
    "Work",
    "build_audit",
    "build_cluster",
    "build_curate",
    "build_data",
    "build_evaluate",
    "build_export",
    "build_map",
    "build_select",
    "build_targets",
]

MAP_LIMIT = 5_000  # rows up to which the pool is embedded for its picture alone (about 20 s with MiniLM)


@dataclass
class Work:
    """What the stages share: the recipe, the run's folder and the event log."""

    recipe: Recipe
    root: Path
    log: EventLog
    clusters: Path | None = None
    """Folder of the stage ``cluster``, once it is done."""
    targets: Path | None = None
    """Folder of the stage ``targets``, once it is done."""

    @cached_property
    def tokenizer(self) -> Any:
        """The base model's tokenizer."""
        from tunesmith.engine.models import load_tokenizer

        spec = self.recipe.model
        assert spec is not None  # the schema demands a model where a stage needs one
        return load_tokenizer(spec.id, revision=spec.revision, trust_remote_code=spec.trust_remote_code)

    def base_model(self) -> Any:
        """A fresh copy of the base model."""
        from tunesmith.engine.models import load_model

        spec = self.recipe.model
        assert spec is not None
        return load_model(
            spec.id, dtype=spec.dtype, revision=spec.revision, trust_remote_code=spec.trust_remote_code
        )

    @cached_property
    def dataset(self) -> Dataset:
        """The pool that selection sees."""
        from datasets import load_from_disk

        return load_from_disk(str(self.root / "curate" / "dataset"))

    @cached_property
    def test(self) -> Dataset:
        """The rows of the evaluation."""
        from datasets import load_from_disk

        return load_from_disk(str(self.root / "data" / "test"))

    @cached_property
    def validation(self) -> Dataset | None:
        """The validation rows: the target of selectors that have one, and held-out loss while training."""
        from tunesmith.data import read

        spec = self.recipe.data
        if spec.validation is None:
            return None
        return read(spec.validation, format=spec.format, columns=spec.columns or None, log=self.log).dataset

    def chosen_rows(self, selection: Path) -> Dataset:
        """The rows to train on, with the answers of the stage ``targets`` where the recipe has one."""
        import numpy as np

        if self.targets is None:
            return self.dataset.select(np.load(selection / "indices.npy"))
        from datasets import load_from_disk

        return load_from_disk(str(self.targets / "dataset"))

    @cached_property
    def cluster_labels(self) -> Any:
        """Labels (n,) of the stage ``cluster``; None where the recipe has no such stage."""
        if self.clusters is None:
            return None
        import numpy as np

        return np.load(self.clusters / "labels.npy")

    @cached_property
    def pool(self) -> Pool:
        """The pool with its features; what was computed before comes from the cache."""
        return self._pool(self.cluster_labels)

    @cached_property
    def unclustered_pool(self) -> Pool:
        """The pool as the stage ``cluster`` sees it."""
        return self._pool(None)

    def _pool(self, cluster_labels: Any) -> Pool:
        from tunesmith.data import Pool

        spec = self.recipe.features
        return Pool(
            self.dataset,
            cluster_labels=cluster_labels,
            encoder=spec.encoder,
            scorer=spec.scorer or (self.recipe.model.id if self.recipe.model else None),
            target=self.validation,
            quality=spec.quality,
            tags=spec.tags,
            batch_size=spec.batch_size,
            max_length=spec.max_length,
            seed=child_seed(self.recipe.seed, "features"),
            log=self.log,
        )


def build_data(work: Work, folder: Path) -> dict[str, Any]:
    """Read the pool and the test rows; rows of the pool that are also test rows are dropped and counted."""
    from tunesmith.data import read

    spec = work.recipe.data
    seed = child_seed(work.recipe.seed, "data")
    result = read(
        spec.train, format=spec.format, columns=spec.columns or None, max_rows=spec.max_rows, log=work.log
    )
    train, reports = result.dataset, {"train": result.report.to_dict()}
    if spec.test is not None:
        held = read(spec.test, format=spec.format, columns=spec.columns or None, log=work.log)
        test, reports["test"] = held.dataset, held.report.to_dict()
    elif work.recipe.evaluate:
        train, test = _split(train, spec.holdout, seed)
    else:
        test = train.select([])
    n_read = len(train)
    train, leaked = _without(train, test)
    reasons = {"also among the test rows": leaked} if leaked else {}
    if leaked:
        work.log.warn(f"{leaked} rows of the pool are also test rows; they were taken out of the pool.")
    for name, part in (("train", train), ("test", test)):
        with atomic_dir(folder / name) as partial:
            part.save_to_disk(str(partial))
    write_json(folder / "report.json", reports)
    work.log.emit("rows", stage="data", rows_in=n_read, rows_out=len(train), reasons=reasons)
    return {"rows": len(train), "test_rows": len(test)}


def _text_key(row: dict[str, Any]) -> str:
    from tunesmith.data.rows import prompt_text, row_text

    return " ".join((prompt_text(row) or row_text(row)).casefold().split())


def _split(rows: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """Set a share of the rows aside; rows with the same prompt stay on one side."""
    import numpy as np

    keys = [_text_key(row) for row in rows]
    distinct = sorted(set(keys))
    order = np.random.default_rng(seed).permutation(len(distinct))
    held = {distinct[i] for i in order[: max(1, round(share * len(distinct)))]}
    return (
        rows.select([i for i, key in enumerate(keys) if key not in held]),
        rows.select([i for i, key in enumerate(keys) if key in held]),
    )


def _without(rows: Dataset, test: Dataset) -> tuple[Dataset, int]:
    """Return the rows whose prompt is not a prompt of ``test``, and how many were taken out."""
    held = {_text_key(row) for row in test}
    keep = [i for i, row in enumerate(rows) if _text_key(row) not in held] if held else range(len(rows))
    return (rows, 0) if len(keep) == len(rows) else (rows.select(keep), len(rows) - len(keep))


def build_map(work: Work, folder: Path) -> dict[str, Any]:
    """Lay the pool out in two dimensions for the report."""
    import numpy as np

    from tunesmith.recipe.report.maps import pool_map

    xy, cluster = pool_map(work.pool.feature("embedding"), child_seed(work.recipe.seed, "map"))
    if work.cluster_labels is not None:
        labels = work.cluster_labels
        cluster = np.where(labels < 0, labels.max() + 1, labels).astype(np.int32)
    with atomic_open(folder / "map.npz", "wb") as stream:
        np.savez(stream, xy=xy, cluster=cluster)
    return {"rows": len(xy)}


def make_selector(recipe: Recipe, seed: int) -> Any:
    """Build the recipe's selector, seeded where it draws at random."""
    assert recipe.select is not None
    selector = methods.create(f"select.{recipe.select.type}", **recipe.select.parameters)
    if "random_state" in selector.get_params() and "random_state" not in recipe.select.parameters:
        selector.set_params(random_state=child_seed(seed, "select"))
    return selector


def build_select(work: Work, folder: Path, seed: int) -> dict[str, Any]:
    """Choose the rows to train on."""
    import numpy as np

    spec = work.recipe.select
    if spec is None:
        indices = np.arange(len(work.pool), dtype=np.int64)
        scores, method, parameters = np.zeros(len(indices)), "all", {}
    else:
        selector = make_selector(work.recipe, seed)
        indices = work.pool.fit(selector).select(spec.budget)
        scores, method, parameters = selector.scores_, spec.type, spec.parameters
    for name, values in (("indices", indices), ("scores", scores)):
        with atomic_open(folder / f"{name}.npy", "wb") as stream:
            np.save(stream, values)
    facts = {
        "method": method,
        "parameters": parameters,
        "budget": None if spec is None else spec.budget,
        "n_pool": len(work.pool),
        "n_selected": len(indices),
    }
    write_json(folder / "selection.json", facts)
    work.log.emit("rows", stage="select", rows_in=len(work.pool), rows_out=len(indices), reasons={})
    return {"rows": len(indices)}


def build_train(work: Work, folder: Path, selection: Path, seed: int) -> dict[str, Any]:
    """Encode the chosen rows, check them, train, and leave ``adapter/`` (or ``model/`` after full tuning)."""
    from tunesmith.data.preflight import encode_dataset
    from tunesmith.trainers.sft import save_tuned

    recipe = work.recipe
    spec = recipe.train
    assert spec is not None
    rows = work.chosen_rows(selection)
    if recipe.classifies:
        return build_classifier(work, folder, rows, seed)
    encoded, report = encode_dataset(rows, work.tokenizer, max_length=spec.max_length, loss=spec.loss)
    write_json(folder / "preflight.json", report.to_dict())
    report.check(recipe.preflight.max_truncated, recipe.preflight.max_dropped)
    result = methods.get(f"train.{spec.type}")(
        work.base_model(),
        work.tokenizer,
        encoded,
        output_dir=folder / "checkpoints",
        validation=None if work.validation is None else _encoded(work, work.validation),
        seed=child_seed(seed, "train"),
        log=work.log,
        **train_arguments(recipe),
    )
    save_tuned(result.model, work.tokenizer, folder / "tuned")
    if result.delta is not None:
        result.delta.save_pretrained(folder / "delta")
    return finish_training(folder, result)


def finish_training(folder: Path, result: Any) -> dict[str, Any]:
    """Write the facts of a training, remove its checkpoints, and return the facts."""
    facts = {
        "steps": result.steps,
        "tokens": result.tokens,
        "trained_tokens": result.trained_tokens,
        "seconds": round(result.seconds, 2),
        "tokens_per_second": round(result.tokens_per_second, 1),
        "peak_memory_mb": round(result.peak_memory_mb),
        "train_loss": result.train_loss,
        **({} if result.candidates is None else {"candidates": result.candidates, "kept": result.kept}),
    }
    write_json(folder / "train.json", {**facts, "hardware": machine_name(), "losses": result.losses})
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return facts


def _encoded(work: Work, rows: Dataset) -> Dataset:
    """Tokenise held-out rows as the training rows are (as the default training where the recipe has none)."""
    from tunesmith.data.preflight import encode_dataset

    train = work.recipe.train or TrainSpec()
    encoded, report = encode_dataset(rows, work.tokenizer, max_length=train.max_length, loss=train.loss)
    if report.n_dropped or report.n_truncated:
        work.log.warn(
            f"Of {report.n_rows} held-out rows {report.n_dropped} cannot be scored and {report.n_truncated} are cut "
            f"at {train.max_length} tokens."
        )
    return encoded


def build_evaluate(work: Work, folder: Path, tuned: Path | None) -> dict[str, Any]:
    """Answer the test prompts once, and score the answers with every metric of the recipe."""
    from tunesmith.trainers.sft import load_tuned

    recipe = work.recipe
    if recipe.classifies:
        return evaluate_classifier(work, folder, tuned)
    assert recipe.model is not None
    metrics = {
        spec.type: methods.create(f"evaluate.{spec.type}", **spec.parameters) for spec in recipe.evaluate
    }
    model = work.base_model() if tuned is None else load_tuned(tuned, work.base_model)
    rows = list(work.test)
    answers: list[str] | None = None
    scores: dict[str, Any] = {}
    for name, metric in metrics.items():
        if metric.needs == "predictions":
            if answers is None:
                answers = _answers(
                    work, model, rows, max(getattr(m, "max_new_tokens", 0) for m in metrics.values())
                )
                with atomic_open(folder / "predictions.jsonl") as stream:
                    for i, answer in enumerate(answers):
                        stream.write(
                            json.dumps({"index": i, "prediction": answer}, ensure_ascii=False) + "\n"
                        )
            result = metric.compute(predictions=answers, references=rows)
        else:
            result = metric.evaluate(model, work.tokenizer, _encoded(work, work.test))
        scores[name] = {
            "value": result[metric.name],
            "scores": result["scores"],
            "higher_is_better": metric.higher_is_better,
        }
    write_json(folder / "scores.json", scores)
    return {name: entry["value"] for name, entry in scores.items()}


def _answers(work: Work, model: Any, rows: list[dict[str, Any]], max_new_tokens: int) -> list[str]:
    from tunesmith.data.templates import prompt_ids
    from tunesmith.engine.generate import generate

    prompts = [prompt_ids(row["messages"][:-1], work.tokenizer) for row in rows]
    return generate(model, work.tokenizer, prompts, max_new_tokens=max_new_tokens, log=work.log)


def build_export(work: Work, folder: Path, tuned: Path, source: str) -> dict[str, Any]:
    """Write the model to keep: the tuned weights as they are, or merged into the base and verified."""
    from tunesmith.trainers.sft import load_tuned

    assert work.recipe.export is not None
    facts: dict[str, Any] = {"from": source, "merged": work.recipe.export.merged}
    if work.recipe.export.merged:
        from tunesmith.merge import merge_adapter

        model = load_tuned(tuned, work.base_model)
        batch = [work.tokenizer("The quick brown fox jumps over the lazy dog.")["input_ids"]]
        facts |= merge_adapter(model, folder / "weights", batch, tokenizer=work.tokenizer).to_dict()
    else:
        with atomic_dir(folder / "weights") as partial:
            shutil.copytree(tuned, partial, dirs_exist_ok=True)
    write_json(folder / "export.json", facts)
    return facts


def read_scores(folder: Path) -> dict[str, Any]:
    """Read what `build_evaluate` wrote."""
    return dict(read_json(folder / "scores.json"))
