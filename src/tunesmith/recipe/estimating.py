"""What a recipe will take: rows, tokens, time, memory and disk, before any model is loaded."""

from __future__ import annotations

import gzip
from dataclasses import dataclass, field
from pathlib import Path

from tunesmith.core.errors import ConfigError
from tunesmith.recipe.footprint import (
    EFFICIENCY,
    ModelSize,
    free_disk,
    free_memory,
    matmul_speed,
    model_size,
    tokenizer_at_hand,
)
from tunesmith.recipe.loading import Arm, expand
from tunesmith.recipe.schema import Recipe

__all__ = ["Estimate", "count_rows", "estimate"]

SAMPLE = 1000  # rows read for the lengths
CHARACTERS = 4  # per token, where no tokenizer is at hand
TEMPLATE = 6  # tokens that a chat template adds per message
ENCODER_WIDTH = 384
ENCODER_WEIGHTS = 10_600_000  # of MiniLM's blocks, which every token passes
ENCODER_LENGTH = 256  # where MiniLM cuts
STATIC_TOKENS_PER_S = 2_000_000  # a word table is looked up, not computed


@dataclass
class Estimate:
    """What a recipe will take; times are right within a factor of about two.

    Attributes:
        pool_rows: rows of the pool.
        exact: whether they were counted (else reckoned from the file's size).
        tokens_per_row: mean over a sample, before any cut.
        tokens_how: how tokens were counted.
        selected_rows: rows that each arm trains on, the largest arm.
        test_rows: rows of the evaluation.
        arms: names of the arms.
        seeds: seeds per arm.
        model: sizes of the model; None without one.
        train_tokens: tokens over all arms, seeds and epochs.
        seconds: stage -> seconds over all arms and seeds.
        memory_bytes: peak while training (or scoring, where nothing is trained).
        logits_bytes: of that, the logits of one batch and their gradient.
        disk_bytes: what the run directory and the caches will hold.
        warnings: what should be looked at before the run.
    """

    pool_rows: int = 0
    exact: bool = True
    tokens_per_row: float = 0.0
    tokens_how: str = ""
    selected_rows: int = 0
    test_rows: int = 0
    arms: list[str] = field(default_factory=list)
    seeds: int = 1
    model: ModelSize | None = None
    train_tokens: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    memory_bytes: int = 0
    logits_bytes: int = 0
    disk_bytes: int = 0
    warnings: list[str] = field(default_factory=list)

    def rows(self) -> list[tuple[str, str]]:
        """Return label and text of each line, for a table."""
        about = "" if self.exact else "about "
        lines = [
            (
                "pool",
                f"{about}{self.pool_rows:,} rows, {self.tokens_per_row:.0f} tokens each ({self.tokens_how})",
            ),
            ("selected", f"{self.selected_rows:,} rows per arm"),
            ("arms", f"{', '.join(self.arms)}; {self.seeds} seed{'s' if self.seeds > 1 else ''} each"),
        ]
        if self.test_rows:
            lines.append(("test", f"{self.test_rows:,} rows"))
        if self.model is not None:
            lines.append(
                ("model", f"{self.model.parameters:,} weights in {self.model.dtype}{self._trained()}")
            )
        if self.train_tokens:
            lines.append(("training", f"{self.train_tokens:,} tokens over all arms and seeds"))
        lines += [(f"time: {stage}", _time(seconds)) for stage, seconds in self.seconds.items()]
        if self.seconds:
            lines.append(("time: all", f"{_time(sum(self.seconds.values()))} (right within a factor of two)"))
        if self.memory_bytes:
            logits = f", of which logits {_size(self.logits_bytes)}" if self.logits_bytes else ""
            lines.append(("memory", f"{_size(self.memory_bytes)} at the peak{logits}"))
        lines.append(("disk", _size(self.disk_bytes)))
        return lines

    def _trained(self) -> str:
        if self.model is None or not self.train_tokens:
            return ""
        if self.model.trainable is None:
            return "; trained: told when the adapter is built"
        return f"; {self.model.trainable:,} of them trained" if self.model.trainable else ""


def estimate(recipe: Recipe) -> Estimate:
    """Estimate rows, tokens, time, memory and disk of a run.

    Reads at most 1,000 rows of the pool and the model's configuration; speed is that of half a second of
    matrix products, times the share of it that a transformer reaches.

    Args:
        recipe: a valid recipe.

    Raises:
        ConfigError: a budget is larger than the pool.
        DataError: a data source cannot be read.
        MissingModelError: the model cannot be found.
    """
    result = Estimate()
    arms = expand(recipe)
    result.arms = [arm.name for arm in arms]
    result.seeds = len(recipe.compare.seeds) if recipe.compare else 1
    lengths, characters = _pool(recipe, result)
    _selected(arms, result)
    if recipe.model is not None:
        result.model = model_size(
            recipe.model, recipe.tuner if recipe.train else None, classifier=recipe.classifies
        )
    _train(recipe, arms, lengths, result)
    _times(recipe, arms, lengths, result)
    _disk(recipe, characters, result)
    _asking(recipe, result)
    return result


