"""A small Llama that knows four tasks by their announcement; it must do one of them without, or one it cannot do."""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft_survey import LETTERS, OLD, nats, rows, train

from tunesmith.tuners import LofitConfig, select_heads

PRETRAIN_STEPS, EPOCHS, BATCH, ROWS = 1000, 13, 32, 500
KEPT, DRAWS = (3, 8), 3
NEW = LETTERS + OLD  # an announcement that pretraining never showed
KNOWN, XOR = "a task it knows", "an XOR"
RATE, SELECT_RATE, LORA_RATE, L1 = 1e-1, 5e-3, 3e-3, 1e-3


def task_rows(task: str, n: int, generator: torch.Generator) -> tuple[Any, Any]:
    """Six letters, the new announcement, and them sorted (known), or letters swapped in pairs: each number xor 1."""
    ids, labels = rows(n, (3,), generator)
    ids[:, 1] = NEW
    if task == XOR:
        ids[:, -6:] = ids[:, 2:8] ^ 1
        labels[:, -6:] = ids[:, -6:]
    return ids, labels


def pretrained(seed: int) -> tuple[Any, torch.Generator]:
    """A Llama of four blocks of eight heads that copies, reverses, shifts or sorts six letters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    config = LlamaConfig(
        vocab_size=LETTERS + OLD + 3,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=64,
        use_cache=False,
    )
    return train(LlamaForCausalLM(config), None, PRETRAIN_STEPS, 2e-3, generator), generator


def tuned(base: Any, config: Any, data: Any, seed: int, rate: float) -> Any:
    """An adapter on a copy of the base, after as many steps as head selection takes."""
    torch.manual_seed(seed)
    model = get_peft_model(copy.deepcopy(base), config)
    return train(model, data, EPOCHS * -(-ROWS // BATCH), rate, torch.Generator().manual_seed(seed))


def run(seed: int) -> dict[str, Any]:
    """One seed: setting -> arm -> measures."""
    base, generator = pretrained(seed)
    old = rows(ROWS, tuple(range(OLD)), generator)
    before = nats(base, old)
    found: dict[str, Any] = {}
    for task in (KNOWN, XOR):
        data, test = task_rows(task, ROWS, generator), task_rows(task, ROWS, generator)
        examples = [{"input_ids": a, "labels": b} for a, b in zip(*data, strict=True)]
        ranking = select_heads(
            base, examples, 1.0, batch_size=BATCH, epochs=EPOCHS, l1=L1, learning_rate=SELECT_RATE, seed=seed
        ).ranking
        draw = torch.Generator().manual_seed(1000 + seed)

        def offsets(heads: Any, data: Any = data) -> Any:
            return tuned(base, LofitConfig(heads=heads, seed=seed), data, seed, RATE)

        arms: dict[str, Any] = {"untuned": base, "LoFiT, all 32 heads": offsets(None)}
        for k in KEPT:
            arms[f"LoFiT, {k} heads"] = offsets(ranking[:k])
            if task == XOR:
                continue
            arms[f"bottom {k} heads"] = offsets(ranking[-k:])
            for i in range(DRAWS):
                some = torch.randperm(len(ranking), generator=draw)[:k].tolist()
                arms[f"random {k} heads/{i}"] = offsets([ranking[j] for j in some])
        scales = LofitConfig(stage="select", seed=seed)
        arms["scales of stage 1 kept"] = tuned(base, scales, data, seed, SELECT_RATE)
        lora = LoraConfig(r=8, target_modules=["q_proj", "v_proj"])
        arms["LoRA, r = 8"] = tuned(base, lora, data, seed, LORA_RATE)
        values: dict[str, list[dict[str, float]]] = {}
        for arm, model in arms.items():
            measured = {"nats": nats(model, test), "forgetting": nats(model, old) - before}
            values.setdefault(arm.split("/")[0], []).append(measured)
        found[task] = {
            arm: {key: sum(one[key] for one in several) / len(several) for key in several[0]}
            for arm, several in values.items()
        }
    return found
