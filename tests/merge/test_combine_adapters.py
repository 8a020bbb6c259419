"""Adapters combined with one another: the exact way is exact, the others are measured, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from _tiny_transformers import build
from tunesmith.core.errors import ParameterError, TrainingError
from tunesmith.merge import combine_adapters


def with_adapters(kind: str = "llama", ranks: tuple[int, ...] = (2, 3)) -> tuple[Any, Any]:
    from peft import LoraConfig, get_peft_model

    model, inputs = build(kind)
    targets = ["c_attn"] if kind == "gpt2" else ["q_proj", "v_proj"]
    torch.manual_seed(0)
    for i, rank in enumerate(ranks):
        config = LoraConfig(r=rank, lora_alpha=4, target_modules=targets, init_lora_weights=False)
        if i == 0:
            model = get_peft_model(model, config, adapter_name="a0")
        else:
            model.add_adapter(f"a{i}", config)
    return model.eval(), inputs


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_cat_is_the_weighted_sum(kind: str) -> None:
    model, inputs = with_adapters(kind)
    result = combine_adapters(model, ["a0", "a1"], [0.7, -0.2])
    assert (result.name, result.rank) == ("combined", 5)
    assert result.error < 1e-5
    assert model.active_adapters == ["combined"]
    got = model(**inputs).logits
    # The same by hand: both changes added to the base's weights.
    reference, _ = build(kind)
    layers = dict(reference.named_modules())
    for name, module in model.get_base_model().named_modules():
        if "a0" in getattr(module, "lora_A", ()):
            delta = 0.7 * module.get_delta_weight("a0") - 0.2 * module.get_delta_weight("a1")
            layers[name].weight.data += delta
    assert torch.allclose(got, reference(**inputs).logits, atol=1e-5)


def test_other_methods_are_measured() -> None:
    model, _ = with_adapters(ranks=(2, 2))
    enough = combine_adapters(model, ["a0", "a1"], name="svd4", method="svd", svd_rank=4)
    cut = combine_adapters(model, ["a0", "a1"], name="svd1", method="svd", svd_rank=1)
    factors = combine_adapters(model, ["a0", "a1"], name="lin", method="linear")
    assert enough.error < 1e-4 < 0.05 < cut.error < 1
    assert factors.error > 0.1  # sums of factors are not factors of the sum
    assert set(factors.errors) == set(enough.errors)
    assert len(factors.errors) == 4


def test_equal_shares_by_default() -> None:
    model, _ = with_adapters(ranks=(2, 2))
    combine_adapters(model, ["a0", "a1"])
    module = model.get_base_model().model.layers[0].self_attn.q_proj
    mean = 0.5 * module.get_delta_weight("a0") + 0.5 * module.get_delta_weight("a1")
    assert torch.allclose(module.get_delta_weight("combined"), mean, atol=1e-6)


def test_refusals() -> None:
    from peft import IA3Config, get_peft_model

    model, _ = with_adapters()
    with pytest.raises(
        ParameterError, match=r"for adapters of different ranks \(a0: r=2, a1: r=3\). Got 'linear'"
    ):
        combine_adapters(model, ["a0", "a1"], method="linear")
    with pytest.raises(
        ParameterError, match="The 'adapters' parameter of combine_adapters must be two or more"
    ):
        combine_adapters(model, ["a0", "nope"])
    with pytest.raises(
        ParameterError, match="The 'method' parameter of combine_adapters must be one of 'cat'"
    ):
        combine_adapters(model, ["a0", "a1"], method="sum")
    with pytest.raises(
        ParameterError, match="The 'name' parameter of combine_adapters must be a name that no adapter"
    ):
        combine_adapters(model, ["a0", "a1"], name="a1")
    with pytest.raises(
        ParameterError, match="The 'weights' parameter of combine_adapters must be 2 finite numbers"
    ):
        combine_adapters(model, ["a0", "a1"], [1.0])
    with pytest.raises(
        ParameterError,
        match=r"PEFT refuses to combine the adapters a0: r=2, a1: r=3: Unimplemented mask method",
    ):
        combine_adapters(model, ["a0", "a1"], method="ties_svd", density=0.5, majority_sign_method="nope")
    assert list(model.peft_config) == ["a0", "a1"]
    other = get_peft_model(build("llama")[0], IA3Config(target_modules=["k_proj"], feedforward_modules=[]))
    other.add_adapter("b", IA3Config(target_modules=["k_proj"], feedforward_modules=[]))
    with pytest.raises(ParameterError, match="must be LoRA adapters; merge others into the base one by one"):
        combine_adapters(other, ["default", "b"])


def test_a_sum_that_is_none_is_taken_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = with_adapters()
    plain = model.base_model.add_weighted_adapter

    def wrong(*args: Any, **kwargs: Any) -> None:
        plain(*args, **kwargs)
        for name, parameter in model.named_parameters():
            if "combined" in name:
                parameter.data.mul_(1.1)

    monkeypatch.setattr(model.base_model, "add_weighted_adapter", wrong, raising=False)
    with pytest.raises(TrainingError, match="The combined adapter is not the weighted sum of a0, a1"):
        combine_adapters(model, ["a0", "a1"])
    assert list(model.peft_config) == ["a0", "a1"]
