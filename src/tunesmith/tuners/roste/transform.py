"""RoSTE: quantisation-aware tuning with rotations where they help.

Wei, Yau et al., *RoSTE: An Efficient Quantization-Aware Supervised Fine-Tuning Approach for Large Language Models*,
ICML 2025, arXiv 2502.09003. The model's linear layers and its cache are replaced by fake-quantised ones, with a random
Hadamard rotation at each site where that lowers the quantisation error (equations 5 and 9 to 12); then any trainer
tunes all weights straight through the rounding (equation 6). As in all experiments of the paper, rotations are chosen
once (K = 1), on the pre-trained weights.

Deviations, each with its reason:

- Random signs come before the Hadamard matrix (``x R = H (r * x)``). Equations 5 and 19 read together put them
  behind, where they would spread nothing; the concentration result of section 4 needs them in front.
- One pass measures both alternatives, since nothing is quantised while samples propagate.
- In the folded layout the exact minimum over R1 to R4 is taken, where the paper decides site by site.
- R2 and the weight's side of R4 stay online in training (the authors' README; the appendix merges them first), R1 is
  merged first. Query rotations of R3 are replaced by turning the rounded keys back.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from tunesmith.core.errors import ParameterError
from tunesmith.tuners._base import linear_shape
from tunesmith.tuners.roste.attention import ATTRIBUTE, CacheQuantizer, causal_attention, head_dim, route
from tunesmith.tuners.roste.config import RosteConfig
from tunesmith.tuners.roste.folding import (
    R1,
    FoldedBlock,
    fold_norms,
    folded_blocks,
    freeze_norms,
    measure_folded,
    rotate_residual,
)
from tunesmith.tuners.roste.layers import RotatedQuantLinear, SharedInput
from tunesmith.tuners.roste.quantizer import Quantizer
from tunesmith.tuners.roste.search import Calibration, RotationChoice, measure_online
from tunesmith.tuners.roste.sites import Rotations, check_model, linear_sites

__all__ = ["RosteState", "apply_roste", "quantizers_off", "roste_layers", "roste_state", "search_rotations"]

STATE = "_roste"


@dataclass
class RosteState:
    """What was done to a model.

    Attributes:
        config: the settings.
        rotate: site -> whether it is rotated.
        choices: site -> finding of the search; empty if there was none.
        signs: width -> signs of the rotations in use.
    """

    config: RosteConfig
    rotate: dict[str, bool]
    choices: dict[str, RotationChoice] = field(default_factory=dict)
    signs: dict[int, torch.Tensor] = field(default_factory=dict)


def search_rotations(
    model: Any, calibration_batches: Iterable[Any], config: RosteConfig | None = None
) -> dict[str, RotationChoice]:
    """Measure the quantisation error of each site without and with rotation, and choose; the model stays as it is.

    Args:
        model: a transformers model or any module, in floating point.
        calibration_batches: dictionaries of the model's inputs, or tensors for its first argument; a row is a
            sample, 128 in the paper. Padding marked in ``attention_mask`` does not count.
        config: bits, layout and so on; its ``rotation`` is not looked at.

    Returns:
        Site -> `RotationChoice`. Sites of the online layout are the linear layers by name, and
        ``<attention>.key`` and ``<attention>.value``; of the folded one ``R1`` and ``<block>.R2`` to ``.R4``. Time:
        one forward pass over the samples and a few passes over inputs and weights. Memory: one layer's input and
        weight a few times; with the folded layout a copy of the model, whose norms are folded.

    Raises:
        ParameterError: see `apply_roste`.
    """
    config = RosteConfig() if config is None else config
    _check(model, search_rotations)
    if config.layout == "folded":
        model = copy.deepcopy(model)
        blocks = folded_blocks(model)
        fold_norms(model, blocks)
    else:
        blocks = []
    before = _implementations(model)
    try:
        return _search(
            model, blocks, calibration_batches, config, Rotations(config.seed, config.block_fallback)
        )
    finally:
        for part, name in before:
            part._attn_implementation_internal = name


def apply_roste(
    model: Any,
    config: RosteConfig | None = None,
    calibration_batches: Iterable[Any] | None = None,
    *,
    rotations: Mapping[str, RotationChoice | bool] | None = None,
) -> Any:
    """Put a model under fake quantisation, rotated where that helps; then train it with any trainer.

    Changed in place. Parameters keep their names, so checkpoints, ``save_pretrained`` and optimisers work as before;
    settings, choices and sign vectors stand in ``model.config.roste`` and are saved with it (`load_roste` reads them
    back). With ``layout="folded"`` the weights change too (norms folded, residual stream rotated, head untied), to a
    model with the same outputs.

    Args:
        model: a transformers model or any module with linear layers, in float32, bfloat16 or float16.
        config: the settings; W4A4KV4 with adaptive online rotations by default.
        calibration_batches: as in `search_rotations`; needed for ``rotation="adaptive"`` without ``rotations``.
        rotations: a finding of `search_rotations`, or site -> bool, to use instead of a search.

    Returns:
        The model. Time: see `search_rotations`. Memory: none beside the model until it runs; then the quantised
        weights once (``cache_weights``).

    Raises:
        ParameterError: the model is quantised, has adapters or was transformed before; there is no calibration
            batch; ``target_modules`` matches nothing; a width has no rotation and ``block_fallback`` is off; the
            blocks do not fit the folded layout; ``kv_bits`` is set and the attention cannot be reached;
            ``rotations`` lacks a site.
    """
    config = RosteConfig() if config is None else config
    _check(model, apply_roste)
    turns = Rotations(config.seed, config.block_fallback)
    blocks = folded_blocks(model) if config.layout == "folded" else []
    sites = None if blocks else linear_sites(model, config, apply_roste)
    wanted = _site_names(model, config, blocks, sites)
    # Whatever may be refused is asked before anything changes.
    if _attention(model, config):
        route(model)
    if config.rotation != "none" or rotations is not None:
        for width in _widths(model, blocks, sites):
            turns(width)
    choices: dict[str, RotationChoice] = {}
    if rotations is not None:
        missing = [site for site in wanted if site not in rotations]
        if missing:
            raise ParameterError(
                "rotations",
                apply_roste,
                f"a finding for each of {len(wanted)} sites",
                f"none for {missing[0]}",
            )
        choices = {s: c for s in wanted if isinstance(c := rotations[s], RotationChoice)}
        rotate = {site: _is_on(rotations[site]) for site in wanted}
    elif config.rotation == "adaptive":
        if calibration_batches is None or calibration_batches == []:
            Calibration(model, None, apply_roste).run()  # refuses, before anything is folded
        if blocks:
            fold_norms(model, blocks)
        choices = _search(model, blocks, calibration_batches, config, turns, sites, apply_roste)
        rotate = {site: choices[site].rotate for site in wanted}
    else:
        rotate = dict.fromkeys(wanted, config.rotation == "all")
    if blocks:
        fold_norms(model, blocks)  # once more changes nothing: the scales are ones
        if rotate[R1] and (turn := turns(_hidden(model))) is not None:
            rotate_residual(model, blocks, turn)
    state = RosteState(config, rotate, choices)
    install(model, state, turns, blocks)
    return model


def install(model: Any, state: RosteState, turns: Rotations, blocks: list[FoldedBlock]) -> None:
    """Replace the layers and hook the caches, for weights that are folded and rotated already where that is due."""
    config, on = state.config, state.rotate
    quantizers = _quantizers(config)

    def replace(name: str, **options: Any) -> None:
        parent_name, _, child = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        if parent_name not in memories:
            memories[parent_name] = SharedInput()
            memories[parent_name].watch(parent)
        layer = RotatedQuantLinear(
            getattr(parent, child),
            quantizers["weight"],
            quantizers["activation"],
            cache=config.cache_weights,
            shared=memories[parent_name],
            **options,
        )
        setattr(parent, child, layer)

    memories: dict[str, SharedInput] = {}
    attention = _attention(model, config)
    if attention:
        route(model)
    if blocks:
        freeze_norms(model, blocks)
        for block in blocks:
            inner = turns(block.head_dim) if on[f"{block.name}.R2"] else None
            behind, before = (
                None if inner is None else inner.repeated(n) for n in (block.kv_heads, block.heads)
            )
            for role in ("q", "k", "gate", "up"):
                replace(block.linear[role][0])
            replace(block.linear["v"][0], rotation_out=behind)
            replace(block.linear["o"][0], rotation=before, rotate_input=False)
            wide = turns(block.linear["down"][1].in_features) if on[f"{block.name}.R4"] else None
            replace(block.linear["down"][0], rotation=wide)
            name, module = block.attention
            if name in attention:
                key = turns(block.head_dim) if on[f"{block.name}.R3"] else None
                setattr(module, ATTRIBUTE, CacheQuantizer(quantizers["cache"], key))
    else:
        for name, layer in linear_sites(model, config, apply_roste).items():
            replace(name, rotation=turns(linear_shape(layer)[0]) if on[name] else None)
        for name, module in attention.items():
            width = head_dim(module, name)
            key, value = (turns(width) if on[f"{name}.{part}"] else None for part in ("key", "value"))
            setattr(module, ATTRIBUTE, CacheQuantizer(quantizers["cache"], key, value))
    state.signs = {width: turn.signs for width, turn in turns.of.items()}
    setattr(model, STATE, state)
    if hasattr(model, "config"):
        from tunesmith.tuners.roste.saving import state_to_json

        model.config.roste = state_to_json(state)


def roste_state(model: Any) -> RosteState:
    """Return what `apply_roste` did to a model.

    Raises:
        ParameterError: nothing.
    """
    state: RosteState | None = getattr(model, STATE, None)
    if state is None:
        raise ParameterError("model", roste_state, "a model that apply_roste returned", type(model).__name__)
    return state


def roste_layers(model: Any) -> dict[str, RotatedQuantLinear]:
    """Return the fake-quantised layers by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, RotatedQuantLinear)}


