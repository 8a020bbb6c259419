"""IAA: what must hold of the wiring, with numbers worked by hand; on real blocks of tiny transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from tunesmith.tuners import IAAConfig
from tunesmith.tuners.iaa.core import bottleneck_size, chain_step, layer_step, sublayer_step

WIRED = ("layer", "sublayer", "chain")
Tiny = Callable[..., tuple[Any, dict[str, Any]]]


class Stack(nn.Module):
    """F_l(x) = 0.1 x, twice, on width one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Tenth() for _ in range(2))

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(hidden=x)
        return x


class Tenth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.map.weight, 0.1)

    def forward(self, hidden: Any) -> Any:
        return self.map(hidden)


def by_hand(b_1: float, b_2: float, **config: Any) -> tuple[float, float]:
    """H_2 and its derivative by b_1, at x = 3, of linear bottlenecks b_l x on the stack above."""
    model = get_peft_model(
        Stack(),
        IAAConfig(r_host=1, r_aside=1, nonlinearity="identity", layers_pattern="layers", **config),
    )
    weights = [p for n, p in model.named_parameters() if "iaa_up" in n and n.endswith("weight")]
    for name, p in model.named_parameters():
        if "iaa_down" in name and name.endswith("weight"):
            p.data.fill_(1.0)
    for up, b in zip(weights, (b_1, b_2), strict=True):
        up.data.fill_(b)
    H_2 = model(torch.tensor([[3.0]]))
    (slope,) = torch.autograd.grad(H_2.sum(), weights[0])
    return float(H_2.detach()), float(slope)


def test_the_hand_example() -> None:
    # H_2 = (0.1 + b_2)(0.1 + b_1) x
    assert by_hand(0.0, 0.0, host="none") == pytest.approx((0.03, 0.3))
    assert by_hand(0.0, 0.5, host="none") == pytest.approx((0.18, 1.8))
    assert by_hand(0.2, 0.5, host="none") == pytest.approx((0.54, 1.8))
    # scattered serial adapters: H_2 = 0.1 (1 + b_2) 0.1 (1 + b_1) x
    assert by_hand(0.0, 0.0, variant="none") == pytest.approx((0.03, 0.03))
    assert by_hand(0.2, 0.5, variant="none") == pytest.approx((0.054, 0.045))
    # chain: c_1 = (1 + b_1) x, H_2 = 0.1 (0.1 + b_1) x + b_2 (1 + b_1) x
    assert by_hand(0.0, 0.5, host="none", variant="chain") == pytest.approx((1.53, 1.8))
    assert by_hand(0.2, 0.5, host="none", variant="chain") == pytest.approx((1.89, 1.8))


def test_the_steps_on_numbers() -> None:
    x = torch.tensor(3.0)
    assert float(layer_step(lambda h: 0.1 * h, lambda h: 0.2 * h, x)) == pytest.approx(0.9)
    # U = 0.3 + 0.6, H' = 0.5 U + 0.1 U
    tenth, fifth, half = (lambda h: 0.1 * h), (lambda h: 0.2 * h), (lambda h: 0.5 * h)
    assert float(sublayer_step(tenth, half, fifth, tenth, x)) == pytest.approx(0.54)
    delta, c = chain_step(fifth, x, torch.tensor(2.0))
    assert (float(delta), float(c)) == pytest.approx((1.0, 4.0))


def config(variant: str = "layer", host: str = "adapter", **more: Any) -> IAAConfig:
    return IAAConfig(variant=variant, host=host, **{"r_host": 3, "r_aside": 4, **more})


def wrapped(tiny: Tiny, kind: str, *args: Any, **more: Any) -> tuple[Any, dict[str, Any]]:
    model, inputs = tiny(kind)
    torch.manual_seed(0)
    return get_peft_model(model, config(*args, **more)).eval(), inputs


def own(model: Any) -> dict[str, Any]:
    return {n: p for n, p in model.named_parameters() if ".iaa_" in n}


