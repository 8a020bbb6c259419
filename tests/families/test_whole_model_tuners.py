"""Methods that put no adapter in, over the model families of `_tiny_transformers`: half of each layer (HFT), one place
(LocFT), fake quantisation (RoSTE), and sparse deltas (LT-SFT). The result of each is an ordinary model on disk.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from _tiny_transformers import KINDS, build, output_of
from tunesmith.tuners.hft import HalfFineTuning, half_reset
from tunesmith.tuners.locft import LocFTConfig, find_sites
from tunesmith.tuners.roste import RosteConfig, apply_roste, load_roste, quantizers_off
from tunesmith.tuners.sparse import SparseDelta


def half(model: Any, inputs: Any) -> Any:
    HalfFineTuning(model, seed=1).new_round()
    return model


def located(model: Any, inputs: Any) -> Any:
    sites, _ = find_sites(model, LocFTConfig(layer=1, module="mlp_down"))
    names = {site.name for site in sites}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    return model


def quantised(model: Any, inputs: Any) -> Any:
    return apply_roste(model, RosteConfig(), [inputs])


def read_back(name: str, model: Any, folder: Path) -> Any:
    model.save_pretrained(folder)
    return load_roste(folder) if name == "quantised" else type(model).from_pretrained(folder).eval()


WAYS: dict[str, Callable[[Any, Any], Any]] = {"half": half, "located": located, "quantised": quantised}
QUICK = ("llama",)  # the others run in the slow tier


def _slow(kind: str) -> list[Any]:
    return [] if kind in QUICK else [pytest.mark.slow]


EACH = [pytest.param(kind, marks=_slow(kind)) for kind in KINDS]
CASES = [pytest.param(name, kind, id=f"{name}-{kind}", marks=_slow(kind)) for name in WAYS for kind in KINDS]


def step(model: Any, inputs: Any, n: int = 3) -> list[float]:
    """Take steps with weight decay and clipping, as trainers do."""
    moving = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(moving, lr=3e-4, weight_decay=0.1)
    losses = []
    for _ in range(n):
        optimizer.zero_grad(set_to_none=True)
        loss = output_of(model(**inputs)).float().square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def run(model: Any, inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        return output_of(model(**inputs))


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_only_what_may_move_moves_and_the_result_is_read_back_equal(
    name: str, kind: str, tmp_path: Path
) -> None:
    model, inputs = build(kind)
    model = WAYS[name](model, inputs)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    free = {n for n, p in model.named_parameters() if p.requires_grad}
    losses = step(model, inputs)
    if name != "quantised":  # four bits of a model this small are noise larger than three steps
        assert losses[-1] < losses[0]
    for parameter_name, parameter in model.named_parameters():
        if parameter_name not in free:
            assert torch.equal(parameter, before[parameter_name]), parameter_name
            assert parameter.grad is None
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    expected = run(model, inputs)
    assert torch.equal(run(read_back(name, model, tmp_path), inputs), expected)


@pytest.mark.parametrize("kind", EACH)
def test_half_of_the_matrices_of_every_layer(kind: str) -> None:
    model, _ = build(kind)
    trained = set(HalfFineTuning(model, seed=1).new_round().trained)
    from tunesmith.tuners.anatomy import anatomy

    for stack in anatomy(model).stacks.values():
        parts = [part for block in stack for part in block.parts]
        weights = [part.parameters[0] for part in parts]
        assert 0.4 <= sum(name in trained for name in weights) / len(weights) <= 0.6
        for block in stack:
            kinds = {part.parameters[0] in trained for part in block.parts if part.category != "norm"}
            assert kinds == {True, False}


@pytest.mark.parametrize("kind", EACH)
def test_a_half_is_reset_to_the_base(kind: str) -> None:
    base, inputs = build(kind)
    tuned = copy.deepcopy(base)
    step(tuned, inputs)
    once = copy.deepcopy(tuned)
    half_reset(once, base, seed=0)
    equal = [torch.equal(p, q) for p, q in zip(once.parameters(), base.parameters(), strict=True)]
    assert 0 < sum(equal) < len(equal)


@pytest.mark.parametrize("kind", EACH)
def test_a_sparse_delta_is_put_on_and_taken_off(kind: str, tmp_path: Path) -> None:
    base, inputs = build(kind)
    tuned = copy.deepcopy(base)
    step(tuned, inputs)
    before = run(base, inputs)
    delta = SparseDelta.from_models(base, tuned, k=1000)
    delta.save_pretrained(tmp_path)
    assert SparseDelta.from_pretrained(tmp_path) == delta
    delta.apply(base)
    assert not torch.equal(run(base, inputs), before)
    assert (
        sum(int((p != q).sum()) for p, q in zip(build(kind)[0].parameters(), base.parameters(), strict=True))
        > 0
    )
    delta.revert(base)
    assert torch.equal(run(base, inputs), before)


@pytest.mark.parametrize("kind", EACH)
def test_without_quantisers_the_rotated_model_is_the_base(kind: str) -> None:
    model, inputs = build(kind)
    before = run(model, inputs)
    model = apply_roste(model, RosteConfig(rotation="all"), [inputs])
    assert not torch.equal(run(model, inputs), before)
    with quantizers_off(model):
        after = run(model, inputs)
    assert float((after - before).abs().max()) <= 1e-4 * max(1.0, float(before.abs().max()))
