"""Features of rows that come again: the frozen encoder need not see a row twice."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["KeptFeatures"]


class KeptFeatures:
    """Features by the content of their rows, padding aside.

    A frozen encoder in evaluation mode gives the same row the same features (to the last bits, which depend on the
    batch around it), so from the second epoch on nothing is left to run. Not for rows that are augmented anew.

    Args:
        most: keep so many rows at most, as many as the data set has; None for no limit.

    Memory: d float32 and some 100 bytes per row, on the CPU. Time: a digest of the batch.
    """

    def __init__(self, most: int | None = None) -> None:
        self.most = most
        self.rows: dict[bytes, torch.Tensor] = {}
        self.full = False

    def __call__(
        self, inputs: dict[str, Any], compute: Callable[[dict[str, Any]], torch.Tensor]
    ) -> torch.Tensor:
        """Return features (B, d) of a batch, and run ``compute`` on the rows that are new, if any.

        Args:
            inputs: a batch; labels do not count.
            compute: part of the batch -> features (rows, d).
        """
        given = {name: value for name, value in inputs.items() if name != "labels"}
        sizes = {len(v) if isinstance(v, torch.Tensor) and v.dim() else -1 for v in given.values()}
        if len(sizes) != 1 or -1 in sizes:
            return compute(inputs)  # not made of rows
        device = next(iter(given.values())).device
        keys = self._keys({name: value.cpu() for name, value in given.items()})
        new = [i for i, key in enumerate(keys) if key not in self.rows]
        if not new:
            return torch.stack([self.rows[key] for key in keys]).to(device)
        part = torch.tensor(new, device=device)
        found = compute({name: value[part] for name, value in given.items()})
        fresh = dict(zip([keys[i] for i in new], found.cpu(), strict=True))
        z = torch.stack([fresh[key] if key in fresh else self.rows[key] for key in keys]).to(found)
        if not self.full:
            self._keep(fresh)
        return z

    def _keep(self, fresh: dict[bytes, torch.Tensor]) -> None:
        self.rows.update({key: row.clone() for key, row in fresh.items()})
        if self.most is not None and len(self.rows) > self.most:
            self.full = True
            warnings.warn(
                f"More than {self.most:,} different rows came from a data set of {self.most:,}: they are augmented, "
                "and no features are kept any more. Leave keep_features out.",
                stacklevel=4,
            )

    def _keys(self, given: dict[str, torch.Tensor]) -> list[bytes]:
        mask = given.get("attention_mask")
        if mask is not None and mask.dim() != 2:
            mask = None
        keys = []
        for i in range(len(next(iter(given.values())))):
            digest = hashlib.blake2b(digest_size=16)
            for name in sorted(given):
                row = given[name][i]
                if mask is not None and row.shape[:1] == mask.shape[1:]:
                    row = row[mask[i].bool()]
                digest.update(f"{name} {row.dtype} {tuple(row.shape)} ".encode())
                digest.update(row.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
            keys.append(digest.digest())
        return keys