@pytest.mark.parametrize("host", ["adapter", "lora"])
@pytest.mark.parametrize("variant", WIRED)
def test_a_step_moves_nothing_of_the_base_and_first_gradients_reach_only_the_upper_half(
    tiny_transformer: Tiny, output_of: Any, variant: str, host: str
) -> None:
    model, inputs = wrapped(tiny_transformer, "bert", variant, host, layer_norm=True)
    base, _ = tiny_transformer("bert")
    assert torch.equal(output_of(model(**inputs)), output_of(base(**inputs)))
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if n not in own(model)}
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(2):
        optimiser.zero_grad()
        output_of(model(**inputs)).square().sum().backward()
        for name, p in own(model).items():
            if step == 0 and not ("iaa_up" in name or "iaa_att_up" in name):
                assert not p.grad.any(), name
            else:
                assert p.grad.any(), name
        optimiser.step()
    for name, p in model.named_parameters():
        if name in frozen:
            assert not p.requires_grad
            assert torch.equal(p, frozen[name])


def test_a_head_trains_and_is_saved_with_it(tiny_transformer: Tiny, output_of: Any, tmp_path: Any) -> None:
    from peft import PeftModel

    model, inputs = wrapped(tiny_transformer, "bert", "chain", modules_to_save=["classifier"])
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained - set(own(model)) == {
        f"base_model.model.classifier.modules_to_save.default.{end}" for end in ("weight", "bias")
    }
    for p in model.parameters():
        if p.requires_grad:
            p.data.add_(0.1)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_transformer("bert")[0], str(tmp_path)).eval()
    assert torch.equal(output_of(again(**inputs)), output_of(model(**inputs)))


def test_without_asides_lora_hosts_are_plain_lora(tiny_transformer: Tiny, output_of: Any) -> None:
    ours, inputs = wrapped(tiny_transformer, "llama", "none", "lora", lora_alpha=6)
    theirs = get_peft_model(
        tiny_transformer("llama")[0], LoraConfig(r=3, lora_alpha=6, target_modules=["o_proj", "down_proj"])
    )

    def lora_name(name: str) -> str:
        for a, b in (("iaa.iaa_down", "lora_A"), ("iaa.iaa_up", "lora_B")):
            name = name.replace(a, b)
        return name

    same = dict(theirs.named_parameters())
    for name, p in own(ours).items():
        same[lora_name(name)].data.copy_(p)
    assert len(own(ours)) == sum(p.requires_grad for p in same.values())
    for model in (ours, theirs):
        optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        for _ in range(3):
            optimiser.zero_grad()
            output_of(model(**inputs)).square().mean().backward()
            optimiser.step()
    for name, p in own(ours).items():
        torch.testing.assert_close(p, same[lora_name(name)], rtol=1e-6, atol=1e-8)
    assert any(p.any() for n, p in own(ours).items() if "iaa_up" in n)
    torch.testing.assert_close(output_of(ours(**inputs)), output_of(theirs(**inputs)))


class Serial(nn.Module):
    """A linear layer with a plain bottleneck adapter after it."""

    def __init__(self, layer: Any, down: Any, up: Any) -> None:
        super().__init__()
        self.layer, self.down, self.up = layer, down, up

    def forward(self, x: Any) -> Any:
        h = self.layer(x)
        return h + self.up(nn.functional.gelu(self.down(h)))


def test_without_asides_adapter_hosts_are_plain_adapters(tiny_transformer: Tiny, output_of: Any) -> None:
    ours, inputs = wrapped(tiny_transformer, "llama", "none", init_weights=False)
    plain, _ = tiny_transformer("llama")
    twins = {}
    for i, layer in enumerate(plain.model.layers):
        host = ours.base_model.model.model.layers[i].mlp.down_proj.iaa
        down, up = nn.Linear(32, 3), nn.Linear(3, 32)
        down.load_state_dict(host.iaa_down["default"].state_dict())
        up.load_state_dict(host.iaa_up["default"].state_dict())
        layer.mlp.down_proj = Serial(layer.mlp.down_proj, down, up)
        twins.update(zip(host.parameters(), [*down.parameters(), *up.parameters()], strict=True))
    assert len(twins) == len(own(ours))
    a, b = output_of(ours(**inputs)), output_of(plain(**inputs))
    assert torch.equal(a, b)
    for output in (a, b):
        output.square().sum().backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in twins.items())


