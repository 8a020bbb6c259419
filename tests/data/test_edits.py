"""Edits as data: read, refused, made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.data.edits import find_conflicts, invented_facts, read_edits

ROW = {"prompt": "The capital of Velloria is", "target_new": "amber"}


def test_files_rows_and_datasets_give_the_same_edits(tmp_path: Path, write_jsonl: Any) -> None:
    from datasets import Dataset

    rows = [{**ROW, "rephrase_prompt": "Velloria's capital is", "case_id": "7"}]
    wanted = [{**ROW, "rephrase_prompt": "Velloria's capital is"}]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    write_jsonl(tmp_path / "lines.jsonl", rows)
    for source in (rows, tmp_path / "list.json", str(tmp_path / "lines.jsonl"), Dataset.from_list(rows)):
        assert read_edits(source) == wanted


def test_the_names_of_zsre_are_understood() -> None:
    row = {"src": "p", "alt": "t", "rephrase": "r", "loc": "l", "loc_ans": "a"}
    assert read_edits([row]) == [
        {
            "prompt": "p",
            "target_new": "t",
            "rephrase_prompt": "r",
            "locality_prompt": "l",
            "locality_ground_truth": "a",
        }
    ]


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"row 1: 'target_new' must be a text that is not empty. The row reads"
    ):
        read_edits([ROW, {"prompt": "x", "target_new": "  "}])
    with pytest.raises(DataError, match="row 0: 'prompt' must be a text"):
        read_edits([{"target_new": "x"}])
    with pytest.raises(DataError, match="row 0: an edit is an object with prompt and target_new"):
        read_edits(["The capital"])
    with pytest.raises(DataError, match="there is no edit"):
        read_edits([])
    with pytest.raises(ParameterError, match="'edits' parameter of read_edits must be a path, a Dataset or"):
        read_edits(3)
    with pytest.raises(ParameterError, match="must be an existing file"):
        read_edits(tmp_path / "nothing.json")
    (tmp_path / "bad.json").write_text("[{")
    with pytest.raises(DataError, match=r"bad.json: neither a JSON list nor JSON lines"):
        read_edits(tmp_path / "bad.json")
    with pytest.raises(ParameterError, match="'n' parameter of invented_facts must be an int of at least 1"):
        invented_facts(0)


def test_contradictions_are_found() -> None:
    rows = [
        ROW,
        {**ROW, "target_new": "basil"},
        {**ROW, "prompt": f"{ROW['prompt']} ", "target_new": " basil"},
    ]
    assert find_conflicts(rows) == [(0, 1)]


def test_invented_facts_are_about_different_countries_and_repeatable() -> None:
    facts = invented_facts(200, seed=1)
    assert facts == invented_facts(200, seed=1)
    assert facts != invented_facts(200, seed=2)
    assert len({row["subject"] for row in facts}) == 200
    assert all(row["subject"] in row["prompt"] and row["subject"] in row["rephrase_prompt"] for row in facts)
    assert find_conflicts(facts) == []
