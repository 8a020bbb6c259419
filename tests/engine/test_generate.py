"""Answers do not depend on the batch, come in order, and end where the model says so."""

from __future__ import annotations

import random

import pytest
import torch

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.core.events import EventLog
from tunesmith.engine import CutShort
from tunesmith.engine import generate as module
from tunesmith.engine.generate import generate


def models(vocabulary: int, end: int):
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(5)
    yield LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.5,  # far-apart logits, so that rounding cannot change which is largest
            eos_token_id=end,
            bos_token_id=None,
            pad_token_id=0,
        )
    )
    yield GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=128,
            initializer_range=0.5,
            eos_token_id=end,
            bos_token_id=None,
        )
    )


@pytest.fixture(params=["llama", "gpt2"])
def model(request, tiny_tokenizer):
    both = dict(zip(("llama", "gpt2"), models(len(tiny_tokenizer), tiny_tokenizer.eos_token_id), strict=True))
    return both[request.param]


@pytest.fixture
def prompts(tiny_tokenizer):
    draw = random.Random(0)
    return [[draw.randrange(3, len(tiny_tokenizer)) for _ in range(draw.randint(1, 30))] for _ in range(13)]


def test_batched_equals_one_by_one(model, tiny_tokenizer, prompts):
    batched = generate(model, tiny_tokenizer, prompts, max_new_tokens=12, batch_size=5)
    for prompt, answer in zip(prompts, batched, strict=True):
        assert generate(model, tiny_tokenizer, [prompt], max_new_tokens=12) == [answer]
    assert len(set(batched)) > 3


def test_greedy_by_hand(model, tiny_tokenizer, prompts):
    ids = list(prompts[0])
    for _ in range(6):
        with torch.inference_mode():
            ids.append(int(model.eval()(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == tiny_tokenizer.eos_token_id:
            break
    text = tiny_tokenizer.decode(ids[len(prompts[0]) :], skip_special_tokens=True).strip()
    assert generate(model, tiny_tokenizer, prompts[:1], max_new_tokens=6) == [text]


def test_every_end_token_ends_an_answer(model, tiny_tokenizer, prompts):
    first = []
    for prompt in prompts:
        with torch.inference_mode():
            first.append(int(model.eval()(torch.tensor([prompt])).logits[0, -1].argmax()))
    model.generation_config.eos_token_id = [tiny_tokenizer.eos_token_id, first[0]]
    stopped = generate(model, tiny_tokenizer, prompts, max_new_tokens=8)
    assert stopped[0] == tiny_tokenizer.decode([first[0]], skip_special_tokens=True).strip()


def test_an_answer_without_an_end_is_told(model, tiny_tokenizer, prompts):
    long = generate(model, tiny_tokenizer, prompts[:5], max_new_tokens=6)
    assert {type(answer) for answer in long} == {CutShort}
    batch = torch.tensor([prompts[0]])
    out = model.eval().generate(
        batch, attention_mask=torch.ones_like(batch), max_new_tokens=6, do_sample=False
    )
    model.generation_config.eos_token_id = [int(out[0, -1])]  # now the sixth token, or one before it, ends it
    assert type(generate(model, tiny_tokenizer, prompts[:1], max_new_tokens=6)[0]) is str


def test_sampling_settings_of_the_model_are_set_aside(model, tiny_tokenizer, prompts):
    plain = generate(model, tiny_tokenizer, prompts, max_new_tokens=8)
    model.generation_config.do_sample = True
    model.generation_config.temperature = 5.0
    model.generation_config.repetition_penalty = 1.9
    model.generation_config.num_beams = 2
    assert generate(model, tiny_tokenizer, prompts, max_new_tokens=8) == plain


def test_token_budget_and_progress(model, tiny_tokenizer, prompts, monkeypatch):
    monkeypatch.setattr(module, "TOKEN_BUDGET", 80)
    sizes = [len(rows) for rows in module._batches([len(p) for p in prompts], 8, 64)]
    assert sum(sizes) == len(prompts)
    assert len(sizes) > 3
    assert list(module._batches([500, 10], 8, 64)) == [[0], [1]], "a prompt over the budget still runs, alone"
    events = []
    model.train()
    generate(model, tiny_tokenizer, prompts, max_new_tokens=8, log=EventLog(listeners=[events.append]))
    assert (events[-1]["what"], events[-1]["done"]) == ("answers", len(prompts))
    assert model.training, "the model's mode is put back"


def test_no_prompts(model, tiny_tokenizer):
    assert generate(model, tiny_tokenizer, [], max_new_tokens=4) == []


def test_errors(model, tiny_tokenizer):
    with pytest.raises(
        DataError, match=r"prompts, row 1: the prompt has no tokens, so there is nothing to answer\."
    ):
        generate(model, tiny_tokenizer, [[5], []], max_new_tokens=4)
    with pytest.raises(
        ParameterError, match=r"'max_new_tokens' parameter of generate must be an int of at least 1. Got 0"
    ):
        generate(model, tiny_tokenizer, [[5]], max_new_tokens=0)
    with pytest.raises(
        ParameterError, match=r"'batch_size' parameter of generate must be an int of at least 1. Got 0"
    ):
        generate(model, tiny_tokenizer, [[5]], max_new_tokens=1, batch_size=0)
