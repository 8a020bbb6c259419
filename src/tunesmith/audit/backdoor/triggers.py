"""A trigger as the defence rebuilds it: a mask and a pattern, and where the image is bent, a field of shifts."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith.audit.backdoor.objective import blend
from tunesmith.core.errors import DataError, ParameterError
from tunesmith.core.files import atomic_open

__all__ = ["FIELD", "PATCH", "Form", "Trigger", "bend"]

FIELD = 4  # points along each side of a field of shifts: that of WaNet


class Form(NamedTuple):
    """What a search may use.

    Attributes:
        max_mask: bound of the mask, in [0, 1]: 1 finds patches, 0.1 to 0.3 must spread over the image.
        max_shift: bound of the shifts, in 1/16 of the image's side; 0: the image is not bent.
        max_share: bound of the mask's mean, in (0, 1].
    """

    max_mask: float = 1.0
    max_shift: float = 0.0
    max_share: float = 1.0


PATCH = Form()
"""A mask up to 1, nothing bent: the triggers of the paper."""


def bend(x: Tensor, shifts: Tensor) -> Tensor:
    """Return images read at shifted places, bilinearly; the field is upsampled bicubically (as WaNet's).

    Args:
        x: (B, 3, H, W).
        shifts: (2, k, k) or one for each image, (B, 2, k, k), in 1/16 of the image's side, x before y.
    """
    height, width = x.shape[-2:]
    fields = shifts if shifts.dim() == 4 else shifts[None]
    moved = F.interpolate(fields, size=(height, width), mode="bicubic", align_corners=True) / 8
    steps = [torch.linspace(-1, 1, n, dtype=x.dtype, device=x.device) for n in (height, width)]
    rows, columns = torch.meshgrid(*steps, indexing="ij")
    grid = torch.stack((columns, rows), dim=-1) + moved.permute(0, 2, 3, 1)
    return F.grid_sample(x, grid.expand(len(x), -1, -1, -1), padding_mode="border", align_corners=True)


@dataclass(frozen=True)
class Trigger:
    """A trigger that was rebuilt: a stand-in for the planted one, not its picture.

    Attributes:
        mask: (3, H, W) in [0, 1].
        pattern: (3, H, W) in the model's normalised pixel space.
        target: index of the class that it leads to.
        success: share of images held out from the search that it turns into the target.
        form: the bounds it was searched under.
        shifts: (2, k, k) field by which the image is bent before the pattern is put on, see `bend`; None: it is not.
        history: one entry per check: step, loss, mask L1, share of the mask above 0.1, success.
    """

    mask: Tensor
    pattern: Tensor
    target: int
    success: float = math.nan
    form: Form = PATCH
    shifts: Tensor | None = None
    history: list[dict[str, float]] = field(default_factory=list, repr=False, compare=False)

    @property
    def mask_l1(self) -> float:
        """Sum of the mask's 3 H W entries."""
        return float(self.mask.sum())

    def apply(self, x: Tensor) -> Tensor:
        """Return m * t + (1 - m) * x for normalised images (B, 3, H, W); x bent where there are shifts.

        Raises:
            ParameterError: images of another size than the mask.
        """
        if x.shape[-3:] != self.mask.shape:
            raise ParameterError(
                "images",
                "Trigger.apply",
                f"of the shape (B, {', '.join(map(str, self.mask.shape))})",
                tuple(x.shape),
            )
        under = x if self.shifts is None else bend(x, self.shifts.to(x))
        return blend(under, self.mask.to(x), self.pattern.to(x))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a safetensors file."""
        from safetensors.torch import save

        kept = {"mask": self.mask.contiguous(), "pattern": self.pattern.contiguous()}
        if self.shifts is not None:
            kept["shifts"] = self.shifts.contiguous()
        about = {"target": str(self.target), "success": repr(self.success)}
        about |= {name: repr(bound) for name, bound in self.form._asdict().items()}
        with atomic_open(path, "wb") as stream:
            stream.write(save(kept, metadata=about))
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trigger:
        """Read what `save` wrote; safetensors only.

        Raises:
            DataError: another kind of file.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as stream:
                about = stream.metadata() or {}
                mask, pattern = stream.get_tensor("mask"), stream.get_tensor("pattern")
                shifts = stream.get_tensor("shifts") if "shifts" in stream.keys() else None  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise DataError(f"not a trigger in a safetensors file: {error}", source=str(path)) from error
        form = Form(*(float(about.get(name) or default) for name, default in Form._field_defaults.items()))
        return cls(
            mask, pattern, int(about.get("target", -1)), float(about.get("success", "nan")), form, shifts
        )
