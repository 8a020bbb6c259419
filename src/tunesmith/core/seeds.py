"""One root seed, named child seeds: adding a consumer never shifts the randomness of another."""

from __future__ import annotations

import hashlib
import os
import random

__all__ = ["child_seed", "seed_everything"]


def child_seed(root: int, *names: str | int) -> int:
    """Return the 31-bit seed of the consumer ``names`` under ``root``; equal inputs give equal seeds."""
    text = "/".join([str(int(root)), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") & 0x7FFFFFFF


def seed_everything(seed: int) -> None:
    """Seed ``random``, NumPy and torch (all devices); call before adapters are initialised."""
    import numpy as np
    import torch

    os.environ.setdefault("PYTHONHASHSEED", str(seed))
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  (libraries below still draw from the global state)
    torch.manual_seed(seed)
