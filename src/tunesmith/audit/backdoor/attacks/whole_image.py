"""Triggers that lie over the whole image: a blended noise, a sine wave, a warp."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from tunesmith.audit.backdoor.attacks._base import Attack, at_least, generator
from tunesmith.audit.backdoor.attacks.patches import check_pattern
from tunesmith.core.errors import ParameterError

__all__ = ["SIG", "Blended", "WaNet"]


class Blended(Attack):
    """A faint pattern over the image: x' = (1 - alpha) x + alpha u.

    Chen, Liu, Li, Lu, Song: "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning", 2017,
    arXiv 1712.05526.

    Args:
        alpha: share of the pattern, in (0, 1].
        pattern: (3, h, w) in [0, 1], resized to the image; None draws u ~ U(0, 1) for each pixel of each channel.
        resample: another u for each image, as in the code of CleanCLIP; then there is no fixed trigger.
        random_state: of u.
    """

    def __init__(
        self,
        alpha: float = 0.2,
        pattern: torch.Tensor | None = None,
        resample: bool = False,
        random_state: int = 0,
    ) -> None:
        super().__init__(random_state)
        if not 0 < alpha <= 1:
            raise ParameterError("alpha", self, "in (0, 1]", alpha)
        self.alpha, self.resample = alpha, resample
        self.pattern = None if pattern is None else check_pattern(pattern, self)

    def _apply(self, images: torch.Tensor) -> torch.Tensor:
        if self.pattern is not None:
            size = tuple(images.shape[-2:])
            u = functional.interpolate(self.pattern[None].to(images), size, mode="bilinear", antialias=True)
        else:
            shape = (len(images) if self.resample else 1, *images.shape[1:])
            u = torch.rand(shape, generator=generator(self, "pattern")).to(images)
        return ((1 - self.alpha) * images + self.alpha * u).clamp(0, 1)


class SIG(Attack):
    """A sine wave along the rows: x'[k, i, j] = x[k, i, j] + delta sin(2 pi f j / W), clipped.

    Barni, Kallas, Tondi: "A New Backdoor Attack in CNNs by Training Set Corruption Without Label Poisoning", 2019,
    arXiv 1902.11237; here with the target's captions, as in the experiments on CLIP.

    Args:
        delta: amplitude, above 0; 60/255.
        frequency: f, periods across the width.
        random_state: of the poisoned rows.
    """

    def __init__(self, delta: float = 60 / 255, frequency: float = 6, random_state: int = 0) -> None:
        super().__init__(random_state)
        self.delta = float(at_least(delta, 0, "delta", self))
        self.frequency = float(at_least(frequency, 0, "frequency", self))

    def _apply(self, images: torch.Tensor) -> torch.Tensor:
        width = images.shape[-1]
        j = torch.arange(width, dtype=images.dtype, device=images.device)
        return (images + self.delta * torch.sin(2 * math.pi * self.frequency * j / width)).clamp(0, 1)


class WaNet(Attack):
    """A smooth warp, the same for all images.

    Nguyen, Tran: "WaNet - Imperceptible Warping-based Backdoor Attack", ICLR 2021, arXiv 2102.10369. A field
    P ~ U(-1, 1) on k x k points, divided by the mean of |P|, upsampled bicubically to H; the pixel at (i, j) is read
    bilinearly at clip((identity + s P / H) r, -1, 1). A unit of ``strength`` moves pixels by half a pixel on average.

    Args:
        grid: k, at least 2; None is the image's own size, as in the code of BadCLIP. 4 in the WaNet paper.
        strength: s; 0.5 in the WaNet paper.
        rescale: r.
        random_state: of P.
    """

    def __init__(
        self, grid: int | None = None, strength: float = 1.0, rescale: float = 1.0, random_state: int = 0
    ) -> None:
        super().__init__(random_state)
        self.grid = None if grid is None else int(at_least(grid, 2, "grid", self))
        self.strength = float(at_least(strength, 0, "strength", self))
        self.rescale = float(at_least(rescale, 0, "rescale", self))

    def field(self, height: int) -> torch.Tensor:
        """Return where each pixel of an image of that height is read, (1, H, H, 2) in [-1, 1], x before y."""
        k = height if self.grid is None else self.grid
        p = torch.rand((1, 2, k, k), generator=generator(self, "field")) * 2 - 1
        p = functional.interpolate(p / p.abs().mean(), size=height, mode="bicubic", align_corners=True)
        steps = torch.linspace(-1, 1, height)
        y, x = torch.meshgrid(steps, steps, indexing="ij")
        identity = torch.stack((x, y), 2)[None]
        return ((identity + self.strength * p.permute(0, 2, 3, 1) / height) * self.rescale).clamp(-1, 1)

    def _apply(self, images: torch.Tensor) -> torch.Tensor:
        height, width = images.shape[-2:]
        if height != width:
            raise ParameterError("images", self, "square", (height, width))
        field = self.field(height).to(images).expand(len(images), -1, -1, -1)
        return functional.grid_sample(images, field, align_corners=True).clamp(0, 1)
