"""``tunesmith curate``: rows out as they went in, a reason for each that is missing, changes written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tunesmith.cli import app


def curate(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["curate", *arguments], env={"COLUMNS": "100"})


def lines(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_jsonl: Any) -> str:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"say {i % 4}", "completion": f"{i % 4} it is", "n": i} for i in range(6)]
    return write_jsonl("data.jsonl", [*rows[:3], {"prompt": "no answer"}, *rows[3:]])


def test_duplicates_go_with_a_reason(data: str) -> None:
    result = curate(data, "--out", "kept.jsonl")
    assert result.exit_code == 0, result.stderr
    source = Path(data).read_text().splitlines()
    assert Path("kept.jsonl").read_text().splitlines() == [source[i] for i in (0, 1, 2, 4)]
    assert lines("kept.reasons.jsonl") == [
        {"row": row, "action": "drop", "reason": "the same text as an earlier row", "source": "data.jsonl"}
        for row in (5, 6)
    ]
    assert result.stdout == (
        "4 of 6 rows kept by dedup, written to kept.jsonl.\n"
        "What was done to which row, and why, is in kept.reasons.jsonl.\n\n"
        "rows  what     reason\n"
        "----  -------  -------------------------------\n"
        "   2  dropped  the same text as an earlier row\n"
    )
    assert "7 rows read, 6 kept." in result.stderr


def test_parameters_and_paths(data: str) -> None:
    result = curate(data, "--out", "kept.csv", "--set", "on=prompt", "--reasons", "why.jsonl")
    assert result.exit_code == 0, result.stderr
    assert Path("kept.csv").read_text().splitlines()[0] == "prompt,completion,n"
    assert len(lines("why.jsonl")) == 2
    assert not Path("kept.reasons.jsonl").exists()


def test_near_duplicates_and_test_rows_go(data: str, write_jsonl: Any) -> None:
    result = curate(data, "--method", "near_dedup", "--out", "near.jsonl", "--set", "threshold=0.5")
    assert result.exit_code == 0, result.stderr
    assert [line["n"] for line in lines("near.jsonl")] == [0, 1, 2, 3]
    assert lines("near.reasons.jsonl")[0]["reason"] == (
        "nearly the same words as an earlier row → row 0, similarity 1.00"
    )
    test = write_jsonl("test.jsonl", [{"prompt": "Say 2!", "completion": "2"}])
    result = curate(
        *(data, "--method", "contamination", "--out", "clean.jsonl", "--set", f"against={test}"),
        *("--set", "action=drop"),
    )
    assert result.exit_code == 0, result.stderr
    assert [line["n"] for line in lines("clean.jsonl")] == [0, 1, 3, 4, 5]
    (gone,) = lines("clean.reasons.jsonl")
    assert gone["reason"].startswith("holds an evaluation row → test.jsonl, row 0: ")


def test_a_language_model_filters(data: str, tiny_model_dir: str, tiny_encoder_dir: str) -> None:
    options = [f"nli=embedding:{tiny_encoder_dir}", "n_samples=2", "max_new_tokens=4"]
    arguments = [part for option in options for part in ("--set", option)]
    for out in ("a.jsonl", "b.jsonl"):
        result = curate(data, "--method", "clear_filter", "--model", tiny_model_dir, "--out", out, *arguments)
        assert result.exit_code == 0, result.stderr
    kept, gone = lines("a.jsonl"), lines("a.reasons.jsonl")
    assert len(kept) + len(gone) == 6
    assert all(line["reason"] for line in gone)
    assert Path("a.jsonl").read_text() == Path("b.jsonl").read_text()


def test_changed_rows_are_written_in_the_canonical_form(
    data: str, tiny_model_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    from tunesmith.curate import AutoCorrect

    monkeypatch.setattr(AutoCorrect, "_better", lambda self, rows, pairs, why: np.linspace(0, 1, len(pairs)))
    result = curate(
        *(data, "--method", "clear", "--model", tiny_model_dir, "--out", "out.jsonl"),
        *(
            "--set",
            "beta=0",
            "--set",
            "max_new_tokens=4",
            "--set",
            "candidate_tokens=4",
            "--set",
            "min_keep=6",
        ),
    )
    assert result.exit_code == 0, result.stderr
    changed = [line for line in lines("out.reasons.jsonl") if line["action"] == "change"]
    assert [line["row"] for line in changed] == [6]
    rows = lines("out.jsonl")
    assert rows[-1]["messages"][-1]["content"] == changed[0]["new"]
    assert changed[0]["old"] == rows[-1]["clear_original"] == "1 it is"
    assert "of them were changed, so all are written with messages, n, clear_confidence" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "dedupe"], "There is no method named 'curate.dedupe'. Did you mean 'curate.dedup'?"),
        (["--set", "om=row"], "override 'curate.0.om=row': unknown key 'om' in curate of type 'dedup'."),
        (["--set", "on=x"], "The 'on' parameter of Deduplicate must be 'row' or 'prompt'. Got 'x' instead."),
        (
            ["--method", "clear"],
            "The 'llm' parameter of AutoCorrect must be given: a model's id, a mapping with",
        ),
        (
            ["--out", "x.txt"],
            "The 'out' parameter of curate must be a path that ends in .jsonl, .json, .csv, .tsv, .parquet. Got",
        ),
    ],
)
def test_what_cannot_be(data: str, arguments: list[str], message: str) -> None:
    result = curate(data, "--out", "out.jsonl", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not Path("out.jsonl").exists()


@pytest.mark.parametrize("option", ["--out", "--reasons"])
def test_the_source_is_never_written(data: str, option: str) -> None:
    before = Path(data).read_bytes()
    result = curate(data, "--out", "out.jsonl", option, "./data.jsonl")
    assert result.exit_code == 1
    assert "data.jsonl is the source itself, and no input file is ever changed." in result.stderr
    assert Path(data).read_bytes() == before
