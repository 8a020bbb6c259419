"""LoFiT's forward pass, gradients and adapter file; numbers of the authors' code where they exist."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM

from _tiny_transformers import build
from tunesmith.core.errors import ParameterError
from tunesmith.tuners.lofit import LofitConfig, LofitLayer
from tunesmith.tuners.lofit.heads import fold_offsets, scale_and_shift

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "lofit.json").read_text())["cases"]


def tensor(value: dict[str, Any]) -> torch.Tensor:
    return torch.tensor(value["data"], dtype=getattr(torch, value["dtype"])).reshape(value["shape"])


def layers_of(model: Any) -> list[LofitLayer]:
    return [module for module in model.modules() if isinstance(module, LofitLayer)]


def fill(model: Any, values: torch.Tensor, adapter: str = "default") -> None:
    """Set an adapter's rows from ``[L, H, d_h]``."""
    for layer in [layer for layer in layers_of(model) if adapter in layer.lofit_heads]:
        kept = layer.lofit_v if adapter in layer.lofit_v else layer.lofit_a
        kept[adapter].data = values[layer.index, layer.lofit_heads[adapter]].clone()


def golden_model(case: dict[str, Any]) -> Any:
    p = case["params"]
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=p["vocab_size"],
            hidden_size=p["hidden_size"],
            num_attention_heads=p["num_attention_heads"],
            num_key_value_heads=p["num_key_value_heads"],
            num_hidden_layers=p["num_hidden_layers"],
            intermediate_size=p["intermediate_size"],
            rms_norm_eps=p["rms_norm_eps"],
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    model.load_state_dict({k: tensor(v) for k, v in case["inputs"]["state_dict"].items()})
    return model.eval()


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c["name"]) for c in GOLDEN if c["name"].startswith("llama")]
)
def test_golden_forward_losses_gradients_and_bias(case: dict[str, Any]) -> None:
    out, tol = case["outputs"], {"atol": case["tolerance"], "rtol": 0.0}
    ids, labels = tensor(case["inputs"]["input_ids"]), tensor(case["inputs"]["labels"])
    A, v = tensor(case["inputs"]["A"]), tensor(case["inputs"]["v"])
    heads = case["params"]["selected_heads"]

    model = get_peft_model(golden_model(case), LofitConfig(stage="select"))
    fill(model, A)
    result = model(input_ids=ids, labels=labels)
    assert_close(result.logits, tensor(out["logits_stage1_A"]), **tol)
    assert_close(result.loss, tensor(out["loss_stage1"]), **tol)
    result.loss.backward()
    assert_close(
        torch.stack([layer.lofit_a["default"].grad for layer in layers_of(model)]),
        tensor(out["grad_A_stage1"]),
        **tol,
    )
    with torch.no_grad():
        with model.disable_adapter():
            assert_close(model(input_ids=ids).logits, tensor(out["logits_base"]), **tol)
        model.add_adapter("offsets", LofitConfig())
        fill(model, v, "offsets")
        model.base_model.set_adapter(["default", "offsets"])
        assert_close(model(input_ids=ids).logits, tensor(out["logits_A_and_v"]), **tol)

    model = get_peft_model(golden_model(case), LofitConfig(heads=heads))
    fill(model, v)
    result = model(input_ids=ids, labels=labels)
    assert_close(result.logits, tensor(out["logits_stage2_v_selected"]), **tol)
    assert_close(result.loss, tensor(out["loss_stage2"]), **tol)
    result.loss.backward()
    wanted = tensor(out["grad_v_stage2_all_heads"])
    for layer in layers_of(model):
        assert_close(layer.lofit_v["default"].grad, wanted[layer.index, layer.lofit_heads["default"]], **tol)
    merged = model.merge_and_unload()
    biases = torch.stack([block.self_attn.o_proj.bias for block in merged.model.layers])
    assert_close(biases, tensor(out["merged_o_proj_bias"]), **tol)


def test_the_worked_example() -> None:
    z, A, v = torch.tensor([1.0, 2, 3, 4]), torch.tensor([0, 0, 0.5, -1]), torch.tensor([0.1, 0, 0, 0])
    assert_close(scale_and_shift(z, A, v), torch.tensor([1.1, 2, 4.5, 0]))
    assert scale_and_shift(z, None, None) is z
    weight = torch.tensor([[1.0, 2, 3, 4], [0, 1, 0, 1]])
    assert fold_offsets(weight, torch.tensor([1.0, 0, -1, 0.5])).tolist() == [0.0, 0.5]


