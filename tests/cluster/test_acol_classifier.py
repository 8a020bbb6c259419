"""ACOL as the head of transformers classifiers: an encoder, a decoder and an image model, with their Trainer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.testing import assert_allclose
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    LlamaConfig,
    Trainer,
    TrainingArguments,
    ViTConfig,
)

from tunesmith.cluster.acol import (
    ACOLHead,
    ACOLLoss,
    gar_loss,
    load_classifier,
    node_logits,
    replace_classifier,
)
from tunesmith.core.errors import DataError, MissingModelError, ParameterError

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}


def build(kind):
    """Return a tiny model, its input and its class."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 40, (12, 7), generator=draw)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "bert":
            config = BertConfig(vocab_size=40, max_position_embeddings=16, num_labels=2, **SMALL)
            return AutoModelForSequenceClassification.from_config(config), {"input_ids": ids}
        if kind == "llama":
            config = LlamaConfig(vocab_size=40, num_labels=2, pad_token_id=0, num_key_value_heads=2, **SMALL)
            ids[::2, 4:] = 0  # half of the rows are padded
            return AutoModelForSequenceClassification.from_config(config), {"input_ids": ids}
        config = ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=2, **SMALL)
        pixels = torch.rand(12, 1, 8, 8, generator=draw)
        return AutoModelForImageClassification.from_config(config), {"pixel_values": pixels}


KINDS = pytest.mark.parametrize("kind", ["bert", "llama", "vit"])


@KINDS
def test_logits_are_those_of_the_parents_and_nodes_are_at_hand(kind):
    model, inputs = build(kind)
    head = replace_classifier(model.eval(), n_parents=3, k=4)
    assert isinstance(head, ACOLHead)
    assert model.config.num_labels == 3
    logits = model(**inputs).logits
    assert logits.shape == (12, 3)
    Z = node_logits(head, logits)
    assert Z.shape == (12, 12)
    assert_allclose(torch.logsumexp(Z.reshape(12, 4, 3), dim=1).detach(), logits.detach(), atol=1e-6)
    labels = torch.arange(12) % 3
    expected = F.cross_entropy(logits, labels)
    assert float(model(**inputs, labels=labels).loss) == pytest.approx(float(expected), abs=1e-6)


@KINDS
def test_the_loss_under_trainer(kind, tmp_path):
    model, inputs = build(kind)
    head = replace_classifier(model, n_parents=2, k=3)
    key, values = next(iter(inputs.items()))
    rows = [{key: value, "labels": i % 2} for i, value in enumerate(values)]
    arguments = TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=3,
        gradient_accumulation_steps=2,
        max_steps=4,
        learning_rate=1e-2,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_steps=1,
        save_strategy="no",
    )
    before = head.linear.weight.detach().clone()
    trainer = Trainer(model, arguments, train_dataset=rows, compute_loss_func=ACOLLoss(head, c_alpha=0.2))
    assert np.isfinite(trainer.train().training_loss)
    assert not torch.equal(head.linear.weight, before)
    predicted = trainer.predict(rows)
    assert predicted.predictions.shape == (12, 2)
    assert np.isfinite(predicted.metrics["test_loss"])


def test_the_loss_is_weighted_by_the_share_of_the_step():
    model, inputs = build("bert")
    head = replace_classifier(model.eval(), n_parents=2, k=3)
    outputs, labels = model(**inputs), torch.arange(12) % 2
    loss = ACOLLoss(head, c_alpha=0.5, c_beta=0.2, c_f=1e-3)
    Z = node_logits(head, outputs.logits)
    whole = F.cross_entropy(outputs.logits, labels) + gar_loss(Z, 2, c_alpha=0.5, c_beta=0.2, c_f=1e-3)
    assert float(loss(outputs, labels)) == pytest.approx(float(whole), abs=1e-6)
    assert float(loss(outputs, labels, num_items_in_batch=torch.tensor(48))) == pytest.approx(
        float(whole) / 4, abs=1e-6
    )
    alone = float(gar_loss(Z, 2, c_alpha=0.5, c_beta=0.2, c_f=1e-3))
    assert float(loss(outputs, None)) == pytest.approx(alone, abs=1e-6)


def test_bfloat16_models_get_a_float32_loss():
    model, inputs = build("bert")
    head = replace_classifier(model.bfloat16(), n_parents=2, k=3)
    assert head.linear.weight.dtype == torch.bfloat16
    loss = ACOLLoss(head)(model(**inputs), torch.arange(12) % 2)
    assert loss.dtype == torch.float32
    loss.backward()
    assert bool(torch.isfinite(head.linear.weight.grad).all())


@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_saved_and_loaded(kind, tmp_path):
    model, inputs = build(kind)
    head = replace_classifier(model.eval(), n_parents=3, k=2, dropout=0.1)
    model.save_pretrained(tmp_path)
    auto = AutoModelForImageClassification if kind == "vit" else AutoModelForSequenceClassification
    loaded, again = load_classifier(auto, tmp_path)
    assert (again.n_parents, again.k, again.dropout) == (3, 2, 0.1)
    assert torch.equal(loaded.eval()(**inputs).logits, model(**inputs).logits)
    assert torch.equal(again.nodes, head.nodes)


def test_what_cannot_be_used(tmp_path):
    message = (
        "'model' parameter of replace_classifier must be a transformers classifier whose last layer is linear"
    )
    with pytest.raises(ParameterError, match=f"{message}.* Got 'Linear' instead"):
        replace_classifier(nn.Linear(3, 2), 2)
    model, inputs = build("llama")
    head = replace_classifier(model, n_parents=2, k=2)
    with pytest.raises(DataError, match="needs the logits of the head's last forward pass"):
        node_logits(head, torch.zeros(12, 2))
    model(**inputs)
    with pytest.raises(DataError, match="needs the logits of the head's last forward pass"):
        node_logits(head, torch.zeros(12, 2))
    with pytest.raises(
        MissingModelError, match=r"holds no model with an ACOL head \(config\.json without 'acol'\)"
    ):
        load_classifier(AutoModelForSequenceClassification, tmp_path)
