"""What cards say of runs of other kinds: compared arms, sources of the Hub, secrets in recipes, folders of weights."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard

from tunesmith.core.errors import DataError, MissingModelError, ParameterError, RunDirectoryError
from tunesmith.core.files import hash_json, hash_text
from tunesmith.engine.machine import machine_name
from tunesmith.recipe.cards import card_path, data_card, model_card
from tunesmith.recipe.cards.data import size_category
from tunesmith.recipe.cards.facts import papers_of
from tunesmith.recipe.cards.kinds import kind_of
from tunesmith.recipe.cards.origins import data_origin, model_origin, names_only, scrubbed
from tunesmith.recipe.cards.pages import rendered
from tunesmith.recipe.report.files import RunFiles

sys.path.append(str(Path(__file__).parents[1] / "report"))
from fake_run import HOSTILE, fail_in_training, read_events, write_events, write_run


def files_of(folder: Path, recipe: dict[str, Any], hashes: dict[str, str]) -> RunFiles:
    folder.mkdir(exist_ok=True)
    (folder / "recipe.lock.yaml").write_text(json.dumps({"recipe": recipe, "hashes": hashes}))
    return RunFiles(folder)


def test_a_source_of_the_hub_is_told_from_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = hash_json([hash_text("owner/model", "main"), False])
    hub = files_of(tmp_path / "hub", {"data": {"train": "owner/set#train"}, "model": {"id": "owner/model"}},
                   {"train": hash_text("owner/set#train"), "model": model})  # fmt: skip
    data, base = data_origin(hub, "train"), model_origin(hub)
    assert data is not None
    assert base is not None
    assert (data.name, data.hub_id, data.local) == ("owner/set#train", "owner/set", False)
    assert (base.name, base.hub_id, base.local) == ("owner/model", "owner/model", False)
    # the same names stood for folders then, as their hashes say, wherever the card is written now
    local = files_of(tmp_path / "local", hub.recipe, {"train": "0" * 64, "model": "1" * 64})
    data, base = data_origin(local, "train"), model_origin(local)
    assert data is not None
    assert base is not None
    assert (data.name, data.hub_id, data.local) == ("set#train", None, True)
    assert (base.name, base.hub_id, base.digest) == ("model", None, "1" * 64)
    demo = data_origin(files_of(tmp_path / "demo", {"data": {"train": "demo:messy"}}, {}), "train")
    assert demo is not None
    assert (demo.name, demo.hub_id, demo.local) == ("demo:messy", None, False)
    assert data_origin(hub, "test") is None


def test_the_licence_is_that_of_the_bases_own_card(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    files = files_of(tmp_path / "run", {"model": {"id": str(folder)}, "data": {"train": "x"}}, {"model": "0"})
    assert model_origin(files).license is None  # type: ignore[union-attr]
    (folder / "config.json").write_text('{"license": "mit"}')
    assert model_origin(files).license == "mit"  # type: ignore[union-attr]
    (folder / "README.md").write_text("---\nlicense: gpl-3.0\nlanguage: [de]\n---\n# x")
    assert model_origin(files).license == "gpl-3.0"  # type: ignore[union-attr]
    assert model_origin(files).facts["language"] == ["de"]  # type: ignore[union-attr]


def test_paths_and_secrets_are_hidden(tmp_path: Path) -> None:
    recipe = {
        "data": {"train": "/home/ann/clients/acme.jsonl", "test": "clients/acme-test.jsonl"},
        "model": {"id": "../models/acme"},
        "curate": [{"type": "clear", "api_key": "abc", "endpoint": "https://ann:pw@host/v1", "note": "in ~/x/y.txt"}],
        "features": {"encoder": r"C:\models\enc"},
        "train": {"mask_token": "<mask>", "max_new_tokens": 4, "hub_token": "t", "chars": "a/b/c"},
        "select": {"key": "hf_abcdefghijklmnopqrstuvwx"},
    }  # fmt: skip
    hashes = {"train": "0" * 64, "test": "1" * 64, "model": "2" * 64}
    found = scrubbed(files_of(tmp_path / "run", recipe, hashes))
    assert found == {
        "data": {"train": "acme.jsonl", "test": "acme-test.jsonl"},
        "model": {"id": "acme"},
        "curate": [
            {"type": "clear", "api_key": "(hidden)", "endpoint": "https://host/v1", "note": "in y.txt"}
        ],
        "features": {"encoder": "enc"},
        "train": {"mask_token": "<mask>", "max_new_tokens": 4, "hub_token": "(hidden)", "chars": "c"},
        "select": {"key": "(hidden)"},
    }
    assert names_only("from /home/ann/a b.txt and https://x.org/a/b, either/or, 1/2") == (
        "from a b.txt and https://x.org/a/b, either/or, 1/2"
    )


def test_texts_of_the_data_cannot_break_the_page(tmp_path: Path) -> None:
    mark = "<!-- tunesmith:audits end -->"
    report = {"audit": "x|y", "subject": mark, "level": "clean", "verdict": HOSTILE, "notes": [mark]}
    numbers = [("a|b\nc", mark)]
    text = rendered("audits.md.j2", reports=[{**report, "numbers": numbers}], missing=[mark])
    assert "<!--" not in text
    assert "<script>" not in text
    assert "| a\\|b c | &lt;!-- tunesmith:audits end --&gt; |" in text


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three arms and three seeds whose folder has no weights."""
    return write_run(tmp_path_factory.mktemp("runs") / "compared")