def test_gradients_are_those_of_the_formulas() -> None:
    """dL/dv of a head is W_O's block, transposed, times the gradient behind the projection, summed."""
    for stage in ("bias", "select"):
        base, inputs = build("llama")
        model = get_peft_model(base, LofitConfig(stage=stage, init_std=0.1, heads=[[0, 3], [1, 0]]))
        seen: dict[int, dict[str, torch.Tensor]] = {0: {}, 1: {}}
        for layer in layers_of(model):
            here = seen[layer.index]
            layer.register_forward_pre_hook(lambda _, x, here=here: here.update(z=x[0].detach()))
            layer.register_full_backward_hook(lambda _, __, g, here=here: here.update(g=g[0]))
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        assert {n for n, p in model.named_parameters() if p.grad is not None} == {
            n for n, p in model.named_parameters() if "lofit_" in n
        }
        for layer in layers_of(model):
            (head,) = layer.lofit_heads["default"]
            block = slice(8 * head, 8 * head + 8)
            back = seen[layer.index]["g"] @ layer.weight[:, block]
            kept = layer.lofit_v if stage == "bias" else layer.lofit_a
            expected = back if stage == "bias" else seen[layer.index]["z"][..., block] * back
            assert_close(kept["default"].grad[0], expected.sum((0, 1)), atol=1e-6, rtol=1e-4)


def test_all_heads_are_a_bias_in_the_column_space_of_the_projection() -> None:
    """W_O is invertible here, so any bias can be reached."""
    base, inputs = build("llama")
    model = get_peft_model(base, LofitConfig())
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    twin, _ = build("llama")
    biases = []
    for block in twin.model.layers:
        block.self_attn.o_proj.bias = nn.Parameter(torch.zeros(32))
        biases.append(block.self_attn.o_proj.bias)
    for layer, bias in zip(layers_of(model), biases, strict=True):
        bias.data = fold_offsets(layer.weight, layer.flat_offsets(["default"])).detach()
    twin(**inputs, labels=inputs["input_ids"]).loss.backward()
    for layer, bias in zip(layers_of(model), biases, strict=True):
        assert bias.grad is not None
        assert_close(
            layer.lofit_v["default"].grad.reshape(-1), layer.weight.T @ bias.grad, atol=1e-7, rtol=1e-4
        )
        goal = torch.linspace(-1, 1, 32)
        assert_close(
            fold_offsets(layer.weight, torch.linalg.solve(layer.weight, goal)), goal, atol=1e-3, rtol=0
        )


def test_the_file_holds_k_rows_and_their_heads_in_order(tmp_path: Path) -> None:
    heads = [[1, 2], [0, 3], [1, 0]]
    model = get_peft_model(build("llama")[0], LofitConfig(heads=torch.tensor(heads), init_std=0.3))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 3 * 8
    model.save_pretrained(tmp_path)
    kept = load_file(tmp_path / "adapter_model.safetensors")
    assert {k.rsplit(".", 1)[-1]: tuple(t.shape) for k, t in kept.items()} == {
        "lofit_v": (3, 8),
        "lofit_heads": (3, 2),
    }
    assert kept["base_model.model.lofit_heads"].tolist() == heads
    first, second = layers_of(model)
    rows = [second.lofit_v["default"][0], first.lofit_v["default"][0], second.lofit_v["default"][1]]
    assert torch.equal(kept["base_model.model.lofit_v"], torch.stack(rows))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["heads"] == heads


def test_towers_of_unequal_heads_share_one_file(tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPModel

    def clip() -> Any:
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "projection_dim": 16}
        text = {"vocab_size": 99, "max_position_embeddings": 16, "num_attention_heads": 4, **sizes}
        vision = {"image_size": 16, "patch_size": 4, "num_attention_heads": 2, **sizes}
        torch.manual_seed(0)
        return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()

    model = get_peft_model(clip(), LofitConfig(heads=[[1, 1], [0, 3]], init_std=0.3))
    assert [tuple(layer.lofit_v["default"].shape) for layer in layers_of(model)] == [(1, 8), (1, 16)]
    assert model.peft_config["default"].layout == [[1, 4, 8], [1, 2, 16]]
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(clip(), str(tmp_path))
    for one, other in zip(layers_of(model), layers_of(again), strict=True):
        assert torch.equal(one.lofit_v["default"], other.lofit_v["default"])


def test_several_adapters_add_up() -> None:
    base, inputs = build("llama")
    v = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(3))
    model = get_peft_model(base, LofitConfig(heads=[[0, 1], [1, 2]])).eval()
    fill(model, v)
    model.add_adapter("other", LofitConfig(heads=[[1, 2], [1, 3]]))
    fill(model, 2 * v, "other")
    model.base_model.set_adapter(["default", "other"])
    together, _ = build("llama")
    one = get_peft_model(together, LofitConfig(heads=[[0, 1], [1, 2], [1, 3]])).eval()
    total = v.clone()
    total[1, 2] *= 3
    total[1, 3] *= 2
    fill(one, total)
    with torch.no_grad():
        expected = one(**inputs).logits
        assert_close(model(**inputs).logits, expected, atol=1e-5, rtol=0)
        assert_close(model.merge_and_unload()(**inputs).logits, expected, atol=1e-5, rtol=0)


