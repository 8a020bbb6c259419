from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import log_softmax
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tunesmith.core.errors import ParameterError
from tunesmith.engine import lm
from tunesmith.engine.lm import completion_nll

SMALL: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
}
HEADS: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-gqa-tied": ("llama", {**SMALL, **HEADS, "tie_word_embeddings": True}),
    "llama-untied": ("llama", {**SMALL, **HEADS, "tie_word_embeddings": False}),
    "gpt2": ("gpt2", {"vocab_size": 101, "n_embd": 32, "n_layer": 2, "n_head": 4}),
    "qwen2": ("qwen2", {**SMALL, **HEADS}),
    "qwen3": ("qwen3", {**SMALL, **HEADS, "head_dim": 8}),
    "gemma2-soft-cap": ("gemma2", {**SMALL, **HEADS, "head_dim": 8, "final_logit_softcapping": 0.5}),
}
PLAIN = {name: name != "gemma2-soft-cap" for name in MODELS}


def build(name: str) -> Any:
    kind, values = MODELS[name]
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**values, bos_token_id=None, eos_token_id=None, pad_token_id=0)
    return AutoModelForCausalLM.from_config(config).float().eval()


def rows(seed: int = 0) -> tuple[list[list[int]], list[list[bool]]]:
    rng = np.random.default_rng(seed)
    ids = [rng.integers(1, 101, size=k).tolist() for k in (12, 3, 1, 30, 7, 0, 18, 5)]
    masks = [(rng.random(len(row)) < 0.5).tolist() for row in ids]
    masks[4] = [False] * 7
    masks[7] = [True] * 5
    return ids, masks


def full_logits(model: Any, ids: list[list[int]], masks: list[list[bool]]) -> tuple[list[float], list[int]]:
    """The plain loop: one row at a time, all logits."""
    sums, counts = [], []
    for row, mask in zip(ids, masks, strict=True):
        total, count = 0.0, 0
        if len(row) > 1:
            with torch.inference_mode():
                logs = log_softmax(model(torch.tensor([row])).logits[0].double(), dim=-1)
            for t in range(1, len(row)):
                if mask[t]:
                    total -= float(logs[t - 1, row[t]])
                    count += 1
        sums.append(total)
        counts.append(count)
    return sums, counts


@pytest.mark.parametrize("name", MODELS)
def test_equals_the_full_logits_loop(name: str) -> None:
    model = build(name)
    ids, masks = rows()
    want, tokens = full_logits(model, ids, masks)
    for batch_size in (1, 3, 32):
        got, counts = completion_nll(model, ids, masks, 0, batch_size=batch_size)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
        assert counts.tolist() == tokens
    assert got.dtype == np.float64
    assert counts.dtype == np.int64
    assert lm._PLAIN_HEAD[model] is PLAIN[name]


def test_logits_in_pieces_and_the_value_of_padding_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama-gqa-tied")
    ids, masks = rows(1)
    want, _ = completion_nll(model, ids, masks, 0)
    monkeypatch.setattr(lm, "_LOGIT_ROWS", 3)
    got, _ = completion_nll(model, ids, masks, 57)
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_the_output_layer_sees_only_scored_positions() -> None:
    model = build("llama-gqa-tied")
    ids, masks = rows(2)
    completion_nll(model, ids, masks, 0)  # the probe runs here, once
    seen: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda m, x, y: seen.append(y.shape[:-1].numel()))
    _, counts = completion_nll(model, ids, masks, 0, batch_size=4)
    assert sum(seen) == counts.sum()


def test_bfloat16_is_close() -> None:
    model = build("llama-gqa-tied")
    ids, masks = rows()
    want, _ = completion_nll(model, ids, masks, 0)
    got, _ = completion_nll(model.to(torch.bfloat16), ids, masks, 0)
    np.testing.assert_allclose(got, want, rtol=0.02, atol=0.02)


def test_a_lora_model_is_scored_with_its_adapter() -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(build("llama-gqa-tied"), LoraConfig(r=4, target_modules=["q_proj"])).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    ids, masks = rows()
    np.testing.assert_allclose(
        completion_nll(model, ids, masks, 0)[0], full_logits(model, ids, masks)[0], rtol=1e-5, atol=1e-5
    )


def test_nothing_to_score() -> None:
    model = build("llama-gqa-tied")
    sums, counts = completion_nll(model, [[], [5], [5, 6]], [[], [True], [True, False]], 0)
    assert sums.tolist() == [0, 0, 0]
    assert counts.tolist() == [0, 0, 0]
    sums, counts = completion_nll(model, [], [], 0)
    assert sums.shape == counts.shape == (0,)


def test_a_mask_of_another_length() -> None:
    with pytest.raises(
        ParameterError,
        match=r"The 'trained' parameter of completion_nll must be a mask of the row's length 2\. Got 1",
    ):
        completion_nll(build("gpt2"), [[1, 2]], [[True]], 0)