@contextmanager
def quantizers_off(model: Any) -> Iterator[None]:
    """Rotate, but round nothing within the block: the outputs of the model in full precision."""
    parts = [*roste_layers(model).values()]
    parts += [c for m in model.modules() if (c := getattr(m, ATTRIBUTE, None)) is not None]
    before = [part.active for part in parts]
    for part in parts:
        part.active = False
    try:
        yield
    finally:
        for part, active in zip(parts, before, strict=True):
            part.active = active


def _check(model: Any, caller: Any) -> None:
    check_model(model, caller)
    if hasattr(model, STATE) or roste_layers(model):
        raise ParameterError(
            "model", caller, "a model that has not been transformed yet", type(model).__name__
        )


def _attention(model: Any, config: RosteConfig) -> dict[str, Any]:
    """Return the attention modules whose cache is quantised.

    Raises:
        ParameterError: the model generates, and none was found.
    """
    if config.kv_bits is None:
        return {}
    found = causal_attention(model)
    generates = getattr(model, "can_generate", lambda: False)()
    if not found and generates and not getattr(model.config, "is_encoder_decoder", False):
        raise ParameterError(
            "kv_bits",
            RosteConfig,
            "None for this model: none of its modules is marked as causal attention, so its cache cannot be reached",
            type(model).__name__,
        )
    return found


