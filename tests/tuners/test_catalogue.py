"""The catalogue of tuning methods: its entries, what PEFT makes of each of them, and the sizes it states."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from typing import Any

import peft
import pytest
import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from _small_tuners import SMALL
from tunesmith.core.errors import ParameterError, TunesmithError, UnknownNameError
from tunesmith.tuners import catalogue
from tunesmith.tuners.catalogue import (
    FAMILIES,
    MODELS,
    build,
    entries,
    find,
    get,
    search,
    size_of,
    table_of_sizes,
)
from tunesmith.tuners.catalogue import entry as entry_module

WIDTH = 64
CONFIG = LlamaConfig(
    vocab_size=64,
    hidden_size=WIDTH,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=128,
)
IDS = torch.arange(14).reshape(2, 7)

# Orthogonal subspaces want every layer named.
OSF = {"target_modules": ["q_proj", "v_proj", "k_proj", "o_proj", "up_proj", "down_proj", "gate_proj"]}
# Their forward pass needs more than token ids, so only their size is looked at.
ROUTED = {"multitask_prompt_tuning", "poly", "xlora"}
TUNERS = [e.key for e in find(available=True) if e.implemented_by == "peft" and e.key not in ROUTED]
every = pytest.mark.parametrize("key", TUNERS)


@pytest.fixture(scope="module")
def base() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(CONFIG).eval()


def tuned(base: Any, key: str, **parameters: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = build(key, **{**SMALL.get(key, OSF if key == "osf" else {}), **parameters})
        return get_peft_model(copy.deepcopy(base), config).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits[:, -IDS.shape[1] :]


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference relative to the largest logit."""
    return float((a - b).abs().max() / a.abs().max())


def test_one_family_each_and_keys_are_unique() -> None:
    assert [k for k, n in Counter(e.key for e in entries()).items() if n > 1] == []
    assert {e.family for e in entries()} == set(FAMILIES)
    assert all(set(e.models) <= set(MODELS) and e.models for e in entries())
    parts = [find(family=family) for family in FAMILIES]
    assert sum(map(len, parts)) == len(entries())
    assert {e.key for part in parts for e in part} == {e.key for e in entries()}


def test_every_tuner_of_the_installed_peft_is_there_and_described() -> None:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    named = {e.reference for e in entries()}
    ours = {c.__name__ for c in PEFT_TYPE_TO_CONFIG_MAPPING.values() if c.__module__.startswith("peft.")}
    assert {f"peft:{name}" for name in ours} <= named
    unknown = [e.key for e in entries() if e.guessed]
    assert unknown == [], "PEFT has new tuners: describe them in methods.json"


def test_a_tuner_new_to_us_gets_an_entry_by_its_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {e.reference for e in entries()} - {
        "peft:LoraConfig",
        "peft:PrefixTuningConfig",
        "peft:LNTuningConfig",
    }
    found = {e.key: e for e in search._news(known)}
    assert set(found) == {"lora", "prefix_tuning", "ln_tuning"}
    assert [found[k].family for k in ("lora", "prefix_tuning", "ln_tuning")] == [
        "reparameterization", "prompt", "additive",
    ]  # fmt: skip
    assert found["lora"].mergeable
    assert all(e.guessed for e in found.values())


@every
def test_merging_is_as_the_entry_says(base: Any, key: str) -> None:
    model = tuned(base, key)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn(p.shape, generator=generator))
    before = logits(model)
    if get(key).mergeable:
        assert far(before, logits(model.merge_and_unload())) < 1e-5
    else:
        with pytest.raises((NotImplementedError, ValueError, AttributeError)):
            model.merge_and_unload()


@every
def test_the_start_is_as_the_entry_says(base: Any, key: str) -> None:
    change = far(logits(base), logits(tuned(base, key)))
    assert (change < 1e-6) == (get(key).starts == "unchanged"), change


@every
def test_only_the_methods_own_numbers_are_trained(base: Any, key: str) -> None:
    entry, names = get(key), {name for name, _ in base.named_parameters()}
    trained = [name for name, p in tuned(base, key).named_parameters() if p.requires_grad]
    assert trained
    plain = [name.removeprefix("base_model.model.") for name in trained]
    if entry.adds_parameters:
        assert not names & set(plain)


