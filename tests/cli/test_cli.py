"""The verbs: what they print, what they write, and what they say when something is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import tunesmith.recipe.estimating
import tunesmith.recipe.initial
import tunesmith.recipe.runner
from tunesmith.cli import app
from tunesmith.core.errors import DiskFullError, TunesmithError
from tunesmith.recipe import Estimate, LoadedRecipe, load
from tunesmith.recipe.runner import RunResult


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "100"})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def data(folder: Path, write_jsonl: Any) -> str:
    rows = [{"prompt": f"say {i}", "completion": f"{i} it is", "quality": i / 10} for i in range(40)]
    return write_jsonl("data.jsonl", rows)


RECIPE = "name: mine\ndata: {train: data.jsonl}\nselect: {type: random, budget: 10%}\n"


@pytest.fixture
def ran(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[LoadedRecipe, Path]]:
    """Replace the runner by one that notes what it was given."""
    calls: list[tuple[LoadedRecipe, Path]] = []

    def run(recipe: LoadedRecipe, output: Path, *, listeners: Any) -> RunResult:
        calls.append((recipe, output))
        for listener in listeners:
            listener({"kind": "stage", "stage": "select", "status": "started", "arm": "random", "seed": 0})
        summary = [{"arm": "base", "exact_match": 0.25}, {"arm": "random", "rows": 1200, "exact_match": 0.5}]
        return RunResult(output, output / "report.html", summary)

    monkeypatch.setattr(tunesmith.recipe.runner, "run", run)
    (folder / "recipe.yaml").write_text(RECIPE)
    return calls


def test_run_tells_what_it_did(ran: list[Any]) -> None:
    result = call("run", "recipe.yaml", "output=out", "select.budget=20%")
    assert result.exit_code == 0
    assert result.stderr == "[random, seed 0] select …\n"
    assert result.stdout == (
        "arm     exact match   rows\n"
        "------  -----------  -----\n"
        "base           0.25      -\n"
        "random          0.5  1,200\n"
        "\n"
        "Report: out/report.html\n"
    )
    ((recipe, output),) = ran
    assert output == Path("out")
    assert recipe.recipe.select is not None
    assert recipe.recipe.select.budget == 0.2


def test_run_names_its_directory_by_the_recipe(ran: list[Any]) -> None:
    assert call("run", "recipe.yaml").exit_code == 0
    assert call("run", "recipe.yaml", "name=../a b/").exit_code == 0
    assert [output for _, output in ran] == [Path("runs/mine"), Path("runs/a-b")]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["output="], "output= names no directory; write output=DIR."),
        (["out"], "An override reads key.sub=value, and the run directory output=DIR. Got 'out' instead."),
        (["select.budget=10%%"], "override 'select.budget=10%%': The 'budget' parameter must be an int >= 1"),
        (["slect.x=1"], "override 'slect.x=1': unknown key 'slect' in the recipe. Did you mean 'select'?"),
    ],
)
def test_run_refuses_what_it_cannot_read(ran: list[Any], settings: list[str], expected: str) -> None:
    result = call("run", "recipe.yaml", *settings)
    assert result.exit_code == 2
    assert result.stderr.startswith(expected)
    assert ran == []


def test_a_missing_recipe(folder: Path) -> None:
    result = call("run", "recipe.yaml")
    assert (result.exit_code, result.stderr) == (2, "There is no recipe recipe.yaml.\n")


def _failing(error: BaseException) -> Any:
    def run(*arguments: Any, **more: Any) -> None:
        raise error

    return run


def test_an_own_error_is_a_message_with_its_code(ran: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunesmith.recipe.runner, "run", _failing(DiskFullError("The disk is full.")))
    result = call("run", "recipe.yaml")
    assert (result.exit_code, result.stderr, result.stdout) == (1, "The disk is full.\n", "")


def test_another_error_keeps_its_traceback(ran: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunesmith.recipe.runner, "run", _failing(ZeroDivisionError("ours")))
    result = call("run", "recipe.yaml")
    assert isinstance(result.exception, ZeroDivisionError)
    assert result.exit_code == 1


def test_ctrl_c_says_how_to_continue(ran: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunesmith.recipe.runner, "run", _failing(KeyboardInterrupt()))
    result = call("run", "recipe.yaml", "select.budget=20%", "name=my run")
    assert result.exit_code == 130
    assert result.stderr == (
        "Interrupted. Everything finished is kept in runs/my-run; this continues the run:\n"
        "  tunesmith run recipe.yaml output=runs/my-run select.budget=20% 'name=my run'\n"
    )


def test_ctrl_c_elsewhere(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunesmith.recipe.initial, "init_recipe", _failing(KeyboardInterrupt()))
    result = call("init", data)
    assert (result.exit_code, result.stderr) == (130, "Interrupted.\n")


def test_a_real_signal_ends_with_130(data: str, folder: Path) -> None:
    code = (
        "import sys, time, tunesmith.recipe.runner as r\n"
        "def run(*a, **k):\n    print('running', flush=True)\n    time.sleep(60)\n"
        "r.run = run\nfrom tunesmith.cli import main\nmain()\n"
    )
    (folder / "recipe.yaml").write_text(RECIPE)
    process = subprocess.Popen(
        [sys.executable, "-c", code, "run", "recipe.yaml"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A job in the background ignores the signal, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "this continues the run:\n  tunesmith run recipe.yaml output=runs/mine\n" in errors
    assert "Traceback" not in errors


def test_validate(data: str, folder: Path) -> None:
    (folder / "recipe.yaml").write_text(RECIPE)
    result = call("validate", "recipe.yaml", "select.budget=5", "output=ignored")
    assert result.exit_code == 0
    assert result.stdout.startswith("recipe.yaml is valid.\n\n")
    assert "pool      40 rows, " in result.stdout
    assert "selected  5 rows per arm" in result.stdout
    assert call("validate", "recipe.yaml", "--no-estimates").stdout == "recipe.yaml is valid.\n"


def test_validate_shows_warnings(data: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "recipe.yaml").write_text(RECIPE)
    monkeypatch.setattr(
        tunesmith.recipe.estimating, "estimate", lambda recipe: Estimate(warnings=["look out"])
    )
    assert call("validate", "recipe.yaml").stdout.endswith("warning: look out\n")


def test_validate_lists_every_problem(data: str, folder: Path) -> None:
    (folder / "recipe.yaml").write_text(RECIPE + "curate: [{type: dedupe}]\nevaluate: []\n")
    result = call("validate", "recipe.yaml", "select.type=rando")
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert lines[0].startswith("recipe.yaml:4:11: There is no method named 'curate.dedupe'.")
    assert lines[1].startswith("override 'select.type=rando': There is no method named 'select.rando'.")


def test_validate_of_missing_data_is_code_2(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(RECIPE)
    result = call("validate", "recipe.yaml")
    assert result.exit_code == 2
    assert result.stderr.startswith("recipe.yaml cannot run here: there is no file data.jsonl.")


def test_init_writes_what_loads(data: str) -> None:
    printed = call("init", data)
    assert printed.exit_code == 0
    assert load(printed.stdout).recipe.data.train == data
    written = call("init", data, "--out", "mine.yaml")
    assert written.stdout == (
        "Wrote mine.yaml. Check it with `tunesmith validate mine.yaml`, run it with `tunesmith run mine.yaml`.\n"
    )
    assert Path("mine.yaml").read_text() == printed.stdout
    again = call("init", data, "--out", "mine.yaml")
    assert (again.exit_code, again.stderr) == (
        2,
        "mine.yaml exists already and is not replaced. Name another file, or remove it first.\n",
    )


def test_schema_is_json() -> None:
    assert json.loads(call("schema").stdout)["title"] == "Recipe"


def test_report_of_what_is_no_run(folder: Path) -> None:
    result = call("report", "nowhere")
    assert isinstance(result.exception, SystemExit)
    assert result.exit_code == 1
    assert "nowhere" in result.stderr


def test_report_writes_the_page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.recipe.report import page

    monkeypatch.setattr(page, "write_report", lambda directory: directory / "report.html")
    assert call("report", "run").stdout == "Report: run/report.html\n"


def test_methods() -> None:
    result = call("methods")
    assert result.exit_code == 0
    assert "select.mig" in result.stdout
    assert "tunesmith.select.MIGSelector" in result.stdout
    for pattern in ("select", "select.*"):
        lines = call("methods", pattern).stdout.splitlines()
        assert all(line.startswith(("select.", " ")) for line in lines[2:])
    result = call("methods", "selct")
    assert result.exit_code == 2
    assert result.stderr.startswith("There is no method or family named 'selct'. Did you mean 'select'?")


def test_papers_list() -> None:
    lines = call("papers", "list").stdout.splitlines()
    assert sum(not line.startswith(" ") for line in lines) == 2 + 41
    assert "mig " in call("papers", "list", "--status", "working").stdout
    assert "depict" in call("papers", "list", "--family", "cluster").stdout
    result = call("papers", "list", "--status", "done")
    assert result.exit_code == 2
    assert result.stderr == (
        "There is no status named 'done'. Valid names: planned, reconstruction, working.\n"
    )


def test_papers_search() -> None:
    assert call("papers", "search", "information", "gain").stdout.splitlines()[2].startswith("mig ")
    result = call("papers", "search", "zebra", "finch")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "No paper has 'zebra finch'.\n")


def test_papers_show() -> None:
    text = call("papers", "show", "2504.13835").stdout
    assert "6 authors, 2025-04-18, https://arxiv.org/abs/2504.13835" in text
    assert "Status: working." in text
    assert "In Python: tunesmith.select.MIGSelector" in text
    assert "Status: planned (a reconstruction)." in call("papers", "show", "ihas").stdout
    result = call("papers", "show", "levy")
    assert result.exit_code == 2
    assert result.stderr.startswith("There is no paper named 'levy'. Did you mean 'levi'?")


def test_papers_show_a_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    from tunesmith import papers

    card = dataclasses.replace(papers.get("mig"), claim=papers.Claim("holds", "python x.py"), note="look")
    monkeypatch.setattr(papers, "get", lambda name: card)
    assert call("papers", "show", "mig").stdout.endswith(
        "Note: look\nClaim at small scale: holds\n  python x.py\n"
    )


def test_version_and_usage() -> None:
    assert call("--version").stdout == f"tunesmith {tunesmith.__version__}\n"
    result = call("slect")
    assert result.exit_code == 2
    assert "No such command 'slect'" in result.stderr
    assert call("papers").stderr == "" or "Usage: " in call("papers").output


def test_the_exit_code_is_that_of_the_error(ran: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(TunesmithError):
        exit_code = 7

    monkeypatch.setattr(tunesmith.recipe.runner, "run", _failing(Odd("odd")))
    assert call("run", "recipe.yaml").exit_code == 7
