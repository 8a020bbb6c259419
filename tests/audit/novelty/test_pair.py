"""Two models in one batch, and scores gathered while texts are drawn."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.testing import assert_close

from _tiny_transformers import build
from tunesmith.audit import CGEConfig, NoveltyExplorer
from tunesmith.audit.novelty.pair import Pair


class Marks:
    """What an explorer asks of a tokenizer."""

    bos_token_id, eos_token_id, pad_token_id = 1, 2, None

    def decode(self, ids: list[int], **_: Any) -> str:
        return " ".join(map(str, ids))


def adapted(**options: Any) -> tuple[Any, Any]:
    """Return a tiny llama with an adapter that does something, and the llama."""
    base, _ = build("llama")
    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", **options)
    tuned = get_peft_model(copy.deepcopy(base), config)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return tuned, base


@pytest.mark.parametrize("iterative", [False, True])
def test_one_batch_of_both_is_two_passes(iterative):
    tuned, _ = adapted()
    pair = Pair(tuned, None, iterative=iterative, learning_rate=0.1)
    assert pair._stacked
    ids = torch.tensor([[1, 5, 7, 9, 4], [1, 8, 3, 3, 6]])
    if iterative:
        pair.learn(ids)
    made = []
    for stacked in (True, False):
        pair._stacked, caches, steps = stacked, None, []
        for part in (ids[:, :2], ids[:, 2:3], ids[:, 3:4]):
            ours, theirs, caches = pair.step(part, caches)
            steps.append((ours, theirs))
        made.append(steps)
    for one, two in zip(*made, strict=True):
        for together, apart in zip(one, two, strict=True):
            assert_close(together, apart, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(*one, atol=1e-2)
    pair.close()


@pytest.mark.parametrize(("options", "stacked"), [({"use_dora": True}, False), ({}, True)])
def test_an_adapter_that_cannot_be_mixed_takes_two_passes(options, stacked):
    tuned, base = adapted(**options)
    assert Pair(tuned, None)._stacked is stacked
    assert not Pair(tuned, base)._stacked
    config = CGEConfig("static", length=7, texts_per_step=2)
    alone, two = (NoveltyExplorer(tuned, b, Marks(), config).explore(4) for b in (None, base))
    assert [text.token_ids for text in alone] == [text.token_ids for text in two]


def test_weights_that_were_merged_or_several_adapters_are_not_mixed():
    tuned, _ = adapted()
    tuned.merge_adapter()
    assert not Pair(tuned, None)._stacked
    tuned.unmerge_adapter()
    tuned.add_adapter("other", LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    tuned.base_model.set_adapter(["default", "other"])
    assert not Pair(tuned, None)._stacked


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_scores_gathered_on_the_way_are_those_of_reading_the_text(gamma):
    tuned, base = adapted()
    asked = []
    base.register_forward_pre_hook(
        lambda _, args, kwargs: asked.append(kwargs["use_cache"]), with_kwargs=True
    )
    config = CGEConfig("static", gamma=gamma, length=9, texts_per_step=2)
    found = NoveltyExplorer(tuned, base, Marks(), config).explore(4)
    assert asked.count(True) == (0 if gamma == 0 else 2 * 8)  # gamma 0 does not ask the model before
    assert asked.count(False) == (2 if gamma == 0 else 0)
    ours, theirs = Pair(tuned, base).log_likelihoods(torch.tensor([text.token_ids for text in found]))
    assert_close(torch.tensor([t.score for t in found]), (ours - theirs).sum(-1), atol=1e-4, rtol=0)
