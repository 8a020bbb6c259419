"""The losses of Core-tuning (arXiv 2102.06605): focal supervised contrast, and cross-entropy of mixed features."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from tunesmith.core.errors import ParameterError
from tunesmith.trainers.core_tuning.pairs import (
    VARIANTS,
    check_labels,
    check_pair_settings,
    exact,
    hard_pair_mixup,
    several_classes,
)

__all__ = [
    "CoreTuningLoss",
    "ProjectionHead",
    "check_loss_settings",
    "class_positives",
    "core_tuning_loss",
    "exact_label_positives",
    "focal_supcon_loss",
]

POSITIVES = ("class", "exact-label")
NORMALISE = ("positives", "rows")


def focal_supcon_loss(
    embeddings: torch.Tensor,
    pos_mask: torch.Tensor,
    tau: float = 0.07,
    *,
    focal: bool = True,
    normalise: str = "positives",
) -> torch.Tensor:
    """Return the supervised contrastive loss in which well aligned positives count less.

    With A(i) all rows but i, P(i) the positives of i, and N the number of rows that have one::

        p_ij = exp(v_i·v_j / tau) / sum over k in A(i) of exp(v_i·v_k / tau)
        w_ij = 1 - p_ij
        L    = -1/N sum over i of 1/|P(i)| sum over j in P(i) of w_ij log p_ij

    Without the weight it is SupCon, "outside" form. The weight has a gradient too. 0, with a graph, if no row has a
    positive. Core-tuning (Zhang et al. 2021, arXiv 2102.06605), step 6. In float32 at least, whatever autocast says.
    Time O(M² k), memory O(M²).

    Args:
        embeddings: v, (M, k), rows of length 1; M of at least 2.
        pos_mask: (M, M), not 0 where the column is a positive of the row; need not be symmetric, its diagonal is
            ignored. A row without positives is no anchor, but stands in the denominators of the others.
        tau: temperature, above 0.
        focal: False sets w to 1.
        normalise: ``"rows"`` divides by M in place of |P(i)|, as the authors' code does.

    Returns:
        A scalar, nats.

    Raises:
        ParameterError: a parameter outside its set, or a mask of another shape.
    """
    owner = "focal_supcon_loss"
    if not 0 < tau < math.inf:
        raise ParameterError("tau", owner, "a float above 0", tau)
    if normalise not in NORMALISE:
        raise ParameterError("normalise", owner, "'positives' or 'rows'", normalise)
    if embeddings.dim() != 2 or len(embeddings) < 2:
        raise ParameterError(
            "embeddings", owner, "a float tensor (M, k) with M of at least 2", tuple(embeddings.shape)
        )
    M = len(embeddings)
    if pos_mask.shape != (M, M):
        raise ParameterError("pos_mask", owner, f"of shape ({M}, {M})", tuple(pos_mask.shape))
    own = torch.eye(M, dtype=torch.bool, device=embeddings.device)
    positive = pos_mask.bool() & ~own
    v = exact(embeddings)
    with torch.autocast(v.device.type, enabled=False):
        logits = (v @ v.T / tau).masked_fill(own, -math.inf)
        log_p = (logits - logits.logsumexp(1, keepdim=True)).masked_fill(~positive, 0.0)
        terms = -torch.expm1(log_p).clamp(-1, 0) * log_p if focal else log_p
        count = positive.sum(1)
        per_row = terms.sum(1) / (M if normalise == "rows" else count.clamp(min=1))
        return -per_row.sum() / (count > 0).sum().clamp(min=1)


def class_positives(labels: torch.Tensor, mixed: bool = True) -> torch.Tensor:
    """Return which of the stacked rows z, z⁻, z⁺ are positives, (3B, 3B) bool: z and z⁺ of one class.

    z⁺ has the class of its anchor; z⁻ is neither anchor nor positive.

    Args:
        labels: y, (B,).
        mixed: False for z alone, (B, B).
    """
    y = torch.cat([labels, torch.full_like(labels, -1), labels]) if mixed else labels
    return (y[:, None] == y[None]) & (y >= 0)[:, None]


def exact_label_positives(soft_labels: torch.Tensor) -> torch.Tensor:
    """Return which rows have the same soft label to the last bit, (M, M) bool, from labels (M, C)."""
    which = torch.unique(soft_labels, dim=0, return_inverse=True)[1]
    return which[:, None] == which[None]


class ProjectionHead(nn.Sequential):
    """G: linear (d, d), ReLU, linear (d, size), rows of length 1. Thrown away after training.

    Args:
        d: width of the features.
        size: of the space of the contrastive loss.
    """

    def __init__(self, d: int, size: int = 256) -> None:
        super().__init__(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, size))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(M, d) -> (M, size)."""
        out: torch.Tensor = super().forward(input)  # type: ignore[no-untyped-call]
        return normalize(exact(out), dim=1)


