"""``tunesmith look``: a page, its facts, and what stands out on the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from tunesmith.cli import app


def look(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["look", *arguments], env={"COLUMNS": "100"})


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_texts_give_a_page_and_findings(tiny_encoder_dir: str, write_jsonl: Any) -> None:
    rows = [{"text": f"Sentence number {i} is about rivers and boats."} for i in range(60)]
    write_jsonl("pile.jsonl", [*rows, rows[0]])
    write_jsonl("test.jsonl", [{"text": rows[3]["text"]}])
    result = look(
        "pile.jsonl", "--encoder", tiny_encoder_dir, "--against", "test.jsonl", "--out", "page.html"
    )
    assert result.exit_code == 0, result.stderr
    assert "61 rows of text, looked at in" in result.stdout
    assert "! Exact copies of an earlier one: 1 row (1.6 %)" in result.stdout
    assert "Page: page.html\nFacts: page.json" in result.stdout
    facts = json.loads(Path("page.json").read_text())
    assert facts["overlap"][0]["source"] == "test.jsonl"
    assert facts["overlap"][0]["rows"] >= 1
    assert "Each row" in result.stderr or "each row" in result.stderr


def test_vectors_and_limits() -> None:
    np.save("x.npy", np.random.default_rng(0).normal(size=(80, 4)))
    result = look("x.npy", "--max-rows", "60", "--seed", "3")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("60 vectors, looked at in")
    assert json.loads(Path("look.json").read_text())["seed"] == 3


def test_errors_come_before_the_work_and_without_a_traceback() -> None:
    result = look("nothing.jsonl", "--out", "page.txt")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "must be a path that ends in .html. Got 'page.txt' instead." in result.stderr
    result = look("nothing.jsonl")
    assert result.exit_code == 1
    assert "nothing.jsonl" in result.stderr
    assert "Traceback" not in result.stderr
