"""IAA where it is meant to be used: bi-encoders and cross-encoders of sentence-transformers, under their trainers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers import BertConfig, BertModel

from tunesmith.tuners import IAAConfig

PAIRS = [
    ("what is the capital of France", "the capital of France is Paris ."),
    ("the cat", "the cat sat on the mat"),
]


@pytest.fixture(scope="module")
def bert_dir(tmp_path_factory: Any, tiny_tokenizer: Any) -> str:
    """Folder of a random two-layer BERT with the tests' tokenizer."""
    folder = tmp_path_factory.mktemp("bert")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        BertModel(BertConfig(vocab_size=len(tiny_tokenizer), **small)).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return str(folder)


def _arguments(kind: Any, folder: Path) -> Any:
    return kind(
        output_dir=str(folder), max_steps=3, per_device_train_batch_size=2, learning_rate=1e-2, use_cpu=True,
        bf16=False, report_to="none", disable_tqdm=True, save_strategy="no", logging_steps=1,
    )  # fmt: skip


def _moved(before: dict[str, Any], module: Any) -> dict[str, bool]:
    return {n: not torch.equal(p, before[n]) for n, p in module.named_parameters()}


@pytest.mark.parametrize("variant", ["layer", "sublayer", "chain"])
def test_a_bi_encoder_trains_saves_and_loads(bert_dir: str, tmp_path: Path, variant: str) -> None:
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    encoder = SentenceTransformer(bert_dir, device="cpu")
    texts = [text for pair in PAIRS for text in pair]
    base = encoder.encode(texts)
    torch.manual_seed(0)
    encoder[0].model = get_peft_model(encoder[0].model, IAAConfig(variant=variant, r_host=4, r_aside=4))
    assert (encoder.encode(texts) == base).all()
    before = {n: p.detach().clone() for n, p in encoder.named_parameters()}
    trainer = SentenceTransformerTrainer(
        model=encoder,
        args=_arguments(SentenceTransformerTrainingArguments, tmp_path / "run"),
        train_dataset=Dataset.from_list([{"anchor": a, "positive": b} for a, b in PAIRS]),
        loss=MultipleNegativesRankingLoss(encoder),
    )
    trainer.train()
    moved = _moved(before, encoder)
    assert all(moved[name] == (".iaa_" in name) for name in moved)
    tuned = encoder.encode(texts)
    assert not (tuned == base).all()
    encoder[0].model.save_pretrained(str(tmp_path / "adapter"))
    again = SentenceTransformer(bert_dir, device="cpu")
    again[0].model = PeftModel.from_pretrained(again[0].model, str(tmp_path / "adapter")).eval()
    assert (again.encode(texts) == tuned).all()
    alone = [again.encode([text])[0] for text in texts]  # without the padding of its neighbours
    assert all(abs(a - b).max() < 1e-5 for a, b in zip(alone, tuned, strict=True))


def test_a_cross_encoder_trains_with_its_head(bert_dir: str, tmp_path: Path) -> None:
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    ranker = CrossEncoder(bert_dir, num_labels=1, device="cpu")
    before_scores = ranker.predict(PAIRS)
    config = IAAConfig(variant="chain", r_host=4, r_aside=4, modules_to_save=["classifier"])
    torch.manual_seed(0)
    ranker[0].model = get_peft_model(ranker[0].model, config)
    assert (ranker.predict(PAIRS) == before_scores).all()
    before = {n: p.detach().clone() for n, p in ranker.named_parameters()}
    trainer = CrossEncoderTrainer(
        model=ranker,
        args=_arguments(CrossEncoderTrainingArguments, tmp_path),
        train_dataset=Dataset.from_list(
            [{"query": a, "text": b, "label": float(i)} for i, (a, b) in enumerate(PAIRS)]
        ),
        loss=BinaryCrossEntropyLoss(ranker),
    )
    trainer.train()
    moved = _moved(before, ranker)
    assert all(moved[n] == (".iaa_" in n or "classifier.modules_to_save" in n) for n in moved)
    assert not (ranker.predict(PAIRS) == before_scores).any()
