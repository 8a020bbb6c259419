"""The loss is the mean over the trained tokens of the effective batch, however it is cut: by hand, and the authors'."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import nn
from torch.testing import assert_close
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, TrainerCallback
from transformers.modeling_outputs import CausalLMOutput
from trl import SFTConfig

from _golden import raw_cases, tensor
from tunesmith.trainers._trl_compat import Trainer

CASES = raw_cases("sft-recipe-guide")


class StandInConfig(PretrainedConfig):
    model_type = "stand-in"


class StandInForCausalLM(PreTrainedModel):
    """The authors' fixture: ``logits_t = W (sum of the embeddings up to t)``, two matrices and nothing else."""

    config_class = StandInConfig

    def __init__(self, E: torch.Tensor, W: torch.Tensor) -> None:
        super().__init__(StandInConfig(vocab_size=len(E), tie_word_embeddings=False))
        self.embed = nn.Embedding(*E.shape, _weight=E.clone())
        self.lm_head = nn.Linear(W.shape[1], W.shape[0], bias=False)
        self.lm_head.weight = nn.Parameter(W.clone())
        self.generation_config = GenerationConfig()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(
        self, input_ids: torch.Tensor, attention_mask: Any = None, labels: Any = None, **_: Any
    ) -> Any:
        return CausalLMOutput(logits=self.lm_head(self.embed(input_ids).cumsum(1)))


class Gradients(TrainerCallback):
    """Keep the gradients of the last optimiser step."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.found = {name: p.grad.clone() for name, p in model.named_parameters()}


def trainer(tokenizer, folder, E, W, rows, batch=1, accumulate=1, callbacks=()) -> Trainer:
    args = SFTConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=1,
        max_grad_norm=1e9,
        learning_rate=1e-9,
        num_train_epochs=1,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulate,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    return Trainer(
        model=StandInForCausalLM(E, W),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )


def run(tokenizer, folder, E, W, rows, batch, accumulate) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the logged loss of one optimiser step and its gradients."""
    gradients = Gradients()
    made = trainer(tokenizer, folder, E, W, rows, batch, accumulate, [gradients])
    made.train()
    losses = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    assert len(losses) == 1
    return losses[0], gradients.found


def test_sums_of_6_over_3_tokens_and_4_over_1_give_two_and_a_half(tiny_tokenizer, tmp_path) -> None:
    def logit(nats: float) -> float:  # of the right token among three, against two zeros
        return -math.log((math.exp(nats) - 1) / 2)

    E = torch.tensor([[0.0], [logit(2)], [logit(4)]])
    W = torch.tensor([[1.0], [0.0], [0.0]])
    rows = [
        {"input_ids": [1, 0, 0, 0], "labels": [-100, 0, 0, 0]},  # 2 nats each
        {"input_ids": [2, 0], "labels": [-100, 0]},  # 4 nats
    ]
    for batch, accumulate in ((1, 2), (2, 1)):
        loss, _ = run(tiny_tokenizer, tmp_path, E, W, rows, batch, accumulate)
        assert loss == pytest.approx(2.5, abs=1e-6)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("token_mean")])
def test_authors_scaled_losses_and_gradients(name, tiny_tokenizer, tmp_path, monkeypatch) -> None:
    case = CASES[name]
    inputs, outputs, M = case["inputs"], case["outputs"], torch.tensor(case["params"]["M"])
    E, W = tensor(inputs["E"]), tensor(inputs["W"])
    world = case["params"]["world_size"]
    monkeypatch.setattr(Accelerator, "num_processes", property(lambda self: world))
    rows = [{"input_ids": [1, 2], "labels": [1, 2]}]
    made = trainer(tiny_tokenizer, tmp_path, E, W, rows)
    made.model.train()
    for batches, expected in zip(inputs["ranks"], outputs["backward_losses_per_rank"], strict=True):
        for batch, value in zip(batches, expected, strict=True):
            given = {key: tensor(v) for key, v in batch.items()}
            loss = made.compute_loss(made.model, given, num_items_in_batch=M)
            assert loss.item() == pytest.approx(value, abs=case["tolerance"])
            loss.backward()
    grads = {key: p.grad / world for key, p in made.model.named_parameters()}  # as DDP averages
    assert_close(grads["embed.weight"], tensor(outputs["grad_E"]), atol=case["tolerance"], rtol=0)
    assert_close(grads["lm_head.weight"], tensor(outputs["grad_W"]), atol=case["tolerance"], rtol=0)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("collate")])
def test_from_samples_to_the_loss(name, tiny_tokenizer, tmp_path) -> None:
    """Also where a sample's first token has a label: it has no prediction, so it is not counted."""
    case = CASES[name]
    inputs, outputs = case["inputs"], case["outputs"]
    E, W = tensor(inputs["E"]), tensor(inputs["W"])
    rows = [{key: sample[key]["data"] for key in ("input_ids", "labels")} for sample in inputs["samples"]]
    kept = [row for row in rows if len(row["input_ids"]) <= case["params"]["max_tokens_per_rank"]]
    assert len(kept) < len(rows)
    found = [run(tiny_tokenizer, tmp_path, E, W, kept, *cut) for cut in ((len(kept), 1), (2, 3), (1, 5))]
    for loss, grads in found:
        assert loss == pytest.approx(outputs["L_exact_token_mean"], abs=case["tolerance"])
        assert_close(grads["embed.weight"], found[0][1]["embed.weight"], atol=1e-6, rtol=0)
        assert_close(grads["lm_head.weight"], found[0][1]["lm_head.weight"], atol=1e-6, rtol=0)
    if outputs["M_official"] == outputs["M_exact"]:
        assert_close(found[0][1]["lm_head.weight"], tensor(outputs["grad_W_packed"]), atol=1e-5, rtol=0)