def test_generation_with_a_cache_equals_the_full_forward() -> None:
    model = get_peft_model(build("llama")[0], LofitConfig(heads=[[0, 1], [1, 2]], init_std=1.0)).eval()
    prompt = torch.tensor([[5, 9, 17, 31]])
    with torch.no_grad():
        made = model.generate(input_ids=prompt, max_new_tokens=12, do_sample=False, eos_token_id=None)
        slow = model.generate(
            input_ids=prompt, max_new_tokens=12, do_sample=False, eos_token_id=None, use_cache=False
        )
        full = model(input_ids=made).logits
        cache, steps = None, []
        for i in range(made.shape[1]):
            result = model(input_ids=made[:, i : i + 1], past_key_values=cache, use_cache=True)
            cache = result.past_key_values
            steps.append(result.logits)
        with model.disable_adapter():
            other = model.generate(input_ids=prompt, max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert torch.equal(made, slow)
    assert_close(torch.cat(steps, dim=1), full, atol=1e-5, rtol=0)
    assert not torch.equal(made, other)


def test_backward_stops_below_the_lowest_chosen_layer() -> None:
    base, inputs = build("llama")
    model = get_peft_model(base, LofitConfig(heads=[[1, 0]]))
    assert len(layers_of(model)) == 1
    asked = []
    for block in base.model.layers:
        block.register_forward_hook(lambda _, __, out: asked.append(out.requires_grad))
    base.model.layers[1].self_attn.o_proj.register_forward_pre_hook(
        lambda _, x: asked.append(x[0].requires_grad)
    )
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert asked == [False, False, True]  # first block; input of the chosen projection; second block


def test_a_small_offset_is_not_rounded_away_in_bfloat16() -> None:
    """z + v in bfloat16 loses a v below one part in 512 of z; behind the projection it is kept."""
    base, _ = build("llama", torch.bfloat16)
    model = get_peft_model(base, LofitConfig(heads=[[0, 0]]))
    (layer,) = layers_of(model)
    layer.lofit_v["default"].data.fill_(1e-3)
    layer.get_base_layer().weight.data.zero_()
    layer.get_base_layer().weight.data[:, :8] = torch.eye(32, 8)
    with torch.no_grad():
        z = torch.full((1, 1, 32), 0.9, dtype=torch.bfloat16)
        # Row 0 is the difference of the first two inputs: the large terms cancel, offsets that differ remain.
        layer.get_base_layer().weight.data[0, 1] = -1.0
        assert layer.lofit_v["default"].dtype == torch.float32
        assert float(layer(z)[0, 0, 0]) == pytest.approx(0.0, abs=1e-6)
        layer.lofit_v["default"].data[0, 1] = 0.0
        assert float(layer(z)[0, 0, 0]) == pytest.approx(1e-3, rel=0.01)


def test_initial_values_depend_on_seed_and_head_alone() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    few = get_peft_model(build("llama")[0], LofitConfig(heads=[[1, 2]]))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    every = get_peft_model(build("llama")[0], LofitConfig())
    other = get_peft_model(build("llama")[0], LofitConfig(seed=1))
    row = layers_of(few)[0].lofit_v["default"][0]
    assert torch.equal(layers_of(every)[1].lofit_v["default"][2], row)
    assert not torch.equal(layers_of(other)[1].lofit_v["default"][2], row)
    values = torch.cat([layer.lofit_v["default"].reshape(-1) for layer in layers_of(every)])
    assert float(values.std()) == pytest.approx(1e-3, rel=0.3)


class Int8Linear(nn.Module):
    """What a quantiser leaves: integers and a scale."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, None
        self.scale = float(linear.weight.abs().max()) / 127
        whole = (linear.weight.data / self.scale).round().to(torch.int8)
        self.weight = nn.Parameter(whole, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale)


def test_a_quantised_projection_is_tuned_but_not_merged() -> None:
    base, inputs = build("llama")
    for block in base.model.layers:
        block.self_attn.o_proj = Int8Linear(block.self_attn.o_proj)
    with torch.no_grad():
        before = base(**inputs).logits
    model = get_peft_model(base, LofitConfig(heads=[[0, 1]], init_std=0.0)).eval()
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, before)
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert float(layers_of(model)[0].lofit_v["default"].grad.abs().sum()) > 0
    with torch.no_grad():
        layers_of(model)[0].lofit_v["default"].fill_(0.5)
        weight = base.model.layers[0].self_attn.o_proj.weight
        x = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0))
        layer = layers_of(model)[0]
        shift = weight[:, 8:16].float().sum(1) * 0.5 * layer.get_base_layer().scale
        assert_close(layer(x) - layer.get_base_layer()(x), shift.expand(1, 3, 32), atol=1e-5, rtol=0)
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(
            ParameterError, match="in floating point, because a bias is computed from the projection's"
        ):
            merge()


def test_one_may_choose_among_some_layers_only() -> None:
    def wrapped(**fields: Any) -> list[str]:
        return [layer.name for layer in layers_of(get_peft_model(build("llama")[0], LofitConfig(**fields)))]

    first, second = (f"model.layers.{i}.self_attn.o_proj" for i in range(2))
    assert wrapped() == [first, second]
    assert wrapped(layers_to_transform=1) == wrapped(layers_to_transform=[1]) == [second]
    assert wrapped(target_modules=["layers.0.self_attn.o_proj"]) == [first]
    assert wrapped(target_modules=r".*o_proj", exclude_modules=["layers.0.self_attn.o_proj"]) == [second]
    assert wrapped(target_modules="all-linear") == [first, second]
