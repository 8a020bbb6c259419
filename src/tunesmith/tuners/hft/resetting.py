"""Half-Reset, the pilot experiment of HFT (Hui et al., ACL 2025, section 2, arXiv 2404.18466)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch

from tunesmith.core.errors import ParameterError
from tunesmith.core.seeds import child_seed
from tunesmith.tuners.hft.selection import matrices_of, select_half

__all__ = ["half_reset"]


def half_reset(
    model: Any,
    base: Any,
    *,
    seed: int = 0,
    ratio: float = 0.5,
    level: str = "category",
    balance: str = "matrices",
    names: Collection[str] | None = None,
) -> set[str]:
    """Set a random half of a tuned model's layers back to its base, to get back some of what tuning has lost.

    The paper found base knowledge restored at a slight loss of the tuned abilities; half fine-tuning during the
    training was the steadier of the two. Embeddings, final norm and head stay as tuned.

    Args:
        model: the tuned model; changed in place.
        base: the model it was tuned from, or its state dictionary (name -> tensor).
        seed: of the draw.
        ratio: share of the matrices that are set back.
        level: see `select_half`.
        balance: see `select_half`.
        names: parameters to set back instead of a draw, for example the ``frozen`` ones of a `HalfFineTuning`.

    Returns:
        Names of the parameters set back. Time O(numbers set back), no further memory.

    Raises:
        ParameterError: a parameter is outside its set, or base and model do not fit each other.
    """
    own: dict[str, Any] = dict(model.named_parameters(remove_duplicate=False))
    if names is None:
        rng = np.random.default_rng(child_seed(seed, "half_reset"))
        chosen = select_half(matrices_of(model)[0], rng, ratio=ratio, level=level, balance=balance)
    else:
        chosen = set(names)
        if strange := sorted(chosen - own.keys()):
            raise ParameterError("names", half_reset, "names of the model's parameters", strange[0])
    theirs: Mapping[str, Any] = (
        base if isinstance(base, Mapping) else dict(base.named_parameters(remove_duplicate=False))
    )
    wrong = [n for n in sorted(chosen) if n not in theirs or theirs[n].shape != own[n].shape]
    if wrong:
        got = "none" if wrong[0] not in theirs else tuple(theirs[wrong[0]].shape)
        raise ParameterError(
            "base",
            half_reset,
            f"the model that was tuned: {wrong[0]} must be there in the shape {tuple(own[wrong[0]].shape)}",
            got,
        )
    with torch.no_grad():
        for name in chosen:
            own[name].copy_(theirs[name])
    return chosen