def test_arms_are_compared_with_their_intervals(compared: Path) -> None:
    text = str(model_card(compared))
    head = ModelCard(text).data.to_dict()
    assert head["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert (head["license"], head["language"]) == ("apache-2.0", "en")
    assert "base_model_relation" not in head  # there are no weights to say it of
    pairs = json.loads((compared / "compare.json").read_text())["pairs"]
    for pair in pairs:
        if pair["metric"] == "task_score":
            assert f"{pair['delta']:+.2f}"[:4] in text
    assert "MIG beats random by" in text
    assert "The weights of this card (MIG, seed 0) scored: task score" in text
    assert text.count("Differences are in nats per held-out token.") == 1  # of perplexity
    assert "- Against the base model:" not in text
    assert "- Spread between seeds:" not in text
    assert "The weights are not in the run's directory any more" in text
    assert "[arXiv 2504.13835](https://arxiv.org/abs/2504.13835) (select.mig)" in text
    assert HOSTILE not in text
    assert "lighthouse keeper" not in text
    assert card_path(compared) == compared / "cards" / "model.md"


def test_the_rows_by_column_and_their_columns(compared: Path) -> None:
    text = str(data_card(compared))
    rows = RunFiles(compared).pool.select(np.load(compared / "arms/mig/seed-0/select/indices.npy"))
    for family in set(rows["family"]):
        n = list(rows["family"]).count(family)
        assert (
            f"| {family.replace('_', chr(92) + '_')} | {n} | {100 * n / 40:.{0 if n > 3 else 1}f} % |" in text
        )
    assert "| dedup | 457 | 400 | exact copy: 31; near copy: 26 |" in text
    assert "| test rows taken out of the pool | 460 | 457 | also among the test rows: 3 |" in text
    assert "| chosen by mig | 400 | 40 | budget 10%; threshold 0.9 |" in text
    assert "lighthouse" not in text
    assert "Other ways to choose that the same run compared: random, kmeans." in text


def test_what_is_no_run_is_refused(tmp_path: Path, compared: Path) -> None:
    def message(make: Any, *given: Any, error: Any = RunDirectoryError, **named: Any) -> str:
        with pytest.raises(error) as caught:
            make(*given, **named)
        return str(caught.value)

    assert message(data_card, tmp_path / "none") == f"There is no run directory {tmp_path / 'none'}."
    assert message(data_card, tmp_path) == (
        f"The folder {tmp_path} holds no run: neither events.jsonl nor recipe.lock.yaml is there."
    )
    assert message(model_card, tmp_path / "none", error=MissingModelError) == (
        f"There is no folder {tmp_path / 'none'}."
    )
    assert message(model_card, tmp_path, error=MissingModelError) == (
        f"The folder {tmp_path} holds neither a run (events.jsonl) nor a model: none of adapter_config.json, "
        "config.json and *.safetensors is there. Give the directory of a run, or the folder that save_pretrained wrote."
    )
    assert message(data_card, compared, examples=-1, error=ParameterError) == (
        "The 'examples' parameter of data_card must be an int >= 0. Got -1 instead."
    )
    (tmp_path / "config.json").write_text("[]")
    assert message(kind_of, tmp_path, error=MissingModelError) == (
        f"The model's {tmp_path / 'config.json'} cannot be read: it holds no mapping of names to values."
    )
    (tmp_path / "config.json").write_text("{")
    assert message(kind_of, tmp_path, error=MissingModelError).startswith(
        f"The model's {tmp_path / 'config.json'} cannot be read: Expecting property name"
    )


def test_what_a_run_lost_is_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", arms=["mig"], seeds=[0], n_pool=60, n_test=6, budget=6)
    text = str(model_card(run))
    assert "- Against a random choice: no arm trained on randomly chosen rows of the same number." in text
    lock = (run / "recipe.lock.yaml").read_text()
    (run / "arms/mig/seed-0/select/indices.npy").unlink()
    with pytest.raises(RunDirectoryError) as caught:
        data_card(run)
    assert str(caught.value) == (
        f"The chosen rows are not in {run} any more: it needs curate/dataset and arms/mig/seed-0/select/indices.npy."
    )
    (run / "recipe.lock.yaml").write_text(
        lock.replace("  train: {type: sft}\n", "").replace("evaluate", "#evaluate")
    )
    with pytest.raises(RunDirectoryError) as caught:
        model_card(run)
    assert str(caught.value) == (
        f"The run in {run} trained no model, so there is no model card. The card of the rows that it chose is "
        f"written by `tunesmith card {run} --data`."
    )
    (run / "recipe.lock.yaml").write_text(lock.replace("  tuner:", "  tunerr:"))
    with pytest.raises(RunDirectoryError, match=r"The recipe in .*recipe\.lock\.yaml cannot be read: "):
        model_card(run)
    (run / "recipe.lock.yaml").write_text("recipe: [")
    with pytest.raises(
        RunDirectoryError, match=r"^The recipe in .*recipe\.lock\.yaml is missing or damaged\.$"
    ):
        model_card(run)
    write_events(run, [*read_events(run)[:1], {"kind": "run", "status": "finished"}])
    (run / "recipe.lock.yaml").write_text(lock)
    shutil.rmtree(run / "arms")
    with pytest.raises(RunDirectoryError) as caught:
        data_card(run)
    assert (
        str(caught.value)
        == f"The run in {run} chose no rows and trained nothing: there is nothing for a card."
    )


def test_a_failed_training_has_no_card(tmp_path: Path) -> None:
    run = fail_in_training(write_run(tmp_path / "run", seeds=[0], n_pool=60, n_test=6, budget=6), "mig", 0)
    with pytest.raises(
        RunDirectoryError, match=r"The run failed in the stage train of MIG \(seed 0\): TrainingError"
    ):
        model_card(run)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "{folder}: there is no report.json; give a folder that an audit wrote."),
        ("{", "{file}: the report cannot be read: Expecting property name enclosed in double quotes: line 1 column 2 "
              "(char 1)"),
        ('{"audit": "novelty"}',
         "{file}: this is no report of an audit: it must have the texts audit, subject, level, verdict."),
    ],
)  # fmt: skip
def test_a_report_that_cannot_be_read_is_told(text: str | None, said: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "report.json").write_text(text)
    with pytest.raises(DataError) as caught:
        model_card(tmp_path, audits=[tmp_path])
    assert str(caught.value) == said.format(folder=tmp_path, file=tmp_path / "report.json")


def test_papers_of_methods() -> None:
    found = papers_of(
        ["select.mig", "select.random", "tuner.hft", "train.masked", "audit.novelty", "curate.none"]
    )
    assert [(paper["arxiv"], paper["used"]) for paper in found] == [
        ("2504.13835", "select.mig"),
        (papers_of(["tuner.hft"])[0]["arxiv"], "tuner.hft"),
        (papers_of(["train.masked"])[0]["arxiv"], "train.masked"),
        ("2410.14765", "audit.novelty"),
    ]


def test_categories_of_size() -> None:
    counts = [0, 999, 1_000, 9_999, 10_000, 999_999, 1_000_000, 999_999_999, 1_000_000_000]
    assert [size_category(n) for n in counts] == [
        "n<1K", "n<1K", "1K<n<10K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "100M<n<1B", "n>1B",
    ]  # fmt: skip


def test_the_machine_is_named_without_its_host() -> None:
    import platform

    assert re.fullmatch(r".+, \d+ cores?(, .+)?", machine_name())
    assert platform.node() not in machine_name()
