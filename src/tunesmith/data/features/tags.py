"""Tags of rows, given or found by clustering, and the vectors that say how near two tags are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.errors import DataError
from tunesmith.core.files import atomic_dir
from tunesmith.core.seeds import child_seed
from tunesmith.data.features.embedding import encode_texts

if TYPE_CHECKING:
    from tunesmith.data.pool import Pool

__all__ = ["granularities", "label_embeddings", "tags"]


def granularities(n: int) -> tuple[int, ...]:
    """Return the numbers of clusters used as tags for ``n`` rows: fine 1.6 √n, coarse a sixth of it.

    1,400 rows give 10 and 60, a million rows 267 and 1,600: some rows for each fine cluster, and few enough
    clusters that k-means stays cheap.
    """
    fine = min(n, max(2, round(1.6 * n**0.5)))
    coarse = max(1, round(fine / 6))
    return (coarse, fine) if coarse < fine else (fine,)


def tags(pool: Pool) -> list[list[str]]:
    """Return the tags of each row: of the column ``tags``, else its clusters at two granularities.

    A column may hold lists, or strings separated by commas (by semicolons where there are any). Tags are
    stripped and each counts once a row. Cluster tags are named ``c<k>:<id>``; k-means runs on ``embedding``.

    Args:
        pool: n rows.

    Returns:
        n lists of strings; a list may be empty.

    Raises:
        DataError: the column holds something else; names the row.
    """
    if _uses_column(pool):
        return [_parse(value, pool, i) for i, value in enumerate(pool.dataset["tags"][:])]
    found = _clusters(pool)
    return [
        [f"c{k}:{labels[i]}" for k, (labels, _) in found.items() if labels[i] >= 0] for i in range(len(pool))
    ]


def label_embeddings(pool: Pool) -> dict[str, NDArray[np.float32]]:
    """Return a unit vector for each tag that occurs.

    Given tags: the encoder's vector of the tag's text. Clusters: the cluster's centroid scaled to length 1,
    so tags of both granularities live in the space of the rows.

    Args:
        pool: n rows.

    Returns:
        Dictionary from tag to float32 ``(d,)``, sorted by tag.

    Raises:
        DataError: as `tags`.
    """
    if _uses_column(pool):
        names = sorted({tag for row in pool.feature("tags") for tag in row})
        return (
            dict(zip(names, encode_texts(names, pool.encoder, pool.batch_size), strict=True)) if names else {}
        )
    result = {}
    for k, (labels, centres) in _clusters(pool).items():
        units = centres / np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12)
        for c in np.unique(labels[labels >= 0]):
            result[f"c{k}:{c}"] = units[c].astype(np.float32)
    return dict(sorted(result.items()))


def _uses_column(pool: Pool) -> bool:
    return "tags" in pool.has and pool.tags != "clusters"


def _parse(value: Any, pool: Pool, index: int) -> list[str]:
    if value is None:
        return []
    if isinstance(value, str):
        value = re.split(r";" if ";" in value else r",", value)
    if not isinstance(value, list) or not all(isinstance(tag, str) for tag in value):
        source, row = pool.where(index)
        raise DataError(
            "'tags' must be a list of strings or one string separated by commas.",
            source=source,
            row=row,
            content=repr(value),
        )
    return list(dict.fromkeys(tag.strip() for tag in value if tag.strip()))


def _clusters(pool: Pool) -> dict[int, tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Return number of clusters -> (labels, centres): those the pool was given, else from disk or by k-means."""
    if pool.cluster_labels is not None:
        return _given(pool.feature("embedding"), np.asarray(pool.cluster_labels, dtype=np.int64))
    result = {}
    source = "column" if "embedding" in pool.has else pool.encoder
    for k in granularities(len(pool)):
        vectors = pool.feature("embedding")
        folder = pool.store("clusters", k=k, seed=pool.seed, vectors=_identity(vectors), encoder=source)
        if not folder.exists():
            pool.log.emit("message", message=f"Clustering {len(pool):,} rows into {k:,} clusters for tags.")
            _cluster(vectors, k, child_seed(pool.seed, "tags", k), folder)
        result[k] = (np.load(folder / "labels.npy"), np.load(folder / "centres.npy"))
    return result


def _given(
    vectors: NDArray[np.float32], labels: NDArray[np.int64]
) -> dict[int, tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Return the given clusters with their means as centres; a number that no row has gets the zero vector."""
    k = int(labels.max(initial=-1)) + 1
    centres = np.zeros((k, vectors.shape[1]), dtype=np.float32)
    for c in np.unique(labels[labels >= 0]):
        centres[c] = np.asarray(vectors[labels == c], dtype=np.float64).mean(axis=0)
    return {k: (labels, centres)}


def _cluster(vectors: NDArray[np.float32], k: int, seed: int, folder: Path) -> None:
    from tunesmith.numerics import kmeans

    fitted = kmeans(np.asarray(vectors), n_clusters=k, random_state=seed)
    with atomic_dir(folder) as partial:
        np.save(partial / "labels.npy", np.asarray(fitted.labels, dtype=np.int64))
        np.save(partial / "centres.npy", np.asarray(fitted.centers, dtype=np.float32))


def _identity(vectors: NDArray[np.float32]) -> str:
    """Return what tells apart the vectors of two encoders on the same texts, without reading all of them."""
    from tunesmith.core.files import hash_text

    step = max(1, len(vectors) // 1000)
    return hash_text(str(vectors.shape), np.ascontiguousarray(vectors[::step]).tobytes().hex())