@pytest.mark.parametrize("host", ["adapter", "none"])
def test_a_chain_that_begins_at_zero_never_learns(tiny_transformer: Tiny, output_of: Any, host: str) -> None:
    def moved(zero: bool) -> list[bool]:
        model, inputs = wrapped(tiny_transformer, "llama", "chain", host)

        def forced(_: Any, args: Any, kwargs: Any) -> Any:
            return (args[0], 0 * args[1], *args[2:]), kwargs

        if zero:
            model.base_model.model.model.layers[0].register_forward_pre_hook(forced, with_kwargs=True)
        output_of(model(**inputs)).square().sum().backward()
        asides = [p for n, p in own(model).items() if "layers.0.iaa" in n or "layers.1.iaa" in n]
        return [bool(p.grad.any()) for p in asides if p.dim() == 2]

    assert moved(zero=True) == [False] * 4
    assert moved(zero=False) == [False, True] * 2  # per layer: down, up


@pytest.mark.parametrize(("variant", "host"), [(v, "adapter") for v in (*WIRED, "none")] + [("none", "lora")])
def test_asides_connect_where_frozen_layers_are_cut(
    tiny_transformer: Tiny, output_of: Any, monkeypatch: Any, variant: str, host: str
) -> None:
    from transformers.models.llama import modeling_llama as llama

    model, inputs = wrapped(tiny_transformer, "llama", variant, host, init_weights=False, init_scale=0.3)
    whole = llama.LlamaDecoderLayer.forward

    def cut(self: Any, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        """From the second on: every frozen map, the residuals too, is zero; taps run where they would."""
        if self.self_attn.layer_idx == 0:
            return whole(self, hidden_states, *args, **kwargs)
        if variant == "sublayer":
            U, _ = self.self_attn(self.input_layernorm(hidden_states))
            self.post_attention_layernorm(U)
        return torch.zeros_like(hidden_states)

    attention = llama.LlamaAttention.forward

    def no_attention(self: Any, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        if self.layer_idx == 0:
            return attention(self, hidden_states, *args, **kwargs)
        return torch.zeros_like(hidden_states), None

    monkeypatch.setattr(llama.LlamaDecoderLayer, "forward", cut)
    monkeypatch.setattr(llama.LlamaAttention, "forward", no_attention)
    before = output_of(model(**inputs))
    names = [n for n in own(model) if "layers.0" in n and "_up." in n and n.endswith("weight")]
    first = names[0] if variant == "none" else next(n for n in names if "layers.0.iaa.iaa_up" in n)
    own(model)[first].data.add_(0.1)
    after = output_of(model(**inputs))
    assert torch.equal(after, before) == (variant == "none")


@pytest.mark.parametrize("layer_norm", [False, True])
def test_the_count_is_the_formula(tiny_transformer: Tiny, layer_norm: bool) -> None:
    d, layers, ln = 32, 2, 64 if layer_norm else 0

    def count(*args: Any, **more: Any) -> int:
        return wrapped(tiny_transformer, "bert", *args, layer_norm=layer_norm, **more)[
            0
        ].get_nb_trainable_parameters()[0]

    host, aside = 2 * d * 3 + d + 3, 2 * d * 4 + d + 4 + ln
    assert (bottleneck_size(d, 3), bottleneck_size(d, 4, layer_norm)) == (host, aside)
    assert count("layer") == count("chain") == layers * (host + aside)
    assert count("sublayer") == layers * 2 * (host + aside)
    assert count("none") == layers * host
    assert count("layer", "none") == layers * aside
    assert count("layer", "lora") == layers * (3 * (32 + 32) + 3 * (48 + 32) + aside)
    # the budget rule: 2 + 2 against 4, but for one bias vector of d per layer
    assert count("chain", r_host=2, r_aside=2) - count("none", r_host=4) == layers * (d + ln)


def test_bert_base_counts_are_those_of_the_dossier() -> None:
    assert [12 * bottleneck_size(768, r) for r in (8, 16, 32, 64)] == [156_768, 304_320, 599_424, 1_189_632]


@pytest.mark.parametrize("variant", WIRED)
def test_right_padding_changes_no_embedding(tiny_transformer: Tiny, variant: str) -> None:
    model, _ = wrapped(tiny_transformer, "bert", variant, init_weights=False, init_scale=0.3)
    encoder = model.base_model.model.bert

    def embedding(ids: list[int], length: int) -> Any:
        padded = torch.tensor([ids + [0] * (length - len(ids))])
        mask = torch.tensor([[1] * len(ids) + [0] * (length - len(ids))])
        hidden = encoder(input_ids=padded, attention_mask=mask).last_hidden_state
        return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    short, long = embedding([5, 6, 7], 3), embedding([5, 6, 7], 12)
    torch.testing.assert_close(short, long, rtol=1e-5, atol=1e-6)
