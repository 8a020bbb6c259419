"""Half fine-tuning under transformers' and TRL's trainers: frozen means untouched, resumed means equal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from tunesmith.core.errors import TrainingError
from tunesmith.tuners import HalfFineTuning
from tunesmith.tuners.hft.rounds import FILE


@pytest.fixture
def model(tiny_model_dir: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)


def rows(n: int = 12) -> Dataset:
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 300, (n, 8), generator=draw).tolist()
    return Dataset.from_list([{"input_ids": row, "labels": row} for row in ids])


def trainer(model: Any, folder: Path, *callbacks: Any, **settings: Any) -> Trainer:
    values = {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "max_steps": 3,
        "save_strategy": "no",
        "dataloader_pin_memory": False,
        "seed": 1,
        **settings,
    }
    return Trainer(model, TrainingArguments(**values), train_dataset=rows(), callbacks=list(callbacks))


def snapshot(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def moved(model: Any, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


def test_frozen_weights_are_untouched_under_decay_clipping_and_mixed_precision(
    model: Any, tmp_path: Path
) -> None:
    before = snapshot(model)
    half = HalfFineTuning(model)
    half.new_round()
    run = trainer(model, tmp_path, half.callback(), bf16=True, weight_decay=0.1, max_grad_norm=0.5)
    run.train()
    assert moved(model, before) == half.trained
    held = {id(p) for p in run.optimizer.state}
    for name, p in model.named_parameters():
        if name in half.frozen:
            assert p.grad is None
            assert id(p) not in held
    assert len(held) == len(half.trained)


def test_with_share_one_the_path_is_that_of_full_fine_tuning(tiny_model_dir: str, tmp_path: Path) -> None:
    ends = []
    for ratio in (1.0, None):
        model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
        if ratio is not None:
            HalfFineTuning(model, ratio=ratio).new_round()
        run = trainer(model, tmp_path, max_grad_norm=0.5, weight_decay=0.1)
        run.train()
        ends.append(snapshot(model))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_with_share_zero_only_the_outside_moves(model: Any, tmp_path: Path) -> None:
    before = snapshot(model)
    HalfFineTuning(model, ratio=0.0).new_round()
    trainer(model, tmp_path).train()
    assert moved(model, before) == {"model.embed_tokens.weight", "model.norm.weight"}


def test_a_trained_model_is_an_ordinary_checkpoint(model: Any, tmp_path: Path) -> None:
    half = HalfFineTuning(model)
    half.new_round()
    trainer(model, tmp_path / "run", half.callback()).train()
    model.save_pretrained(tmp_path / "model")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert not moved(again, snapshot(model))
    assert all(p.requires_grad for p in again.parameters())
    ids = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model.eval()(ids).logits)


def test_a_resumed_training_ends_like_a_straight_one(tiny_model_dir: str, tmp_path: Path) -> None:
    def start(folder: Path, **settings: Any) -> tuple[Any, HalfFineTuning, Trainer]:
        model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
        half = HalfFineTuning(model, seed=4)
        half.new_round()
        return model, half, trainer(model, folder, half.callback(), max_steps=4, **settings)

    straight, _, run = start(tmp_path / "a", save_strategy="steps", save_steps=2)
    run.train()
    checkpoint = tmp_path / "a" / "checkpoint-2"
    assert json.loads((checkpoint / FILE).read_text())["rounds"][0]["seed"] == 4

    resumed, half, _ = start(tmp_path / "a")
    half = HalfFineTuning.load(resumed, checkpoint)
    trainer(resumed, tmp_path / "a", half.callback(), max_steps=4).train(
        resume_from_checkpoint=str(checkpoint)
    )
    assert not moved(resumed, snapshot(straight))

    other = HalfFineTuning(resumed, seed=5)
    other.new_round()
    again = trainer(resumed, tmp_path / "a", other.callback(), max_steps=4)
    with pytest.raises(TrainingError, match="checkpoint-2 is of another half than the current round"):
        again.train(resume_from_checkpoint=str(checkpoint))


def _at_step(step: int) -> Any:
    from transformers import TrainerState

    return TrainerState(global_step=step)


def test_two_rounds_draw_anew_and_stale_optimizers_are_refused(model: Any, tmp_path: Path) -> None:
    half = HalfFineTuning(model)
    half.new_round()
    first = trainer(model, tmp_path, half.callback())
    first.train()
    between = snapshot(model)
    half.new_round()
    second = trainer(model, tmp_path, half.callback())
    second.train()
    assert moved(model, between) == half.trained
    half.new_round()
    with pytest.raises(TrainingError, match=r"The optimizer holds \d+ frozen parameters, .* made before"):
        half.callback().on_train_begin(second.args, _at_step(0), None, optimizer=second.optimizer)
    model.requires_grad_(True)
    with pytest.raises(TrainingError, match=r"\d+ parameters, .* first, are not as the round says"):
        trainer(model, tmp_path, half.callback()).train()


def test_gradient_checkpointing_reaches_layers_over_frozen_embeddings(
    tiny_model_dir: str, tmp_path: Path
) -> None:
    ends = []
    for checkpointing in (False, True):
        model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
        before = snapshot(model)
        half = HalfFineTuning(model, train_outside=False)
        half.new_round()
        run = trainer(
            model,
            tmp_path,
            half.callback(),
            gradient_checkpointing=checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": True} if checkpointing else None,
        )
        run.train()
        assert moved(model, before) == half.trained
        ends.append(snapshot(model))
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=0, atol=1e-5)


def test_sft_and_dpo_trainers_take_a_half_and_the_reference_stays(
    model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    common = {
        "output_dir": str(tmp_path),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
        "max_steps": 1,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "per_device_train_batch_size": 2,
    }
    half = HalfFineTuning(model)
    half.new_round()
    before = snapshot(model)
    texts = Dataset.from_list([{"text": "the cat sat on the mat"}, {"text": "the dog ran to the park"}])
    SFTTrainer(
        model,
        args=SFTConfig(**common),
        train_dataset=texts,
        processing_class=tiny_tokenizer,
        callbacks=[half.callback()],
    ).train()
    assert moved(model, before) == half.trained

    half.new_round()
    before = snapshot(model)
    pairs = Dataset.from_list([{"prompt": "the cat", "chosen": " sat on", "rejected": " ran to"}] * 2)
    run = DPOTrainer(
        model,
        args=DPOConfig(**common),
        train_dataset=pairs,
        processing_class=tiny_tokenizer,
        callbacks=[half.callback()],
    )
    reference = run.ref_model
    kept = snapshot(reference)
    run.train()
    assert moved(model, before) == half.trained
    assert not moved(reference, kept)
    assert {id(p) for p in reference.parameters()}.isdisjoint({id(p) for p in model.parameters()})


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "gpt2", "bert", "vit", "clip"])
def test_half_of_any_transformer_moves(kind: str, tiny_transformer: Any, output_of: Any) -> None:
    model, inputs = tiny_transformer(kind)
    before = snapshot(model)
    half = HalfFineTuning(model)
    half.new_round()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    output_of(model(**inputs)).pow(2).mean().backward()
    optimizer.step()
    assert moved(model, before) <= half.trained
    inside = moved(model, before) - set(half.outside)
    assert inside
    assert inside < {name for matrix in half.matrices for name in matrix.parameters}
