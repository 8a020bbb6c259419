"""A dataset with lazily computed features that are kept on disk and continue where they were killed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.errors import DataError, ParameterError, nearest
from tunesmith.core.events import EventLog
from tunesmith.core.files import cache_dir, hash_json
from tunesmith.data import features
from tunesmith.data.rows import TEXT_COLUMNS, row_text, take_rows

__all__ = ["Pool"]

_QUALITY = ("auto", "column", "ifd", "constant")
_TAGS = ("auto", "column", "clusters")


class Pool:
    """Rows to choose from, with the features that selectors ask for.

    A feature is computed when it is first asked for, in chunks on disk under a folder named by what it
    depends on: the texts, its parameters, and the files of the model. The same pool in another process finds
    it there; a killed computation goes on from its last chunk.

    Args:
        dataset: a canonical ``datasets.Dataset`` as `tunesmith.data.read` gives it, n rows.
        encoder: for ``embedding``: ``"minilm"`` (bundled), ``"static"`` (the mean of its word table, hundreds
            of times faster), a folder, or a Hub id of a sentence-transformers model. A column ``embedding``
            of the rows goes before it.
        scorer: language model for ``perplexity``, ``ifd``, ``gradient``, ``gradient_norm`` and the default
            ``quality``; alias, folder or Hub id.
        target: rows of the task that the selection aims at, m rows of the same form, for
            ``target_embedding``; never rows of the test.
        quality: ``"auto"`` takes the column ``quality`` if there is one, else 1 - IFD under the scorer, else
            ones with a warning; ``"column"``, ``"ifd"`` and ``"constant"`` insist on one of these.
        tags: ``"auto"`` takes the column ``tags`` if there is one, else cluster ids at two granularities;
            ``"column"`` and ``"clusters"`` insist.
        batch_size: rows per forward pass.
        max_length: longest row in tokens when scoring; longer rows are cut and counted in a warning.
        seed: of the clustering.
        cluster_labels: int (n,), groups to take for clusters instead of finding some; -1 for rows of none.
        cache: folder for the features; by default the user's cache.
        log: receives progress (with the remaining time) and warnings.

    Attributes:
        dataset: the rows.

    Raises:
        ParameterError: ``quality``, ``tags``, ``batch_size`` or ``max_length`` is none of the above, or
            ``cluster_labels`` is not one whole number a row.
        DataError: the dataset has no text column, or no rows.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        encoder: str = "minilm",
        scorer: str | None = None,
        target: Any = None,
        quality: str = "auto",
        tags: str = "auto",
        batch_size: int = 32,
        max_length: int = 512,
        seed: int = 0,
        cluster_labels: Any = None,
        cache: str | os.PathLike[str] | None = None,
        log: EventLog | None = None,
    ) -> None:
        for name, value, valid in (("quality", quality, _QUALITY), ("tags", tags, _TAGS)):
            if value not in valid:
                raise ParameterError(name, self, "one of " + ", ".join(map(repr, valid)), value)
        for name, size in (("batch_size", batch_size), ("max_length", max_length)):
            if not isinstance(size, int) or size < 1:
                raise ParameterError(name, self, "an int >= 1", size)
        if not any(c in dataset.column_names for c in TEXT_COLUMNS):
            raise DataError(
                f"a pool needs rows with 'messages', 'text' or 'anchor' and 'positive'; these have "
                f"{', '.join(dataset.column_names) or 'no columns'}. Read the file with tunesmith.data.read "
                "first."
            )
        if not len(dataset):
            raise DataError("a pool needs at least one row, and this dataset has none.")
        if cluster_labels is not None:
            cluster_labels = np.asarray(cluster_labels)
            if cluster_labels.shape != (len(dataset),) or cluster_labels.dtype.kind not in "iu":
                expected = f"an array of {len(dataset)} whole numbers"
                raise ParameterError("cluster_labels", self, expected, cluster_labels)
        self.dataset = dataset
        self.cluster_labels: NDArray[np.int64] | None = cluster_labels
        self.target = target
        self.encoder, self.scorer, self.quality, self.tags = encoder, scorer, quality, tags
        self.batch_size, self.max_length, self.seed = batch_size, max_length, seed
        self.cache = cache_dir("features") if cache is None else Path(cache)
        self.log = EventLog() if log is None else log
        self._memo: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def __repr__(self) -> str:
        return f"Pool({len(self):,} rows, encoder={self.encoder!r}, scorer={self.scorer!r})"

    @property
    def has(self) -> frozenset[str]:
        """Names of the columns."""
        return frozenset(self.dataset.column_names)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over the text columns in row order; equal texts give equal hashes wherever they came from.

        One pass over the Arrow buffers, about a second per 500 MB of text.
        """
        columns = [c for c in TEXT_COLUMNS if c in self.has]
        digest = hashlib.sha256(repr((len(self), columns)).encode())
        for table in self.dataset.select_columns(columns).with_format("arrow").iter(batch_size=10_000):
            for column in columns:
                _hash_array(table.column(column).combine_chunks(), digest)
        return digest.hexdigest()

    @property
    def features_available(self) -> tuple[str, ...]:
        """Names of the features that `feature` can give with the columns and settings at hand."""
        names = {n for n in features.names() if features.unavailable(n, self) is None}
        extra = self.has - {*TEXT_COLUMNS, "_row", "_source", "score"}
        return tuple(sorted(names | extra))

    def feature(self, name: str, **options: Any) -> Any:
        """Return a feature, computing it if need be.

        Args:
            name: a computed feature, or the name of a column (numbers come as an array, the rest as a list).
            **options: parameters of that feature, see its module in ``tunesmith.data.features``.

        Returns:
            ``embedding``: float32 ``(n, d)``, rows of length 1. ``length``: int32 ``(n,)``. ``perplexity``,
            ``ifd``: float32 ``(n,)``, NaN where nothing of the answer fits in ``max_length``. ``tags``: a
            list of n lists. ``label_embeddings``: dictionary from tag to unit vector. ``quality``: float64
            ``(n,)``, >= 0. ``gradient``: float32 ``(n, dim)``. ``gradient_norm``: float64 ``(n,)``.
            ``target_embedding``: float32 ``(m, d)``.

        Raises:
            DataError: nothing provides the feature; the message says which column or setting would.
        """
        key = f"{name}:{hash_json(options)}"
        if key not in self._memo:
            self._memo[key] = self._feature(name, options)
        return self._memo[key]

    def _feature(self, name: str, options: dict[str, Any]) -> Any:
        if name in features.names():
            lack = features.unavailable(name, self)
            if lack is not None and not options:
                raise DataError(f"the feature '{name}' {lack}")
            return features.get(name)(self, **options)
        if name in self.has:
            return _plain_column(self.dataset, name)
        raise DataError(
            f"nothing provides the feature '{name}': the rows have no column of that name, and it is not "
            f"computed.{nearest(name, features.names())} Computed features: {', '.join(features.names())}. "
            f"Columns: {', '.join(self.dataset.column_names)}."
        )

    def fit(self, selector: Any) -> Any:
        """Fit a selector on the features it requires and return it.

        ``embedding`` is passed as ``X``; where it is not required ``X`` is an array of shape ``(n, 0)``,
        which says the number of rows. The other features go by keyword.

        Raises:
            DataError: a required feature cannot be provided.
        """
        required: Sequence[str] = selector.required_features()
        x = (
            self.feature("embedding")
            if "embedding" in required
            else np.empty((len(self), 0), dtype=np.float32)
        )
        selector.fit(x, **{name: self.feature(name) for name in required if name != "embedding"})  # type: ignore[attr-defined]
        return selector

    def store(self, feature: str, **depends_on: Any) -> Path:
        """Return the folder that keeps what a feature computed from these texts and parameters."""
        return self.cache / f"{feature}-{hash_json([self.content_hash, feature, depends_on])[:32]}"

    def rows(self, indices: NDArray[np.int64]) -> list[dict[str, Any]]:
        """Return the text columns of some rows."""
        return take_rows(self.dataset, indices)

    def texts(self, indices: NDArray[np.int64], of: Callable[[dict[str, Any]], str] = row_text) -> list[str]:
        """Return ``of(row)`` for some rows."""
        return [of(row) for row in self.rows(indices)]

    def where(self, index: int) -> tuple[str | None, int]:
        """Return source and row number of row ``index``, as error messages name them."""
        row = self.dataset[index]
        return row.get("_source"), row.get("_row", index)


def _plain_column(dataset: Any, name: str) -> Any:
    values = dataset[name][:]
    try:
        array = np.asarray(values)
    except ValueError:  # ragged
        return values
    return array if array.dtype.kind in "biuf" else values


def _hash_array(array: Any, digest: Any) -> None:
    """Feed an Arrow array to a digest by value: lengths, then the values of the flattened children."""
    import pyarrow as pa
    import pyarrow.compute as pc

    digest.update(np.packbits(array.is_valid().to_numpy(zero_copy_only=False)).tobytes())
    kind = array.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        digest.update(pc.fill_null(pc.list_value_length(array), 0).cast(pa.int64()).to_numpy().tobytes())
        _hash_array(array.flatten(), digest)
    elif pa.types.is_struct(kind):
        for i, child in enumerate(array.flatten()):
            digest.update(kind.field(i).name.encode())
            _hash_array(child, digest)
    elif pa.types.is_null(kind):
        digest.update(b"null")
    else:
        values = pc.fill_null(array.cast(pa.large_string()), "")
        digest.update(pc.binary_length(values).to_numpy().tobytes())
        digest.update(_text_bytes(values))


def _text_bytes(values: Any) -> memoryview:
    """Return the bytes of a large_string array without copying; its slice may start inside the buffer."""
    _, offsets, data = values.buffers()
    if data is None or not len(values):
        return memoryview(b"")
    ends = np.frombuffer(offsets, dtype=np.int64)
    return memoryview(data)[ends[values.offset] : ends[values.offset + len(values)]]
