"""Sentence embeddings of whole rows, of length 1."""

from __future__ import annotations

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
        chunk=8192 if name == "static" else 512,
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

    Word pieces never cross white space, so each distinct word of a batch is split once, and a row is the sum
    over its words: two sparse products instead of a tokenizer run over all the text.
    """
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    folder = Path(resolve_encoder("minilm"))
    weights = load_file(str(folder / "model.safetensors"))
    table = next(v for k, v in weights.items() if k.endswith("word_embeddings.weight")).astype(np.float32)
    table -= table.mean(axis=0)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()

    def encode(texts: list[str]) -> NDArray[np.float32]:
        words: dict[str, int] = {}
        rows = [[words.setdefault(word, len(words)) for word in text.split()] for text in texts]
        pieces = [e.ids for e in tokenizer.encode_batch_fast(list(words), add_special_tokens=False)]
        # The sum has the direction of the mean, and only the direction is kept.
        return _unit(_sums(rows, _sums(pieces, table)))

    return encode


def _sums(members: list[list[int]], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return for each list the sum of the vectors it names, by a sparse product (nothing is gathered)."""
    from scipy.sparse import csr_matrix

    ends = np.cumsum([0, *map(len, members)])
    named = np.fromiter((i for row in members for i in row), dtype=np.int64, count=ends[-1])
    ones = np.ones(len(named), dtype=np.float32)
    return np.asarray(csr_matrix((ones, named, ends), shape=(len(members), len(vectors))) @ vectors)
