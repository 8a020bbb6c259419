"""Per-example scores under the current model (Adapt-infinity, step 3): the pool from which clusters
choose."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunesmith.core.errors import ParameterError

__all__ = ["grounding", "token_scores"]


def token_scores(logits: Any, labels: Any, *, variant: str = "paper") -> dict[str, NDArray[np.float64]]:
    """Return perplexity, EL2N and entropy of each sequence, over its supervised tokens.

    - ``perplexity``: ``exp(mean -log p(token))``; V for a model that knows nothing of V tokens.
    - ``el2n``: mean ``||softmax - onehot||_2``; 0 for confident and right, sqrt(2) for confident and wrong.
    - ``entropy``: mean ``-sum p log p`` in nats; ln V for a model that knows nothing.

    Args:
        logits: torch ``(B, L, V)``, any float type; computed in float32.
        labels: torch int64 ``(B, L)``, -100 where nothing is supervised; shifted here, as in transformers.
        variant: ``"official"`` reproduces the released code: perplexity is the mean of ``exp(token loss)``,
            which one bad token dominates, and entropy is over all positions, prompt and padding included.

    Returns:
        Name -> float64 ``(B,)``; NaN for a sequence without a supervised token. O(B L V).

    Raises:
        ParameterError: shapes that do not belong together.
    """
    import torch

    if logits.ndim != 3 or tuple(labels.shape) != tuple(logits.shape[:2]):
        expected = f"of shape {tuple(logits.shape[:2])}, the logits' (B, L)"
        raise ParameterError("labels", token_scores, expected, tuple(labels.shape))
    log_p = torch.log_softmax(logits[:, :-1].float(), dim=-1)
    target = labels[:, 1:]
    kept = target != -100
    index = target.clamp(min=0)[..., None]
    loss = -log_p.gather(-1, index)[..., 0]
    p = log_p.exp()
    wrong = p.scatter_add(-1, index, -torch.ones_like(index, dtype=p.dtype)).norm(dim=-1)
    plogp = torch.where(p > 0, p * log_p, torch.zeros_like(p))
    entropy = -plogp.sum(-1)

    def mean(values: Any) -> NDArray[np.float64]:
        total = torch.where(kept, values, torch.zeros_like(values)).double().sum(1)
        return np.asarray((total / kept.sum(1)).cpu().numpy(), dtype=np.float64)  # 0 / 0 is NaN

    if variant == "official":
        whole = torch.log_softmax(logits.float(), dim=-1)
        everywhere = -(whole.exp() * whole).sum(-1).double().mean(1).cpu().numpy()
        return {"perplexity": mean(loss.exp()), "el2n": mean(wrong), "entropy": everywhere}
    return {"perplexity": np.exp(mean(loss)), "el2n": mean(wrong), "entropy": mean(entropy)}


def grounding(perplexity_without: ArrayLike, perplexity_with: ArrayLike) -> NDArray[np.float64]:
    """Return the image grounding ``PPL(answer) / PPL(answer, image)`` of each row; above 1 the image helps.

    For text: perplexity without the prompt over perplexity with it, 1 / IFD. Rows without an image have no
    grounding: leave them NaN, and they do not take part where they are the majority.

    Args:
        perplexity_without: ``(n,)``, the image removed; ``exp(mean loss)``.
        perplexity_with: ``(n,)``, with it; the same quantity.

    Returns:
        float64 ``(n,)``, 1 where the image is ignored.
    """
    return np.asarray(perplexity_without, dtype=np.float64) / np.asarray(perplexity_with, dtype=np.float64)
