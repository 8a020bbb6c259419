"""InverTune's terms as functions of tensors, in the paper's symbols (Sun et al. 2025, arXiv 2506.12411).

n(v) = v / ||v||_2, W holds one row per class text, tau is the temperature, m a mask in [0, 1] and t a pattern, both of
the shape of an image, x~ = m * t + (1 - m) * x, a_l(x) the activation of layer l.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith.core.errors import ParameterError

__all__ = [
    "FLOOR",
    "InversionTerms",
    "blend",
    "class_logits",
    "critical_layers",
    "feature_alignment",
    "inversion_terms",
    "layer_impact",
    "mse_alignment",
    "preservation",
    "relative_alignment",
    "scaled_mse_alignment",
    "share_changes",
    "ssim",
    "two_means",
]

FLOOR = 1e-8  # norms that divide are held above this: a cluster may cover dead neurons only


class InversionTerms(NamedTuple):
    """The four terms of the inversion loss, unweighted scalars."""

    cross_entropy: Tensor
    embedding_norm: Tensor
    one_minus_ssim: Tensor
    mask_l1: Tensor

    def total(self, weights: Sequence[float]) -> Tensor:
        """Return the weighted sum; ``weights`` are lambda_1 to lambda_4."""
        return sum((w * term for w, term in zip(weights, self, strict=True)), torch.zeros(()))


def blend(x: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
    """Return x~ = m * t + (1 - m) * x; m and t are broadcast over the batch.

    Args:
        x: (B, 3, H, W).
        mask: (3, H, W) in [0, 1].
        pattern: (3, H, W) in the space of ``x``.
    """
    return mask * pattern + (1 - mask) * x


def class_logits(features: Tensor, text_weights: Tensor, temperature: float = 0.07) -> Tensor:
    """Return n(F(x)) W^T / tau, (B, C).

    Args:
        features: (B, D), of any norm.
        text_weights: (C, D), rows of norm 1.
        temperature: tau.
    """
    return F.normalize(features, dim=-1) @ text_weights.T / temperature


def ssim(x: Tensor, y: Tensor, window: int = 11, sigma: float = 1.5, data_range: float = 1.0) -> Tensor:
    """Return the mean structural similarity of two batches (Wang et al. 2004; K1 = 0.01, K2 = 0.03).

    A Gaussian window slides without padding. Images smaller than the window get the largest odd one that fits.

    Args:
        x: (B, 3, H, W).
        y: like ``x``.
        window: side in pixels.
        sigma: of the Gaussian, in pixels.
        data_range: largest minus least possible value.
    """
    channels, height, width = x.shape[-3:]
    side = min(window, height, width)
    side -= 1 - side % 2
    offsets = torch.arange(side, dtype=x.dtype, device=x.device) - side // 2
    g = torch.exp(-offsets.square() / (2 * sigma**2))
    g = g / g.sum()
    # One pass over the five images whose local means are needed.
    stacked = torch.cat([x, y, x * x, y * y, x * y], dim=0)
    rows = F.conv2d(stacked, g.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    means = F.conv2d(rows, g.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
    mu_x, mu_y, xx, yy, xy = means.chunk(5, dim=0)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    var_x, var_y, cov = xx - mu_x.square(), yy - mu_y.square(), xy - mu_x * mu_y
    luminance = (2 * mu_x * mu_y + c1) / (mu_x.square() + mu_y.square() + c1)
    return (luminance * (2 * cov + c2) / (var_x + var_y + c2)).mean()


def inversion_terms(
    features: Tensor,
    text_weights: Tensor,
    target: int | Tensor,
    target_features: Tensor,
    triggered: Tensor,
    clean: Tensor,
    mask: Tensor,
    temperature: float = 0.07,
) -> InversionTerms:
    """Return the terms of L = l1 CE + l2 ||n(F(x~)) - z_t||_F + l3 (1 - SSIM) + l4 ||m||_1 (stage 2).

    The cross-entropy has all class texts as negatives; the Frobenius norm is one over the whole (B, D) matrix; the L1
    norm is a sum over 3 H W entries.

    Args:
        features: (B, D) of the triggered images, of any norm.
        text_weights: (C, D), rows of norm 1.
        target: index of the target class, or (B,) indices.
        target_features: (D,) or (B, D), rows of norm 1.
        triggered: (B, 3, H, W) as SSIM is to see them.
        clean: like ``triggered``.
        mask: (3, H, W).
        temperature: tau.
    """
    logits = class_logits(features, text_weights, temperature)
    labels = torch.as_tensor(target, device=logits.device).expand(len(logits))
    z = F.normalize(features, dim=-1)
    return InversionTerms(
        F.cross_entropy(logits, labels),
        torch.linalg.vector_norm(z - target_features),
        1 - ssim(triggered, clean),
        mask.abs().sum(),
    )


def share_changes(clean_counts: Tensor, adversarial_counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return absolute and relative change of each class's share of top-1 predictions (stage 1), (C,) float64 each.

    Relative to the clean share: infinite where that is 0 and the other is not, 0 where both are.

    Args:
        clean_counts: (C,) predictions on clean images.
        adversarial_counts: (C,) predictions on the same images with the universal perturbation.
    """
    p = clean_counts.double() / clean_counts.sum()
    q = adversarial_counts.double() / adversarial_counts.sum()
    change = q - p
    relative = torch.where(p > 0, change / p.clamp_min(torch.finfo(p.dtype).tiny), torch.inf)
    return change, torch.where((p == 0) & (q == 0), 0.0, relative)


