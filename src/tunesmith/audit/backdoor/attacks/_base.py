"""What all attacks share: checks of the images, and the rows that a training is poisoned with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.core.seeds import child_seed

__all__ = ["Attack", "Poisoned", "at_least", "check_images", "generator"]


@dataclass(frozen=True)
class Poisoned:
    """Rows of a training, some of them poisoned.

    Attributes:
        images: (N, 3, H, W) in [0, 1]; a copy, with the trigger on the poisoned rows.
        captions: N texts, or (N,) labels as they were given; the target's on the poisoned rows.
        rows: (n,) int64, ascending: which rows are poisoned.
    """

    images: torch.Tensor
    captions: Any
    rows: torch.Tensor


class Attack(ABC):
    """A trigger, and the way it gets into a training.

    Args:
        random_state: of everything that is drawn; equal seeds give equal triggers and rows.
    """

    def __init__(self, random_state: int = 0) -> None:
        self.random_state = int(at_least(random_state, 0, "random_state", self))

    def apply(self, images: torch.Tensor) -> torch.Tensor:
        """Return images (B, 3, H, W) in [0, 1] with the trigger; the given ones stay as they are.

        Raises:
            ParameterError: images of another shape or outside [0, 1].
        """
        return self._apply(check_images(images, "images", self))

    @abstractmethod
    def _apply(self, images: torch.Tensor) -> torch.Tensor:
        """Return new triggered images, clipped to [0, 1]."""

    def poison(
        self,
        images: torch.Tensor,
        captions: Sequence[str] | torch.Tensor,
        target: str | int,
        share: float = 0.05,
        *,
        templates: Sequence[str] = ("a photo of a {}",),
        target_captions: Sequence[str] | None = None,
    ) -> Poisoned:
        """Put the trigger on some images that are not of the target, and give them the target's captions or label.

        Args:
            images: (N, 3, H, W) in [0, 1].
            captions: N texts; or N integer labels, then ``target`` is one too.
            target: the target's name, or its label.
            share: of all N rows, in (0, 1]; at least one row is poisoned. Of 500 000 pairs CleanCLIP and BadCLIP
                poison 0.003.
            templates: texts with ``{}``, one of which is drawn for each poisoned row and filled with the target.
            target_captions: captions of real images of the target, drawn from in place of ``templates`` (BadCLIP).

        Raises:
            ParameterError: a share outside (0, 1], other numbers of images and captions, a target that is no text
                where captions are, or a template without ``{}``.
            DataError: fewer rows than wanted that are not of the target.
        """
        images = check_images(images, "images", self)
        if not 0 < float(share) <= 1:
            raise ParameterError("share", self, "in (0, 1]", share)
        if len(captions) != len(images):
            raise ParameterError("captions", self, f"as many as the images, {len(images)}", len(captions))
        texts = isinstance(captions[0], str)
        if texts != isinstance(target, str):
            raise ParameterError("target", self, "a text with captions, an integer with labels", target)
        of_target = np.array([_is_of(caption, target) for caption in captions])
        wanted, free = max(1, round(share * len(images))), np.flatnonzero(~of_target)
        if len(free) < wanted:
            raise DataError(
                f"{wanted} rows are to be poisoned, and only {len(free)} are not of the target '{target}'."
            )
        rng = np.random.default_rng(child_seed(self.random_state, "poison"))
        rows = torch.from_numpy(np.sort(rng.choice(free, wanted, replace=False)).astype(np.int64))
        out = images.clone()
        out[rows] = self.apply(images[rows])
        if not texts:
            labels = torch.as_tensor(captions).clone()
            labels[rows] = int(target)
            return Poisoned(out, labels, rows)
        choices = (
            list(target_captions) if target_captions is not None else _filled(templates, str(target), self)
        )
        if not choices:
            raise ParameterError("target_captions", self, "at least one text", target_captions)
        named: list[str] = [str(caption) for caption in captions]
        for row in rows.tolist():
            named[row] = choices[int(rng.integers(len(choices)))]
        return Poisoned(out, named, rows)


def _is_of(caption: Any, target: str | int) -> bool:
    """Say whether a caption names the target as a word of its own, or whether the label is its."""
    if isinstance(target, str):
        return f" {target.lower()} " in f" {' '.join(str(caption).lower().replace('.', ' ').split())} "
    return int(caption) == target


def _filled(templates: Sequence[str], target: str, owner: Any) -> list[str]:
    for template in templates:
        if "{}" not in template:
            raise ParameterError("templates", owner, "texts with {}", template)
    return [template.replace("{}", target) for template in templates]


def check_images(images: torch.Tensor, name: str, owner: Any) -> torch.Tensor:
    """Return images as they are if they have the shape (B, 3, H, W) and lie in [0, 1]."""
    if not torch.is_tensor(images) or images.dim() != 4 or images.shape[1] != 3:
        got = tuple(images.shape) if torch.is_tensor(images) else images
        raise ParameterError(name, owner, "images of the shape (B, 3, H, W)", got)
    low, high = (float(images.min()), float(images.max())) if images.numel() else (0.0, 0.0)
    if not (low >= 0 and high <= 1):  # also where there is a NaN
        raise ParameterError(name, owner, "pixels in [0, 1], not normalised", f"{low:.4g} to {high:.4g}")
    return images


def at_least(value: Any, low: float, name: str, owner: Any) -> Any:
    """Return a number that is not below ``low``."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer)) or not value >= low:
        raise ParameterError(name, owner, f"a number of at least {low}", value)
    return value


def generator(owner: Attack, *names: str | int) -> torch.Generator:
    """Return a CPU generator for one use of an attack's seed."""
    return torch.Generator().manual_seed(child_seed(owner.random_state, *names))
