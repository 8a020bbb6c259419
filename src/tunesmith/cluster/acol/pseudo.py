"""Parents made from the input itself (ICLR 2018, arXiv 1802.03063): which of up to 8 turns and flips an image has.

The network learns to tell the transformations apart, and needs detailed features for it; shifts are too easy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tunesmith.core.errors import ParameterError

__all__ = ["PSEUDO_PARENTS", "transform_images"]

# name -> quarter turns, then flip left to right
PSEUDO_PARENTS = {
    "identity": (0, False),
    "rot90": (1, False),
    "rot180": (2, False),
    "rot270": (3, False),
    "flip": (0, True),
    "flip_rot90": (1, True),
    "flip_rot180": (2, True),
    "flip_rot270": (3, True),
}


def transform_images(x: Tensor, names: Sequence[str], index: Tensor) -> Tensor:
    """Apply to every image its transformation.

    Args:
        x: (b, C, H, W); square if a quarter turn is among the names.
        names: keys of ``PSEUDO_PARENTS``.
        index: (b,) which of the names.

    Returns:
        (b, C, H, W). Time and memory O(b C H W).

    Raises:
        ParameterError: an unknown name, or quarter turns of images that are not square.
    """
    unknown = [name for name in names if name not in PSEUDO_PARENTS]
    if unknown:
        raise ParameterError("pseudo_parents", "ACOLClusterer", f"of {', '.join(PSEUDO_PARENTS)}", unknown[0])
    if x.shape[2] != x.shape[3] and any(PSEUDO_PARENTS[name][0] % 2 for name in names):
        raise ParameterError(
            "pseudo_parents",
            "ACOLClusterer",
            "without quarter turns for images that are not square",
            list(names),
        )
    out = torch.empty_like(x)
    for r, name in enumerate(names):
        rows = index == r
        turns, flip = PSEUDO_PARENTS[name]
        part = torch.rot90(x[rows], turns, dims=(2, 3))
        out[rows] = part.flip(3) if flip else part
    return out
