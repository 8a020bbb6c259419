"""The mask token's rows: means of the old ones, their gradients, and LoRA beside them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from _thoughts import rows
from peft import LoraConfig, PeftModel, get_peft_model
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from tunesmith.core.errors import ParameterError
from tunesmith.trainers import MaskedThoughtCollator, add_mask_token

PAD = DataCollatorForLanguageModeling(0)


def llama(tied: bool, size: int = 400, dtype: torch.dtype = torch.float32) -> Any:
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).to(dtype)


def with_mask(tied: bool, tiny: Any, **kwargs: Any) -> tuple[Any, Any, int]:
    model, tokenizer = llama(tied, **kwargs), copy.deepcopy(tiny)
    return model, tokenizer, add_mask_token(model, tokenizer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_are_the_mean_of_the_old(tied: bool, dtype: torch.dtype, tiny_tokenizer: Any) -> None:
    before = llama(tied, dtype=dtype)
    model, tokenizer, mask = with_mask(tied, tiny_tokenizer, dtype=dtype)
    assert (mask, tokenizer.mask_token, model.config.vocab_size) == (400, "<mask>", 401)
    assert tokenizer("a<mask>b").input_ids[1] == mask
    pairs = [(model.get_input_embeddings().weight, before.get_input_embeddings().weight)]
    pairs += [] if tied else [(model.lm_head.weight, before.lm_head.weight)]
    for new, old in pairs:
        assert torch.equal(new[:400], old)
        assert torch.equal(new[400], old.float().mean(0).to(dtype))
        assert new.requires_grad
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    again = add_mask_token(model, tokenizer)
    assert (again, len(tokenizer), len(pairs[0][0])) == (400, 401, 401)


def test_an_unused_row_of_a_padded_vocabulary_is_taken(tiny_tokenizer: Any) -> None:
    model, _, mask = with_mask(False, tiny_tokenizer, size=448)
    old = llama(False, size=448)
    assert (mask, len(model.lm_head.weight)) == (400, 448)
    for name in ("lm_head", "model.embed_tokens"):
        rows_of, before = model.get_submodule(name).weight, old.get_submodule(name).weight
        assert_close(rows_of[400], before[:400].mean(0))
        kept = torch.arange(448) != 400
        assert torch.equal(rows_of[kept], before[kept])


def test_a_token_that_the_tokenizer_has_is_used(tiny_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.mask_token = "<|im_start|>"
    model = llama(True)
    before = model.get_input_embeddings().weight.detach().clone()
    assert add_mask_token(model, tokenizer) == 1
    assert torch.equal(model.get_input_embeddings().weight, before)
    reloaded = copy.deepcopy(tiny_tokenizer)  # a saved tokenizer has the token, a fresh base no row for it
    reloaded.add_special_tokens({"mask_token": "<mask>"})
    assert add_mask_token(model, reloaded) == 400
    assert_close(model.get_input_embeddings().weight[400], before.mean(0))


def test_the_bias_of_an_output_layer_grows_too(tiny_tokenizer: Any) -> None:
    model = llama(False)
    model.lm_head = torch.nn.Linear(16, 400)
    bias = model.lm_head.bias.detach().clone()
    add_mask_token(model, copy.deepcopy(tiny_tokenizer))
    assert_close(model.lm_head.bias[400], bias.mean())


def grads(model: Any, batch: dict[str, torch.Tensor], mask: int) -> tuple[torch.Tensor, torch.Tensor]:
    model.zero_grad()
    model(**batch).loss.backward()
    return model.get_input_embeddings().weight.grad[mask], model.lm_head.weight.grad[mask]


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_of_the_new_rows(tied: bool, tiny_tokenizer: Any) -> None:
    model, _, mask = with_mask(tied, tiny_tokenizer)
    clean = PAD(rows(1))
    last, inner = clean["input_ids"].clone(), clean["input_ids"].clone()
    last[0, -1] = inner[0, -3] = mask
    for ids, moved in ((clean["input_ids"], False), (last, False), (inner, True)):
        given, produced = grads(model, {**clean, "input_ids": ids}, mask)
        assert bool(produced.any())  # the softmax's normaliser
        if not tied:
            assert bool(given.any()) == moved


def lora(kind: str, mask: int) -> LoraConfig:
    if kind == "constant":
        return LoraConfig(target_modules=["q_proj"], r=2)
    if kind == "trainable_token_indices":
        return LoraConfig(target_modules=["q_proj"], r=2, trainable_token_indices=[mask])
    return LoraConfig(target_modules=["q_proj"], r=2, modules_to_save=["embed_tokens", "lm_head"])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["constant", "trainable_token_indices", "modules_to_save"])
def test_lora_trains_the_row_and_is_loaded_again(
    kind: str, tied: bool, tiny_tokenizer: Any, tmp_path: Any
) -> None:
    model, tokenizer, mask = with_mask(tied, tiny_tokenizer)
    tuned = get_peft_model(model, lora(kind, mask))
    collator = MaskedThoughtCollator(PAD, tokenizer, rate=0.5)
    collator.corruption.fits(tuned, collator)
    batch = collator(rows(4))
    assert (batch["input_ids"] == mask).any()
    rows_before = tuned.get_input_embeddings()(torch.arange(401)).detach().clone()
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        tuned(**batch).loss.backward()
        optimizer.step()
    moved = (tuned.get_input_embeddings()(torch.arange(401)) != rows_before).any(1)
    assert bool(moved[mask]) == (kind != "constant")
    assert bool(moved[:mask].any()) == (kind == "modules_to_save")
    tuned.save_pretrained(tmp_path, save_embedding_layers=False)
    base, _, _ = with_mask(tied, tiny_tokenizer)
    with torch.no_grad():
        expected = tuned.eval()(input_ids=batch["input_ids"]).logits
        found = PeftModel.from_pretrained(base, tmp_path).eval()(input_ids=batch["input_ids"]).logits
    assert_close(found, expected)


def test_adapters_come_after_the_token(tiny_tokenizer: Any) -> None:
    tuned = get_peft_model(llama(True), lora("constant", 0))
    with pytest.raises(ParameterError) as caught:
        add_mask_token(tuned, copy.deepcopy(tiny_tokenizer))
    assert str(caught.value) == (
        "The 'model' parameter of add_mask_token must be without adapters: add the token first, then the adapters. Got "
        "'PeftModel' instead."
    )


def test_a_model_without_the_row_is_refused(tiny_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    with pytest.raises(ParameterError) as caught:
        MaskedThoughtCollator(PAD, tokenizer).corruption.fits(llama(True), MaskedThoughtCollator)
    assert str(caught.value) == (
        "The 'mask_token' parameter of MaskedThoughtCollator must be below 400, the rows of the model's embedding: "
        "add_mask_token(model, tokenizer) adds one. Got 400 instead."
    )
    with pytest.raises(ParameterError) as caught:
        MaskedThoughtCollator(PAD, mode="random", vocab_size=401).corruption.fits(
            llama(True), MaskedThoughtCollator
        )
    assert str(caught.value) == (
        "The 'vocab_size' parameter of MaskedThoughtCollator must be at most 400, the rows of the model's embedding. "
        "Got 401 instead."
    )
