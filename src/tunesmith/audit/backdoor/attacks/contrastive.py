"""Contrastive training of a small dual encoder on pairs of images and captions: how poisoned rows get into a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional

from tunesmith.audit.backdoor.attacks._base import check_images
from tunesmith.audit.backdoor.encoders import DualEncoder
from tunesmith.core.errors import ParameterError, TrainingError
from tunesmith.core.seeds import child_seed

__all__ = ["contrastive_loss", "fine_tune"]


def contrastive_loss(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    scale: torch.Tensor | float,
    groups: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return CLIP's symmetric InfoNCE; pairs of one group are all positives of each other.

    Without groups it is CLIP's loss. With few classes the captions of a batch collide, and what collides must not be
    pushed apart: the target distribution of a row is then uniform over its group.

    Args:
        image_features: (B, D).
        text_features: (B, D).
        scale: 1 / temperature.
        groups: (B,) integers.
    """
    logits = (
        scale * functional.normalize(image_features, dim=1) @ functional.normalize(text_features, dim=1).T
    )
    if groups is None:
        wanted = torch.eye(len(logits), device=logits.device, dtype=logits.dtype)
    else:
        wanted = (groups[:, None] == groups[None]).to(logits)
        wanted = wanted / wanted.sum(1, keepdim=True)
    return (functional.cross_entropy(logits, wanted) + functional.cross_entropy(logits.T, wanted.T)) / 2


def fine_tune(
    encoder: DualEncoder,
    images: torch.Tensor,
    captions: Sequence[str],
    groups: torch.Tensor | None = None,
    *,
    epochs: int = 5,
    batch_size: int = 128,
    learning_rate: float = 1e-6,
    weight_decay: float = 0.1,
    warmup: float = 0.1,
    augment: Callable[[torch.Tensor, torch.Generator], torch.Tensor] | None = None,
    batch_norm: bool = True,
    random_state: int = 0,
) -> list[float]:
    """Train both towers in place on pairs, as CLIP is fine-tuned in the experiments of CleanCLIP and BadCLIP.

    AdamW, no decay on biases, norms and the logit scale, linear warm-up, then cosine to 0; the logit scale is kept in
    [0, ln 100]. A model without a parameter ``logit_scale`` has the temperature 0.07.

    Args:
        encoder: changed in place; in evaluation mode afterwards.
        images: (N, 3, H, W) in [0, 1].
        captions: N texts.
        groups: (N,) integers, pairs that are positives of each other; None: pairs of equal captions.
        epochs: passes over the pairs.
        batch_size: pairs of a step; the last, smaller batch of a pass is left out if there is a whole one.
        learning_rate: at the end of the warm-up.
        weight_decay: of matrices and kernels.
        warmup: share of the steps.
        augment: images in [0, 1] and a generator -> images in [0, 1].
        batch_norm: whether normalisation layers see batches (train mode); else the whole model is in evaluation mode.
        random_state: of the order and of ``augment``.

    Returns:
        The mean loss of each pass.

    Raises:
        ParameterError: other numbers of images, captions or groups; fewer than one epoch; a batch below 2.
        TrainingError: the loss is not finite.
    """
    images = check_images(images, "images", "fine_tune")
    n = len(images)
    for name, rows in (("captions", captions), ("groups", groups)):
        if rows is not None and len(rows) != n:
            raise ParameterError(name, "fine_tune", f"as many as the images, {n}", len(rows))
    if epochs < 1:
        raise ParameterError("epochs", "fine_tune", "at least 1", epochs)
    if batch_size < 2 or n < 2:
        raise ParameterError("batch_size", "fine_tune", "at least 2, of at least 2 images", (batch_size, n))
    texts = sorted(set(captions))
    number = {text: i for i, text in enumerate(texts)}
    which = torch.tensor([number[text] for text in captions])
    groups = which if groups is None else torch.as_tensor(groups)
    model, scale = encoder.model, getattr(encoder.model, "logit_scale", None)
    optimizer = torch.optim.AdamW(_groups(model, weight_decay), lr=learning_rate)
    per_epoch = max(1, n // batch_size)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, _warm_cosine(warmup, epochs * per_epoch))
    draws = torch.Generator().manual_seed(child_seed(random_state, "fine_tune"))
    found = []
    frozen = [p for p in model.parameters() if not p.requires_grad]
    model.requires_grad_(True).train(batch_norm)
    try:
        # Dropout draws from the global state: a copy of it keeps the caller's.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(child_seed(random_state, "dropout"))
            for epoch in range(epochs):
                total = 0.0
                for rows in torch.split(torch.randperm(n, generator=draws), batch_size)[:per_epoch]:
                    x = images[rows] if augment is None else augment(images[rows], draws)
                    used, place = torch.unique(
                        which[rows], return_inverse=True
                    )  # each caption is encoded once
                    t = encoder.encode_text([texts[i] for i in used.tolist()])[place.to(encoder.device)]
                    s = 1 / 0.07 if scale is None else scale.exp()
                    loss = contrastive_loss(
                        encoder.encode_image(encoder.normalise(x)), t, s, groups[rows].to(t.device)
                    )
                    if not bool(loss.isfinite()):
                        raise TrainingError(
                            f"The contrastive loss is {float(loss)} in epoch {epoch + 1}; a smaller learning_rate than "
                            f"{learning_rate} may help."
                        )
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    rate.step()
                    if scale is not None:
                        scale.data.clamp_(0, math.log(100))
                    total += float(loss.detach())
                found.append(total / per_epoch)
    finally:
        model.eval()
        model.zero_grad()
        for p in frozen:
            p.requires_grad_(False)
    return found


def _groups(model: torch.nn.Module, decay: float) -> list[dict[str, Any]]:
    flat = [p for p in model.parameters() if p.dim() < 2]
    return [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": decay},
        {"params": flat, "weight_decay": 0.0},
    ]


def _warm_cosine(warmup: float, steps: int) -> Callable[[int], float]:
    first = max(1, round(warmup * steps))

    def factor(step: int) -> float:
        if step < first:
            return (step + 1) / first
        return 0.5 * (1 + math.cos(math.pi * (step - first) / max(1, steps - first)))

    return factor
