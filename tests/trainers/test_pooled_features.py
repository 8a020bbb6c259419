"""Pooled features of any classifier, and what is said where there are none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf
from torch import nn
from torch.testing import assert_close

from _tiny_transformers import build
from _vector_net import Net, net, vectors
from tunesmith.core.errors import ParameterError, TrainingError
from tunesmith.trainers.pooled import PooledFeatures, find_head


def decoder() -> Any:
    config = tf.LlamaConfig(
        vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, num_labels=3,
    )  # fmt: skip
    return tf.LlamaForSequenceClassification(config).eval()


@pytest.mark.parametrize("kind", ["bert", "vit", "decoder", "roberta", "resnet"])
def test_features_of_transformers(kind) -> None:
    torch.manual_seed(0)
    if kind in ("bert", "vit"):
        model, inputs = build(kind)
    elif kind == "resnet":
        model = tf.ResNetForImageClassification(
            tf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)
        ).eval()
        inputs = {"pixel_values": torch.randn(2, 3, 16, 16)}
    else:
        small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
        model = (
            decoder()
            if kind == "decoder"
            else tf.RobertaForSequenceClassification(
                tf.RobertaConfig(vocab_size=99, num_labels=3, **small)
            ).eval()
        )
        ids = torch.tensor([[5, 6, 7, 8], [5, 6, 0, 0]])
        inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    pool = PooledFeatures(model)
    z, logits = pool(model, {**inputs, "labels": torch.zeros(2, dtype=torch.long)})
    assert z.shape == (2, pool.dim)
    assert pool.n_classes == 3
    assert_close(pool.logits(model, z), model(**inputs).logits.detach())
    assert_close(logits.detach(), model(**inputs).logits.detach())
    assert z.requires_grad


def test_features_under_peft() -> None:
    import peft

    model, inputs = build("bert")
    for modules in (None, ["classifier"]):
        config = peft.LoraConfig(target_modules=["query"], r=2, modules_to_save=modules)
        wrapped = peft.get_peft_model(build("bert")[0], config)
        pool = PooledFeatures(wrapped)
        assert pool.head == "base_model.model.classifier"
        z, logits = pool(wrapped.eval(), inputs)
        assert_close(logits, model(**inputs).logits)
        assert_close(pool.logits(wrapped, z), logits)
    adapted = peft.get_peft_model(
        build("bert")[0], peft.LoraConfig(target_modules=["query", "classifier"], r=2)
    )
    assert find_head(adapted) == "base_model.model.classifier"


def test_features_of_ones_own(tmp_path) -> None:
    model = net()
    rows = {"x": torch.tensor(vectors(4)["x"])}
    pool = PooledFeatures(model, features=lambda model, inputs: model.encoder(inputs["x"]) * 2)
    z, logits = pool(model, rows)
    assert_close(z, model.encoder(rows["x"]) * 2)
    assert_close(logits, model.fc(z))
    # a batch with another name than the forward's goes in by position
    assert_close(PooledFeatures(model)(model, {"pixel_values": rows["x"]})[0], model.encoder(rows["x"]))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (lambda model, inputs: None, r"takes; features= returned nothing \(None\)\."),
        (lambda model, inputs: (1, 2), r"takes; features= returned a tuple\."),
        (lambda model, inputs: inputs["x"], r"\(rows, 8\), .* returned a tensor of shape \(4, 5\)\."),
    ],
)
def test_features_that_are_none(features, message) -> None:
    model = net()
    with pytest.raises(TrainingError, match=message):
        PooledFeatures(model, features=features)(model, {"x": torch.zeros(4, 5)})


class _Odd(Net):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x):
        if self.how == "unused":
            return x[:, :3]
        if self.how == "scaled":
            return 2 * super().forward(x)
        if self.how == "nothing":
            super().forward(x)
            return None
        return self.fc(self.encoder(x)[:, None].expand(-1, 2, -1))[:, 0]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("unused", "The layer 'fc' did not run in the model's forward pass"),
        ("scaled", "The output of the layer 'fc' are not the model's logits"),
        ("nothing", "The output of the layer 'fc' are not the model's logits"),
        ("position", "The head runs at every position, and without input_ids"),
    ],
)
def test_a_model_whose_features_cannot_be_had(how, message) -> None:
    model = _Odd(how)
    with pytest.raises(TrainingError, match=message):
        PooledFeatures(model)(model, {"x": torch.randn(4, 5)})


def test_names_of_heads() -> None:
    model = net()
    assert find_head(model) == "fc"
    assert find_head(model, "encoder.0") == "encoder.0"
    for name in ("nowhere", "drop"):
        with pytest.raises(
            ParameterError, match=f"The 'head' parameter of find_head must be the name .* '{name}'"
        ):
            find_head(model, name)
    with pytest.raises(
        ParameterError, match="The 'head' parameter of Plain must be given: the model has no linear"
    ):
        PooledFeatures(nn.Conv1d(1, 1, 1), owner="Plain")
    with pytest.raises(
        ParameterError, match="The 'features' parameter of PooledFeatures must be a callable or None"
    ):
        PooledFeatures(model, features=3)
    with pytest.raises(TrainingError, match="The model's forward takes x, and a batch holds a, b"):
        PooledFeatures(model)(model, {"a": torch.zeros(1, 5), "b": torch.zeros(1, 5)})
