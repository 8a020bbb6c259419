"""Sentence embeddings of whole rows, of length 1."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.errors import DataError
from tunesmith.core.files import hash_text, hash_tree
from tunesmith.engine.local import finished, map_rows
from tunesmith.engine.models import load_encoder, resolve_encoder

if TYPE_CHECKING:
    from tunesmith.data.pool import Pool

__all__ = ["embedding", "encode_texts"]

Encode = Callable[[list[str]], NDArray[np.float32]]


def embedding(pool: Pool, *, encoder: str | None = None) -> NDArray[np.float32]:
    """Return one unit vector per row: of the column ``embedding`` if there is one, else by the encoder.

    The row's text is what `tunesmith.data.rows.row_text` gives; encoders cut it at their own longest input
    (256 tokens for MiniLM). A row without any known token keeps the zero vector.

    Args:
        pool: n rows.
        encoder: overrides the pool's encoder, and the column.

    Returns:
        float32 ``(n, d)``, memory-mapped when computed.

    Raises:
        DataError: the column holds vectors of different lengths or values that are not finite.
        MissingModelError: the encoder cannot be found.
    """
    if encoder is None and "embedding" in pool.has:
        return _column(pool)
    name = pool.encoder if encoder is None else encoder
    folder = pool.store("embedding", encoder=_fingerprint(name))
    known = finished(folder)
    if known is not None:
        return known
    encode = _encoder(name, pool.batch_size)
    return map_rows(
        lambda rows: encode(pool.texts(rows)),
        len(pool),
        folder,
        dtype=np.float32,
        width=encode(["width"]).shape[1],
        chunk=16_384 if name == "static" else 512,
        log=pool.log,
        what=f"embedding with {name}",
    )


def encode_texts(texts: list[str], encoder: str = "minilm", batch_size: int = 32) -> NDArray[np.float32]:
    """Return unit vectors of some texts, without a cache.

    Args:
        texts: n of them.
        encoder: as for `Pool`.
        batch_size: texts per forward pass.

    Returns:
        float32 ``(n, d)``.

    Raises:
        MissingModelError: the encoder cannot be found.
    """
    return _encoder(encoder, batch_size)(texts)


def _column(pool: Pool) -> NDArray[np.float32]:
    values = pool.dataset["embedding"][:]
    try:
        array = np.asarray(values, dtype=np.float32)
    except (ValueError, TypeError):
        array = np.empty(0, dtype=np.float32)
    if array.ndim != 2:
        raise DataError("the column 'embedding' must hold one vector of numbers a row, all of one length.")
    if not np.isfinite(array).all():
        source, row = pool.where(int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0]))
        raise DataError("the column 'embedding' has a value that is not finite.", source=source, row=row)
    return _unit(array)


def _unit(array: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(array, axis=1, keepdims=True)
    return (array / np.where(norms > 0, norms, 1)).astype(np.float32, copy=False)


def _fingerprint(name: str) -> str:
    source = resolve_encoder("minilm" if name == "static" else name)
    return hash_text(str(name == "static"), hash_tree(source) if Path(source).is_dir() else source)


def _encoder(name: str, batch_size: int) -> Encode:
    if name == "static":
        return _static_encoder()
    model = load_encoder(name)

    def encode(texts: list[str]) -> NDArray[np.float32]:
        vectors = model.encode(texts, batch_size=batch_size, show_progress_bar=False, convert_to_numpy=True)
        return _unit(np.asarray(vectors, dtype=np.float32))

    return encode


def _static_encoder() -> Encode:
    """Return the mean of MiniLM's word-piece vectors, centred: no network is run, only a table is read.

    The table's mean is taken off each vector first. Word-piece vectors share a large common part (the cosine
    of two random texts would be near 0.9), which says nothing and would hide the rest from a cosine
    threshold.
    """
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    folder = Path(resolve_encoder("minilm"))
    weights = load_file(str(folder / "model.safetensors"))
    table = next(v for k, v in weights.items() if k.endswith("word_embeddings.weight")).astype(np.float32)
    table -= table.mean(axis=0)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(512)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

    def encode(texts: list[str]) -> NDArray[np.float32]:
        pieces = [e.ids for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        counts = np.array([len(p) for p in pieces])
        sums = np.zeros((len(texts), table.shape[1]), dtype=np.float32)
        filled = np.flatnonzero(counts)
        if len(filled):
            flat = np.concatenate([np.asarray(pieces[i], dtype=np.int64) for i in filled])
            starts = np.concatenate([[0], np.cumsum(counts[filled])[:-1]])
            sums[filled] = _segment_sums(table, flat, starts)
        return _unit(sums)

    return encode


def _segment_sums(
    table: NDArray[np.float32], flat: NDArray[np.int64], starts: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Sum ``table[flat]`` over the segments that begin at ``starts`` (a sparse product; no gathered copy)."""
    from scipy.sparse import csr_matrix

    ones = np.ones(len(flat), dtype=np.float32)
    ends = np.append(starts, len(flat))
    counts = csr_matrix((ones, flat, ends), shape=(len(starts), len(table)))
    return np.asarray(counts @ table, dtype=np.float32)
