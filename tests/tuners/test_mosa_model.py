"""MoSA in whole models: draws, sparse training, merging, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict

from _tiny_transformers import build, output_of
from tunesmith.core.errors import ParameterError
from tunesmith.trainers import consistency_loss
from tunesmith.tuners import MosaConfig, merged_adapter, mosa_to_lora
from tunesmith.tuners.mosa.layer import Branch, MosaLayer


def make(kind: str = "llama", **settings: Any) -> tuple[Any, dict[str, Any]]:
    model, inputs = build(kind)
    return get_peft_model(model, MosaConfig(**{"r": 2, "num_parts": 3, **settings})), inputs


def layers_of(model: Any) -> list[MosaLayer]:
    return [module for module in model.modules() if isinstance(module, MosaLayer)]


def stir(model: Any, seed: int = 2) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def count(model: Any) -> int:
    return model.base_model._draws.counts.get("default", 0)


def drawn(model: Any) -> Any:
    return copy.deepcopy(model.base_model._draws.current["default"])


@pytest.mark.parametrize("settings", [{}, {"flavour": "adapter"}, {"flavour": "adapter", "style": "houlsby"}])
def test_it_starts_as_the_base_model_in_every_draw(settings: dict[str, Any]) -> None:
    base, inputs = build("llama")
    expected = output_of(base(**inputs))
    model, _ = make(share="none", **settings)
    assert torch.equal(output_of(model.eval()(**inputs)), expected)
    model.train()
    draws = set()
    for _ in range(6):
        assert torch.equal(output_of(model(**inputs)), expected)
        draws.add(str(drawn(model)))
    assert len(draws) > 2


def test_one_part_is_plain_lora_to_the_last_step() -> None:
    mosa, inputs = make(num_parts=1, dropout=0.2)
    plain = get_peft_model(
        build("llama")[0],
        LoraConfig(r=2, lora_alpha=2, lora_dropout=0.2, target_modules=["q_proj", "v_proj"]),
    )
    pairs = list(zip(layers_of(mosa), [m for m in plain.modules() if hasattr(m, "lora_A")], strict=False))
    with torch.no_grad():
        for mine, theirs in pairs:
            theirs.lora_A["default"].weight.copy_(mine.mosa_branch["default"].down.whole)
    for model in (mosa, plain):
        torch.manual_seed(0)
        model.train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            output_of(model(**inputs)).square().mean().backward()
            optimizer.step()
    for mine, theirs in pairs:
        up = mine.mosa_branch["default"].up.whole
        assert up.abs().max() > 1e-3
        torch.testing.assert_close(up, theirs.lora_B["default"].weight, atol=1e-6, rtol=0)
    assert count(mosa) == 0


@pytest.mark.parametrize("style", ["adaptformer", "pfeiffer"])
def test_the_merged_block_is_the_mean_over_draws(style: str) -> None:
    model, inputs = make(flavour="adapter", style=style, layers_to_transform=[1], dropout=0.0)
    stir(model)
    outputs: list[torch.Tensor] = []
    block = model.get_base_model().model.layers[1]
    block.register_forward_hook(lambda *args: outputs.append(output_of_block(args[-1])))
    draws = model.base_model._draws
    with torch.no_grad():
        model.eval()(**inputs)
        model.train()
        for e in range(3):
            draws._draw = lambda adapter, e=e: [[0, e]]
            model(**inputs)
    merged, mean = outputs[0], torch.stack(outputs[1:]).mean(0)
    assert float((merged - mean).abs().max()) <= 1e-6 * float(merged.abs().max())
    assert float((outputs[1] - outputs[2]).abs().max()) > 1e-3


def output_of_block(result: Any) -> torch.Tensor:
    return result if isinstance(result, torch.Tensor) else result[0]


def test_what_a_part_does_not_own_never_moves() -> None:
    model, inputs = make(share="none", num_parts=2)
    before = copy.deepcopy(layers_of(model)[0].mosa_branch["default"].down.initial)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.5
    )
    model.train()
    for _ in range(6):
        optimizer.zero_grad()
        (output_of(model(**inputs)) - 1).square().mean().backward()
        for layer in layers_of(model):
            branch: Any = layer.mosa_branch["default"]
            used = drawn(model)[branch.site]
            for side, e in zip(("down", "up"), used, strict=True):
                split = getattr(branch, side)
                assert getattr(split, f"part{1 - e}").grad is None
                assert getattr(split, f"part{e}").grad is not None
        optimizer.step()
    branch = layers_of(model)[0].mosa_branch["default"]
    assert torch.equal(branch.down.initial, before)
    for e in range(2):
        others = branch.down.owner != e
        assert torch.equal(branch.down.drawn(e)[others], before[others])
        assert not torch.equal(branch.down.drawn(e)[~others], before[~others])
        assert not branch.up.drawn(e)[branch.up.owner != e].any()


@pytest.mark.parametrize("flavour", ["lora", "adapter"])
def test_the_merged_adapter_is_the_plain_one(flavour: str) -> None:
    model, inputs = make(flavour=flavour, share="none")
    stir(model)
    expected = output_of(model.eval()(**inputs))
    config, tensors = merged_adapter(model)
    plain = get_peft_model(build("llama")[0], MosaConfig(flavour=flavour, r=2, num_parts=1))
    shapes = {
        name.replace(".default", ""): p.shape for name, p in plain.named_parameters() if p.requires_grad
    }
    assert {k: v.shape for k, v in tensors.items() if "mosa_draws" not in k} == shapes
    again = get_peft_model(build("llama")[0], config).eval()
    set_peft_model_state_dict(again, tensors)
    torch.testing.assert_close(output_of(again(**inputs)), expected, atol=1e-6, rtol=1e-5)
    _, twice = merged_adapter(again)
    assert all(torch.equal(twice[name], tensors[name]) for name in tensors)
    for function in (merged_adapter, mosa_to_lora):
        with pytest.raises(ParameterError, match="the name of a MoSA adapter of the model"):
            function(model, "other")
    if flavour == "adapter":
        with pytest.raises(ParameterError, match="'lora': a bottleneck holds a nonlinearity"):
            mosa_to_lora(model)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {"scale": 0.7}),
        ("gpt2", {"share": "none"}),
        ("vit", {"modules_to_save": ["classifier"], "layers_to_transform": [1]}),
    ],
)
def test_it_is_a_stock_lora_of_its_own_rank(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model, inputs = make(kind, **settings)
    stir(model)
    expected = output_of(model.eval()(**inputs))
    config, tensors = mosa_to_lora(model, path=tmp_path)
    assert (config.r, config.lora_alpha) == (2, 2 * settings.get("scale", 1.0))
    assert {t.shape[0] for name, t in tensors.items() if "lora_A" in name} == {2}
    stock = PeftModel.from_pretrained(build(kind)[0], str(tmp_path)).eval()
    assert type(stock.peft_config["default"]) is LoraConfig
    torch.testing.assert_close(output_of(stock(**inputs)), expected, atol=1e-6, rtol=1e-6)


def test_weights_are_the_plain_adapters_in_number() -> None:
    def numbers(**settings: Any) -> int:
        return sum(p.numel() for p in make(**settings)[0].parameters() if p.requires_grad)

    assert numbers(num_parts=4) == numbers(num_parts=1)
    extra = 2 * 3 * 32  # three more biases of width 32 in two blocks
    assert numbers(flavour="adapter", num_parts=4) == numbers(flavour="adapter", num_parts=1) + extra
    vit_base = Branch(MosaConfig(flavour="adapter", r=64, num_parts=1, layer_norm=False), 768, 768, "mlp", 0)
    assert sum(p.numel() for p in vit_base.parameters()) == 99_136


def test_one_seed_one_split_one_sequence_of_draws_also_after_loading(tmp_path: Path) -> None:
    one, inputs = make(seed=5)
    other, _ = make(seed=5)
    assert torch.equal(
        layers_of(one)[0].mosa_branch["default"].up.owner, layers_of(other)[0].mosa_branch["default"].up.owner
    )
    third, _ = make(seed=6)
    assert not torch.equal(
        layers_of(one)[0].mosa_branch["default"].up.owner, layers_of(third)[0].mosa_branch["default"].up.owner
    )
    straight = []
    one.train()
    for _ in range(4):
        torch.manual_seed(0)  # the draws have nothing to do with it
        one(**inputs)
        straight.append(drawn(one))
    other.train()
    for _ in range(2):
        other(**inputs)
    assert drawn(other) == straight[1]
    other.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(build("llama")[0], str(tmp_path), is_trainable=True).train()
    again(**inputs)
    assert drawn(again) == straight[2]
    third.train()
    third(**inputs)
    third.load_adapter(str(tmp_path), "default", is_trainable=True)  # as a trainer resumes
    assert count(third) == 2


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_block_run_again_uses_the_draw_of_its_own_pass(kind: str, reentrant: bool) -> None:
    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        model, inputs = make(kind)
        stir(model)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        with torch.no_grad():
            embeds = model.get_input_embeddings()(inputs["input_ids"])
        embeds.requires_grad_()  # one tensor for both passes: the hardest case
        first = output_of(model(inputs_embeds=embeds))
        second = output_of(model(inputs_embeds=embeds))
        (first.square().mean() + 3 * consistency_loss(first, second)).backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    plain, again = gradients(False), gradients(True)
    assert plain.keys() == again.keys()
    for name, grad in plain.items():
        torch.testing.assert_close(again[name], grad, atol=1e-6, rtol=1e-4)


def test_the_base_model_called_by_itself_draws_too() -> None:
    model, inputs = make()
    base = model.train().get_base_model()
    base(**inputs)
    first = drawn(model)
    base(**inputs)
    assert drawn(model) != first
    base.model(**inputs)  # a part of it: the draw stays
    assert count(model) == 2
    merged = model.merge_and_unload()
    assert not merged._forward_pre_hooks


def test_without_autocast_the_adapter_has_the_type_of_the_base() -> None:
    model, inputs = build("llama", torch.bfloat16)
    model = get_peft_model(model, MosaConfig(r=2), autocast_adapter_dtype=False)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    output_of(model.train()(**inputs)).float().sum().backward()


def test_a_step_after_evaluation_is_seen_by_the_next_one() -> None:
    model, inputs = make()
    before = output_of(model.eval()(**inputs))
    for p in model.parameters():
        if p.requires_grad:
            p.data.add_(0.5)  # past autograd's counters
    assert not torch.allclose(output_of(model(**inputs)), before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"flavour": "ia3"}, "'flavour' parameter .* 'lora' or 'adapter'"),
        ({"style": "compacter"}, "'style' parameter .* 'adaptformer' or"),
        ({"share": "both"}, "'share' parameter .* 'down' or 'up' or 'none'"),
        ({"structure": "block"}, "'structure' parameter .* 'all' or 'row' or 'column'"),
        ({"merge_scale": "max"}, "'merge_scale' parameter .* 'mean' or 'sum'"),
        ({"r": 0}, "'r' parameter .* an int of at least 1"),
        ({"num_parts": 0}, r"'num_parts' parameter .* an int in \[1, 127\]"),
        ({"scale": 0.0}, "'scale' parameter .* above 0"),
        ({"dropout": 1.0}, r"'dropout' parameter .* in \[0, 1\)"),
    ],
)
def test_settings_outside_their_set_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        MosaConfig(**settings)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("llama", {"r": 1, "num_parts": 33}, "at most 32, the entries to split"),
        ("llama", {"structure": "row", "num_parts": 3}, "at most 2, the entries to split"),
        (
            "llama",
            {"flavour": "adapter", "num_parts": 33, "split_bias": True},
            "at most 32, the width of a split bias",
        ),
        ("bert", {"flavour": "adapter"}, "lacks an MLP module of its own"),
        ("llama", {"layers_to_transform": [2]}, r"block numbers in \[0, 1\]"),
        ("llama", {"exclude_modules": ["q_proj", "v_proj"]}, "a module is left after the exclusions"),
    ],
)
def test_places_that_do_not_exist_are_refused(kind: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        make(kind, **settings)


def test_merging_is_refused_with_its_reason() -> None:
    model, _ = make()
    model.get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight = torch.nn.Parameter(
        torch.zeros(32, 32, dtype=torch.int8), requires_grad=False
    )
    with pytest.raises(ParameterError, match="in floating point, because the mean of the parts"):
        model.merge_adapter()
    model, _ = make()
    layers_of(model)[0].mosa_branch["default"].up.part0.data.fill_(float("nan"))
    with pytest.raises(ParameterError, match="adapters with finite values"):
        model.merge_and_unload(safe_merge=True)
    model, _ = make(flavour="adapter", style="pfeiffer")
    with pytest.raises(ParameterError, match=r"carries already \(sequential\)"):
        model.add_adapter("other", MosaConfig(flavour="lora", target_modules=["down_proj"]))
