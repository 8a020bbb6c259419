"""MoSA's equations: hand-worked numbers and the authors' values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from tunesmith.tuners import MosaConfig
from tunesmith.tuners.mosa.core import (
    NONLINEARITIES,
    bottleneck,
    mean_of,
    merge_parts,
    owner_map,
    part_sizes,
    place_part,
    positions_of,
)
from tunesmith.tuners.mosa.layer import Branch, SplitTensor

CASES = {
    case["name"]: case
    for case in json.loads((Path(__file__).parents[1] / "golden" / "mosa.json").read_text())["cases"]
}


def tensor(value: dict[str, Any]) -> torch.Tensor:
    return torch.tensor(value["data"], dtype=getattr(torch, value["dtype"])).reshape(value["shape"])


def masks_of(owner: torch.Tensor, E: int) -> torch.Tensor:
    return torch.stack([owner == e for e in range(E)]).long()


def test_parts_cover_everything_once_and_differ_by_one_at_most() -> None:
    assert part_sizes(10, 4) == [2, 3, 2, 3]
    for E in (1, 2, 3, 6, 7, 49):
        owner = owner_map(torch.rand(7, 9, generator=torch.Generator().manual_seed(E)), E)
        masks = masks_of(owner, E)
        assert torch.equal(masks.sum(0), torch.ones(7, 9, dtype=torch.long))
        sizes = masks.sum((1, 2)).tolist()
        assert sizes == part_sizes(63, E)
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("masks_") and n != "masks_bias_default"])
def test_golden_masks(name: str) -> None:
    case = CASES[name]
    E, out = case["params"]["E"], case["outputs"]
    u = tensor(case["inputs"]["u"])
    masks = masks_of(owner_map(u, E, case["params"]["mode"]), E)
    if name == "masks_tied_scores":  # theirs belong to two parts, ours to one, inside of theirs
        assert torch.equal(masks.sum(0), torch.ones(6, dtype=torch.long))
        assert bool((masks <= tensor(out["masks"])).all())
    elif name == "masks_rounding_n18_E6":
        assert torch.equal(masks, tensor(out["masks_exact_integer_rule"]))
        assert masks.sum(1).tolist() == tensor(out["sizes_exact_integer_rule"]).tolist() == [3] * 6
    else:
        assert torch.equal(masks, tensor(out["masks"]))


def test_biases_are_whole_in_every_part_unless_split() -> None:
    branch = Branch(MosaConfig(flavour="adapter", num_parts=3, r=4), 6, 6, "mlp", 0)
    assert [len(part) for part in branch.up_bias.parts()] == [6, 6, 6]
    assert [len(part) for part in branch.down_bias.parts()] == [4]
    split = Branch(MosaConfig(flavour="adapter", num_parts=3, r=4, split_bias=True), 6, 6, "mlp", 0)
    assert [len(part) for part in split.up_bias.parts()] == [2, 2, 2]


def test_the_merge_of_a_row_by_hand() -> None:
    owner = torch.tensor([0, 1, 0, 1])
    places = torch.cat(positions_of(owner, 2))
    w = torch.tensor([0.4, 0.8, -0.2, 0.6])
    zero = torch.zeros(1, 4)
    assert_close(merge_parts(zero, places, w, 2), torch.tensor([[0.2, -0.1, 0.4, 0.3]]))
    assert_close(merge_parts(zero, places, w, 2, "sum"), torch.tensor([[0.4, -0.2, 0.8, 0.6]]))
    start = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    parts = [place_part(start, p, v) for p, v in zip(positions_of(owner, 2), (w[:2], w[2:]), strict=True)]
    assert parts[0].tolist() == [[pytest.approx(0.4), 2.0, pytest.approx(0.8), 4.0]]
    assert_close(merge_parts(start, places, w, 2), torch.stack(parts).mean(0))


def test_golden_merge() -> None:
    case = CASES["merge_add_and_joint"]
    W, masks = tensor(case["inputs"]["W_e"]), tensor(case["inputs"]["masks"])
    places = positions_of(masks.argmax(0), 3)
    w = torch.cat([W[e].reshape(-1)[places[e]] for e in range(3)])
    out, zero = case["outputs"], torch.zeros(4, 2)
    assert_close(merge_parts(zero, torch.cat(places), w, 3), tensor(out["W_add"]), atol=1e-6, rtol=0)
    assert_close(merge_parts(zero, torch.cat(places), w, 3, "sum"), tensor(out["W_sum"]), atol=1e-6, rtol=0)
    biases = list(tensor(case["inputs"]["c_e"]))
    assert_close(mean_of(biases, "mean"), tensor(out["c_add"]), atol=1e-6, rtol=0)
    assert_close(mean_of(biases, "sum"), tensor(out["c_sum"]), atol=1e-6, rtol=0)


def attention(
    state: dict[str, torch.Tensor], x: torch.Tensor, heads: int, extra: dict[str, Any]
) -> torch.Tensor:
    """Multi-head attention of a ViT; ``extra`` adds a LoRA branch to a projection."""

    def project(name: str) -> torch.Tensor:
        y = functional.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])
        y = y + extra[name](x) if name in extra else y
        return y.unflatten(-1, (heads, -1)).transpose(1, 2)

    mixed = functional.scaled_dot_product_attention(project("query"), project("key"), project("value"))
    return functional.linear(mixed.transpose(1, 2).flatten(2), state["out.weight"], state["out.bias"])


def adapter(state: dict[str, torch.Tensor], where: str, draw: tuple[int, int] | None, phi: str) -> Any:
    """Return the bottleneck of a golden block, of a draw (down part, up part) or of the merged tensors."""

    def side(name: str, e: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        found = []
        for kind in ("weight", "bias"):
            parts = [state[k] for k in sorted(state) if k.startswith(f"{name}.") and k.endswith(kind)]
            if not parts:
                found.append(None)
            elif len(parts) == 1:
                found.append(parts[0])
            else:
                found.append(mean_of(parts, "mean") if draw is None else parts[e])
        return found[0], found[1]

    names = [where.format("down"), where.format("up")]
    chosen = draw or (0, 0)
    down, up = side(names[0], chosen[0]), side(names[1], chosen[1])
    return lambda x: bottleneck(x, down, up, NONLINEARITIES[phi])


def block(case: dict[str, Any], draws: dict[str, tuple[int, int]] | None) -> torch.Tensor:
    p, x = case["params"], tensor(case["inputs"]["x"])
    state = {name: tensor(value) for name, value in case["inputs"]["state_dict"].items()}
    eps, phi, style = p["layer_norm_eps"], p["activation"], p["style"]

    def norm(name: str, h: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(h, h.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)

    inner = {k.removeprefix("attn."): v for k, v in state.items() if k.startswith("attn.")}
    h = x + attention(inner, norm("attention_norm", x), p["heads"], {})
    if style == "Houlsby":
        h = h + adapter(state, "adapter_{}_attn", draws and draws["attn"], phi)(h)
    f = functional.linear(norm("ffn_norm", h), state["ffn.fc1.weight"], state["ffn.fc1.bias"])
    f = functional.linear(functional.gelu(f), state["ffn.fc2.weight"], state["ffn.fc2.bias"])
    if style == "Houlsby":
        h = h + f
        return h + adapter(state, "adapter_{}_ffn", draws and draws["ffn"], phi)(h)
    a = adapter(state, "adapter_{}", draws and draws["ffn"], phi)
    if style == "Pfeiffer":
        return h + f + a(norm("adapter_norm", f))
    return h + f + p["scale_s"] * a(norm("adapter_norm", h))


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("block_")])
def test_golden_blocks(name: str) -> None:
    case = CASES[name]
    d, tolerance = case["inputs"]["draws"], {"atol": case["tolerance"], "rtol": 0.0}
    if "attn_down" in d:
        draws = {"attn": (d["attn_down"], d["attn_up"]), "ffn": (d["ffn_down"], d["ffn_up"])}
    else:
        draws = {"ffn": (d["A_down"], d["B_up"])}
    assert_close(block(case, draws), tensor(case["outputs"]["y_train"]), **tolerance)
    assert_close(block(case, None), tensor(case["outputs"]["y_eval"]), **tolerance)


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("mosl_")])
def test_golden_lora_flavour(name: str) -> None:
    case = CASES[name]
    state = {key: tensor(value) for key, value in case["inputs"]["state_dict"].items()}
    names = {"q": "query", "k": "key", "v": "value"}
    x, tolerance = tensor(case["inputs"]["x"]), {"atol": case["tolerance"], "rtol": 0.0}
    for draws, expected in ((case["inputs"]["draws"], "y_train"), (None, "y_eval")):
        extra = {}
        for key in case["inputs"]["draws"]:
            chosen = None if draws is None else (draws[key]["A"], draws[key]["B"])
            inner = {
                k.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): v for k, v in state.items()
            }
            extra[names[key]] = adapter(inner, f"lora_{{}}_{key}", chosen, "identity")
        y = attention(state, x, case["params"]["heads"], extra)
        assert_close(y, tensor(case["outputs"][expected]), **tolerance)


def test_golden_masked_steps_keep_what_a_part_does_not_own() -> None:
    case = CASES["masked_adamw_steps"]
    W0, mask, grads = (tensor(case["inputs"][k]) for k in ("W0", "mask", "grads"))
    p = case["params"]
    split = SplitTensor(W0, 2, 1.0 - mask.float(), MosaConfig(num_parts=2, r=1))
    mine = mask.bool()
    split.owner.copy_((~mine).to(torch.int8))
    split.part0 = torch.nn.Parameter(W0[mine].clone())
    split.part1 = torch.nn.Parameter(W0[~mine].clone())
    optimizer = torch.optim.AdamW(
        split.parameters(), lr=p["lr"], betas=p["betas"], eps=p["eps"], weight_decay=p["decay_used"]
    )
    for step, grad in enumerate(grads):
        optimizer.zero_grad(set_to_none=True)
        (split.drawn(0) * grad).sum().backward()
        assert split.part1.grad is None
        assert torch.equal(split.part0.grad, grad[mine])
        optimizer.step()
        after, theirs = split.drawn(0), tensor(case["outputs"]["W_after_each_step"])[step]
        assert torch.equal(after[~mine], W0[~mine])
        # they divide eps by the bias correction and decay last: below 1e-5 in a step of 1e-2
        assert_close(after[mine], theirs[mine], atol=1e-4, rtol=0)


def test_undrawn_parts_get_no_gradient_or_zero_where_asked() -> None:
    for step_undrawn in (False, True):
        config = MosaConfig(r=2, num_parts=3, step_undrawn=step_undrawn)
        branch = Branch(config, 5, 6, "q", 0)
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
        branch(x, (0, 1)).square().sum().backward()
        assert branch.up.part1.grad is not None
        for undrawn in (branch.up.part0.grad, branch.up.part2.grad):
            assert (undrawn is None) is not step_undrawn
            assert undrawn is None or not undrawn.any()
