"""Classifiers of texts: rows to class numbers, what may move, training that is killed and goes on, saving."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset

from _trainer_rows import class_rows as rows
from _trainer_rows import without_dropout
from tunesmith.core.errors import DataError, ParameterError, TrainingError, UnknownNameError
from tunesmith.engine.models import load_model, load_tokenizer
from tunesmith.trainers.classify import encode_classes, load_classifier_for, predict_classes, train_classifier
from tunesmith.trainers.classify.encoding import ClassReport, class_names, texts_of
from tunesmith.trainers.saving import load_tuned, save_tuned


@pytest.fixture(scope="module")
def tokenizer(tiny_bert_dir) -> Any:
    return load_tokenizer(tiny_bert_dir)


@pytest.fixture
def train(tiny_bert_dir, tokenizer, tmp_path) -> Any:
    encoded, classes, _ = encode_classes(rows(), tokenizer, label="label")

    def run(folder: str = "run", **more: Any) -> Any:
        model = without_dropout(load_classifier_for(tiny_bert_dir, classes))
        given = {"learning_rate": 1e-3, "epochs": 2, "batch_size": 8, "save_every": 2, **more}
        return train_classifier(model, tokenizer, encoded, output_dir=tmp_path / folder, **given)

    return run


def test_rows_become_ids_and_class_numbers(tokenizer):
    found = Dataset.from_list(
        [
            {
                "messages": [{"role": "user", "content": "ice"}, {"role": "assistant", "content": "yes"}],
                "kind": 2,
            },
            {
                "messages": [
                    {"role": "user", "content": "sun " * 40},
                    {"role": "assistant", "content": "no"},
                ],
                "kind": 1,
            },
            {
                "messages": [{"role": "user", "content": "snow"}, {"role": "assistant", "content": "no"}],
                "kind": None,
            },
        ]
    )
    encoded, classes, report = encode_classes(found, tokenizer, label="kind", max_length=10)
    assert (classes, encoded["labels"][:]) == (["1", "2"], [1, 0])
    assert encoded["input_ids"][0] == tokenizer("ice")["input_ids"]
    assert len(encoded["input_ids"][1]) == 10
    assert encoded["input_ids"][1][-1] == tokenizer("ice")["input_ids"][-1]  # the end mark is kept
    assert report.to_dict() == {"n_rows": 3, "n_dropped": 1, "n_truncated": 1, "classes": {"1": 1, "2": 1}}
    assert texts_of(found, "all")[0] == "ice\nyes"
    others, _, report = encode_classes(found, tokenizer, label="kind", classes=["2", "7"])
    assert (others["labels"][:], report.n_dropped) == ([0], 2)


def test_rows_that_have_no_classes(tokenizer):
    with pytest.raises(DataError, match=r"no column 'labels' with their classes\. Did you mean 'label'\?"):
        encode_classes(rows(), tokenizer, label="labels")
    one = Dataset.from_list([{"text": "ice", "label": "cold"}] * 2)
    with pytest.raises(DataError, match="the column 'label' holds one class; there must be two at least"):
        encode_classes(one, tokenizer, label="label")
    soft = Dataset.from_list([{"text": "ice", "label": 0.5}])
    with pytest.raises(DataError, match=r"row 0: a class must be a text or a whole number, one per row"):
        class_names(soft, "label")
    with pytest.raises(
        ParameterError, match="The 'text' parameter of encode_classes must be 'prompt' or 'all'"
    ):
        texts_of(one, "answer")
    with pytest.raises(
        DataError, match=r"3 of 4 rows are without a class or text, more than the 20% that .* Raise"
    ):
        ClassReport(4, 3, 0, {}).check(0.2, 0.2)
    with pytest.raises(DataError, match=r"4 of 4 rows are cut, more than the 50% that the preflight allows"):
        ClassReport(4, 0, 4, {}).check(0.5, 0.2)


@pytest.mark.parametrize(
    "tuner", [{"type": "full"}, {"type": "head"}, {"type": "lora", "r": 2}, {"type": "levi"}]
)
def test_trained_saved_and_read_back(tuner, train, tokenizer, tiny_bert_dir, tmp_path):
    result = train(tuner=tuner, epochs=6, learning_rate=1e-2)
    assert result.losses[-1][1] < result.losses[0][1]
    assert (result.steps, result.trained_tokens) == (18, 6 * 24)
    save_tuned(result.model, tokenizer, tmp_path / "tuned")
    model = load_tuned(tmp_path / "tuned", lambda: load_classifier_for(tiny_bert_dir, ["cold", "warm"]))
    texts = rows()["text"][:]
    found = predict_classes(model, tokenizer, texts, batch_size=5)
    assert found == predict_classes(result.model, tokenizer, texts)
    assert set(found) <= {"cold", "warm"}
    if tuner["type"] == "full":
        assert found == rows()["label"][:]
    if tuner["type"] == "head":
        base = load_classifier_for(tiny_bert_dir, ["cold", "warm"])
        assert torch.equal(
            model.bert.encoder.layer[0].output.dense.weight, base.bert.encoder.layer[0].output.dense.weight
        )


def test_a_decoder_is_a_classifier_too(tiny_model_dir, tmp_path):
    tokenizer = load_tokenizer(tiny_model_dir)
    encoded, classes, _ = encode_classes(rows(), tokenizer, label="label")
    model = load_classifier_for(tiny_model_dir, classes)
    assert model.config.id2label == {0: "cold", 1: "warm"}
    result = train_classifier(
        model, tokenizer, encoded, output_dir=tmp_path, epochs=4, learning_rate=1e-2, objective="core_tuning",
        validation=encoded,
    )  # fmt: skip
    assert result.losses[-1][1] < result.losses[0][1]
    save_tuned(result.model, tokenizer, tmp_path / "tuned")


def test_settings_that_cannot_be(train, tiny_bert_dir):
    for name, value, expected in (
        ("batch_size", 0, "an int of at least 1"),
        ("epochs", 0, "a float above 0"),
        ("warmup", 1, r"a float in \[0, 1\)"),
        ("schedule", "cosin", r"one of .* Did you mean 'cosine'\?"),
        ("learning_rate", 0.0, "a float above 0"),
        ("objective", {"eta": 1}, "a name or a dict with 'type'"),
    ):
        with pytest.raises(
            ParameterError, match=f"The '{name}' parameter of train_classifier must be {expected}"
        ):
            train(**{name: value})
    with pytest.raises(
        ParameterError, match="The 'tuner' parameter of train_classifier must be a dict with 'type'"
    ):
        train(tuner="lora")
    with pytest.raises(
        UnknownNameError, match=r"no objective named 'coretuning'\. Did you mean 'core_tuning'"
    ):
        train(objective="coretuning")
    with pytest.raises(
        ParameterError, match=r"The 'etta' parameter of objective 'core_tuning' must be left out: .*'eta'"
    ):
        train(objective={"type": "core_tuning", "etta": 1})
    with pytest.raises(
        ParameterError, match="'objective' parameter of train_classifier must be 'cross_entropy' with LEVI"
    ):
        train(objective="core_tuning", tuner={"type": "levi"})
    with pytest.raises(
        ParameterError, match=r"The 'r' parameter of tuner 'full' must be left out: .* Its parameters: none"
    ):
        train(tuner={"type": "full", "r": 3})
    with pytest.raises(
        ParameterError, match="The 'model_id' parameter of load_model must be a language model"
    ):
        load_model("minilm")


def test_nothing_to_train_on(tiny_bert_dir, tokenizer, tmp_path):
    encoded, classes, _ = encode_classes(rows(), tokenizer, label="label")
    with pytest.raises(TrainingError, match="There is nothing to train on: no row has a class and text"):
        train_classifier(
            load_classifier_for(tiny_bert_dir, classes), tokenizer, encoded.select([]), output_dir=tmp_path
        )
