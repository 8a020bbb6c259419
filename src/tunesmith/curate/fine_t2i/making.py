"""Making rows from the grid: prompts, their versions, images, the best of some candidates, the strict filter."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.core.errors import ParameterError
from tunesmith.core.files import atomic_dir, hash_json, read_json, write_json
from tunesmith.core.seeds import child_seed
from tunesmith.curate.fine_t2i import rules
from tunesmith.curate.fine_t2i.scorers import TemplateWriter
from tunesmith.curate.fine_t2i.scoring import as_scores
from tunesmith.curate.fine_t2i.stages import Funnel, Stage

if TYPE_CHECKING:
    from datasets import Dataset

    from tunesmith.curate.fine_t2i.curator import TextToImageCurator

__all__ = ["make"]

Rejected = list[tuple[str, str]]


def make(
    curator: TextToImageCurator, n: int, folder: str | os.PathLike[str] | None, shard: int
) -> tuple[Dataset, Funnel, Rejected]:
    """Return rows, funnel and what was rejected; see `TextToImageCurator.generate`.

    Everything about prompts is done first and at once: it is cheap, and deduplication needs all of them. Images
    come in shards, each of which is on disk, whole or not at all, before the next begins.

    Raises:
        ParameterError: ``n`` or ``shard`` is below 1.
    """
    for name, value in (("n", n), ("shard", shard)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ParameterError(name, "TextToImageCurator.generate", "an int >= 1", value)
    rows, funnel, rejected = _prompts(curator, n)
    rows, stage = _versions(curator, rows)
    funnel.append(stage)
    if curator.generator is None:
        funnel.check()
        return _dataset(rows, images=False), funnel, rejected
    root = None if folder is None else Path(folder) / hash_json([rows, _settings(curator)])[:32]
    parts, images = [], None
    for begin in range(0, max(1, len(rows)), shard):
        place = None if root is None else root / f"shard-{begin // shard:06d}"
        part, stages, lost = _shard(curator, rows[begin : begin + shard], place)
        parts.append(part)
        rejected += lost
        images = stages if images is None else images + stages
    assert images is not None
    funnel.extend(images)
    funnel.check()
    from datasets import concatenate_datasets

    return concatenate_datasets(parts), funnel, rejected


def _settings(curator: TextToImageCurator) -> list[Any]:
    scorers = (curator.generator, curator.aesthetic, curator.alignment)
    names = [
        str(getattr(s, "fingerprint", getattr(s, "__qualname__", type(s).__qualname__))) for s in scorers
    ]
    return [
        *names,
        list(curator.shapes),
        curator.n_candidates,
        curator.random_state,
        curator.aesthetic_threshold,
        curator.alignment_threshold,
    ]


def _prompts(curator: TextToImageCurator, n: int) -> tuple[list[dict[str, Any]], Funnel, Rejected]:
    """Stages 1 to 3: draw, write, drop by length, deduplicate, judge."""
    from datasets import Dataset

    cells = curator._taxonomy().sample(n, curator.random_state)
    texts = (TemplateWriter() if curator.writer is None else curator.writer)(cells)
    rows = [
        {
            "text": text,
            "concept": cell.concept,
            "category": cell.category,
            "style": cell.style,
            "tasks": list(cell.tasks),
            "template": cell.template,
        }
        for cell, text in zip(cells, texts, strict=True)
    ]
    dataset = Dataset.from_list(rows)
    prompts = type(curator)(
        **{**curator.get_params(deep=False), "aesthetic": None, "alignment": None, "balanced": False}
    )
    prompts.fit(dataset).transform(dataset)
    gone = dict(prompts.report_.dropped)
    rejected = [(rows[i]["concept"], reason) for i, reason in gone.items()]
    return [row for i, row in enumerate(rows) if i not in gone], prompts.funnel_, rejected


def _versions(curator: TextToImageCurator, rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], Stage]:
    """Stage 4: both versions are kept, so that a model understands short and long prompts."""
    if curator.enhancer is None:
        out = [{**row, "version": "original"} for row in rows]
        return out, Stage("versions", len(rows), len(out), made={1: len(rows)} if rows else {})
    longer = list(curator.enhancer([row["text"] for row in rows])) if rows else []
    out, made = [], {1: 0, 2: 0}
    for row, text in zip(rows, longer, strict=True):
        out.append({**row, "version": "original"})
        usable = isinstance(text, str) and bool(text.strip())
        if usable:
            out.append({**row, "version": "enhanced", "text": text.strip()})
        made[1 + usable] += 1
    return out, Stage("versions", len(rows), len(out), made=made if rows else {})


def _shard(
    curator: TextToImageCurator, rows: list[dict[str, Any]], place: Path | None
) -> tuple[Dataset, Funnel, Rejected]:
    """Stages 5 and 6 for some prompt versions, from disk where they were finished before."""
    from datasets import load_from_disk

    if place is not None and place.exists():
        facts = read_json(place / "stages.json")
        stages = Funnel(
            Stage(**{**s, "made": {int(k): v for k, v in s["made"].items()}}) for s in facts["stages"]
        )
        return load_from_disk(str(place / "rows")), stages, [tuple(x) for x in facts["rejected"]]
    kept, stages, rejected = _images(curator, rows)
    dataset = _dataset(kept, images=True)
    if place is not None:
        with atomic_dir(place) as partial:
            dataset.save_to_disk(str(partial / "rows"))
            write_json(
                partial / "stages.json", {"stages": [s.to_dict() for s in stages], "rejected": rejected}
            )
    return dataset, stages, rejected


def _images(
    curator: TextToImageCurator, rows: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], Funnel, Rejected]:
    scorer, count = curator._aesthetic(), curator.n_candidates
    wanted = []
    for row in rows:
        for shape in curator.shapes:
            key = f"{row['concept']}/{row['version']}/{shape}"
            rng = np.random.default_rng(child_seed(curator.random_state, "size", key))
            wanted.append((row, shape, key, rules.draw_size(shape, rng)))
    kept: list[dict[str, Any]] = []
    rejected: Rejected = []
    removed: dict[str, dict[str, int]] = {"best of n": {}, "aesthetic": {}, "alignment": {}}
    beautiful: list[tuple[dict[str, Any], Any, str]] = []
    for row, shape, key, size in wanted:
        seeds = [child_seed(curator.random_state, "image", key, k) for k in range(count)]
        images = list(curator.generator([row["text"]] * count, [size] * count, seeds))
        scores = np.zeros(count) if scorer is None else as_scores(scorer(images), count, "aesthetic")[0]
        best = rules.best_of(scores.tolist())
        made = {
            **row,
            "shape": shape,
            "width": images[best].width,
            "height": images[best].height,
            "image_generator": str(getattr(curator.generator, "fingerprint", "")),
            "aesthetic": None if scorer is None else float(scores[best]),
        }
        reason = (
            None
            if scorer is None
            else rules.aesthetic_reason(float(scores[best]), curator.aesthetic_threshold)
        )
        if reason is None:
            beautiful.append((made, images[best], key))
        else:
            _count(removed["aesthetic"], reason)
            rejected.append((key, reason))
    aligned = curator._alignment()
    if aligned is not None and beautiful:
        texts, images = [made["text"] for made, _, _ in beautiful], [image for _, image, _ in beautiful]
        verdicts, graded = as_scores(aligned(texts, images), len(texts), "alignment")
    else:
        verdicts, graded = np.ones(len(beautiful)), False
    for (made, image, key), verdict in zip(beautiful, verdicts, strict=True):
        reason = rules.verdict_reason(float(verdict), curator.alignment_threshold, graded=graded)
        if reason is None:
            kept.append({**made, "image": _png(image)})
        else:
            _count(removed["alignment"], reason)
            rejected.append((key, reason))
    many, n_all = len(wanted), len(wanted) * count
    if n_all > many:
        removed["best of n"] = {"another candidate scored at least as high": n_all - many}
    shapes = len(curator.shapes)
    stages = Funnel(
        [
            Stage("images", len(rows), n_all, made={shapes * count: len(rows)} if rows else {}),
            Stage("best of n", n_all, many, removed["best of n"]),
            Stage("aesthetic", many, len(beautiful), removed["aesthetic"]),
            Stage("alignment", len(beautiful), len(kept), removed["alignment"]),
        ]
    )
    return kept, stages, rejected


def _count(counts: dict[str, int], reason: str) -> None:
    from tunesmith.curate._base import DETAIL

    kind = reason.partition(DETAIL)[0]
    counts[kind] = counts.get(kind, 0) + 1


def _png(image: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def _dataset(rows: list[dict[str, Any]], *, images: bool) -> Dataset:
    from datasets import Dataset, Features, List, Value

    text, number = Value("string"), Value("int64")
    features = dict.fromkeys(("text", "concept", "version", "category", "style", "template"), text)
    features |= {"tasks": List(text)}
    if images:
        features |= {"shape": text, "width": number, "height": number, "image_generator": text}
        features |= {"aesthetic": Value("float64"), "image": Value("binary")}
    columns = {name: [row[name] for row in rows] for name in features}
    return Dataset.from_dict(columns, features=Features(features))
