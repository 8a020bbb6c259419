"""The parts of a look at each kind of material, as plain values for JSON, plus what only the page shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.errors import shorten
from tunesmith.core.events import EventLog
from tunesmith.data.groups import group_names
from tunesmith.look.rows import Place, group_words, place_of, previews_of, vectors_of
from tunesmith.look.secrets import mask_secrets
from tunesmith.look.structure import LISTED, Structure, structure_of

if TYPE_CHECKING:
    from datasets import Dataset

    from tunesmith.look.material import Material
    from tunesmith.look.texts import TextFacts

__all__ = ["cluster_part", "copies_part", "look_at", "quantiles"]

Facts = dict[str, Any]

PLAIN_ROWS = 20_000  # rows up to which every pair of vectors is compared
NEAR_COSINE = 0.99


def quantiles(values: NDArray[np.int64]) -> dict[str, float]:
    """Return least, quartiles, 95th percentile, largest and mean."""
    cuts = np.quantile(values, [0, 0.25, 0.5, 0.75, 0.95, 1])
    names = ("min", "q1", "median", "q3", "p95", "max")
    return {**dict(zip(names, map(float, cuts), strict=True)), "mean": float(values.mean())}


def copies_part(duplicate_of: NDArray[np.int64], place: Place) -> Facts:
    """Count rows that repeat an earlier one, and show those that are repeated most."""
    repeated = Counter(int(i) for i in duplicate_of[duplicate_of >= 0])
    groups = []
    for original, n in repeated.most_common(LISTED):
        copy = int(np.flatnonzero(duplicate_of == original)[0])
        groups.append({"copies": n, "original": place(original), "first_copy": place(copy)})
    return {"rows": int((duplicate_of >= 0).sum()), "groups": len(repeated), "most_repeated": groups}


def cluster_part(found: Structure, material: Material) -> Facts:
    """Describe clusters and rows that stand apart."""
    n, place = len(found.cluster), place_of(material)
    words = group_words(material, found.cluster)
    names = group_names(words)
    clusters = [
        {
            "id": group,
            "name": names[group],
            "rows": int((found.cluster == group).sum()),
            "share": float((found.cluster == group).mean()),
            "words": words[group],
            "examples": [place(int(i)) for i in found.central[group]],
        }
        for group in found.central
    ]
    middle = float(np.median(found.distance)) if n else 0.0
    outliers = [
        {**place(int(i)), "times_the_median": _ratio(found.distance[i], middle)}
        for i in found.outliers[:LISTED]
    ]
    return {"clusters": clusters, "outliers": {"rows": len(found.outliers), "farthest": outliers}}


def _ratio(value: float, middle: float) -> float | None:
    return round(float(value) / middle, 2) if middle > 0 else None


def look_at(
    material: Material, *, against: Sequence[Any], encoder: str, seed: int, log: EventLog
) -> tuple[Facts, Facts]:
    """Return the facts, and what the page alone shows (``structure``, ``previews``)."""
    kinds = {"text": _text, "images": _images, "vectors": _vectors, "table": _table}
    return kinds[material.kind](material, against, encoder, seed, log)


def _text(
    material: Material, against: Sequence[Any], encoder: str, seed: int, log: EventLog
) -> tuple[Facts, Facts]:
    from tunesmith.curate import Deduplicate, NearDeduplicate
    from tunesmith.look.texts import read_texts

    rows = material.dataset
    report = material.report
    assert rows is not None
    assert report is not None
    place = place_of(material)
    read = read_texts(rows, log)
    log.emit("message", message="Looking for copies.")
    dedup = Deduplicate()
    dedup.fit(rows).transform(rows)
    exact = np.array([row for row, _ in dedup.report_.dropped], dtype=np.int64)
    near = NearDeduplicate(random_state=seed)
    near.fit(rows).transform(rows)
    near_of = np.where(np.isin(np.arange(len(rows)), exact), -1, near.duplicate_of_)
    exact_of = np.where(np.isin(np.arange(len(rows)), exact), near.duplicate_of_, -1)
    vectors, used = vectors_of(material, encoder, seed, log)
    found = structure_of(vectors, seed)
    counts = Counter(read.languages)
    facts: Facts = {
        "reading": {
            "format": report.format,
            "how": [mask_secrets(line) for line in material.how],
            "n_read": report.n_read,
            "n_kept": report.n_kept,
            "reasons": report.reasons,
            "bad": [[file, row, why, mask_secrets(text)] for file, row, why, text in material.bad[:20]],
        },
        "lengths": {
            "characters": quantiles(read.characters),
            **(
                {}
                if "text" in rows.column_names
                else {"answer_characters": quantiles(read.answer_characters)}
            ),
            "turns": {str(k): v for k, v in sorted(Counter(read.turns.tolist()).items())},
            "longest_rows_share_one_length": _pile_up(read.characters),
        },
        "languages": [{"code": code, "rows": n} for code, n in counts.most_common()],
        "copies": {
            "exact": copies_part(exact_of, place) | {"rows": len(exact)},
            "near": copies_part(near_of, place),
        },
        "answers": _problems(read, place),
        "secrets": _secrets(read, place),
        "encoder": used,
        **cluster_part(found, material),
    }
    if against:
        facts["overlap"] = _overlap(rows, against, place, log)
    return facts, {"structure": found, "lengths": read.characters}


def _pile_up(characters: NDArray[np.int64]) -> int:
    """Rows that have exactly the largest length, where these are more than 1 %: a sign of cutting at a limit."""
    at_most = int((characters == characters.max()).sum())
    return at_most if at_most > max(2, 0.01 * len(characters)) and characters.max() > 200 else 0


def _problems(read: TextFacts, place: Place) -> list[Facts]:
    found = []
    for problem, n in read.problem_counts().most_common():
        rows = [row for row, what in read.problems.items() if what == problem][:3]
        found.append({"problem": problem, "rows": n, "examples": [place(row) for row in rows]})
    return found


def _secrets(read: TextFacts, place: Place) -> list[Facts]:
    rows: dict[str, list[int]] = {}
    for row, masked in read.secrets.items():
        for kind in dict.fromkeys(kind for kind, _ in masked):
            rows.setdefault(kind, []).append(row)
    out = []
    for kind, where in sorted(rows.items(), key=lambda item: -len(item[1])):
        examples = [
            {key: place(row)[key] for key in ("row", "source")}
            | {"masked": next(masked for k, masked in read.secrets[row] if k == kind)}
            for row in where[:5]
        ]
        finds = sum(k == kind for row in where for k, _ in read.secrets[row])
        out.append({"kind": kind, "rows": len(where), "finds": finds, "examples": examples})
    return out


def _overlap(rows: Dataset, against: Sequence[Any], place: Place, log: EventLog) -> list[Facts]:
    from tunesmith.curate import ContaminationFilter

    out = []
    for source in against:
        name = source if isinstance(source, str) else getattr(source, "name", type(source).__name__)
        log.emit("message", message=f"Comparing with {name}.")
        filter_ = ContaminationFilter(source)
        filter_.fit(rows).transform(rows)
        hits = [row for row, _ in filter_.report_.dropped]
        out.append(
            {
                "source": str(name),
                "rows": len(hits),
                "evaluation_rows": int(filter_.n_evaluation_),
                "evaluation_rows_given_away": int(filter_.evaluation_hit_.sum()),
                "examples": [
                    {**place(row), "why": shorten(mask_secrets(why), 300)}
                    for row, why in filter_.report_.dropped[:LISTED]
                ],
            }
        )
    return out


def _images(
    material: Material, against: Sequence[Any], encoder: str, seed: int, log: EventLog
) -> tuple[Facts, Facts]:
    from datasets import Dataset

    from tunesmith.curate import NearDeduplicate
    from tunesmith.look.pictures import read_images

    paths, place = material.paths, place_of(material)
    read = read_images(paths, log)
    copies = Dataset.from_dict({"text": [""] * len(paths), "image": [str(p) for p in paths]})
    near = NearDeduplicate("image", random_state=seed)
    near.fit(copies).transform(copies)
    near_of = np.where(read.copy_of >= 0, -1, near.duplicate_of_)
    vectors, used = vectors_of(material, encoder, seed, log)
    found = structure_of(vectors, seed, examples=6)
    shown = [*found.outliers[:LISTED].tolist(), *(int(i) for rows in found.central.values() for i in rows)]
    sizes = Counter(zip(read.width.tolist(), read.height.tolist(), strict=True))
    facts: Facts = {
        "reading": _reading(material),
        "images": {
            "sizes": [{"width": w, "height": h, "images": n} for (w, h), n in sizes.most_common(8)],
            "different_sizes": len(sizes),
            "width": quantiles(read.width),
            "height": quantiles(read.height),
            "modes": dict(read.modes.most_common()),
            "folders": dict(read.folders.most_common(50)),
        },
        "copies": {"exact": copies_part(read.copy_of, place), "near": copies_part(near_of, place)},
        "encoder": used,
        **cluster_part(found, material),
    }
    return facts, {"structure": found, "previews": previews_of(material, shown)}


def _vectors(
    material: Material, against: Sequence[Any], encoder: str, seed: int, log: EventLog
) -> tuple[Facts, Facts]:
    from tunesmith.curate.near import greedy_cosine

    x, _ = vectors_of(material, encoder, seed, log)
    place = place_of(material)
    _, first, which = np.unique(x, axis=0, return_index=True, return_inverse=True)
    exact_of = np.where(first[which.ravel()] == np.arange(len(x)), -1, first[which.ravel()])
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    near_of = exact_of
    if x.shape[1] > 2:  # directions in a plane are crowded whatever the rows are
        groups = 1 if len(x) <= PLAIN_ROWS else round(len(x) ** 0.5)
        unit = x / np.where(norms > 0, norms, 1)
        near_of = greedy_cosine(unit, NEAR_COSINE, groups=groups, probes=8, random_state=seed)
    found = structure_of(x, seed)
    return {
        "reading": _reading(material),
        "vectors": {
            "columns": x.shape[1],
            "norms": quantiles(norms.ravel()),
            "constant_columns": int((np.ptp(x, axis=0) == 0).sum()),
        },
        "copies": {
            "exact": copies_part(exact_of, place),
            "near": copies_part(np.where(exact_of >= 0, -1, near_of), place),
        },
        **cluster_part(found, material),
    }, {"structure": found}


def _table(
    material: Material, against: Sequence[Any], encoder: str, seed: int, log: EventLog
) -> tuple[Facts, Facts]:
    from tunesmith.look.tables import column_facts, row_hashes

    frame, place = material.frame, place_of(material)
    assert frame is not None
    columns = column_facts(frame)
    keys = row_hashes(frame)
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    exact_of = np.where(first[which] == np.arange(len(frame)), -1, first[which])
    facts: Facts = {
        "reading": _reading(material),
        "columns": columns,
        "copies": {"exact": copies_part(exact_of, place)},
    }
    if not any(column["kind"] in ("number", "category") for column in columns):
        return facts, {}
    x, used = vectors_of(material, encoder, seed, log)
    found = structure_of(x, seed)
    return facts | {"encoder": used, **cluster_part(found, material)}, {"structure": found}


def _reading(material: Material) -> Facts:
    reasons = Counter(reason for _, _, reason, _ in material.bad)
    return {
        "how": material.how,
        "n_read": len(material) + len(material.bad),
        "n_kept": len(material),
        "reasons": dict(reasons),
        "bad": [list(bad) for bad in material.bad[:20]],
    }
