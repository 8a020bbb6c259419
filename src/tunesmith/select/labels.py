"""Labels of examples and the graph between labels: the ground that MIG stands on.

Equations of "MIG: Automatic Data Selection for Instruction Tuning by Maximizing Information Gain in Semantic
Space" (Chen, Li, Hu, Ma, Ye, Chen; Findings of ACL 2025, arXiv 2504.13835).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from tunesmith.core.errors import DataError, ParameterError

__all__ = ["EncodedTags", "dialogue_quality", "encode_tags", "label_graph", "propagate", "propagation"]

MAX_ENTRIES = (
    250_000_000  # non-zeros of the graph or of the propagated rows: 3 GB in float64 with int32 columns
)
_BLOCK_VALUES = 16 << 20  # of one block of cosines: 128 MB in float64


@dataclass(frozen=True)
class EncodedTags:
    """Tags as a matrix.

    Attributes:
        matrix: CSR ``(n, K)``, 1 where the row has the label (a tag written twice counts once; Eq. 4).
        labels: the K labels in column order, sorted.
        n_ignored: occurrences of tags outside the vocabulary.
        n_rows_ignored: rows with such a tag.
    """

    matrix: Any
    labels: list[Any]
    n_ignored: int
    n_rows_ignored: int


def encode_tags(
    tags: Sequence[Iterable[Hashable]], vocabulary: Iterable[Hashable] | None = None
) -> EncodedTags:
    """Turn lists of tags into a sparse 0/1 matrix.

    Args:
        tags: n lists (or tuples, sets, arrays) of strings or integers; may be empty.
        vocabulary: the labels to use; tags outside it are counted and ignored. All tags by default.

    Returns:
        Matrix and labels. O(number of tags), about a second per million rows of three tags.

    Raises:
        DataError: a row that is not a list of strings or integers.
    """
    for i, row in enumerate(tags):
        if isinstance(row, str) or not hasattr(row, "__len__"):
            raise DataError("'tags' must be one list of strings per row.", row=i, content=row)
    lengths = np.fromiter(map(len, tags), dtype=np.int64, count=len(tags))  # type: ignore[arg-type]
    flat = list(chain.from_iterable(tags))
    try:
        distinct = set(flat)
    except TypeError:
        bad = next(i for i, row in enumerate(tags) if not all(isinstance(t, Hashable) for t in row))
        raise DataError("'tags' must be one list of strings per row.", row=bad, content=tags[bad]) from None
    labels = sorted(distinct if vocabulary is None else set(vocabulary), key=lambda t: (type(t).__name__, t))
    column = {label: j for j, label in enumerate(labels)}
    codes = np.fromiter((column.get(tag, -1) for tag in flat), dtype=np.int32, count=len(flat))
    row_of = np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)
    known = codes >= 0
    counts = np.bincount(row_of[known], minlength=len(lengths))
    indptr = np.concatenate([[0], np.cumsum(counts)])
    entries: Any = (np.ones(int(known.sum())), codes[known], indptr)
    matrix = sparse.csr_array(entries, shape=(len(lengths), len(labels)))
    matrix.sum_duplicates()
    matrix.data[:] = 1.0
    return EncodedTags(matrix, labels, int((~known).sum()), len(np.unique(row_of[~known])))


def label_graph(
    embeddings: ArrayLike | None = None, threshold: float = 0.9, *, similarity: Any = None
) -> Any:
    """Return the weights between labels: ``w_pq = c_pq`` where it is at least the threshold, else 0 (Eq. 3).

    Args:
        embeddings: ``(K, d)`` one vector per label; c is their cosine.
        threshold: T in (0, 1].
        similarity: a ready ``(K, K)`` symmetric array or sparse matrix instead of embeddings.

    Returns:
        CSR ``(K, K)`` float64, symmetric, with diagonal exactly 1. O(K^2 d) time in blocks; memory for the
        entries above the threshold and one block, never K x K.

    Raises:
        DataError: shapes that do not fit, values that are not finite, or a similarity that is not symmetric.
        ParameterError: a threshold outside (0, 1], or one so low that more than 250 million pairs pass it.
    """
    if not 0 < threshold <= 1:
        raise ParameterError("threshold", label_graph, "a float in (0, 1]", threshold)
    if similarity is not None:
        graph = _from_similarity(similarity, threshold)
    elif embeddings is not None:
        graph = _from_embeddings(np.asarray(embeddings, dtype=np.float64), threshold)
    else:
        raise DataError("the label graph needs embeddings of the labels or a similarity between them.")
    return _with_diagonal(graph, 1.0)


def _with_diagonal(matrix: Any, value: float) -> Any:
    """Return a square matrix as CSR with its diagonal set, without explicit zeros."""
    pairs = sparse.coo_array(matrix)
    off = (pairs.row != pairs.col) & (pairs.data != 0)
    every = np.arange(matrix.shape[0])
    data = np.concatenate([pairs.data[off], np.full(len(every), value)])
    where = (np.concatenate([pairs.row[off], every]), np.concatenate([pairs.col[off], every]))
    return sparse.csr_array((data, where), shape=matrix.shape)


def _from_similarity(similarity: Any, threshold: float) -> Any:
    graph = sparse.csr_array(similarity, dtype=np.float64, copy=True)
    if graph.shape[0] != graph.shape[1]:
        raise DataError(
            f"the similarity between labels must be a square matrix, but has shape {graph.shape}."
        )
    if not np.isfinite(graph.data).all():
        raise DataError("the similarity between labels holds a value that is not a finite number.")
    if abs(graph - graph.T).max() > 1e-6:
        raise DataError("the similarity between labels must be symmetric.")
    graph.data[graph.data < threshold] = 0
    graph.eliminate_zeros()
    return graph


def _from_embeddings(vectors: NDArray[np.float64], threshold: float) -> Any:
    if vectors.ndim != 2:
        raise DataError(f"label embeddings must have shape (labels, columns), but have {vectors.shape}.")
    if not np.isfinite(vectors).all():
        raise DataError(
            "the label's embedding holds a value that is not a finite number.",
            row=int(np.argmax(~np.isfinite(vectors).all(axis=1))),
        )
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(lengths == 0, 1, lengths)
    step, blocks, entries = max(1, _BLOCK_VALUES // max(1, len(unit))), [], 0
    for start in range(0, len(unit), step):
        cosines = unit[start : start + step] @ unit.T
        cosines[cosines < threshold] = 0
        blocks.append(sparse.csr_array(cosines))
        entries += blocks[-1].nnz
        if entries > MAX_ENTRIES:
            raise ParameterError(
                "threshold", label_graph, f"so high that at most {MAX_ENTRIES:,} pairs pass it", threshold
            )
    return sparse.vstack(blocks, format="csr") if blocks else sparse.csr_array((0, 0))


def propagation(graph: Any, alpha: float) -> Any:
    """Return the row-stochastic matrix A that spreads information over neighbours (Eq. 6).

    ``a_pq = m_pq / sum_k m_pk`` with ``m_pp = 1`` and ``m_pq = alpha w_pq``: information on p becomes a
    weighted mean over p and its neighbours. The total is not conserved; hubs gain.

    Args:
        graph: ``(K, K)`` weights with unit diagonal, from `label_graph`.
        alpha: >= 0; 0 gives the identity.

    Returns:
        CSR ``(K, K)`` float64.
    """
    m = _with_diagonal(alpha * sparse.csr_array(graph, dtype=np.float64), 1.0)
    return sparse.csr_array(sparse.diags_array(1 / np.asarray(m.sum(axis=1)).ravel()) @ m)


def propagate(information: Any, spread: Any) -> Any:
    """Return the rows ``A e_i`` as CSR (Eq. 7).

    Args:
        information: CSR ``(n, K)``, the rows e_i.
        spread: A, from `propagation`.

    Raises:
        DataError: the result could pass 250 million entries (3 GB).
    """
    reach = np.diff(sparse.csc_array(spread).indptr)  # rows of A that see each label
    entries = int(reach[information.indices].sum(dtype=np.int64))
    if entries > MAX_ENTRIES:
        raise DataError(
            f"the propagated rows would hold {entries:,} entries, above the limit of {MAX_ENTRIES:,} (3 GB): "
            f"labels have {reach.mean() - 1:.1f} neighbours on average. Raise the threshold, or set alpha=0."
        )
    result = sparse.csr_array(information @ sparse.csr_array(spread.T))
    result.sort_indices()
    return result


def dialogue_quality(quality: Sequence[float], complexity: Sequence[float]) -> float:
    """Return the DEITA score of a dialogue as MIG's authors compute it: the mean over turns of their product.

    Args:
        quality: one score per turn.
        complexity: one score per turn.

    Raises:
        DataError: no turn, or numbers of turns that differ.
    """
    if not len(quality) or len(quality) != len(complexity):
        raise DataError(
            f"a dialogue needs quality and complexity for each turn, but has {len(quality)} and "
            f"{len(complexity)}."
        )
    return float(np.mean(np.asarray(quality, dtype=np.float64) * np.asarray(complexity, dtype=np.float64)))
