"""Training on the tiny model: it learns, repeats itself exactly, continues exactly, and stops loudly."""

from __future__ import annotations

import random

import pytest
import torch
from datasets import Dataset

from tunesmith.core.errors import ParameterError, TrainingError
from tunesmith.core.events import EventLog
from tunesmith.data.preflight import encode_dataset
from tunesmith.engine.models import load_model
from tunesmith.trainers import train_sft

WORDS = "the cat sat on mat dog ran park capital France Paris".split()  # noqa: SIM905


def chats(count: int, seed: int = 0) -> Dataset:
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        words = draw.choices(WORDS, k=draw.randint(2, 6))
        question, answer = " ".join(words), " ".join(reversed(words))
        rows.append(
            {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        )
    return Dataset.from_list(rows)


@pytest.fixture(scope="module")
def rows(tiny_tokenizer):
    return encode_dataset(chats(40), tiny_tokenizer, max_length=None)[0]


@pytest.fixture
def train(tiny_model_dir, tiny_tokenizer, rows, tmp_path):
    def call(data=None, output_dir="run", dtype="float32", **options):
        model = load_model(tiny_model_dir, dtype=dtype)
        options = {"tuner": {"type": "lora", "r": 4}, "learning_rate": 1e-2, **options}
        return train_sft(
            model, tiny_tokenizer, rows if data is None else data, output_dir=tmp_path / output_dir, **options
        )

    return call


def trained(model) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name


def test_it_learns_and_says_what_it_did(train, rows):
    events = []
    result = train(epochs=4, log=EventLog(listeners=[events.append]))
    assert result.steps == 20
    assert result.epochs == 4
    assert result.losses[-1][1] < result.losses[0][1] - 0.2
    assert result.tokens == 4 * sum(map(len, rows["input_ids"]))
    assert result.trained_tokens == 4 * sum(label != -100 for labels in rows["labels"] for label in labels)
    assert result.tokens_per_second == pytest.approx(result.tokens / result.seconds)
    assert result.peak_memory_mb > 100
    assert not result.model.training
    metrics = [e for e in events if e["kind"] == "metric"]
    assert [e["step"] for e in metrics] == list(range(1, 21))
    assert metrics[-1]["tokens"] == result.tokens
    assert [(e["step"], e["loss"], e["learning_rate"]) for e in metrics] == result.losses
    last = [e for e in events if e["kind"] == "progress"][-1]
    assert (last["what"], last["done"], last["total"]) == ("training steps", 20, 20)


def test_equal_seeds_give_equal_tensors(train):
    assert_same(trained(train(output_dir="a").model), trained(train(output_dir="b").model))


def test_seed_reaches_the_adapter(train):
    a, b = (trained(train(output_dir=f"{s}", seed=s, learning_rate=1e-9).model) for s in (0, 1))
    assert not torch.equal(*(next(t for n, t in x.items() if "lora_A" in n) for x in (a, b)))
