"""``tunesmith card``: what is written where, what is kept, and what is said when something is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from typer.testing import CliRunner, Result

from tunesmith.cli import app


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["card", *map(str, arguments)], env={"COLUMNS": "100"})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder of weights as a person has it: with an adapter's config and words of their own."""
    folder = tmp_path / "my-adapter"
    folder.mkdir()
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "owner/base"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n\nMy words.\n")
    return folder


def report(folder: Path, audit: str, level: str = "clean") -> Path:
    folder.mkdir()
    values = {"audit": audit, "subject": "my-adapter", "level": level, "verdict": f"The {audit} says so."}
    (folder / "report.json").write_text(json.dumps({**values, "numbers": {"texts": 40}, "notes": []}))
    return folder


def test_audits_are_added_to_a_readme(model: Path, tmp_path: Path) -> None:
    audits = [report(tmp_path / "one", "novelty", "unsure"), report(tmp_path / "two", "drift")]
    result = call(model, "--audit", audits[0], "--audit", audits[1])
    assert result.exit_code == 0, result.output
    assert result.stdout == f"Wrote {model / 'README.md'}\n"
    text = (model / "README.md").read_text()
    assert text.startswith("---\nlicense: mit\n")
    assert "\n---\n# Mine\n\nMy words.\n\n<!-- tunesmith:model begin" in text
    head = ModelCard(text).data.to_dict()
    assert (head["license"], head["base_model"], head["base_model_relation"]) == (
        "mit",
        "owner/base",
        "adapter",
    )
    assert "**novelty** of my-adapter: unsure. The novelty says so." in text
    assert "- Novelty: examined, but there was not enough to say." in text
    assert "- Drift:" not in text
    assert "[arXiv 2410.14765]" in text
    assert call(model).exit_code == 0
    again = (model / "README.md").read_text()
    assert "The novelty says so." not in again
    assert again.partition("<!--")[0].endswith("# Mine\n\nMy words.\n\n")


def test_the_card_goes_where_it_is_told_to(model: Path, tmp_path: Path) -> None:
    before = (model / "README.md").read_bytes()
    result = call(model, "--out", tmp_path / "deep" / "card.md")
    assert result.exit_code == 0, result.output
    assert (model / "README.md").read_bytes() == before
    assert "# my-adapter" in (tmp_path / "deep" / "card.md").read_text()


def test_the_card_of_the_rows(tmp_path: Path) -> None:
    import numpy as np
    from datasets import Dataset

    run = tmp_path / "run"
    Dataset.from_dict({"text": ["a", "b", "c"]}).save_to_disk(str(run / "curate" / "dataset"))
    place = run / "arms" / "random" / "seed-0" / "select"
    place.mkdir(parents=True)
    np.save(place / "indices.npy", np.array([2, 0]))
    lock = {"recipe": {"name": "small", "data": {"train": "demo:messy"}, "select": {"type": "random"}}}
    (run / "recipe.lock.yaml").write_text(json.dumps(lock))
    (run / "events.jsonl").write_text(json.dumps({"kind": "run", "status": "finished"}) + "\n")
    result = call(run, "--data", "--examples", "1")
    assert result.exit_code == 0, result.output
    text = (run / "cards" / "data.md").read_text()
    assert result.stdout == f"Wrote {run / 'cards' / 'data.md'}\n"
    assert "| chosen | 2 | demo:messy |" in text
    assert '"text": "c"' in text
    assert '"text": "a"' not in text
    result = call(run)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"The run in {run} trained no model, so there is no model card.")


def test_what_is_wrong_is_said(model: Path, tmp_path: Path) -> None:
    def said(*arguments: str | Path, code: int) -> str:
        before = (model / "README.md").read_bytes()
        result = call(*arguments)
        assert (result.exit_code, result.stdout) == (code, "")
        assert (model / "README.md").read_bytes() == before
        return result.stderr

    assert said(tmp_path, code=2).startswith(
        f"The folder {tmp_path} holds neither a run (events.jsonl) nor a model"
    )
    assert said(model, "--audit", tmp_path, code=1) == (
        f"{tmp_path}: there is no report.json; give a folder that an audit wrote.\n"
    )
    assert said(model, "--data", code=1) == (
        f"The folder {model} holds no run: neither events.jsonl nor recipe.lock.yaml is there.\n"
    )
    assert said(model, "--data", "--audit", tmp_path, code=2).startswith(
        "The '--audit' parameter of tunesmith card must be left out with --data: audits look at models. Got "
    )
    assert said(model, "--examples", "2", code=2) == (
        "The '--examples' parameter of tunesmith card must be given with --data only. Got 2 instead.\n"
    )
    (model / "README.md").write_text("---\nlicense: [mit\n---\n")
    assert said(model, code=1).startswith(
        f"{model / 'README.md'}: the YAML head of the README cannot be read in line 2"
    )
    (model / "README.md").write_text("<!-- tunesmith:model end -->")
    assert "must stand once each" in said(model, code=1)