class CoreTuningLoss(NamedTuple):
    """The loss of one batch and its parts, scalars.

    Attributes:
        loss: cross-entropy + eta contrast.
        ce: cross-entropy of the stacked rows.
        contrast: the contrastive loss.
        anchors: number of stacked rows that have a positive.
    """

    loss: torch.Tensor
    ce: torch.Tensor
    contrast: torch.Tensor
    anchors: torch.Tensor


def core_tuning_loss(
    features: torch.Tensor,
    labels: torch.Tensor,
    head: Callable[[torch.Tensor], torch.Tensor],
    projection: Callable[[torch.Tensor], torch.Tensor],
    num_classes: int,
    *,
    eta: float = 0.1,
    tau: float = 0.07,
    focal: bool = True,
    mixup: bool = True,
    positives: str | None = None,
    normalise: str | None = None,
    detach_originals: bool | None = None,
    variant: str = "paper",
    strict: bool = False,
    **pairs: Any,
) -> CoreTuningLoss:
    """Return the loss of Core-tuning for one batch: ``L = L_ce + eta L_con`` over the rows z, z⁻, z⁺.

    L_ce is the cross-entropy of ``head`` with the soft labels, the mean over all 3B rows; L_con is `focal_supcon_loss`
    of ``projection``. Core-tuning (Zhang et al. 2021, arXiv 2102.06605), steps 3 to 8; a batch of one class is not
    mixed. Besides head and projection of 3B rows: time O(B² (d + k)), memory O(B²).

    Args:
        features: z, (B, d).
        labels: y, (B,).
        head: (M, d) -> logits (M, C); linear, since features are mixed before it.
        projection: G, (M, d) -> unit rows (M, k).
        num_classes: C.
        eta: weight of the contrast, at least 0. It belongs to the division by |P(i)|: with ``normalise="rows"`` the
            contrast is about 3C times smaller.
        tau: temperature.
        focal: weigh the positives.
        mixup: make z⁻ and z⁺. Without it and without ``focal`` the loss is cross-entropy with SupCon.
        positives: ``"class"`` (`class_positives`), or ``"exact-label"`` (`exact_label_positives`); by the variant if
            None.
        normalise: ``"positives"`` or ``"rows"``, see `focal_supcon_loss`; by the variant if None.
        detach_originals: see `hard_pair_mixup`; by the variant if None: False, True.
        variant: ``"paper"``, or ``"official"``: the authors' code, with its choice of rows, ``"exact-label"``,
            ``"rows"`` and detached originals.
        strict: refuse a batch of one class.
        **pairs: of `hard_pair_mixup`: alpha, clip, generator; partner, lambda_neg and lambda_pos.

    Raises:
        ParameterError: a parameter outside its set.
        DataError: a label outside [0, C); one class only, where ``strict``.
    """
    owner = "core_tuning_loss"
    _check_loss(owner, eta, tau, positives, normalise)
    if variant not in VARIANTS:
        raise ParameterError("variant", owner, "'paper' or 'official'", variant)
    official = variant == "official"
    positives = positives or ("exact-label" if official else "class")
    normalise = normalise or ("rows" if official else "positives")
    detach_originals = official if detach_originals is None else detach_originals
    made = None
    if mixup:
        made = hard_pair_mixup(
            features,
            labels,
            num_classes,
            detach_originals=detach_originals,
            variant=variant,
            strict=strict,
            **pairs,
        )
    else:
        check_labels(features, labels, num_classes, owner)
        several_classes(labels, strict)
    y = labels.to(features.device).long()
    if made is not None and made.mixed:
        Z, target = made.features, made.labels
        mask = class_positives(y) if positives == "class" else exact_label_positives(target)
    else:  # a batch of one class is not mixed, and its copies would be no rows of their own
        Z, target, mask = features, y, class_positives(y, mixed=False)
    logits = exact(head(Z))
    ce = cross_entropy(logits, target if target is y else target.to(logits.dtype))
    if eta == 0:
        contrast = ce.new_zeros(())
    else:
        contrast = focal_supcon_loss(projection(Z), mask, tau, focal=focal, normalise=normalise)
    anchors = (mask.sum(1) > mask.diagonal()).sum()
    return CoreTuningLoss(ce + eta * contrast, ce, contrast, anchors)


def check_loss_settings(owner: Any, settings: dict[str, Any]) -> None:
    """Look at the settings of `core_tuning_loss`, all of them, before any batch comes.

    Raises:
        ParameterError: one is outside its set.
    """
    check_pair_settings(owner, settings["alpha"], settings["clip"], settings["variant"])
    _check_loss(owner, *(settings[name] for name in ("eta", "tau", "positives", "normalise")))


def _check_loss(owner: Any, eta: float, tau: float, positives: str | None, normalise: str | None) -> None:
    if not 0 <= eta < math.inf:
        raise ParameterError("eta", owner, "a float of at least 0", eta)
    if not 0 < tau < math.inf:
        raise ParameterError("tau", owner, "a float above 0", tau)
    if positives is not None and positives not in POSITIVES:
        raise ParameterError("positives", owner, "'class', 'exact-label' or None", positives)
    if normalise is not None and normalise not in NORMALISE:
        raise ParameterError("normalise", owner, "'positives', 'rows' or None", normalise)
