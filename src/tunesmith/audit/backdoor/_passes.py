"""Passes over more images than fit into memory at once, with the gradients of one pass over all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tunesmith.audit.backdoor.encoders import DualEncoder

__all__ = ["PIXELS", "descend", "group_of", "see", "trainable"]

PIXELS = 64 * 224 * 224  # of one pass forward and backward: what 64 images of CLIP have

Terms = tuple[Tensor, ...]


def group_of(images: Tensor) -> int:
    """Return how many of these images (..., H, W) go into one pass."""
    return max(1, PIXELS // (images.shape[-2] * images.shape[-1]))


def see(
    model: DualEncoder, images: Tensor, layers: Sequence[str], rows: int, size: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the features of all images, (N, D), and layer -> the activations of the first ``rows`` of them.

    Args:
        model: the model.
        images: (N, 3, H, W), normalised.
        layers: whose activations are wanted.
        rows: at most N.
        size: images of one pass.
    """
    features: list[Tensor] = []
    found: dict[str, list[Tensor]] = {name: [] for name in layers}
    for begin in range(0, len(images), size):
        with model.activations(layers) as seen:
            features.append(model.encode_image(images[begin : begin + size]))
            for name in layers if begin < rows else ():
                found[name].append(seen[name][: rows - begin])
    return torch.cat(features), {name: torch.cat(parts) for name, parts in found.items()}


def descend(
    model: DualEncoder,
    images: Tensor,
    layers: Sequence[str],
    rows: int,
    size: int,
    terms_of: Callable[[Tensor, Mapping[str, Tensor]], Terms],
    parameters: Sequence[Tensor],
) -> Terms:
    """Add the gradients of a loss over features and activations of all images to the parameters.

    A loss may join images as it likes (means over the batch, norms): where they do not fit into one pass, a pass
    without gradients collects what the loss depends on, its derivatives by that are taken, and a second pass carries
    them back, ``size`` images at a time (as in Gao et al. 2021, arXiv 2101.06983). Exact if images do not see one
    another in the model. Time: one more forward pass. Memory: the activations asked for, twice, and one group's pass.

    Args:
        model: the model.
        images: (N, 3, H, W), normalised.
        layers: as in `see`.
        rows: as in `see`.
        size: images of one pass.
        terms_of: features (N, D) and layer -> (rows, ...) -> the loss, and what else is wanted.
        parameters: require gradients.

    Returns:
        What ``terms_of`` gave, detached.
    """
    if len(images) <= size:
        terms = terms_of(*see(model, images, layers, rows, size))
        torch.autograd.backward(terms[0], inputs=parameters)
        return tuple(term.detach() for term in terms)
    with torch.no_grad():
        features, seen = see(model, images, layers, rows, size)
    leaves = [features.requires_grad_(), *(values.requires_grad_() for values in seen.values())]
    terms = terms_of(features, seen)
    slopes = torch.autograd.grad(terms[0], leaves, allow_unused=True, materialize_grads=True)
    for begin in range(0, len(images), size):
        with model.activations(layers) as now:
            out = [model.encode_image(images[begin : begin + size])]
            out += [now[name][: rows - begin] for name in layers if begin < rows]
        back = [slope[begin : begin + len(values)] for values, slope in zip(out, slopes, strict=False)]
        torch.autograd.backward(out, back, inputs=parameters)
    return tuple(term.detach() for term in terms)


@contextmanager
def trainable(model: DualEncoder, moving: Mapping[str, Any], train_mode: bool) -> Iterator[None]:
    """Let only these parameters have gradients; everything is as before afterwards."""
    before = {name: p.requires_grad for name, p in model.model.named_parameters()}
    try:
        for name, p in model.model.named_parameters():
            p.requires_grad_(name in moving)
        model.model.train(train_mode)
        yield
    finally:
        model.model.eval()
        for name, p in model.model.named_parameters():
            p.requires_grad_(before[name])
            p.grad = None
