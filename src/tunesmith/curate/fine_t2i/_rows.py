"""The rows of a dataset as the stages see them: prompts in memory, everything else read when it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.curate.fine_t2i.scoring import as_scores
from tunesmith.curate.near._vectors import as_image
from tunesmith.data.rows import iter_rows, row_kind

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["PromptRows"]

_LABELS = ("category", "style", "tasks")


class PromptRows:
    """Prompts in memory, everything else read when a stage asks for it."""

    def __init__(self, dataset: Dataset, image: str) -> None:
        self.dataset, self.image = dataset, image
        self.texts = [_prompt(row) for row in iter_rows(dataset)] if len(dataset) else []

    def __len__(self) -> int:
        return len(self.dataset)

    def images(self, some: list[int]) -> list[Any]:
        return [as_image(self.dataset[i][self.image], i) for i in some]

    def labelled(self, some: list[int]) -> list[dict[str, Any]]:
        names = [name for name in _LABELS if name in self.dataset.column_names]
        return [{"text": self.texts[i], **{n: self.dataset[i][n] for n in names}} for i in some]

    def text_key(self, i: int) -> bytes:
        return self.texts[i].encode("utf-8", "surrogatepass")

    def label_key(self, i: int) -> bytes:
        return repr(self.labelled([i])).encode("utf-8", "surrogatepass")

    def image_key(self, i: int) -> bytes:
        image = as_image(self.dataset[i][self.image], i)
        return repr((image.mode, image.size)).encode() + bytes(image.tobytes())

    def numbers(self, column: str, some: list[int]) -> NDArray[np.float64]:
        values = self.dataset[column][:]
        return np.array([np.nan if values[i] is None else float(values[i]) for i in some])

    def verdicts(self, column: str, some: list[int]) -> tuple[NDArray[np.float64], bool]:
        values = self.dataset[column][:]
        return as_scores([values[i] for i in some], len(some), column)

    def flags(self, column: str, some: list[int]) -> list[bool]:
        if column not in self.dataset.column_names:
            return [False] * len(some)
        values = self.dataset[column][:]
        return [bool(values[i]) for i in some]


def _prompt(row: dict[str, Any]) -> str:
    if row_kind(row) == "messages":
        return "\n".join(m["content"] for m in row["messages"] if m["role"] == "user")
    return str(row["text"] if row_kind(row) == "text" else row["anchor"])