def layer_impact(clean: Mapping[str, Tensor], triggered: Mapping[str, Tensor]) -> dict[str, float]:
    """Return s_l = ||mean_B a_l(x) - mean_B a_l(x~)||_2 / ||mean_B a_l(x)||_2 for each layer (stage 3, step 2).

    Args:
        clean: layer -> (B, ...) activations.
        triggered: the same layers on the triggered images.
    """
    found = {}
    for name, activation in clean.items():
        a, b = activation.mean(dim=0), triggered[name].mean(dim=0)
        size = torch.linalg.vector_norm(a).clamp_min(FLOOR)
        found[name] = float(torch.linalg.vector_norm(a - b) / size)
    return found


def critical_layers(
    impact: Mapping[str, float], rule: Literal["top_k", "mean_std"] = "top_k", k: int = 3
) -> list[str]:
    """Return the critical layers, the largest impact first; equal impacts in the model's order.

    ``"top_k"`` is the authors' code: the ``k`` largest. ``"mean_std"`` is the paper's rule: impact above mean plus
    population standard deviation, or the single largest where none is.

    Args:
        impact: layer -> s_l, in the model's order.
        rule: see above.
        k: of ``"top_k"``; more than there are layers keeps all.

    Raises:
        ParameterError: an unknown rule.
    """
    order = sorted(impact, key=lambda name: -impact[name])
    if rule == "top_k":
        return order[:k]
    if rule != "mean_std":
        raise ParameterError("layer_rule", "critical_layers", "'top_k' or 'mean_std'", rule)
    s = torch.tensor([impact[name] for name in order], dtype=torch.float64)
    threshold = float(s.mean() + s.std(correction=0))
    return [name for name in order if impact[name] > threshold] or order[:1]


