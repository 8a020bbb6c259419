"""The paper's layout for Llama-like blocks: rotations R1 to R4 (RoSTE, arXiv 2502.09003, appendix D).

Norm scales are folded into the matrices behind them; then the residual stream may be rotated as a whole (R1, moved
into embeddings, head and all matrices for good), values per head (R2, between value and output matrix), keys behind
the rotary embedding (R3), and the input of the down-projection (R4). R2 and the weight's side of R4 stay online while
the model is tuned, so that master weights keep their basis; at export they are merged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from tunesmith.core.errors import ParameterError
from tunesmith.numerics.hadamard import RandomHadamard
from tunesmith.tuners.anatomy import Block, anatomy
from tunesmith.tuners.roste.attention import head_dim
from tunesmith.tuners.roste.config import RosteConfig
from tunesmith.tuners.roste.quantizer import Quantizer
from tunesmith.tuners.roste.search import (
    Calibration,
    Probe,
    RotationChoice,
    choose,
    measure_inputs,
    weight_of,
)

__all__ = ["FoldedBlock", "fold_norms", "folded_blocks", "measure_folded", "rotate_residual"]

ROLES = ("q", "k", "v", "o", "gate", "up", "down")
R1 = "R1"


@dataclass(frozen=True)
class FoldedBlock:
    """One block of the folded layout.

    Attributes:
        name: of the block.
        linear: role -> (name, layer) for q, k, v, o, gate, up, down.
        attention: name and module of the attention.
        norms: the norm before attention, the norm before the feed-forward layers.
        heads, kv_heads, head_dim: numbers of heads, width of one.
    """

    name: str
    linear: dict[str, tuple[str, Any]]
    attention: tuple[str, Any]
    norms: tuple[Any, Any]
    heads: int
    kv_heads: int
    head_dim: int


def folded_blocks(model: Any) -> list[FoldedBlock]:
    """Return the blocks of a Llama-like causal language model.

    Raises:
        ParameterError: the model is of another kind; says which part does not fit.
    """
    if _decoder_norm(model) is None or model.get_output_embeddings() is None:
        _refuse("a causal language model with a final norm and an output head", type(model).__name__)
    return [_block(model, block) for block in anatomy(model).blocks]


def _block(model: Any, block: Block) -> FoldedBlock:
    if block.unmatched:
        _refuse("Llama-like blocks", f"{block.name} with {', '.join(block.unmatched[:3])}")
    linear = {}
    for role in ROLES:
        found = block.role(role)  # type: ignore[arg-type]
        if len(found) != 1 or not isinstance(found[0].module, torch.nn.Linear):
            _refuse(
                "Llama-like blocks with one linear layer each for query, key, value, output, gate, up and down",
                f"{block.name} with {', '.join(p.name.rsplit('.', 1)[-1] for p in block.parts)}",
            )
        linear[role] = found[0].name, found[0].module
    norms = {part.name.rsplit(".", 1)[-1]: part.module for part in block.role("norm")}
    if set(norms) != {"input_layernorm", "post_attention_layernorm"}:
        _refuse("Llama-like blocks with two norms, both before what they scale", f"norms {sorted(norms)}")
    for norm in norms.values():
        _gain(norm)
    assert block.attention is not None
    return FoldedBlock(
        block.name,
        linear,
        (block.attention, model.get_submodule(block.attention)),
        (norms["input_layernorm"], norms["post_attention_layernorm"]),
        block.n_heads,
        block.n_kv_heads,
        head_dim(model.get_submodule(block.attention), block.attention),
    )


def _refuse(expected: str, got: Any) -> None:
    raise ParameterError(
        "layout", RosteConfig, f"'online' unless the model has {expected}", f"'folded' for {got}"
    )


def _decoder_norm(model: Any) -> Any:
    return getattr(getattr(model, "model", None), "norm", None)


@torch.no_grad()
def _gain(norm: Any) -> tuple[torch.Tensor, bool]:
    """Return the scale of a root-mean-square norm, and whether its weight counts from one (Gemma).

    Raises:
        ParameterError: it is another kind of norm.
    """
    weight = getattr(norm, "weight", None)
    if weight is not None and getattr(norm, "bias", None) is None:
        x = torch.linspace(-1, 2, weight.numel(), device=weight.device, dtype=torch.float32) + 1
        expected = x * torch.rsqrt(x.pow(2).mean())
        y = norm(x.to(weight.dtype)[None])[0].float()
        gains = [weight.float() + float(offset) for offset in (False, True)]
        nearer = min((0, 1), key=lambda i: float((y - expected * gains[i]).norm()))
        if torch.allclose(y, expected * gains[nearer], rtol=0.03, atol=1e-2):
            return gains[nearer], bool(nearer)
    _refuse(
        "root-mean-square norms (LayerNorm also shifts and centres, which a rotation does not keep)",
        type(norm).__name__,
    )
    raise AssertionError  # unreachable: _refuse raises


@torch.no_grad()
def fold_norms(model: Any, blocks: list[FoldedBlock]) -> None:
    """Move norm scales into the layers behind them, in place; the head is untied from the embeddings.

    The norms' weights become ones (zeros where they count from one) and are frozen: what they could learn, the
    layers behind them can. Logits stay, but for rounding.
    """
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    if head.weight is table.weight:
        head.weight = torch.nn.Parameter(table.weight.detach().clone())
        model.config.tie_word_embeddings = False
        model.config.get_text_config().tie_word_embeddings = False
    for block in blocks:
        before, middle = block.norms
        _fold(before, [block.linear[role][1] for role in ("q", "k", "v")])
        _fold(middle, [block.linear[role][1] for role in ("gate", "up")])
    _fold(_decoder_norm(model), [head])


def freeze_norms(model: Any, blocks: list[FoldedBlock]) -> None:
    """Keep folded norms from being trained."""
    for norm in [*(norm for block in blocks for norm in block.norms), _decoder_norm(model)]:
        norm.weight.requires_grad_(False)


def _fold(norm: Any, layers: list[Any]) -> None:
    gain, offset = _gain(norm)
    for layer in layers:
        layer.weight.copy_(layer.weight.float() * gain.to(layer.weight.device))
    norm.weight.fill_(0.0 if offset else 1.0)


@torch.no_grad()
def rotate_residual(model: Any, blocks: list[FoldedBlock], rotation: RandomHadamard) -> None:
    """Rotate the residual stream for good (R1): embeddings, head, and every matrix that reads or writes it."""
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        table.weight.copy_(rotation(table.weight))
    for block in blocks:
        for role in ("q", "k", "v", "gate", "up"):
            weight = block.linear[role][1].weight
            weight.copy_(rotation(weight))
        for role in ("o", "down"):
            layer = block.linear[role][1]
            layer.weight.copy_(rotation(layer.weight.T).T)
            if layer.bias is not None:
                layer.bias.copy_(rotation(layer.bias))


def measure_folded(
    calibration: Calibration,
    blocks: list[FoldedBlock],
    quantizers: dict[str, Quantizer],
    rotations: Any,
    hidden: int,
) -> dict[str, RotationChoice]:
    """Find the choice of R1 and of each block's R2, R3 and R4 with the least total error, on folded norms.

    Matrices are touched by R1 and one other rotation, so sites are not separable. But for either R1 the other sites
    are: each is chosen by its own error, and the R1 with the smaller total wins. This is the least of all
    ``2^(3 l + 1)`` choices, so it needs no second look at the uniform ones.

    Returns:
        Site -> finding: ``R1`` with the least totals without and with it, ``<block>.R2`` and so on with the errors
        of what they touch, under the chosen R1.
    """
    first = rotations(hidden)
    linears, caches = {}, {}
    for block in blocks:
        inner = rotations(block.head_dim)
        turns = {
            "q": first,
            "gate": first,
            "o": None if inner is None else inner.repeated(block.heads),
            "down": rotations(block.linear["down"][1].in_features),
        }
        for role, turn in turns.items():
            name, module = block.linear[role]
            linears[name] = module, Probe(quantizers["activation"], turn)
        caches[id(block.attention[1])] = Probe(quantizers["cache"], inner), Probe(quantizers["cache"], inner)
    with measure_inputs(calibration, linears, caches if quantizers["cache"].bits else {}):
        calibration.run()
    n = calibration.samples
    best: dict[bool, tuple[float, dict[str, RotationChoice]]] = {}
    for turned in (False, True) if first is not None else (False,):
        outer = first if turned else None
        total, found = 0.0, {}
        for block in blocks:
            fixed, sites = _block_errors(block, linears, caches, quantizers, outer, rotations, n)
            found.update(sites)
            total += fixed + sum(min(site.identity, site.hadamard) for site in sites.values())
        best[turned] = total, found
    totals = best[False][0], best.get(True, best[False])[0]
    choice = choose(*totals)
    return {R1: choice, **best[choice.rotate][1]}


def _block_errors(
    block: FoldedBlock,
    linears: dict[str, tuple[Any, Probe]],
    caches: dict[int, tuple[Probe, Probe]],
    quantizers: dict[str, Quantizer],
    outer: RandomHadamard | None,
    rotations: Any,
    n: int,
) -> tuple[float, dict[str, RotationChoice]]:
    """Return the error that depends on R1 alone, and the findings for R2, R3 and R4 under that R1."""

    def read(role: str, turned: bool) -> float:
        probe = linears[block.linear[role][0]][1]
        return (probe.hadamard if turned else probe.identity) / n

    def error(role: str, inputs: RandomHadamard | None, outputs: RandomHadamard | None) -> float:
        weight = weight_of(block.linear[role][1])
        weight = weight if inputs is None else inputs(weight)
        return quantizers["weight"].error(weight if outputs is None else outputs(weight.T).T.contiguous())

    fixed = sum(error(role, outer, None) for role in ("q", "k", "gate", "up"))
    turned = outer is not None
    fixed += 3 * read("q", turned) + 2 * read("gate", turned)  # what query, key and value read, gate and up
    inner = rotations(block.head_dim)
    keys, values = caches[id(block.attention[1])]
    sides = (None, None) if inner is None else (inner.repeated(block.kv_heads), inner.repeated(block.heads))

    def second(turned: bool) -> float:
        v, o = sides if turned else (None, None)
        cached = (values.hadamard if turned else values.identity) / n
        return error("v", outer, v) + error("o", o, outer) + read("o", turned) + cached

    wide = rotations(block.linear["down"][1].in_features)

    def fourth(turned: bool) -> float:
        return error("down", wide if turned else None, outer) + read("down", turned)

    return fixed, {
        f"{block.name}.R2": choose(second(False), second(inner is not None)),
        f"{block.name}.R3": choose(keys.identity / n, keys.hadamard / n),
        f"{block.name}.R4": choose(fourth(False), fourth(wide is not None)),
    }