def _quantizers(config: RosteConfig) -> dict[str, Quantizer]:
    shared = config.symmetric, config.clip
    return {
        "weight": Quantizer(config.weight_bits, *shared, config.group_size),
        "activation": Quantizer(config.activation_bits, *shared, config.group_size),
        "cache": Quantizer(config.kv_bits, *shared),
    }


def _search(
    model: Any,
    blocks: list[FoldedBlock],
    batches: Iterable[Any] | None,
    config: RosteConfig,
    turns: Rotations,
    sites: dict[str, Any] | None = None,
    caller: Any = search_rotations,
) -> dict[str, RotationChoice]:
    attention = _attention(model, config)
    if attention:
        route(model)
    calibration = Calibration(model, batches, caller)
    if blocks:
        return measure_folded(calibration, blocks, _quantizers(config), turns, _hidden(model))
    sites = linear_sites(model, config, caller) if sites is None else sites
    return measure_online(calibration, sites, attention, _quantizers(config), turns)


def _site_names(
    model: Any, config: RosteConfig, blocks: list[FoldedBlock], sites: dict[str, Any] | None
) -> list[str]:
    if blocks:
        return [R1, *(f"{block.name}.{r}" for block in blocks for r in ("R2", "R3", "R4"))]
    attention = _attention(model, config)
    return [*(sites or {}), *(f"{name}.{part}" for name in attention for part in ("key", "value"))]


def _widths(model: Any, blocks: list[FoldedBlock], sites: dict[str, Any] | None) -> list[int]:
    if blocks:
        found = {_hidden(model), *(w for b in blocks for w in (b.head_dim, b.linear["down"][1].in_features))}
    else:
        found = {linear_shape(layer)[0] for layer in (sites or {}).values()}
    return sorted(found)


def _is_on(choice: RotationChoice | bool) -> bool:
    return choice.rotate if isinstance(choice, RotationChoice) else bool(choice)


def _hidden(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[1])


def _implementations(model: Any) -> list[tuple[Any, str]]:
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    return [
        (c, c._attn_implementation_internal)
        for c in configs.values()
        if hasattr(c, "_attn_implementation_internal")
    ]