def two_means(values: Tensor) -> Tensor:
    """Return 1 on the entries of the cluster with the larger mean of an exact two-means split (stage 3, step 3).

    In one dimension the clusters are a prefix and a suffix of the sorted values, so all splits are compared: time
    O(n log n), memory O(n), no random start. All values equal: zeros.

    Args:
        values: of any shape.

    Returns:
        int64, of the same shape.
    """
    flat = values.detach().flatten().double()
    ordered, order = flat.sort()
    n = len(flat)
    if n < 2 or ordered[0] == ordered[-1]:
        return torch.zeros_like(values, dtype=torch.int64)
    sizes = torch.arange(1, n, dtype=torch.float64, device=flat.device)
    centred = ordered - ordered.mean()
    left = centred.cumsum(0)[:-1]
    # The sum of squares between the two clusters, up to a constant: the largest leaves the least within them.
    between = left.square() / sizes + left.square() / (n - sizes)
    # A split between equal values is none: whichever of them came first would be chosen by chance.
    between[ordered[1:] == ordered[:-1]] = -1
    marks = torch.zeros(n, dtype=torch.int64, device=flat.device)
    marks[order[int(between.argmax()) + 1 :]] = 1
    return marks.reshape(values.shape)


def relative_alignment(
    clean: Mapping[str, Tensor], triggered: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> Tensor:
    """Return sum_l ||M_l (mean_B a_l(x) - mean_B a_l(x~))||_2 / ||M_l mean_B a_l(x)||_2, as in the authors' code.

    It compares means over the batch, so differences of single images may cancel. It is free of scale.

    Args:
        clean: layer -> (B, ...) activations with gradient.
        triggered: the same layers on the triggered images.
        masks: layer -> (...) 0 or 1; its layers are the critical ones.
    """
    total = torch.zeros(())
    for name, mask in masks.items():
        a, b = clean[name].mean(dim=0), triggered[name].mean(dim=0)
        size = torch.linalg.vector_norm(mask * a).clamp_min(FLOOR)
        total = total + torch.linalg.vector_norm(mask * (a - b)) / size
    return total


def mse_alignment(
    clean: Mapping[str, Tensor], triggered: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> Tensor:
    """Return sum_l of the mean over batch and critical entries of (a_l(x~) - a_l(x))^2: every image is aligned.

    Args:
        clean: layer -> (B, ...) activations with gradient.
        triggered: the same layers on the triggered images.
        masks: layer -> (...) 0 or 1.
    """
    total = torch.zeros(())
    for name, mask in masks.items():
        squares = (triggered[name] - clean[name]).square() * mask
        total = total + squares.sum() / (len(squares) * mask.sum().clamp_min(1))
    return total


def scaled_mse_alignment(
    clean: Mapping[str, Tensor], triggered: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> Tensor:
    """Return `mse_alignment` with each layer's term divided by the mean square of its critical clean activations.

    So it is free of scale, and every image is aligned. The divisor has no gradient: growing activations gain nothing.

    Args:
        clean: layer -> (B, ...) activations with gradient.
        triggered: the same layers on the triggered images.
        masks: layer -> (...) 0 or 1.
    """
    total = torch.zeros(())
    for name, mask in masks.items():
        size = (clean[name].detach().square() * mask).sum().clamp_min(FLOOR)
        total = total + ((triggered[name] - clean[name]).square() * mask).sum() / size
    return total


def feature_alignment(triggered: Tensor, original: Tensor) -> Tensor:
    """Return the mean over images of ||n(F(x~)) - n(F0(x))||_2^2 = 2 - 2 cos: what a trigger still does to features.

    Activations of critical layers leave ways around them, most of all in a transformer, whose class token gathers what
    all patches carry; the features are where every way ends.

    Args:
        triggered: (k B, D) features of the same B images under each of k triggers, one trigger after the other.
        original: (B, D) of the frozen copy on the clean images.
    """
    wanted = F.normalize(original, dim=-1).repeat(len(triggered) // len(original), 1)
    return (F.normalize(triggered, dim=-1) - wanted).square().sum(dim=1).mean()


def preservation(features: Tensor, original: Tensor) -> Tensor:
    """Return ||n(F(x)) - n(F0(x))||_F; its gradient at 0 is 0.

    Args:
        features: (B, D) of the model being tuned.
        original: (B, D) of its frozen copy.
    """
    return torch.linalg.vector_norm(F.normalize(features, dim=-1) - F.normalize(original, dim=-1))
