"""What everything that rewrites answers must hold: a new one adds a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from tunesmith import methods

# name -> settings, with a judge that finds some answers right
ROWS: dict[str, dict[str, Any]] = {"targets.gold": {}, "targets.s3ft": {"judge": "number"}}


def rows(n: int = 9) -> Dataset:
    return Dataset.from_list(
        [
            {
                "messages": [
                    {"role": "user", "content": f"{i} and 1?"},
                    {"role": "assistant", "content": f"={i + 1}="},
                ],
                "topic": "sums",
            }
            for i in range(n)
        ]
    )


class Model:
    """Adds right where the number is even, and rewords what it is shown."""

    fingerprint = "adder"

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, prompts: list[Any]) -> list[str]:
        self.asked += len(prompts)
        texts = [p if isinstance(p, str) else " ".join(m["content"] for m in p) for p in prompts]
        return [
            f"It is {int(t.split()[0]) + 1 + int(t.split()[0]) % 2}." if t[0].isdigit() else "?"
            for t in texts
        ]


def build(name: str, data: Dataset, folder: Path | None, model: Any = None) -> Dataset:
    return methods.get(name)(data, model or Model(), folder=folder, random_state=0, log=None, **ROWS[name])


@pytest.mark.parametrize("name", ROWS)
def test_every_row_stays_once_and_in_its_place(name: str, tmp_path: Path) -> None:
    data = rows()
    built = build(name, data, tmp_path)
    assert [row["messages"][0] for row in built] == [row["messages"][0] for row in data]
    assert built["topic"][:] == data["topic"][:]
    assert set(built["source"]) <= {"model", "paraphrase", "gold"}
    for row, before in zip(built, data, strict=True):
        if row["source"] == "gold":
            assert row["messages"] == before["messages"]
    assert data.column_names == rows().column_names


@pytest.mark.parametrize("name", ROWS)
def test_builds_repeat_and_nothing_is_asked_twice(name: str, tmp_path: Path) -> None:
    first = build(name, rows(), tmp_path)
    model = Model()
    again = build(name, rows(), tmp_path, model)
    assert again.to_list() == first.to_list()
    assert model.asked == 0
    assert build(name, rows(), tmp_path / "elsewhere").to_list() == first.to_list()


@pytest.mark.parametrize("name", ROWS)
def test_no_rows_give_no_rows(name: str, tmp_path: Path) -> None:
    assert len(build(name, rows().select([]), tmp_path)) == 0
