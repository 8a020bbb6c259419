"""A recipe made from the user's own rows: complete, commented, and it loads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tunesmith.core.errors import DataError
from tunesmith.recipe import check, init_recipe, initial, load
from tunesmith.recipe.schemas import BLOCKS


def made(path: str) -> tuple[str, Any]:
    """Return the text and the recipe; every key of every block must be there with its own comment."""
    text = init_recipe(path)
    recipe = load(text).recipe
    for name, model in BLOCKS.items():
        assert re.search(rf"^(# )?{name}:", text, re.MULTILINE), name
        if name in ("curate", "evaluate", "audit"):
            continue
        block = text.split(f"\n{name}:" if f"\n{name}:" in text else f"\n# {name}:")[1]
        for key, info in model.model_fields.items():
            assert re.search(rf"^(# )?  {key}:", block, re.MULTILINE), (name, key)
            if info.description and key != "type":
                first = info.description.replace("``", "").split()[0]
                assert f"  # {first}" in block
    return text, recipe


def chats(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"instruction": f"say {i}", "input": "", "output": f"{i}", **more} for i in range(count)]


def test_a_recipe_for_alpaca_rows(tmp_path: Path, write_jsonl: Any) -> None:
    path = write_jsonl(tmp_path / "my data.jsonl", chats(1900))
    text, recipe = made(path)
    assert text.startswith(f"# Recipe for {path[:60]}"[:40])
    assert "# " + "  Format alpaca, by 1,000 of the first 1,000 rows" in text
    assert "#   1,900 rows." in text
    assert recipe.data.train == path
    assert recipe.name == "my-data"
    assert (recipe.select.type, recipe.select.budget) == ("mig", 200)
    assert (recipe.train.epochs, recipe.train.max_length, recipe.train.loss) == (3.0, 128, "completion")
    assert [spec.type for spec in recipe.evaluate] == ["exact_match", "perplexity"]
    assert recipe.compare.axes == {"select.type": ["random", "mig"]}
    assert check(load(text)) == []


def test_every_default_is_written_as_it_is(tmp_path: Path, write_jsonl: Any) -> None:
    text = init_recipe(write_jsonl(tmp_path / "d.jsonl", chats(30)))
    lines = text.splitlines()
    assert "  dtype: auto" in lines
    assert "  revision: null" in lines
    assert "  warmup: 0.1" in lines
    assert "  columns: {}" in lines
    assert "  seeds: [0, 1, 2]" in lines


@pytest.mark.parametrize(
    ("rows", "budget", "chosen"),
    [
        (1, "50%", 1),
        (400, "50%", 200),
        (401, 200, 200),
        (1999, 200, 200),
        (2000, "10%", 200),
        (500_000, "10%", 50_000),
        (5_000_000, 50_000, 50_000),
    ],
)
def test_the_budget_follows_the_size(rows: int, budget: object, chosen: int) -> None:
    assert initial._budget(rows) == (budget, chosen)


def test_many_rows_take_the_fast_encoder_and_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "big.jsonl"
    path.write_text('{"prompt": "a b", "completion": "c"}\n' * 60_000)
    text, recipe = made(str(path))
    assert "#   60,000 rows." in text
    assert recipe.features.encoder == "static"
    assert recipe.select.budget == 0.1
    assert recipe.train.epochs == 1.0


def test_raw_text_is_learned_whole(tmp_path: Path, write_jsonl: Any) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [{"text": "once upon a time " * 60}] * 50)
    _, recipe = made(path)
    assert (recipe.train.loss, recipe.train.max_length) == ("all", 512)
    assert [spec.type for spec in recipe.evaluate] == ["perplexity"]


def test_tasks_are_scored_and_long_answers_are_not_matched(tmp_path: Path, write_jsonl: Any) -> None:
    task = '{"kind": "exact", "answer": "1"}'
    _, recipe = made(write_jsonl(tmp_path / "a.jsonl", chats(30, task=task)))
    assert [spec.type for spec in recipe.evaluate] == ["task_score", "perplexity"]
    long = [{"prompt": f"tell {i}", "completion": "well " * 60} for i in range(30)]
    _, recipe = made(write_jsonl(tmp_path / "b.jsonl", long))
    assert [spec.type for spec in recipe.evaluate] == ["perplexity"]


def test_text_pairs_are_only_chosen_from(tmp_path: Path, write_jsonl: Any) -> None:
    rows = [{"anchor": f"question {i}", "positive": f"answer {i}"} for i in range(30)]
    text, recipe = made(write_jsonl(tmp_path / "pairs.jsonl", rows))
    assert recipe.train is None
    assert recipe.model is None
    assert recipe.select.type == "mig"
    assert "# train:" in text


def test_very_few_rows_are_all_taken(tmp_path: Path, write_jsonl: Any) -> None:
    _, recipe = made(write_jsonl(tmp_path / "few.jsonl", chats(5)))
    assert (recipe.select.type, recipe.select.budget, recipe.compare) == ("random", 1.0, None)


def test_names_and_rows_that_yaml_would_misread(tmp_path: Path, write_jsonl: Any) -> None:
    path = write_jsonl(
        tmp_path / "no: #1 'é' [x].jsonl", [{"prompt": "a\x85b\u2028c\n# x: {", "completion": "d"}] * 25
    )
    _, recipe = made(path)
    assert recipe.data.train == path
    yes = write_jsonl(tmp_path / "yes.jsonl", chats(25))
    assert made(yes)[1].name == "yes"


def test_unusable_rows_are_told(tmp_path: Path, write_jsonl: Any) -> None:
    text = init_recipe(write_jsonl(tmp_path / "d.jsonl", [*chats(30), {"instruction": "x"}]))
    assert "30 rows; of the first 31 these cannot be used: 1 × " in text


def test_rows_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match=r"empty\.jsonl: the file is empty\."):
        init_recipe(tmp_path / "empty.jsonl")
    with pytest.raises(DataError, match=r"there is no file"):
        init_recipe(tmp_path / "none.jsonl")
