"""Patches pasted on an image: where, how large, and BadNet's."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from tunesmith.audit.backdoor.attacks._base import Attack, generator
from tunesmith.core.errors import ParameterError

__all__ = ["BadNet", "PatchAttack", "paste", "side_of"]

POSITIONS = ("bottom_right", "bottom_left", "top_right", "top_left", "center")


def side_of(size: float, image: int, owner: Any) -> int:
    """Return a patch's side in pixels: ``size`` itself if it is an integer, else that share of the image's side.

    Raises:
        ParameterError: a share outside (0, 1], or a patch larger than the image.
    """
    if isinstance(size, bool) or not isinstance(size, (int, float)):
        raise ParameterError("size", owner, "a number of pixels or a share of the image's side", size)
    whole = isinstance(size, int)
    side = int(size) if whole else max(1, round(size * image))
    if not (0 < side <= image and (whole or size <= 1)):
        raise ParameterError("size", owner, f"an int in [1, {image}] or a float in (0, 1]", size)
    return side


def paste(images: torch.Tensor, patch: torch.Tensor, row: int, column: int) -> torch.Tensor:
    """Return images (B, 3, H, W) with a patch (3, h, w) or (B, 3, h, w) from pixel (row, column) on; gradients pass."""
    height, width = patch.shape[-2:]
    out = images.clone()
    out[:, :, row : row + height, column : column + width] = patch.to(images)
    return out


class PatchAttack(Attack):
    """An attack whose trigger is a square at a fixed place.

    Args:
        size: side: an int is pixels, a float a share of the image's side (rounded, at least one pixel).
        position: one of ``"bottom_right"``, ``"bottom_left"``, ``"top_right"``, ``"top_left"``, ``"center"``.
        random_state: of what is drawn.
    """

    def __init__(self, size: float, position: str, random_state: int) -> None:
        super().__init__(random_state)
        if position not in POSITIONS:
            raise ParameterError("position", self, f"one of {', '.join(POSITIONS)}", position)
        self.size, self.position = size, position

    def corner(self, height: int, width: int) -> tuple[int, int, int]:
        """Return row and column of the patch's upper left pixel, and its side."""
        side = side_of(self.size, min(height, width), self)
        if self.position == "center":
            return (height - side) // 2, (width - side) // 2, side
        row = height - side if self.position.startswith("bottom") else 0
        return row, width - side if self.position.endswith("right") else 0, side


class BadNet(PatchAttack):
    """A fixed square of coin-flip pixels in a corner.

    Gu, Dolan-Gavitt, Garg: "BadNets", 2017, arXiv 1708.06733. The variant ``resample=True`` is the one in the code of
    CleanCLIP: the mean of each channel of the image plus N(0, 1), drawn anew for each image and at a random place;
    clipped here, where that code lets values wrap around.

    Args:
        size: side; pixels or a share of the image. 16 of 224 pixels in the paper's experiments.
        position: of a fixed patch.
        pattern: (3, h, w) in [0, 1], resized to the patch; None draws each pixel of each channel 0 or 1.
        resample: noise and place of each image's own.
        random_state: of pattern and noise. One call of ``apply`` draws the same for the same number of images.
    """

    def __init__(
        self,
        size: float = 16 / 224,
        position: str = "bottom_right",
        pattern: torch.Tensor | None = None,
        resample: bool = False,
        random_state: int = 0,
    ) -> None:
        super().__init__(size, position, random_state)
        self.resample = resample
        self.pattern = None if pattern is None else check_pattern(pattern, self)

    def _apply(self, images: torch.Tensor) -> torch.Tensor:
        row, column, side = self.corner(*images.shape[-2:])
        draws = generator(self, "pattern")
        if not self.resample:
            if self.pattern is None:
                patch = torch.randint(2, (3, side, side), generator=draws).to(images)
            else:
                patch = resized(self.pattern, side)
            return paste(images, patch, row, column)
        noise = torch.randn((len(images), 3, side, side), generator=draws).to(images)
        patches = (images.mean((2, 3), keepdim=True) + noise).clamp(0, 1)
        rows, columns = (
            torch.randint(n - side + 1, (len(images),), generator=draws).tolist() for n in images.shape[-2:]
        )
        out = images.clone()
        for i, (r, c) in enumerate(zip(rows, columns, strict=True)):
            out[i, :, r : r + side, c : c + side] = patches[i]
        return out


def check_pattern(pattern: torch.Tensor, owner: Any) -> torch.Tensor:
    """Return a pattern (3, h, w) in [0, 1]."""
    good = torch.is_tensor(pattern) and pattern.dim() == 3 and pattern.shape[0] == 3
    if not good or not bool(((pattern >= 0) & (pattern <= 1)).all()):
        got = tuple(pattern.shape) if torch.is_tensor(pattern) else pattern
        raise ParameterError("pattern", owner, "of the shape (3, h, w), in [0, 1]", got)
    return pattern.detach()


def resized(pattern: torch.Tensor, side: int) -> torch.Tensor:
    """Return the pattern as a square of ``side`` pixels; unchanged where it is one."""
    if tuple(pattern.shape[-2:]) == (side, side):
        return pattern
    return functional.interpolate(pattern[None], (side, side), mode="bilinear", antialias=True)[0].clamp(0, 1)
