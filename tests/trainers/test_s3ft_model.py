"""S3FT with a transformers model: greedy targets, batches, likelihoods, and what training makes of the rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from tunesmith.core.errors import DataError
from tunesmith.data.preflight import encode_dataset
from tunesmith.engine import LocalLLM
from tunesmith.engine.models import load_model
from tunesmith.engine.prompts import prompt_ids
from tunesmith.trainers import selective_self_targets
from tunesmith.trainers.s3ft import target_nll

WORDS = "the cat sat on mat and dog ran to park capital of France Paris what is".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def model(tiny_model_dir: str, tiny_tokenizer: Any) -> Any:
    """The tiny model, with logits far apart and an end that it reaches for some prompts."""
    found = load_model(tiny_model_dir, dtype="float32", device="cpu")
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.dim() == 2:
                parameter.mul_(10)
    return found


@pytest.fixture(scope="module")
def rows() -> Dataset:
    prompts = [" ".join(WORDS[i : i + 1 + i % 5]) for i in range(11)]
    return Dataset.from_dict({"prompt": prompts, "completion": [f"gold {i}" for i in range(11)]})


def always(prompt: Any, candidate: str, gold: str, row: Any) -> bool:
    return True


@pytest.fixture(scope="module")
def built(model: Any, tiny_tokenizer: Any, rows: Dataset) -> Dataset:
    # Nothing ends the answers of a random model, so the end is a token that it likes to say.
    llm = LocalLLM(model, tiny_tokenizer, batch_size=4)
    ids = _greedy(model, prompt_ids([{"role": "user", "content": rows["prompt"][0]}], tiny_tokenizer), 12)
    model.generation_config.eos_token_id = [tiny_tokenizer.eos_token_id, *sorted(set(ids))[:3]]
    return selective_self_targets(rows, llm, always, paraphrase=False, max_new_tokens=40)


def _greedy(model: Any, ids: list[int], steps: int) -> list[int]:
    new: list[int] = []
    for _ in range(steps):
        with torch.inference_mode():
            new.append(int(model(input_ids=torch.tensor([ids + new])).logits[0, -1].argmax()))
    return new


def test_every_token_of_a_greedy_target_is_the_arg_max(
    model: Any, tiny_tokenizer: Any, built: Dataset
) -> None:
    assert "model" in built["source"][:]
    for prompt, text, verdict in zip(
        built["prompt"], built["s3ft_prediction"], built["s3ft_prediction_verdict"], strict=True
    ):
        ids = prompt_ids([{"role": "user", "content": prompt}], tiny_tokenizer)
        new: list[int] = []
        for _ in range(40):
            new += _greedy(model, ids + new, 1)
            if new[-1] in model.generation_config.eos_token_id:
                break
        assert text == tiny_tokenizer.decode(new, skip_special_tokens=True).strip()
        assert (verdict == "cut short") == (new[-1] not in model.generation_config.eos_token_id)


def test_likelihood_of_targets(model: Any, tiny_tokenizer: Any, built: Dataset) -> None:
    found = target_nll(built, model, tiny_tokenizer, batch_size=3)
    chat = [{"role": "user", "content": built["prompt"][2]}]
    ids = prompt_ids(chat, tiny_tokenizer)
    for name, text in (("target", built["completion"][2]), ("gold", built["s3ft_gold"][2])):
        answer = tiny_tokenizer(text + "<|im_end|>", add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids + answer])).logits[0, len(ids) - 1 : -1]
        expected = torch.nn.functional.cross_entropy(logits, torch.tensor(answer))
        assert found[name][2] == pytest.approx(float(expected), rel=1e-4)
    own = np.array(built["source"]) == "model"
    assert found["below_gold"] == np.mean((found["target"] < found["gold"])[own])
    assert found["mean_gold"] != found["mean_target"]
    chats = built.map(
        lambda row: {"messages": [{"role": "user", "content": row["prompt"]},
                                  {"role": "assistant", "content": row["completion"]}]},
        remove_columns=["prompt", "completion"],
    )  # fmt: skip
    np.testing.assert_array_equal(
        target_nll(chats, model, tiny_tokenizer, batch_size=3)["target"], found["target"]
    )
    with pytest.raises(
        DataError, match="the rows are not those of selective_self_targets: they have no 's3ft_gold'"
    ):
        target_nll(built.select_columns(["prompt", "completion"]), model, tiny_tokenizer)


def test_the_added_columns_do_not_matter_to_training(
    tmp_path: Path, tiny_model_dir: str, tiny_tokenizer: Any, built: Dataset
) -> None:
    from trl import SFTConfig, SFTTrainer

    losses = []
    for rows in (built, Dataset.from_dict({name: built[name][:] for name in ("prompt", "completion")})):
        args = SFTConfig(
            str(tmp_path / f"{len(losses)}"),
            max_steps=2,
            per_device_train_batch_size=4,
            report_to=[],
            logging_steps=1,
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            disable_tqdm=True,
        )
        model = load_model(tiny_model_dir, dtype="float32", device="cpu")
        trainer = SFTTrainer(model, args, train_dataset=rows, processing_class=tiny_tokenizer)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == losses[1]
    assert len(losses[0]) == 2


def test_own_rows_are_encoded_as_without_the_columns(model: Any, tiny_tokenizer: Any, rows: Dataset) -> None:
    chats = [
        [{"role": "user", "content": p}, {"role": "assistant", "content": c}]
        for p, c in zip(rows["prompt"], rows["completion"], strict=True)
    ]
    data = Dataset.from_dict({"messages": chats})
    say = lambda prompts: [f"own {i}" if i % 2 else "" for i in range(len(prompts))]  # noqa: E731
    built = selective_self_targets(data, say, always, paraphrase=False)
    plain = Dataset.from_dict({"messages": built["messages"][:]})
    first, second = (encode_dataset(d, tiny_tokenizer, max_length=None)[0] for d in (built, plain))
    assert first["input_ids"][:] == second["input_ids"][:]
    assert first["labels"][:] == second["labels"][:]
    assert set(built["source"]) == {"model", "gold"}


def test_a_folder_serves_a_local_model_again(
    tmp_path: Path, model: Any, tiny_tokenizer: Any, rows: Dataset
) -> None:
    llm = LocalLLM(model, tiny_tokenizer, batch_size=4)
    first = selective_self_targets(rows, llm, always, max_new_tokens=6, folder=tmp_path)
    lines = (tmp_path / "replies.jsonl").read_text().splitlines()
    second = selective_self_targets(rows, llm, always, max_new_tokens=6, folder=tmp_path)
    assert first[:] == second[:]
    assert (tmp_path / "replies.jsonl").read_text().splitlines() == lines
    sampled = selective_self_targets(rows, llm, always, max_new_tokens=6, temperature=1.0, folder=tmp_path)
    assert sampled["s3ft_prediction"][:] != first["s3ft_prediction"][:]
