"""What the verbs ask of any kind of rows: vectors, words for groups, a place to name, a preview to show."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.errors import DataError, shorten
from tunesmith.core.events import EventLog
from tunesmith.look.secrets import mask_secrets

if TYPE_CHECKING:
    from tunesmith.look.material import Material

__all__ = ["Place", "group_words", "place_of", "previews_of", "vectors_of"]

Place = Callable[
    [int], dict[str, Any]
]  # how a row is named and quoted: {"row": 12, "source": "a.jsonl", "text": …}

EMBEDDED_BY_MINILM = (
    5_000  # texts; about 50 of 170 characters a second on one core. Beyond, the encoder's word table alone
)
QUOTED = 300  # characters of a row
SEARCHED = 5_000  # characters of it in which secrets are looked for: blotting out shortens


def place_of(material: Material) -> Place:
    """Return what names a row: row number, source where there are several, and its text where it has one.

    Suspected secrets are blotted out of the text.
    """
    from tunesmith.data.rows import row_text

    def quote(text: str) -> str:
        return shorten(mask_secrets(text[:SEARCHED]) + text[SEARCHED:], QUOTED)

    def place(i: int) -> dict[str, Any]:
        source, row = material.where(i)
        if material.dataset is not None:
            return {"row": row, "source": source, "text": quote(row_text(material.dataset[i]))}
        if material.kind == "images":
            return {"row": row, "source": source}
        if material.frame is not None:
            text = ", ".join(f"{key}={value}" for key, value in material.frame.iloc[i].items())
            return {"row": row, "text": quote(text)}
        return {"row": row}

    return place


def vectors_of(
    material: Material, encoder: str, seed: int, log: EventLog, leave_out: str | None = None
) -> tuple[NDArray[np.float32], str]:
    """Return a vector per row, and what made them in words.

    Texts: MiniLM up to 5,000 rows, its word table beyond, or the encoder named. Images: thumbnails, or the encoder
    named. A table: its numbers and categories but for the column ``leave_out``, which holds labels. Vectors: as they
    are.

    Raises:
        DataError: a table without numbers and categories, or an encoder named for what needs none.
        MissingModelError: the encoder cannot be found.
    """
    if material.dataset is not None:
        from tunesmith.data import Pool

        if encoder == "auto":
            encoder = "minilm" if len(material) <= EMBEDDED_BY_MINILM else "static"
        pool = Pool(material.dataset, encoder=encoder, seed=seed, log=log)
        used = "the column 'embedding'" if "embedding" in pool.has else f"sentence encoder {encoder}"
        return np.asarray(pool.feature("embedding")), used
    if material.kind == "images":
        from tunesmith.look.pictures import image_vectors, thumbnails

        if encoder == "auto":
            return thumbnails(material.paths, log), "thumbnails of 16 × 16 pixels"
        return image_vectors(material.paths, encoder, log), f"image encoder {encoder}"
    if encoder != "auto":
        raise DataError(f"{material.kind} need no encoder. Leave '{encoder}' out.", source=material.source)
    if material.vectors is not None:
        return material.vectors, "the vectors themselves"
    from tunesmith.look.tables import column_facts, table_vectors

    assert material.frame is not None
    frame = material.frame.drop(columns=[leave_out] if leave_out in material.frame.columns else [])
    x = table_vectors(frame, column_facts(frame))
    if not x.shape[1]:
        raise DataError(
            "the table has neither numbers nor categories to compare rows by.", source=material.source
        )
    return x, "numbers by rank, and categories"


def group_words(material: Material, labels: NDArray[np.int64]) -> dict[int, list[str]]:
    """Return what tells each group from the rest: words of texts, columns of a table, else nothing."""
    if material.dataset is not None:
        from tunesmith.data.groups import telling_words
        from tunesmith.data.rows import row_text, take_rows

        rows = material.dataset
        return telling_words(lambda some: [row_text(row) for row in take_rows(rows, some)], labels)
    if material.frame is not None:
        from tunesmith.look.tables import column_facts, telling_columns

        return telling_columns(material.frame, column_facts(material.frame), labels)
    return {int(group): [] for group in np.unique(labels) if group >= 0}


def previews_of(material: Material, rows: Iterable[int]) -> dict[str, str]:
    """Return a small picture (a data URI) per source name of some rows; empty for what are not images."""
    if material.kind != "images":
        return {}
    from tunesmith.look.pictures import preview

    return {material.where(i)[0]: preview(material.paths[i]) for i in sorted(set(rows))}
