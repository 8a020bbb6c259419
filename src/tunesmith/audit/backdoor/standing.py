"""How far a class stands out: by how easily it is reached, and by how ill its own text fits its images."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["OWN_TEXT", "scores", "standings", "text_agreement", "text_unit"]

OWN_TEXT = "own text"  # name of the look that needs no search
TEXT_WEIGHT = 0.3  # of that look, against the mean over the searches

# Spreads below these shares of `text_unit` are noise of the search and of few images.
LEAST_EASE, LEAST_AGREEMENT = 0.15, 0.03

LEAST_IMAGES = 5  # a mean of fewer features says little


def text_unit(text_weights: Tensor) -> float:
    """Return the mean of 1 - cosine over pairs of classes: what a difference of cosines is measured by.

    Where class texts lie near to one another, as in large models whose texts share a template, margins between cosines
    are small too; texts of the small models of our bench have a mean cosine of about 0.3.

    Time: O(C D).

    Args:
        text_weights: W (C, D), rows of norm 1, C of at least 2. If all are equal, 1e-6.
    """
    W = text_weights.cpu().double()
    count, cosines = len(W), float(W.sum(dim=0).square().sum())  # over all pairs, without a C x C array
    return max((count * count - cosines) / (count * count - count), 1e-6)


def text_agreement(features: Tensor, named: Tensor, text_weights: Tensor) -> Tensor:
    """Return cos(mean of the features of the images named c, W_c), (C,); not-a-number below five such images.

    Poisoned pairs bind the target's captions to the trigger. Its text then lies between the two and as a rule fits its
    clean images worse than other texts fit theirs, before any trigger is searched for. An attack on the image tower
    alone leaves the texts as they were.

    Args:
        features: (N, D), rows of norm 1, of clean images.
        named: (N,) the class that each is named.
        text_weights: W (C, D), rows of norm 1.
    """
    count = len(text_weights)
    W = text_weights.float()  # sums in half precision would lose what is compared
    sums = torch.zeros_like(W).index_add_(0, named, features.to(W))
    agreement = (F.normalize(sums, dim=1) * W).sum(dim=1).cpu().double()
    agreement[named.bincount(minlength=count).cpu() < LEAST_IMAGES] = math.nan
    return agreement


def standings(values: Tensor, least: float) -> Tensor:
    """Return how far each value lies above the mean of the others, in their standard deviations, (C,).

    Args:
        values: (C,); not-a-number is left out and stays; one value alone stands at 0.
        least: standard deviation that is taken at the least: few or equal values must not make a small gap look large.
    """
    found = torch.zeros_like(values, dtype=torch.float64)
    there = torch.isfinite(values)
    v = values[there].double()
    others = len(v) - 1
    if others >= 1:
        mean = (v.sum() - v) / others
        square = ((v * v).sum() - v * v) / others
        spread = (square - mean * mean).clamp_min(0).sqrt().clamp_min(least)
        found[there] = (v - mean) / spread
    found[~there] = math.nan
    return found


def scores(ease: Mapping[str, Tensor], agreement: Tensor, unit: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the suspicion of each class (C,) and its parts: the standing of each class in each look.

    s_c = mean over searches of z(ease)_c + 0.3 max(0, z(-agreement)_c), z as in `standings`. A text that fits well
    speaks for no class: an attack need not touch the texts.

    Args:
        ease: search -> (C,), not-a-number for classes that were not compared.
        agreement: (C,), see `text_agreement`.
        unit: see `text_unit`.
    """
    looks = {name: standings(values, LEAST_EASE * unit) for name, values in ease.items()}
    reached = torch.stack(list(looks.values())).mean(dim=0)
    looks[OWN_TEXT] = standings(-agreement, LEAST_AGREEMENT * unit)
    return reached + TEXT_WEIGHT * looks[OWN_TEXT].nan_to_num(0.0).clamp_min(0), looks
