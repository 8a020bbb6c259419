"""Estimates: counted where counting is cheap, never a model loaded, and warnings before the run."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.core.errors import ConfigError, DataError, MissingModelError
from tunesmith.recipe import Estimate, estimate, estimating, load
from tunesmith.recipe.estimating import count_rows
from tunesmith.recipe.footprint import matmul_speed, model_size, tokenizer_at_hand
from tunesmith.recipe.schema import ModelSpec, TunerSpec


@pytest.fixture(autouse=True)
def fixed_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimating, "matmul_speed", lambda dtype: 1e9)


@pytest.fixture
def pool(tmp_path: Path, write_jsonl: Any) -> str:
    return write_jsonl(
        tmp_path / "pool.jsonl", ({"prompt": f"count to {i}", "completion": "1 2 3"} for i in range(40))
    )


def recipe(pool: str, model: str, **blocks: Any) -> Any:
    values: dict[str, Any] = {
        "data": {"train": pool},
        "model": {"id": model, "dtype": "float32"},
        "select": {"type": "random", "budget": 0.5},
        "tuner": {"type": "lora", "r": 2},
        "train": {"batch_size": 4, "epochs": 2, "max_length": 64},
    }
    return load({**values, **blocks}).recipe


def test_the_size_of_a_model_is_that_of_its_weights(tiny_model_dir: str) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    size = model_size(ModelSpec(id=tiny_model_dir, dtype="float32"), TunerSpec(type="full"))
    assert size.parameters == size.trainable == model.num_parameters()
    assert (size.layers, size.hidden, size.vocabulary) == (2, 64, model.config.vocab_size)
    assert (size.dtype, size.bytes_each) == ("float32", 4)


@pytest.mark.parametrize("targets", [None, "all-linear", ["q_proj", "v_proj"]])
def test_the_trained_weights_are_those_of_peft(tiny_model_dir: str, targets: Any) -> None:
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    from tunesmith.tuners import peft_config

    parameters = {"r": 4} | ({} if targets is None else {"target_modules": targets})
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model_dir), peft_config("lora", **parameters)
    )
    size = model_size(ModelSpec(id=tiny_model_dir), TunerSpec(type="lora", **parameters))
    assert size.trainable == model.get_nb_trainable_parameters()[0]


def test_memory_counts_the_logits(tiny_model_dir: str) -> None:
    size = model_size(ModelSpec(id=tiny_model_dir, dtype="float32"), TunerSpec(type="full"))
    logits = 2 * 4 * 3 * 10 * size.vocabulary
    activations = 2 * 34 * 3 * 10 * 64 * 2
    assert size.logits_bytes(3, 10) == logits
    assert size.activation_bytes(3, 10) == activations
    assert size.training_bytes(3, 10) == 4 * 4 * size.parameters + activations + logits


def test_no_weight_is_read(tiny_model_dir: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(Path(tiny_model_dir, "config.json").read_bytes())
    assert model_size(ModelSpec(id=str(tmp_path))).parameters > 0


def test_a_configuration_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(MissingModelError, match=r"The folder .* holds no model: config\.json is missing\."):
        model_size(ModelSpec(id=str(tmp_path)))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(MissingModelError, match=r"The configuration of '.*' could not be read: "):
        model_size(ModelSpec(id=str(tmp_path)))


def test_the_tokenizer_is_used_where_it_is(tiny_model_dir: str, tmp_path: Path) -> None:
    assert tokenizer_at_hand(tiny_model_dir) is not None
    assert tokenizer_at_hand(str(tmp_path)) is None
    assert tokenizer_at_hand("nobody/nothing") is None


def test_the_speed_is_measured_within_its_time() -> None:
    import torch

    threads = torch.get_num_threads()
    assert matmul_speed("float32", seconds=0.05) > 1e6
    assert torch.get_num_threads() == threads


def test_a_whole_estimate(pool: str, tiny_model_dir: str) -> None:
    found = estimate(
        recipe(
            pool,
            tiny_model_dir,
            evaluate=[{"type": "exact_match", "max_new_tokens": 8}],
            compare={"select.type": ["random", "kmeans"], "seeds": [0, 1, 2]},
        )
    )
    assert (found.pool_rows, found.test_rows, found.exact) == (36, 4, True)
    assert (found.selected_rows, found.arms, found.seeds) == (18, ["random", "kmeans"], 3)
    assert found.tokens_how == "the model's tokenizer, 40 rows"
    assert found.train_tokens == pytest.approx(2 * 3 * 2 * 18 * found.tokens_per_row, abs=12)
    assert set(found.seconds) == {"embedding", "scoring", "training", "evaluation"}
    assert found.model is not None
    assert found.seconds["training"] == pytest.approx(4 * found.train_tokens * found.model.parameters / 0.5e9)
    assert found.memory_bytes > found.logits_bytes > 0
    assert found.warnings == []
    labels = [label for label, _ in found.rows()]
    assert labels[:4] == ["pool", "selected", "arms", "test"]
    assert labels[-2:] == ["memory", "disk"]


def test_without_a_model_only_rows_and_disk(pool: str) -> None:
    found = estimate(load({"data": {"train": pool}, "select": {"type": "random", "budget": 10}}).recipe)
    assert (found.pool_rows, found.selected_rows, found.model, found.seconds) == (40, 10, None, {})
    assert found.tokens_how == "4 characters a token, 40 rows"
    assert [label for label, _ in found.rows()] == ["pool", "selected", "arms", "disk"]


def test_full_tuning_takes_more_than_lora(pool: str, tiny_model_dir: str) -> None:
    lora = estimate(recipe(pool, tiny_model_dir))
    full = estimate(recipe(pool, tiny_model_dir, tuner={"type": "full"}))
    assert full.memory_bytes > lora.memory_bytes
    assert full.seconds["training"] == pytest.approx(1.5 * lora.seconds["training"])
    assert full.disk_bytes > lora.disk_bytes


def test_a_budget_beyond_the_pool(pool: str) -> None:
    with pytest.raises(
        ConfigError,
        match=r"The 'budget' parameter of select must be an int in \[1, 40\] or a float in \(0, 1\]\. Got 41 instead: "
        r"the pool has 40 rows\.",
    ):
        estimate(load({"data": {"train": pool}, "select": {"type": "random", "budget": 41}}).recipe)


def test_missing_data_and_missing_model(pool: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no file .*none\.jsonl"):
        estimate(load({"data": {"train": str(tmp_path / "none.jsonl")}}).recipe)
    with pytest.raises(MissingModelError, match=r"There is no model 'smollm'"):
        estimate(recipe(pool, "smollm"))


@pytest.mark.parametrize(
    ("blocks", "warning"),
    [
        (
            {"train": {"max_length": 8}},
            "100% of the sampled rows are longer than train.max_length = 8 tokens",
        ),
        ({"train": {"batch_size": 64}}, "20 selected rows do not fill one batch; there will be one step."),
        (
            {"compare": {"select.type": ["random", "mig"], "seeds": [0]}},
            "compare has fewer than three seeds; its intervals hardly cover the choice of the seed.",
        ),
    ],
)
def test_warnings(pool: str, tiny_model_dir: str, blocks: dict[str, Any], warning: str) -> None:
    assert any(w.startswith(warning) for w in estimate(recipe(pool, tiny_model_dir, **blocks)).warnings)


def test_too_little_memory_or_disk(pool: str, tiny_model_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimating, "free_memory", lambda: 1_000_000)
    monkeypatch.setattr(estimating, "free_disk", lambda: 1000)
    memory, disk = estimate(recipe(pool, tiny_model_dir)).warnings
    assert memory.startswith("The run needs about ")
    assert "of memory and there are 1.0 MB. Lower train.batch_size or train.max_length" in memory
    assert disk.endswith("and 1000 B are free.") or disk.endswith("and 1.0 kB are free.")


def test_unusable_rows_are_counted(tmp_path: Path, write_jsonl: Any) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a", "completion": "b"}] * 3 + [{"prompt": "a"}])
    found = estimate(load({"data": {"train": path}}).recipe)
    assert found.warnings == ["1 of the first 4 rows cannot be used."]
    assert found.pool_rows == 3


def test_rows_are_counted_without_reading_them(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"row {i}"}) for i in range(1500)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
    (tmp_path / "c.csv").write_text("text\n" + "\n".join(f"row {i}" for i in range(1500)) + "\n")
    (tmp_path / "d.json").write_text(f"[{','.join(lines)}]")
    assert count_rows(str(tmp_path / "a.jsonl"), 0, 10) == (1500, True)
    assert count_rows(str(tmp_path / "b.jsonl.gz"), 0, 10) == (1500, True)
    assert count_rows(str(tmp_path / "c.csv"), 0, 10) == (1500, False)
    count, exact = count_rows(str(tmp_path / "d.json"), 0, 18)
    assert not exact
    assert 1000 <= count <= 2000
    assert count_rows(str(tmp_path / "d.json"), 5000, 18)[0] == 5000
    found = estimate(load({"data": {"train": str(tmp_path / "a.jsonl")}}).recipe)
    assert (found.pool_rows, found.exact) == (1500, True)
    capped = estimate(load({"data": {"train": str(tmp_path / "a.jsonl"), "max_rows": 1200}}).recipe)
    assert capped.pool_rows == 1200


def test_rows_of_a_table_are_counted(tmp_path: Path) -> None:
    from datasets import Dataset

    Dataset.from_dict({"text": ["a"] * 1100}).to_parquet(tmp_path / "t.parquet")
    Dataset.from_dict({"text": ["a"] * 1100}).save_to_disk(tmp_path / "folder")
    assert count_rows(str(tmp_path / "t.parquet"), 0, 1) == (1100, True)
    assert count_rows(str(tmp_path / "folder"), 0, 1) == (1100, True)


def test_times_and_sizes_read_well() -> None:
    found = Estimate(
        pool_rows=5, seconds={"training": 3600 * 2.5, "scoring": 130, "embedding": 0.2}, disk_bytes=2_500_000
    )
    lines = dict(found.rows())
    assert lines["time: training"] == "2.5 h"
    assert lines["time: scoring"] == "2 min"
    assert lines["time: embedding"] == "1 s"
    assert lines["disk"] == "2.5 MB"
