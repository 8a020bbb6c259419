"""Several adapters of one model combined into one, without touching the base, and measured against their true sum.

PEFT does the combining (``add_weighted_adapter``); what is ours is the check. The sum of low-rank changes is
``sum_i w_i s_i B_i A_i``; only ``"cat"`` (ranks add up), ``"svd"`` of sufficient rank and IA3's products keep it,
``"linear"`` adds the factors and so makes something else, and nobody tells by how much. Here the relative error of
each layer's change is returned, and an exact method that is not exact raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tunesmith.core.errors import ParameterError, TrainingError

__all__ = ["CombinedAdapters", "combine_adapters"]

METHODS = (
    "cat", "svd", "linear", "ties", "dare_linear", "dare_ties", "magnitude_prune", "ties_svd", "dare_linear_svd",
    "dare_ties_svd", "magnitude_prune_svd",
)  # fmt: skip
ONE_RANK = {"linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"}
"""Methods that add the factors themselves, which must then have one shape."""


@dataclass(frozen=True)
class CombinedAdapters:
    """What combining gave.

    Attributes:
        name: of the new adapter, in the model and active.
        rank: its rank.
        error: ``max over layers of |new change - weighted sum of the changes| / |weighted sum|`` (Frobenius norms).
        errors: the same by layer.
    """

    name: str
    rank: int
    error: float
    errors: dict[str, float]


def combine_adapters(
    model: Any,
    adapters: Sequence[str],
    weights: Sequence[float] | None = None,
    *,
    name: str = "combined",
    method: str = "cat",
    **parameters: Any,
) -> CombinedAdapters:
    """Combine LoRA adapters of one model into a new adapter, which becomes the active one.

    Args:
        model: a ``PeftModel`` with the adapters loaded.
        adapters: their names, at least two.
        weights: one finite number each; by default equal shares that sum to 1.
        name: of the new adapter.
        method: ``"cat"`` (exact; ranks add up), ``"svd"`` (the best change of ``svd_rank``), or another of PEFT's,
            which prune or add factors and give something else than the sum on purpose.
        **parameters: of ``peft.LoraModel.add_weighted_adapter``: ``svd_rank``, ``density``, ``majority_sign_method``.

    Returns:
        The new adapter with its error. Time: one product of factors per layer and adapter; memory: a dense change of
        one layer at a time.

    Raises:
        ParameterError: an adapter is not there or not LoRA, the ranks differ and the method adds factors, ``name`` is
            taken, or a parameter is refused by PEFT.
        TrainingError: ``"cat"`` is not the weighted sum within 1e-4; the new adapter is taken out again.
    """
    present = list(getattr(model, "peft_config", {}))
    missing = [adapter for adapter in adapters if adapter not in present]
    if missing or len(adapters) < 2 or len(set(adapters)) != len(adapters):
        raise ParameterError(
            "adapters", combine_adapters, f"two or more of {', '.join(present)}", list(adapters)
        )
    others = [a for a in adapters if str(getattr(model.peft_config[a].peft_type, "value", "")) != "LORA"]
    if others:
        kinds = {a: str(model.peft_config[a].peft_type.value) for a in others}
        raise ParameterError(
            "adapters", combine_adapters, "LoRA adapters; merge others into the base one by one", kinds
        )
    if method not in METHODS:
        raise ParameterError("method", combine_adapters, "one of " + ", ".join(map(repr, METHODS)), method)
    if name in present:
        raise ParameterError("name", combine_adapters, "a name that no adapter has", name)
    shares = [1 / len(adapters)] * len(adapters) if weights is None else [float(w) for w in weights]
    if len(shares) != len(adapters) or not all(map(torch.isfinite, torch.tensor(shares))):
        raise ParameterError("weights", combine_adapters, f"{len(adapters)} finite numbers", weights)
    ranks = {adapter: model.peft_config[adapter].r for adapter in adapters}
    if method in ONE_RANK and len(set(ranks.values())) > 1:
        raise ParameterError(
            "method",
            combine_adapters,
            f"'cat', 'svd' or one that ends in '_svd' for adapters of different ranks ({_listed(ranks)})",
            method,
        )
    try:
        model.add_weighted_adapter(list(adapters), shares, name, combination_type=method, **parameters)
    except (ValueError, TypeError, RuntimeError) as error:
        if name in model.peft_config:  # PEFT adds it before it looks at the parameters
            model.delete_adapter(name)
        raise ParameterError.worded(
            f"PEFT refuses to combine the adapters {_listed(ranks)}: {error}"
        ) from error
    model.set_adapter(name)
    errors = {layer: _error(module, adapters, shares, name) for layer, module in _layers(model, name)}
    worst = max(errors.values(), default=0.0)
    if method == "cat" and not worst <= 1e-4:
        model.set_adapter(adapters[0])
        model.delete_adapter(name)
        raise TrainingError(
            f"The combined adapter is not the weighted sum of {', '.join(adapters)}: its change differs by {worst:.3g} "
            "of it. It was taken out again; merge the adapters into the base one after another instead."
        )
    return CombinedAdapters(name, int(model.peft_config[name].r), worst, errors)


def _listed(ranks: dict[str, int]) -> str:
    return ", ".join(f"{adapter}: r={rank}" for adapter, rank in ranks.items())


def _layers(model: Any, name: str) -> list[tuple[str, Any]]:
    return [
        (layer, module)
        for layer, module in model.get_base_model().named_modules()
        if name in getattr(module, "lora_A", ()) or name in getattr(module, "lora_embedding_A", ())
    ]


@torch.no_grad()
def _error(module: Any, adapters: Sequence[str], weights: Sequence[float], name: str) -> float:
    """Return the relative Frobenius distance of a layer's new change from the weighted sum of the old ones."""
    total = torch.zeros_like(module.get_delta_weight(name), dtype=torch.float32)
    for adapter, weight in zip(adapters, weights, strict=True):
        if adapter in module.lora_A or adapter in module.lora_embedding_A:
            total += weight * module.get_delta_weight(adapter).float()
    apart = float((module.get_delta_weight(name).float() - total).norm())
    scale = float(total.norm())
    return apart / scale if scale else apart
