"""``tunesmith select``: from a file to a file, and every way to ask for the impossible."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from tunesmith._cli.selecting import recipe_of
from tunesmith.cli import app

BUDGET = "The 'budget' parameter must be an int >= 1 (rows), a float in (0, 1] (share) or a percentage such as '10%'."


def select(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["select", *arguments], env={"COLUMNS": "100"})


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_jsonl: Any) -> str:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"prompt": f"say {i}", "completion": f"{i} it is", "quality": i / 10, "tags": [f"t{i % 7}"]}
        for i in range(40)
    ]
    return write_jsonl("data.jsonl", [*rows, {"prompt": "no answer"}])


def test_rows_come_out_as_they_went_in(data: str) -> None:
    result = select(data, "--method", "random", "--budget", "10%", "--out", "out.jsonl", "--scores", "s.csv")
    assert result.exit_code == 0
    source = Path(data).read_text().splitlines()
    chosen = Path("out.jsonl").read_text().splitlines()
    assert len(chosen) == 4
    assert set(chosen) < set(source)
    assert result.stdout.startswith(
        "4 of 40 rows chosen by random, written to out.jsonl.\n"
        "Scores and ranks of all 40 rows are in s.csv.\n\n"
        "                   pool  picks\n"
        "-----------------  ----  -----\n"
        "rows                 40      4\n"
    )
    assert "data.jsonl was read as JSON lines.\n" in result.stderr
    assert "41 rows read, 40 kept.\n  1 × " in result.stderr
    with open("s.csv", newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [row["row"] for row in table] == [str(i) for i in range(40)]
    assert {row["source"] for row in table} == {"data.jsonl"}
    ranked = sorted((int(row["rank"]), int(row["row"])) for row in table if row["rank"])
    assert [source[row] for _, row in ranked] == chosen
    assert all(np.isfinite(float(row["score"])) for row in table)


def test_the_picks_are_those_of_a_run_with_the_same_seed(data: str) -> None:
    from tunesmith.recipe.stages import make_selector

    for seed in ("0", "1", "0"):
        assert select(data, "--method", "random", "--out", f"{seed}.jsonl", "--seed", seed).exit_code == 0
    assert Path("0.jsonl").read_text() != Path("1.jsonl").read_text()
    recipe = recipe_of(data, "random", "10%", [], {}, 1, "auto")
    indices = make_selector(recipe, 1).fit(np.empty((40, 0))).select(0.1)
    rows = Path(data).read_text().splitlines()
    assert Path("1.jsonl").read_text().splitlines() == [rows[i] for i in indices]


def test_mig_reads_tags_and_quality(data: str, tiny_encoder_dir: str) -> None:
    result = select(
        *(data, "--method", "mig", "--budget", "7", "--out", "out.jsonl", "--encoder", tiny_encoder_dir),
        *("--set", "threshold=0.99"),
    )
    assert result.exit_code == 0, result.stderr
    assert "distinct tags         7      7" in result.stdout
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert len({row["tags"][0] for row in rows}) == 7
    assert np.mean([row["quality"] for row in rows]) > 1.95


def test_a_parameter_is_read_as_yaml() -> None:
    recipe = recipe_of("d", "mig", "0.5", ["threshold=0.8"], {"encoder": "static", "scorer": None}, 3, "auto")
    assert recipe.select is not None
    assert (recipe.select.budget, recipe.select.parameters) == (0.5, {"threshold": 0.8})
    assert (recipe.features.encoder, recipe.features.scorer, recipe.seed) == ("static", None, 3)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        *(
            (b, f"{BUDGET} Got '{b}' instead.\n")
            for b in ("10%%", "0", "-1", "1.5", "abc", "0%", "101%", "nan", "")
        ),
        (
            "41",
            "The 'budget' parameter of RandomSelector must be an int in [1, 40] or a float in (0, 1]. "
            "Got 41 instead.\n",
        ),
    ],
)
def test_a_budget_that_cannot_be(data: str, budget: str, message: str) -> None:
    result = select(data, "--method", "random", f"--budget={budget}", "--out", "out.jsonl")
    assert result.exit_code == 2
    assert result.stderr.endswith(message)
    assert not Path("out.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--method", "rando"],
            "There is no method named 'select.rando'. Did you mean 'select.random'? Valid names:",
        ),
        (
            ["--method", "mig", "--set", "treshold=1"],
            "override 'select.treshold=1': unknown key 'treshold' in select of type 'mig'. Did you mean 'threshold'?",
        ),
        (["--set", "threshold"], "An override reads key.sub=value. Got 'select.threshold' instead."),
        (
            ["--quality", "colum"],
            "The 'features.quality' key must be 'auto', 'column', 'ifd' or 'constant'. Got 'colum'",
        ),
        (["--tags", "x"], "The 'features.tags' key must be 'auto', 'column' or 'clusters'. Got 'x' instead."),
        (["--seed", "-1"], "The 'seed' key must be greater than or equal to 0. Got -1 instead."),
        (["--format", "alpacca"], "The 'data.format' key must be 'auto', 'messages', "),
        (
            ["--method", "random", "--out", "x.txt"],
            "The 'out' parameter of select must be a path that ends in .jsonl, .json, .csv, .tsv, .parquet. Got "
            "'x.txt' instead.",
        ),
    ],
)
def test_an_option_that_cannot_be(data: str, arguments: list[str], message: str) -> None:
    result = select(data, "--out", "out.jsonl", *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(message)


@pytest.mark.parametrize("option", ["--out", "--scores"])
def test_the_source_is_never_written(data: str, option: str) -> None:
    before = Path(data).read_bytes()
    result = select(data, "--method", "random", "--out", "out.jsonl", option, "./data.jsonl")
    assert result.exit_code == 1
    assert result.stderr.endswith(
        "data.jsonl is the source itself, and no input file is ever changed. Name another file.\n"
    )
    assert Path(data).read_bytes() == before


def test_missing_and_empty_files(data: str) -> None:
    result = select("dta.jsonl", "--out", "out.jsonl", "--method", "random")
    assert (result.exit_code, result.stderr) == (
        1,
        "there is no file dta.jsonl. Nearest names there: data.jsonl.\n",
    )
    Path("empty.jsonl").write_text("")
    result = select("empty.jsonl", "--out", "out.jsonl", "--method", "random")
    assert (result.exit_code, result.stderr) == (1, "empty.jsonl: the file is empty.\n")


def test_out_is_needed(data: str) -> None:
    result = select(data)
    assert result.exit_code == 2
    assert "Missing option '--out'" in result.stderr


def test_long_lists_of_bad_rows_are_cut(data: str, write_jsonl: Any) -> None:
    write_jsonl("bad.jsonl", [{"prompt": "a", "completion": "b"}] * 3 + [{"prompt": "x"}] * 8)
    result = select("bad.jsonl", "--method", "random", "--budget", "2", "--out", "out.jsonl")
    assert "11 rows read, 3 kept.\n  8 × " in result.stderr
    assert result.stderr.count("bad.jsonl, row ") == 5
    assert "  … 3 more\n" in result.stderr
