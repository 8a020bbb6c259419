"""Held-out perplexity from sums, and by a model."""

from __future__ import annotations

import math

import numpy as np
import pytest
from datasets import Dataset

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.metrics import HeldOutPerplexity


def test_by_hand():
    result = HeldOutPerplexity().compute(
        predictions=[2 * math.log(4), 0.0, math.log(2)], references=[2, 0, 1]
    )
    assert result["mean_nll"] == pytest.approx(math.log(32) / 3)
    assert result["perplexity"] == pytest.approx(32 ** (1 / 3))
    assert (result["n_tokens"], result["n_empty"]) == (3, 1)
    assert result["scores"][0] == pytest.approx(math.log(4))
    assert math.isnan(result["scores"][1])


def test_equals_the_model_s_own_loss(tiny_model_dir, tiny_tokenizer):
    import torch

    from tunesmith.data.preflight import encode_dataset
    from tunesmith.engine.models import load_model

    model = load_model(tiny_model_dir, dtype="float32")
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in [("what is 1 plus 1 ?", "2"), ("the capital of France ?", "Paris is the capital .")]
    ]
    encoded, _ = encode_dataset(Dataset.from_list(rows), tiny_tokenizer, max_length=None)
    result = HeldOutPerplexity().evaluate(model, tiny_tokenizer, encoded)
    with torch.inference_mode():
        losses = [
            model(torch.tensor([r["input_ids"]]), labels=torch.tensor([r["labels"]])).loss.item()
            for r in encoded
        ]
    assert result["scores"] == pytest.approx(losses, rel=1e-5)
    counts = np.array([sum(label != -100 for label in r["labels"]) for r in encoded])
    assert result["mean_nll"] == pytest.approx(float(np.average(losses, weights=counts)), rel=1e-5)


def test_a_hopeless_model_has_infinite_perplexity():
    assert HeldOutPerplexity().compute(predictions=[1e6], references=[1])["perplexity"] == math.inf


def test_errors():
    metric = HeldOutPerplexity()
    with pytest.raises(
        DataError, match="no held-out row has a token to be scored, so there is no perplexity"
    ):
        metric.compute(predictions=[0.0], references=[0])
    with pytest.raises(
        ParameterError, match=r"'predictions' parameter of HeldOutPerplexity must be of the shape of"
    ):
        metric.compute(predictions=[0.0], references=[1, 2])
    with pytest.raises(
        ParameterError, match="'batch_size' parameter of HeldOutPerplexity must be an int of at least 1"
    ):
        HeldOutPerplexity(batch_size=0)
    with pytest.raises(
        DataError, match="row 0: perplexity needs encoded rows; pass them through encode_dataset first"
    ):
        metric.evaluate(None, None, [{"messages": []}])
