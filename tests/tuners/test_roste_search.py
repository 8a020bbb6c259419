"""RoSTE's search: errors site by site against their definition, and the least total in either layout."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch

from _tiny_transformers import build
from tunesmith.numerics import RandomHadamard
from tunesmith.tuners import RosteConfig, apply_roste, search_rotations
from tunesmith.tuners.roste import Quantizer, quantizers_off, roste_layers
from tunesmith.tuners.roste.attention import ATTRIBUTE, recording

Q4 = Quantizer(4)


def total_error(model: Any, batches: list[Any], rotations: dict[str, bool], config: RosteConfig) -> float:
    """E by its definition, of a model that really was transformed so and runs unquantised."""
    model = apply_roste(copy.deepcopy(model), config, rotations=rotations)
    total, n = 0.0, sum(len(b if torch.is_tensor(b) else b["input_ids"]) for b in batches)

    def read(layer: Any, args: Any) -> None:
        nonlocal total
        turn = layer.rotation if layer.rotate_input else None
        total += Q4.error(args[0] if turn is None else turn(args[0])) / n

    def cached(module: Any, key: torch.Tensor, value: torch.Tensor) -> None:
        nonlocal total
        cache = getattr(module, ATTRIBUTE)
        for x, turn in ((key, cache.key), (value, cache.value)):
            total += Q4.error(x if turn is None else turn(x)) / n

    for layer in roste_layers(model).values():
        total += Q4.error(layer.rotated()[0])
        layer.register_forward_pre_hook(read)
    with torch.no_grad(), quantizers_off(model), recording(cached):
        for batch in batches:
            model(batch) if torch.is_tensor(batch) else model(**batch)
    return total


def two_layers() -> torch.nn.Module:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8))
    with torch.no_grad():  # two inputs 30 times as large, as in the experiment of the dossier
        model[0].weight[:, :2] /= 30
    return model


def outlying(rows: int, seed: int = 0) -> torch.Tensor:
    x = torch.randn(rows, 64, generator=torch.Generator().manual_seed(seed))
    x[:, :2] *= 30
    return x


def test_errors_are_those_of_the_definition_and_inputs_propagate_unquantised() -> None:
    model, batches = two_layers(), [outlying(96), outlying(32, 1)]
    found = search_rotations(model, batches)
    x = torch.cat(batches)
    reads = {"0": x, "2": model[1](model[0](x)).detach()}
    R = RandomHadamard.drawn(64, 0)
    assert set(found) == {"0", "2"}
    for name, x in reads.items():
        weight = model[int(name)].weight.detach()
        plain = Q4.error(weight) + Q4.error(x) / 128
        turned = Q4.error(R(weight)) + Q4.error(R(x)) / 128
        assert found[name].identity == pytest.approx(plain, rel=1e-6)
        assert found[name].hadamard == pytest.approx(turned, rel=1e-4)
    assert found["0"].rotate  # outliers are spread
    assert not found["2"].rotate  # half of the inputs are zeros
    assert 3 * found["0"].hadamard < found["0"].identity
    assert 2 * found["2"].identity < found["2"].hadamard


def test_an_outlier_is_helped_and_one_is_made() -> None:
    class OneWeight(torch.nn.Module):
        def __init__(self, row: list[float]) -> None:
            super().__init__()
            self.helped = torch.nn.Linear(4, 1, bias=False)
            self.helped.weight.data = torch.tensor([row])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.helped(x)

    config = RosteConfig(symmetric=True, activation_bits=None)
    one = search_rotations(OneWeight([7, 0.4, 0.4, 0.4]), [torch.zeros(1, 4)], config)["helped"]
    assert one.identity == pytest.approx(0.48, abs=1e-5)
    other = search_rotations(OneWeight([1, 1, 1, 3 / 7]), [torch.zeros(1, 4)], config)["helped"]
    assert other.identity == pytest.approx(0, abs=1e-10)
    assert one.rotate
    assert not other.rotate
    quantizer = Quantizer(4, symmetric=True)
    for signs in itertools.product((-1.0, 1.0), repeat=4):  # whatever the signs
        turn = RandomHadamard(torch.tensor(signs))
        assert quantizer.error(turn(torch.tensor([7, 0.4, 0.4, 0.4]))) < 0.48
        assert quantizer.error(turn(torch.tensor([1, 1, 1, 3 / 7]))) > 0.001


def test_one_pass_gives_what_the_papers_two_passes_give() -> None:
    model, inputs = build("llama")
    found = search_rotations(model, [inputs])
    for turned in (False, True):
        expected = sum(c.hadamard if turned else c.identity for c in found.values())
        got = total_error(model, [inputs], dict.fromkeys(found, turned), RosteConfig())
        assert got == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_chosen_total_is_the_sum_of_least_errors_and_no_uniform_one_is_less(kind: str) -> None:
    model, inputs = build(kind)
    found = search_rotations(model, [inputs])
    least = sum(min(c.identity, c.hadamard) for c in found.values())
    chosen = total_error(model, [inputs], {s: c.rotate for s, c in found.items()}, RosteConfig())
    assert chosen == pytest.approx(least, rel=1e-4)
    assert least <= sum(c.identity for c in found.values())
    assert least <= sum(c.hadamard for c in found.values())
    assert {c.rotate for c in found.values()} == {True, False}
    assert sum(site.endswith((".key", ".value")) for site in found) == 4


def test_the_folded_layout_takes_the_least_of_all_choices() -> None:
    model, inputs = build("llama")
    model.model.layers = model.model.layers[:1]
    model.config.num_hidden_layers = 1
    config = RosteConfig(layout="folded")
    found = search_rotations(model, [inputs], config)
    assert list(found) == ["R1", *(f"model.layers.0.R{i}" for i in (2, 3, 4))]
    totals = {
        on: total_error(model, [inputs], dict(zip(found, on, strict=True)), config)
        for on in itertools.product((False, True), repeat=4)
    }
    chosen = tuple(c.rotate for c in found.values())
    least = min(totals.values())
    assert totals[chosen] == pytest.approx(least, rel=1e-4)
    assert min(found["R1"].identity, found["R1"].hadamard) == pytest.approx(least, rel=1e-4)
    for turned in (False, True):  # the total that R1's finding gives is the least with that R1
        of = found["R1"].hadamard if turned else found["R1"].identity
        assert of == pytest.approx(min(t for on, t in totals.items() if on[0] == turned), rel=1e-4)
    assert least <= min(totals[(False,) * 4], totals[(True,) * 4])


def test_the_folded_choice_of_several_blocks_beats_both_uniform_ones() -> None:
    model, inputs = build("llama")
    config = RosteConfig(layout="folded")
    found = search_rotations(model, [inputs], config)
    assert len(found) == 3 * 2 + 1
    chosen = total_error(model, [inputs], {s: c.rotate for s, c in found.items()}, config)
    assert chosen == pytest.approx(min(found["R1"].identity, found["R1"].hadamard), rel=1e-4)
    for turned in (False, True):
        assert chosen <= total_error(model, [inputs], dict.fromkeys(found, turned), config) * (1 + 1e-4)


@pytest.mark.parametrize("layout", ["online", "folded"])
def test_the_search_leaves_the_model_as_it_was(layout: str) -> None:
    model, inputs = build("llama-tied")
    model.train()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    setting = model.config.to_dict()
    found = search_rotations(model, [inputs], RosteConfig(layout=layout))
    assert model.training
    assert model.config.to_dict() == setting
    assert model.config._attn_implementation == "sdpa"
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not any(m._forward_pre_hooks for m in model.modules())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
    applied = apply_roste(model, RosteConfig(layout=layout), [inputs])
    assert {s: [c.identity, c.hadamard, c.rotate] for s, c in found.items()} == {
        s: pytest.approx([c.identity, c.hadamard, c.rotate], rel=1e-5)
        for s, c in applied._roste.choices.items()
    }


def test_padding_labels_and_the_order_of_batches_do_not_count() -> None:
    model, inputs = build("llama")
    ids = inputs["input_ids"]
    pad = torch.full((2, 5), 7)
    padded = {
        "input_ids": torch.cat([ids, pad], 1),
        "attention_mask": torch.cat([torch.ones_like(ids), torch.zeros_like(pad)], 1),
        "labels": torch.cat([ids, pad], 1),
    }
    one, other = search_rotations(model, [inputs]), search_rotations(model, [padded])
    halves = [{k: v[i : i + 1] for k, v in inputs.items()} for i in (1, 0)]
    third = search_rotations(model, halves)
    for site, choice in one.items():
        for alike in (other[site], third[site]):
            assert alike.identity == pytest.approx(choice.identity, rel=1e-3)
            assert alike.hadamard == pytest.approx(choice.hadamard, rel=1e-3)


def test_a_tie_is_not_rotated_and_an_odd_width_neither() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 7), torch.nn.Linear(7, 2))
    found = search_rotations(model, [torch.randn(4, 8)], RosteConfig(weight_bits=None, activation_bits=None))
    assert [(c.identity, c.hadamard, c.rotate) for c in found.values()] == [(0, 0, False)] * 2
    found = search_rotations(model, [torch.randn(4, 8)])
    assert found["1"].identity == found["1"].hadamard > 0
    model = apply_roste(model, RosteConfig(rotation="all"))
    assert model[1].rotation is None
    assert model[0].rotation is not None


def test_a_given_choice_is_used_and_what_it_says_of_other_sites_is_dropped() -> None:
    model, inputs = build("llama")
    found = search_rotations(model, [inputs])
    model = apply_roste(model, RosteConfig(kv_bits=None), rotations=found)
    layers = roste_layers(model)
    assert {n: m.rotation is not None for n, m in layers.items()} == {n: found[n].rotate for n in layers}
    assert set(model._roste.choices) == set(model._roste.rotate) == set(layers)
