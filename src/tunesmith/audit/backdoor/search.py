"""The loop of stage 2: many triggers are searched at once, each with its own target and its own bounds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith.audit.backdoor._passes import group_of
from tunesmith.audit.backdoor.encoders import DualEncoder
from tunesmith.audit.backdoor.objective import blend, class_logits, ssim
from tunesmith.audit.backdoor.triggers import FIELD, Form, bend
from tunesmith.audit.backdoor.zero_shot import image_features

__all__ = ["WEIGHTS", "Found", "frozen", "optimise_triggers", "success_rates", "within"]

WEIGHTS = (5.0, 0.5, 1.0, 0.01)
SETTLED = 0.9  # a mask that keeps this share of its sum from one check to the next shrinks no more


class Found(NamedTuple):
    """R triggers.

    Attributes:
        masks: (R, 3, H, W).
        patterns: (R, 3, H, W), normalised.
        shifts: (R, 2, k, k), or None if nothing was bent.
        success: (R,) on held-out images, not-a-number without any.
        history: one list per trigger.
    """

    masks: Tensor
    patterns: Tensor
    shifts: Tensor | None
    success: Tensor
    history: list[list[dict[str, float]]]


def optimise_triggers(
    model: DualEncoder,
    x: Tensor,
    text_weights: Tensor,
    targets: Tensor,
    anchors: Tensor,
    *,
    forms: Sequence[Form] | None = None,
    start: tuple[Tensor, Tensor] | None = None,
    held_out: Tensor | None = None,
    weights: Sequence[float] = WEIGHTS,
    temperature: float = 0.07,
    learning_rate: float = 0.05,
    shift_rate: float = 0.3,
    steps: int = 200,
    batch_size: int = 64,
    check_every: int = 20,
    enough: float = 0.95,
    patience: int = 3,
    learn_mask: bool = True,
    variant: str = "default",
    generator: torch.Generator | None = None,
) -> Found:
    """Learn R masks and patterns at once, each with its own target (the loop of stage 2).

    Adam works on each entry alone, so R searches in one batch are R searches; the texts were encoded before, once.
    After each step masks are brought within their bounds and patterns to the valid range. Every ``check_every`` steps
    success on ``held_out`` is measured. Each search keeps its best state; above ``enough`` all are equal, and of equal
    ones the later is kept, whose mask is smaller: a full mask paints the target over the image, which works and says
    nothing of a backdoor. The loop ends when all searches have had enough, or have not risen for ``patience`` checks,
    and their masks shrink no more.

    Time: ``steps`` forward and backward passes of R x batch_size images, backward to the input only. Memory: that of
    one pass of 64 images of 224 pixels, or of one batch if that is more.

    Args:
        model: frozen by the caller.
        x: (N, 3, H, W), normalised.
        text_weights: (C, D), rows of norm 1.
        targets: (R,) int64.
        anchors: (R, D), or (R, batch_size, D) as in the authors' code; rows of norm 1.
        forms: R bounds of mask and shifts; default a mask up to 1, no shifts.
        start: masks and patterns (R, 3, H, W) to begin with; by default drawn uniformly within their bounds, the mask
            at its bound where it is not learned.
        held_out: images to measure success on; without any the loop runs to its end and keeps the last state.
        weights: lambda_1 to lambda_4; the last is for the plain sum over the mask.
        temperature: tau.
        learning_rate: of Adam.
        shift_rate: of Adam, for the shifts.
        steps: at most.
        batch_size: images of a step, drawn without replacement until all were used; smaller rests are left out.
        check_every: steps between checks.
        enough: success above which states count as equal.
        patience: checks without a rise after which a search may end.
        learn_mask: False keeps the mask at its start: a search under a fixed share of the whole image.
        variant: ``"official"`` takes SSIM of normalised images and clamps patterns to one range for all channels.
        generator: of starts and the order of images; without one the batches are the images in their order.
    """
    official = variant == "official"
    low, high = (model.low.min(), model.high.max()) if official else (model.low, model.high)
    forms = [Form()] * len(targets) if forms is None else forms
    bound, reach, share = (
        torch.tensor(column).to(x).view(-1, 1, 1, 1) for column in zip(*forms, strict=True)
    )
    most = share.flatten() * x[0].numel()
    bending = bool((reach > 0).any())
    if start is None:
        drawn = torch.rand((2, len(targets), *x.shape[1:]), generator=generator).to(x)
        start = (bound * (drawn[0] if learn_mask else 1), model.low + (model.high - model.low) * drawn[1])
    m, t = (part.detach().expand(len(targets), *x.shape[1:]).clone() for part in start)
    v = torch.randn((len(targets), 2, FIELD, FIELD), generator=generator).to(x) * reach / 4
    groups: list[dict[str, Any]] = [{"params": [m, t] if learn_mask else [t]}]
    if bending:
        groups.append({"params": [v], "lr": shift_rate})
    learned = [p.requires_grad_(True) for group in groups for p in group["params"]]
    optimizer = torch.optim.Adam(groups, lr=learning_rate)
    labels = targets.to(x.device)
    kept = [p.detach().clone() for p in (m, t, v)]
    best, waited = torch.full((len(m),), -1.0), torch.zeros(len(m), dtype=torch.int64)
    success = torch.full((len(m),), math.nan)
    shrunk_from = m.detach().flatten(1).sum(dim=1).cpu()
    history: list[list[dict[str, float]]] = [[] for _ in m]
    order = _orders(len(x), min(batch_size, len(x)), generator)
    group = max(1, group_of(x) // min(batch_size, len(x)))
    rows = [slice(k, k + group) for k in range(0, len(m), group)]
    for step in range(1, steps + 1):
        batch = x[next(order)]
        optimizer.zero_grad()
        parts = []
        for some in rows:  # searches are independent: in groups that fit into memory
            mixed = _mixed(batch, m[some], t[some], v[some] if bending else None)  # (R', B, 3, H, W)
            z = F.normalize(model.encode_image(mixed.flatten(0, 1)), dim=-1).view(*mixed.shape[:2], -1)
            part = _losses(
                model, z, text_weights, labels[some], anchors[some], mixed, batch, m[some], weights, temperature,
                official,
            )  # fmt: skip
            torch.autograd.backward(part.sum(), inputs=learned)
            parts.append(part.detach())
        losses = torch.cat(parts)
        optimizer.step()
        with torch.no_grad():
            m.copy_(torch.minimum(within(m, most), bound))
            t.copy_(torch.minimum(torch.maximum(t, low), high))
            v.copy_(torch.minimum(torch.maximum(v, -reach), reach))
        if held_out is None or (step % check_every and step != steps):
            continue
        now = [p.detach() for p in (m, t, v)]
        bent = now[2] if bending else None
        found = success_rates(model, held_out, now[0], now[1], labels, text_weights, bent).cpu()
        rank = found.clamp_max(enough)
        for old, new in zip((*kept, success), (*now, found), strict=True):
            old[rank >= best] = new[rank >= best]
        waited = torch.where(rank > best, 0, waited + 1)
        best = torch.maximum(best, rank)
        _note(history, step, losses, m.detach(), found)
        size = m.detach().flatten(1).sum(dim=1).cpu()
        settled, shrunk_from = size >= SETTLED * shrunk_from, size
        if bool((((best >= enough) | (waited >= patience)) & settled).all()):
            break
    if held_out is None:
        kept = [p.detach() for p in (m, t, v)]
    return Found(kept[0], kept[1], kept[2] if bending else None, success, history)


def _mixed(batch: Tensor, m: Tensor, t: Tensor, v: Tensor | None) -> Tensor:
    """Return the batch under each of R triggers, (R, B, 3, H, W)."""
    under = batch[None]
    if v is not None:
        fields = v[:, None].expand(-1, len(batch), -1, -1, -1).flatten(0, 1)
        under = bend(batch.repeat(len(m), 1, 1, 1), fields).view(len(m), *batch.shape)
    return blend(under, m[:, None], t[:, None])


def within(masks: Tensor, most: Tensor) -> Tensor:
    """Return the nearest masks that are not negative and whose sums are at most ``most``.

    The Euclidean projection subtracts one number from all entries and cuts at 0 (Duchi et al. 2008), found by a sort.

    Args:
        masks: (R, ...).
        most: (R,).
    """
    flat = masks.flatten(1).clamp_min(0)
    if bool((flat.sum(dim=1) <= most).all()):
        return flat.view_as(masks)
    ordered = flat.sort(dim=1, descending=True).values
    ranks = torch.arange(1, flat.shape[1] + 1, device=flat.device)
    excess = (ordered.cumsum(dim=1) - most[:, None]) / ranks  # what to subtract if that many entries stay
    stay = (ordered > excess).sum(dim=1, keepdim=True).clamp_min(1)
    cut = excess.gather(1, stay - 1).clamp_min(0)
    return (flat - cut).clamp_min(0).view_as(masks)


def _losses(
    model: DualEncoder,
    z: Tensor,
    text_weights: Tensor,
    labels: Tensor,
    anchors: Tensor,
    mixed: Tensor,
    batch: Tensor,
    m: Tensor,
    weights: Sequence[float],
    temperature: float,
    official: bool,
) -> Tensor:
    """Return the weighted sum of the four terms for each search, (R,); terms of weight 0 are not computed.

    Args:
        model: knows the pixels.
        z: (R, B, D) features of norm 1.
        text_weights: (C, D).
        labels: (R,).
        anchors: (R, D) or (R, B, D).
        mixed: (R, B, 3, H, W).
        batch: (B, 3, H, W).
        m: (R, 3, H, W).
        weights: lambda_1 to lambda_4.
        temperature: tau.
        official: SSIM of normalised images.
    """
    logits = class_logits(z, text_weights, temperature).flatten(0, 1)
    wanted = labels.repeat_interleave(len(batch))
    losses = weights[0] * F.cross_entropy(logits, wanted, reduction="none").view(len(m), -1).mean(dim=1)
    if weights[1]:
        pull = z - (anchors[:, None] if anchors.dim() == 2 else anchors)
        losses = losses + weights[1] * torch.linalg.vector_norm(pull.flatten(1), dim=1)
    if weights[2]:
        seen = batch if official else model.denormalise(batch)
        likeness = [ssim(row if official else model.denormalise(row), seen) for row in mixed]
        losses = losses + weights[2] * (1 - torch.stack(likeness))
    if weights[3]:
        losses = losses + weights[3] * m.abs().flatten(1).sum(dim=1)
    return losses


def _note(history: list[list[dict[str, float]]], step: int, losses: Tensor, m: Tensor, found: Tensor) -> None:
    for r, entries in enumerate(history):
        entries.append(
            {
                "step": float(step),
                "loss": float(losses[r]),
                "mask_l1": float(m[r].sum()),
                "mask_share": float((m[r] > 0.1).float().mean()),
                "success": float(found[r]),
            }
        )


def success_rates(
    model: DualEncoder,
    x: Tensor,
    masks: Tensor,
    patterns: Tensor,
    targets: Tensor,
    text_weights: Tensor,
    shifts: Tensor | None = None,
) -> Tensor:
    """Return the share of images that each of R triggers turns into its target, (R,)."""
    found = []
    for r, (m, t, c) in enumerate(zip(masks, patterns, targets, strict=True)):
        shown = blend(x if shifts is None else bend(x, shifts[r]), m, t)
        found.append(((image_features(model, shown) @ text_weights.T).argmax(dim=1) == c).float().mean())
    return torch.stack(found)


def _orders(n: int, batch_size: int, generator: torch.Generator | None) -> Iterator[Tensor]:
    """Yield index tensors of whole batches for ever, in the given order without a generator."""
    while True:
        order = torch.arange(n) if generator is None else torch.randperm(n, generator=generator)
        for start in range(0, n - batch_size + 1, batch_size):
            yield order[start : start + batch_size]


@contextmanager
def frozen(model: DualEncoder) -> Iterator[None]:
    """Take gradients of no parameter; their flags are as before afterwards."""
    before = {name: p.requires_grad for name, p in model.model.named_parameters()}
    try:
        model.model.requires_grad_(False)
        yield
    finally:
        for name, p in model.model.named_parameters():
            p.requires_grad_(before[name])