def _asking(recipe: Recipe, result: Estimate) -> None:
    """Warn of filters that ask a language model, whose time nobody can tell before its first replies."""
    from tunesmith.recipe.checking import parameters_of
    from tunesmith.recipe.curating import make_curator

    for i, spec in enumerate(recipe.curate):
        if {"llm", "n_samples", "reflections"} <= parameters_of("curate", spec.type).named:
            method = make_curator(recipe, spec, i)
            times = method.n_samples * (method.beta > 0) + method.reflections * (method.beta < 1)
            result.warnings.append(
                f"curate.{spec.type} asks a language model at least {times} times about each of {result.pool_rows:,} "
                "rows; its time is not in the estimate. Try it with data.max_rows first."
            )


def _pool(recipe: Recipe, result: Estimate) -> tuple[list[int], float]:
    """Fill in what a sample of the rows tells; return their lengths in tokens and the mean in characters."""
    from tunesmith.data import read
    from tunesmith.data.rows import iter_rows, row_text

    spec = recipe.data
    limit = min(SAMPLE, spec.max_rows or SAMPLE)
    found = read(spec.train, format=spec.format, columns=spec.columns or None, max_rows=limit)
    texts = [row_text(row) for row in iter_rows(found.dataset)]
    turns = sum(len(row.get("messages") or [()]) for row in iter_rows(found.dataset)) / len(texts)
    characters = sum(map(len, texts)) / len(texts)
    tokenizer = tokenizer_at_hand(recipe.model.id) if recipe.model is not None else None
    if tokenizer is None:
        lengths = [round(len(text) / CHARACTERS + TEMPLATE * turns) for text in texts]
        result.tokens_how = f"{CHARACTERS} characters a token, {len(texts):,} rows"
    else:
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        lengths = [round(len(row) + TEMPLATE * turns) for row in ids]
        result.tokens_how = f"the model's tokenizer, {len(texts):,} rows"
    result.tokens_per_row = sum(lengths) / len(lengths)
    n_read, n_kept = found.report.n_read, found.report.n_kept
    share = n_kept / n_read
    if share < 1:
        result.warnings.append(f"{n_read - n_kept:,} of the first {n_read:,} rows cannot be used.")
    total, result.exact = n_read, True
    if n_read == limit and spec.max_rows != limit:
        total, result.exact = count_rows(spec.train, n_read, characters)
        total = min(total, spec.max_rows or total)
    result.pool_rows = max(1, round(total * share))
    result.test_rows = _test_rows(recipe, result.pool_rows)
    if recipe.evaluate and spec.test is None:
        result.pool_rows -= result.test_rows
    return lengths, characters


def count_rows(data: str, at_least: int, characters: float) -> tuple[int, bool]:
    """Return the rows of a source without reading them into rows, and whether the number is exact.

    Args:
        data: as `tunesmith.data.read` takes it.
        at_least: rows known to be there.
        characters: mean size of a row.
    """
    from tunesmith.data.sources import FileSource, find_sources

    if data.startswith("demo:"):
        from tunesmith.data import demo

        return len(demo.load(data.removeprefix("demo:"))), True
    total, exact = 0, True
    for source in find_sources(data):
        if isinstance(source, FileSource):
            exact = exact and source.kind == "jsonl"
            if (
                source.kind == "json"
            ):  # no line tells the rows: reckon from the size, with a tenth for the syntax
                total += round(source.path.stat().st_size / (characters * 1.1 + 1))
            else:
                total += _lines(source.path) - (source.kind == "csv")
        elif source.dataset is not None:
            total += len(source.dataset)
        else:
            total += sum(len(table) for table in source.tables())
    return max(total, at_least), exact


def _lines(path: Path) -> int:
    with open(path, "rb") as stream:
        zipped = stream.read(2) == b"\x1f\x8b"
    count, last = 0, b"\n"
    with gzip.open(path, "rb") if zipped else open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            count += block.count(b"\n")
            last = block[-1:]
    return count + (last != b"\n")


def _test_rows(recipe: Recipe, pool: int) -> int:
    from tunesmith.data import read

    spec = recipe.data
    if not recipe.evaluate:
        return 0
    if spec.test is None:
        return round(spec.holdout * pool)
    return len(read(spec.test, format=spec.format, columns=spec.columns or None).dataset)


def _selected(arms: list[Arm], result: Estimate) -> None:
    """Fill in the rows per arm."""
    n = result.pool_rows
    for arm in arms:
        budget = arm.recipe.select.budget if arm.recipe.select else 1.0
        if isinstance(budget, int) and budget > n and result.exact:
            raise ConfigError(
                f"The 'budget' parameter of select must be an int in [1, {n}] or a float in (0, 1]. "
                f"Got {budget} instead: the pool has {n:,} rows."
            )
        rows = budget if isinstance(budget, int) else max(1, round(budget * n))
        result.selected_rows = max(result.selected_rows, rows)


