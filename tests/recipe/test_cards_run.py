"""The cards that a run writes at its end: true to its files, free of paths and rows, and the code on them works."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import DatasetCard, DatasetCardData, ModelCard, ModelCardData

from tunesmith.core.errors import RunDirectoryError
from tunesmith.core.events import EventLog, read_events
from tunesmith.engine.logits import fixed_batch, logits_of
from tunesmith.recipe import Recipe, run
from tunesmith.recipe.cards import data_card, model_card, placing, write_card
from tunesmith.recipe.report.answer import comparison, headline
from tunesmith.recipe.report.files import RunFiles
from tunesmith.trainers import load_tuned

WORDS = ["red", "green", "blue", "cat", "dog", "bird", "sun", "moon", "star"]
SECRET = "zanzibar"  # stands in every row


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: Any, tiny_model_dir: str, write_jsonl: Any) -> Path:
    folder = tmp_path_factory.mktemp("private-place")
    draw = random.Random(0)
    rows = [
        {"prompt": f"{SECRET} {i}: {' '.join(draw.sample(WORDS, 3))}", "completion": draw.choice(WORDS)}
        for i in range(24)
    ]
    write_jsonl(folder / "pool.jsonl", rows + rows[:3])
    text = {
        "name": "tiny",
        "model": {"id": tiny_model_dir, "dtype": "float32"},
        "data": {"train": str(folder / "pool.jsonl")},
        "curate": [{"type": "dedup"}],
        "select": {"type": "random", "budget": 8},
        "tuner": {"type": "lora", "r": 2},
        "train": {"type": "sft", "batch_size": 4, "learning_rate": 0.01, "loss": "all"},
        "evaluate": [{"type": "perplexity"}],
        "compare": {"train.loss": ["completion", "all"], "seeds": [0]},
        "export": {"merged": False},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(text))
    return path


@pytest.fixture(scope="module")
def done(recipe: Path, tmp_path_factory: Any) -> Path:
    """A finished run. Its map would take a sentence encoder, and its report a second for figures."""
    from tunesmith.recipe import runner

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner._Run, "_wants_map", lambda self: False)
        patch.setattr(runner, "_report", lambda directory: directory.path / "report.html")
        run(recipe, folder)
    return folder


@pytest.fixture
def readme(done: Path) -> str:
    return (done / "model" / "weights" / "README.md").read_text()


def test_the_models_card_takes_the_place_of_the_blank_template(done: Path, readme: str) -> None:
    assert "[More Information Needed]" in next(done.glob("arms/*/*/train/tuned/README.md")).read_text()
    assert "[More Information Needed]" not in readme
    assert "# Model Card for Model ID" not in readme
    assert not (done / "cards" / "model.md").exists()
    assert [e for e in read_events(done / "events.jsonl") if "card" in str(e.get("message"))] == []


def test_the_head_is_what_the_run_did(done: Path, readme: str) -> None:
    head = ModelCard(readme).data.to_dict()
    assert head["library_name"] == "peft"
    assert head["pipeline_tag"] == "text-generation"
    assert head["tags"] == ["tunesmith", "dedup", "random", "lora"]
    # neither base nor data is known on the Hub, and no licence is
    assert not {"base_model", "base_model_relation", "datasets", "license", "language"} & set(head)
    files = RunFiles(done)
    place = json.loads((done / "model" / "export.json").read_text())["from"]
    scores = json.loads((done / place).parent.joinpath("evaluate", "scores.json").read_text())
    (model,) = head["model-index"]
    (result,) = model["results"]
    assert model["name"] == "tiny"
    assert result["task"] == {"type": "text-generation"}
    assert result["dataset"]["split"] == "held out of train"
    assert result["dataset"]["args"] == {"sha256": files.lock["hashes"]["train"]}
    assert result["metrics"] == [
        {
            "type": "perplexity",
            "name": "perplexity",
            "value": scores["perplexity"]["value"],
            "verified": False,
        }
    ]


def test_the_heads_hold_only_what_the_hub_documents(done: Path) -> None:
    model = ModelCard.load(done / "model" / "weights" / "README.md").data
    data = DatasetCard.load(done / "cards" / "data.md").data
    for values, kind in ((model, ModelCardData), (data, DatasetCardData)):
        known = {*inspect.signature(kind).parameters, "base_model_relation", "tags", "model-index"}
        assert set(values.to_dict()) <= known
    assert model.eval_results is not None
    assert data.to_dict()["size_categories"] == ["n<1K"]


def test_no_path_and_no_row_is_in_a_card(done: Path, recipe: Path, readme: str, tiny_model_dir: str) -> None:
    data = (done / "cards" / "data.md").read_text()
    for text in (readme, data):
        for part in (*recipe.parent.parts[1:], *done.parts[1:-1], *Path(tiny_model_dir).parts[1:-1], SECRET):
            assert part not in text, part
        assert "pool.jsonl" in text
        assert RunFiles(done).lock["hashes"]["train"] in text


def test_the_evaluation_is_the_reports(done: Path, readme: str) -> None:
    files = RunFiles(done)
    assert headline(files)["sentence"].replace("[", "\\[").replace("]", "\\]") in readme
    blocks = comparison(files, dict.fromkeys(["completion", "all", "base"], "#010101"), draw=False)["blocks"]
    assert len(blocks[0]["rows"]) == 3
    for row in blocks[0]["rows"]:
        for cell in row["cells"].values():
            assert f"{cell['text']}, {cell['p']} |" in readme
    assert files.compare is not None
    assert files.compare["best"] in files.arms


def test_rows_are_counted_from_reading_to_training(done: Path, readme: str) -> None:
    left = len(RunFiles(done).pool)
    assert "| read | 27 | 27 |  |" in readme
    kept = int(re.search(r"\| test rows set aside \| 27 \| (\d+) \| set aside", readme).group(1))  # type: ignore[union-attr]
    assert f"| dedup | {kept} | {left} | the same text as an earlier row: {kept - left} |" in readme
    assert f"| chosen by random | {left} | 8 | budget 8 rows |" in readme
    assert re.search(r"\| trained on \(\w+\) \| 8 \| 8 \|  \|", readme)


def test_settings_cost_and_machine_are_there(done: Path, readme: str) -> None:
    arm = json.loads((done / "model" / "export.json").read_text())["from"].split("/")[1]
    facts = json.loads((done / "arms" / arm / "seed-0" / "train" / "train.json").read_text())
    assert f"| hardware | {facts['hardware']} |" in readme
    assert f"| loss on | {arm} |" in readme  # of the arm, not of the recipe
    assert "| r | 2 |" in readme
    assert f"| {arm} | 0 | {facts['steps']} | {facts['tokens']} |" in readme
    assert "The whole run took" in readme


def test_what_was_not_checked_is_said(readme: str) -> None:
    part = readme.partition("## What has not been checked")[2].partition("\n## ")[0]
    for start in ("Spread between seeds: 1 seed", "Forgetting:", "Safety:", "Licence of the base model: unknown.",
                  "Near-duplicates:", "Test rows in the training rows:", "Secrets and personal data:",
                  "Licence of the data (pool.jsonl): unknown."):  # fmt: skip
        assert f"- {start}" in part
    assert "Quality:" not in part
    assert "Against the base model:" not in part
    assert "The licence of the base model is unknown: state it before you publish." in readme
    assert "`base_model_name_or_path` in adapter_config.json names a place" in readme
    assert "- Novelty: not examined what tuning added to the model." in readme


def test_papers_and_recipe_are_there(readme: str) -> None:
    assert "[arXiv 2106.09685](https://arxiv.org/abs/2106.09685) (tuner.lora)" in readme
    block = re.search(r"```yaml\n(.*?)\n```", readme, re.DOTALL).group(1)  # type: ignore[union-attr]
    lock = yaml.safe_load(block)
    assert lock["recipe"]["data"]["train"] == "pool.jsonl"
    assert lock["recipe"]["train"]["learning_rate"] == 0.01
    assert set(lock) == {"recipe", "versions", "hashes"}


def code(text: str) -> str:
    return re.search(r"```python\n(.*?)\n```", text, re.DOTALL).group(1)  # type: ignore[union-attr]


def test_the_code_on_the_card_loads_the_model(
    done: Path, readme: str, tiny_model_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").symlink_to(done / "model")
    (tmp_path / Path(tiny_model_dir).name).symlink_to(tiny_model_dir)
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(code(readme), found)
    model = load_tuned(done / "model" / "weights", tiny_model_dir, dtype="float32")
    batch = fixed_batch(model)
    assert torch.equal(logits_of(found["model"].float(), batch), logits_of(model, batch))
    assert found["answer"].ndim == 1


def test_the_code_on_the_data_card_reads_the_rows(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (done / "cards" / "data.md").read_text()
    monkeypatch.chdir(done)
    found: dict[str, Any] = {}
    exec(code(text), found)
    assert len(found["rows"]) == 8
    assert SECRET in found["rows"][0]["messages"][0]["content"]


def test_the_data_card(done: Path) -> None:
    card = data_card(done)
    assert isinstance(card, DatasetCard)
    assert f"{str(card).rstrip()}\n" == (done / "cards" / "data.md").read_text()
    assert card.data.to_dict() == {
        "pretty_name": "tiny: training rows",
        "size_categories": ["n<1K"],
        "task_categories": ["text-generation"],
        "tags": ["tunesmith", "dedup", "random"],
    }
    assert "| messages | list of {role: string, content: string} | 8 |" in card.text
    assert str(data_card(done, examples=2)).count(f"{SECRET} ") == 2
    first = re.search(r"\| chosen \| 8 \| pool.jsonl \| ([0-9a-f]{64}) \|", card.text)
    assert first


def test_a_run_again_touches_no_card(recipe: Path, done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.recipe import runner

    monkeypatch.setattr(runner._Run, "_wants_map", lambda self: False)
    monkeypatch.setattr(runner, "_report", lambda directory: directory.path / "report.html")
    cards = [done / "model" / "weights" / "README.md", done / "cards" / "data.md"]
    before = [(path.stat().st_mtime_ns, path.stat().st_ino) for path in cards]
    events = len(list(read_events(done / "events.jsonl")))
    run(recipe, done)
    again = list(read_events(done / "events.jsonl"))[events:]
    assert {e["status"] for e in again if e["kind"] == "stage"} == {"skipped"}
    assert [(path.stat().st_mtime_ns, path.stat().st_ino) for path in cards] == before


def test_a_card_that_fails_does_not_fail_the_run(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[dict[str, Any]] = []
    monkeypatch.setattr(placing, "model_card", lambda root: 1 / 0)
    placing.write_cards(done, Recipe.model_validate(RunFiles(done).recipe), EventLog(None, [heard.append]))
    assert [e["message"] for e in heard] == ["The model card could not be written: division by zero"]


def test_an_audit_is_added_to_the_card_of_a_run(done: Path, tmp_path: Path, readme: str) -> None:
    from tunesmith.audit import Report

    verdict = (
        "The tuned model has 2 kinds of text that the model before it finds unlikely, above all: zanzibar."
    )
    numbers = {"texts": 40, "rate": (0.5, 0.25, 0.75)}
    report = Report("novelty", "tiny", "suspicious", verdict, numbers, notes=["Kept | so."])
    report.save(tmp_path / "audit")
    shutil.copytree(done / "model" / "weights", tmp_path / "weights")
    for place in (done, done / "model" / "weights"):  # the weights of a run are known as such
        text = str(model_card(place, audits=[tmp_path / "audit"]))
        assert "**novelty** of tiny: suspicious. The tuned model has 2 kinds of text" in text
        assert SECRET not in text  # words that a model generated may be words of the data
        assert (
            "| texts | 40 |\n| rate | 0.500 [0.250, 0.750] |".replace("[", "\\[").replace("]", "\\]") in text
        )
        assert "- Kept | so." in text
        assert "- Novelty:" not in text
        assert "- Backdoor:" in text
    path = done / "model" / "weights" / "README.md"
    try:  # and it stays there when the run is run again
        write_card(model_card(done, audits=[tmp_path / "audit"]), path)
        assert "suspicious" in path.read_text()
        before = path.stat().st_ino
        placing.write_cards(done, Recipe.model_validate(RunFiles(done).recipe), EventLog(None))
        assert path.stat().st_ino == before
        path.write_text(path.read_text().replace("| r | 2 |", "| r | 4 |"))  # of another training
        placing.write_cards(done, Recipe.model_validate(RunFiles(done).recipe), EventLog(None))
        assert path.read_text() == readme
    finally:
        path.write_text(readme)
    # a copy elsewhere has lost the run: what its card says of the run stays, the audits are renewed
    write_card(
        model_card(tmp_path / "weights", audits=[tmp_path / "audit"]), tmp_path / "weights" / "README.md"
    )
    moved = (tmp_path / "weights" / "README.md").read_text()
    start, end = "<!-- tunesmith:model begin", "<!-- tunesmith:model end -->"
    assert moved[moved.index(start) : moved.index(end)] == readme[readme.index(start) : readme.index(end)]
    assert ModelCard(moved).data.to_dict() == ModelCard(readme).data.to_dict()
    assert "suspicious" in moved


def test_no_card_of_a_run_that_is_not_whole(done: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    copy.mkdir()
    shutil.copy(done / "recipe.lock.yaml", copy)
    lines = (done / "events.jsonl").read_text().splitlines()
    failed = {
        "kind": "run",
        "status": "failed",
        "error": "TrainingError: The loss is not finite (nan) at step 3.",
    }
    for more, sentence in (
        ([], "The run has not finished: it is still running, or was interrupted. Its last stage is export."),
        ([json.dumps(failed)], "The run failed: TrainingError: The loss is not finite (nan) at step 3."),
    ):
        cut = next(i for i, line in enumerate(lines) if '"export"' in line and '"finished"' in line)
        (copy / "events.jsonl").write_text("\n".join([*lines[:cut], *more]) + "\n")
        for make in (model_card, data_card):
            with pytest.raises(RunDirectoryError) as caught:
                make(copy)
            assert str(caught.value) == (
                f"No card is written of {copy}: a card is to be published, and this run is not whole. {sentence} Run "
                "the same command again to continue it, then write the card."
            )
