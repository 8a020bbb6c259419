"""Training and evaluation of a recipe whose model is a classifier of texts (``train: {type: classify}``)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import methods
from tunesmith.core.errors import DataError
from tunesmith.core.files import atomic_open, write_json
from tunesmith.core.seeds import child_seed
from tunesmith.recipe.curating import train_arguments

if TYPE_CHECKING:
    from datasets import Dataset

    from tunesmith.recipe.stages import Work

__all__ = ["ROW_KEYS", "build_classifier", "evaluate_classifier", "preview_classes"]


ROW_KEYS = frozenset(["label", "text"])
"""Keys of ``train`` that say how rows are read: the column of classes, and what of a row is classified."""


def _settings(work: Work) -> tuple[str, str, int]:
    """Return the column of classes, what is classified, and the greatest length."""
    spec = work.recipe.train
    assert spec is not None
    return spec.parameters.get("label", "label"), spec.parameters.get("text", "prompt"), spec.max_length


def _loader(work: Work, classes: list[str], seed: int) -> Callable[[], Any]:
    from tunesmith.trainers.classify import load_classifier_for

    spec = work.recipe.model
    assert spec is not None
    return partial(
        load_classifier_for,
        spec.id,
        classes,
        seed=child_seed(seed, "train"),
        dtype=spec.dtype,
        revision=spec.revision,
        trust_remote_code=spec.trust_remote_code,
    )


def preview_classes(work: Work, rows: Dataset) -> None:
    """Encode the first rows, so that a missing column of classes stops the run before any scoring."""
    from tunesmith.trainers.classify import encode_classes

    label, text, length = _settings(work)
    limits = work.recipe.preflight
    _, _, report = encode_classes(rows, work.tokenizer, label=label, text=text, max_length=length)
    report.check(limits.max_truncated, limits.max_dropped)
    write_json(work.root / "preflight.json", report.to_dict())


def build_classifier(work: Work, folder: Path, rows: Dataset, seed: int) -> dict[str, Any]:
    """Train a classifier on the chosen rows and leave it in ``tuned/``; its classes are those of the whole pool."""
    from tunesmith.recipe.stages import finish_training
    from tunesmith.trainers.classify import encode_classes
    from tunesmith.trainers.classify.encoding import class_names
    from tunesmith.trainers.saving import save_tuned

    recipe = work.recipe
    assert recipe.train is not None
    label, text, length = _settings(work)
    classes = sorted({name for name in class_names(work.dataset, label) if name is not None})
    encode = partial(
        encode_classes, tokenizer=work.tokenizer, label=label, text=text, max_length=length, classes=classes
    )
    encoded, _, report = encode(rows)
    write_json(folder / "preflight.json", report.to_dict())
    report.check(recipe.preflight.max_truncated, recipe.preflight.max_dropped)
    write_json(folder / "classes.json", classes)
    result = methods.get(f"train.{recipe.train.type}")(
        _loader(work, classes, seed)(),
        work.tokenizer,
        encoded,
        output_dir=folder / "checkpoints",
        validation=None if work.validation is None else encode(work.validation)[0],
        seed=child_seed(seed, "train"),
        log=work.log,
        **{k: v for k, v in train_arguments(recipe).items() if k not in ROW_KEYS},
    )
    save_tuned(result.model, work.tokenizer, folder / "tuned")
    return finish_training(folder, result)


def evaluate_classifier(work: Work, folder: Path, tuned: Path | None) -> dict[str, Any]:
    """Classify the test rows and score the classes; without a trained model, always name the pool's commonest class."""
    from tunesmith.core.files import read_json
    from tunesmith.trainers.classify import predict_classes
    from tunesmith.trainers.classify.encoding import class_names, texts_of
    from tunesmith.trainers.saving import load_tuned

    recipe = work.recipe
    label, text, length = _settings(work)
    truth = class_names(work.test, label)
    unknown = sum(name is None for name in truth)
    if unknown or not truth:
        raise DataError(
            f"{unknown} of {len(truth)} test rows have no class in the column '{label}': leave such rows out."
        )
    if tuned is None:
        counts = Counter(name for name in class_names(work.dataset, label) if name is not None)
        found = [min(counts, key=lambda name: (-counts[name], name))] * len(truth)
    else:
        classes = read_json(tuned.parent / "classes.json")
        model = load_tuned(tuned, _loader(work, classes, 0))
        found = predict_classes(model, work.tokenizer, texts_of(work.test, text), max_length=length)
    with atomic_open(folder / "predictions.jsonl") as stream:
        for i, name in enumerate(found):
            stream.write(json.dumps({"index": i, "prediction": name}, ensure_ascii=False) + "\n")
    scores: dict[str, Any] = {}
    for spec in recipe.evaluate:
        metric = methods.create(f"evaluate.{spec.type}", **spec.parameters)
        result = metric.compute(predictions=found, references=truth)
        scores[spec.type] = {
            "value": result[metric.name],
            "scores": result["scores"],
            "higher_is_better": metric.higher_is_better,
        }
    write_json(folder / "scores.json", scores)
    return {name: entry["value"] for name, entry in scores.items()}