def _train(recipe: Recipe, arms: list[Arm], lengths: list[int], result: Estimate) -> None:
    """Fill in training tokens and memory, and warn of what would go wrong."""
    if result.model is None:
        return
    result.memory_bytes = result.model.parameters * result.model.bytes_each
    for arm in arms:
        spec = arm.recipe.train
        if spec is None:
            continue
        cut = sum(length > spec.max_length for length in lengths) / len(lengths)
        mean = sum(min(length, spec.max_length) for length in lengths) / len(lengths)
        result.train_tokens += round(result.selected_rows * mean * spec.epochs) * result.seeds
        longest = min(max(lengths), spec.max_length)
        result.memory_bytes = max(result.memory_bytes, result.model.training_bytes(spec.batch_size, longest))
        result.logits_bytes = max(result.logits_bytes, result.model.logits_bytes(spec.batch_size, longest))
        if cut > recipe.preflight.max_truncated:
            _warn(
                result,
                f"{cut:.0%} of the sampled rows are longer than train.max_length = {spec.max_length} tokens; "
                f"the preflight stops above {recipe.preflight.max_truncated:.0%}.",
            )
        if result.selected_rows < spec.batch_size * spec.accumulate:
            _warn(
                result, f"{result.selected_rows} selected rows do not fill one batch; there will be one step."
            )
    memory = free_memory()
    if memory is not None and result.memory_bytes > 0.9 * memory:
        _warn(
            result,
            f"The run needs about {_size(result.memory_bytes)} of memory and there are {_size(memory)}. "
            "Lower train.batch_size or train.max_length, with train.accumulate raised to keep the batch.",
        )
    if recipe.compare is not None and result.seeds < 3:
        _warn(
            result, "compare has fewer than three seeds; its intervals hardly cover the choice of the seed."
        )


def _times(recipe: Recipe, arms: list[Arm], lengths: list[int], result: Estimate) -> None:
    """Fill in the seconds per stage."""
    from tunesmith.recipe.stages import make_selector

    needed: set[str] = set()
    for arm in arms:
        if arm.recipe.select is not None:
            needed |= set(make_selector(arm.recipe, 0).required_features())
        if arm.recipe.cluster is not None:
            needed.add("embedding")
    dtype = result.model.dtype if result.model else "float32"
    speed = matmul_speed(dtype) * EFFICIENCY
    limit = recipe.features.max_length
    scored = sum(min(length, limit) for length in lengths) / len(lengths) * result.pool_rows
    if needed & {"embedding", "tags", "label_embeddings"}:
        tokens = sum(min(length, ENCODER_LENGTH) for length in lengths) / len(lengths) * result.pool_rows
        static = recipe.features.encoder == "static"
        result.seconds["embedding"] = tokens / (
            STATIC_TOKENS_PER_S if static else speed / 2 / ENCODER_WEIGHTS
        )
    scorer = result.model
    if recipe.features.scorer is not None and recipe.model is not None:
        scorer = model_size(recipe.model.model_copy(update={"id": recipe.features.scorer}))
    if scorer is None:
        return
    forward = 2 * scorer.parameters / speed
    if needed & {"perplexity", "ifd", "quality"} and recipe.features.quality in ("auto", "ifd"):
        passes = 1 if needed == {"perplexity"} else 2  # with and without the prompt
        result.seconds["scoring"] = passes * scored * forward
    if result.train_tokens and result.model is not None:
        factor = (
            3 if result.model.trainable == result.model.parameters else 2
        )  # no gradient of frozen weights
        result.seconds["training"] = factor * result.train_tokens * 2 * result.model.parameters / speed
    if recipe.evaluate and result.model is not None:
        runs = len(arms) * result.seeds + (recipe.compare is None or recipe.compare.base)
        new = max([int(spec.parameters.get("max_new_tokens", 0)) for spec in recipe.evaluate])
        tokens = (
            result.tokens_per_row + 3 * new
        )  # a token written one at a time costs about three read at once
        result.seconds["evaluation"] = runs * result.test_rows * tokens * 2 * result.model.parameters / speed


def _disk(recipe: Recipe, characters: float, result: Estimate) -> None:
    """Fill in the bytes on disk, and warn if they are not there."""
    result.disk_bytes = round(3 * result.pool_rows * characters)  # the pool as read, split and curated
    if recipe.select is not None:
        result.disk_bytes += result.pool_rows * (ENCODER_WIDTH * 4 + 64)
    if result.model is not None and recipe.train is not None:
        trained = result.model.trainable
        trained = result.model.parameters // 100 if trained is None else trained
        each = result.model.bytes_each if trained == result.model.parameters else 4
        result.disk_bytes += (
            trained * each * (len(result.arms) * result.seeds + 3)
        )  # and one checkpoint's moments
        if recipe.export is not None:
            result.disk_bytes += result.model.parameters * result.model.bytes_each
    if result.disk_bytes > 0.9 * free_disk():
        _warn(result, f"The run writes about {_size(result.disk_bytes)} and {_size(free_disk())} are free.")


def _warn(result: Estimate, message: str) -> None:
    if message not in result.warnings:
        result.warnings.append(message)


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 10 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