@pytest.mark.parametrize(
    ("key", "parameters", "expected"),
    [
        ("lora", {"r": 4}, 4 * 2 * WIDTH),
        ("loha", {"r": 4}, 2 * 4 * 2 * WIDTH),
        ("hira", {"r": 4}, 4 * 2 * WIDTH),
        ("vera", {"r": 16}, 16 + WIDTH),
        ("ia3", {"feedforward_modules": []}, WIDTH),
        ("fourierft", {"n_frequency": 100}, 100),
        ("waveft", {"n_frequency": 100}, 100),
        ("shira", {"r": 4}, 4 * 2 * WIDTH),
        ("c3a", {"block_size": 16}, WIDTH * WIDTH // 16),
        ("miss", {"r": 4}, 4 * WIDTH),
        ("oft", {"r": 0, "oft_block_size": 16}, WIDTH * 15 // 2),
        ("beft", {}, WIDTH),
    ],
)
def test_the_formulas_give_what_peft_trains(
    base: Any, key: str, parameters: dict[str, Any], expected: int
) -> None:
    assert get(key).parameters
    model = tuned(base, key, target_modules=["q_proj"], **parameters)
    per_layer = sum(p.numel() for p in model.parameters() if p.requires_grad) / CONFIG.num_hidden_layers
    assert per_layer == expected


@pytest.mark.parametrize(
    ("key", "expected"), [("prompt_tuning", 4 * WIDTH), ("prefix_tuning", 2 * 2 * 4 * WIDTH)]
)
def test_the_formulas_of_prompts(base: Any, key: str, expected: int) -> None:
    assert sum(p.numel() for p in tuned(base, key).parameters() if p.requires_grad) == expected


def test_lora_by_hand() -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False))
    torch.nn.init.zeros_(layer[0].weight)
    model = get_peft_model(layer, peft.LoraConfig(r=1, lora_alpha=2, target_modules=["0"]))
    tuner = model.base_model.model[0]
    with torch.no_grad():
        tuner.lora_A["default"].weight.copy_(torch.tensor([[3.0, 4.0]]))
        tuner.lora_B["default"].weight.copy_(torch.tensor([[1.0], [2.0]]))
    assert tuner.get_delta_weight("default").tolist() == [[6, 8], [12, 16]]
    scales = []
    for rank_stabilised in (False, True):
        config = peft.LoraConfig(r=16, lora_alpha=16, use_rslora=rank_stabilised, target_modules=["0"])
        model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(2, 2)), config)
        scales.append(model.base_model.model[0].scaling["default"])
    assert scales == [1.0, 4.0]


def test_a_full_mask_is_full_tuning_and_ia3_at_one_is_nothing(base: Any) -> None:
    model = tuned(base, "shira", r=WIDTH // 2, target_modules=["q_proj"])
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == CONFIG.num_hidden_layers * WIDTH * WIDTH
    model = tuned(base, "ia3")
    assert all(bool((p == 1).all()) for p in model.parameters() if p.requires_grad)
    assert far(logits(base), logits(model)) == 0


def test_sizes_are_counted_without_weights(base: Any) -> None:
    sizes = {size.key: size for size in table_of_sizes(CONFIG)}
    assert set(sizes) == {e.key for e in find(available=True) if e.implemented_by in ("peft", "tunesmith")}
    for key in ("lora", "ia3", "ln_tuning", "lokr", "vera"):
        counted = sum(p.numel() for p in tuned(base, key).parameters() if p.requires_grad)
        assert (sizes[key].trained, sizes[key].total) == (counted, base.num_parameters()), key
    assert sizes["trainable_tokens"].trained == 20 * WIDTH
    assert sizes["roste"].trained == base.num_parameters()
    assert sizes["locft_bf"].trained == WIDTH * CONFIG.intermediate_size
    assert 0.4 < sizes["hft"].trained / base.num_parameters() < 0.8
    assert 0.005 < sizes["lt_sft"].trained / base.num_parameters() <= 0.01
    assert all(sizes[key].trained for key in ("iaa", "lofit"))
    refused = size_of(get("c3a"), CONFIG)
    assert refused.trained is None
    assert "block size should be a factor" in refused.why_not
    assert [s.key for s in table_of_sizes(CONFIG, ["lora", "ia3"])] == ["ia3", "lora"]


def test_what_cannot_be_built_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def message(key: str, **parameters: Any) -> str:
        with pytest.raises(TunesmithError) as caught:
            build(key, **parameters)
        return str(caught.value)

    assert message("bitfit").startswith("Nothing here implements BitFit. Plain PyTorch")
    assert message("houlsby") == "Nothing here implements Houlsby adapter."
    assert "LoRA-FA is not a config" in message("lora_fa")
    assert "HFT is not a config: see tunesmith.tuners.HalfFineTuning, or put tuner: {type: hft}" in message(
        "hft"
    )
    assert "has no such field" in message("lora", rank=4)
    with pytest.raises(UnknownNameError, match=r"no tuning method named 'lorra'. Did you mean 'lora'\?"):
        get("lorra")
    with pytest.raises(ParameterError, match="The 'family' parameter of find must be one of 'selective'"):
        find(family="soft")
    with pytest.raises(ParameterError, match="The 'model' parameter of find must be one of 'LLM'"):
        find(model="CNN")
    monkeypatch.setattr(entry_module.importlib.metadata, "version", lambda name: "0.16.0.dev0")
    assert message("miss").startswith("MiSS needs PEFT 0.17 or newer;")
    assert not get("miss").available
    assert get("lora").available


def test_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    folding = find(mergeable=True, available=True)
    assert all(e.mergeable and e.available for e in folding)
    assert "lora" in {e.key for e in folding}
    order = [(not e.mergeable, not e.available, e.key) for e in find(model="VFM")]
    assert order == sorted(order)
    assert all(not e.extra_inference_cost for e in find(extra_inference_cost=False))
    assert catalogue.get("lora").implemented_by == "peft"
    assert catalogue.get("mosa").implemented_by == "tunesmith"
    assert catalogue.get("bitfit").implemented_by == "none"
