"""What each row would move: a sketch of its loss gradient under the scorer, and the gradient's norm.

See `tunesmith.numerics.gradients`. The loss is the mean over a row's answer, as for `perplexity`. The gradients are
those of the scorer as it is: selectors that want the current model's (Adapt-infinity, LESS) ask for them again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.errors import DataError
from tunesmith.data.features.likelihood import encode_row
from tunesmith.engine.local import map_rows
from tunesmith.engine.models import auto_dtype, default_device, load_model, load_tokenizer, model_fingerprint

if TYPE_CHECKING:
    from tunesmith.data.pool import Pool

__all__ = ["gradient", "gradient_norm"]


def gradient(
    pool: Pool, *, scorer: str | None = None, dim: int = 1024, params: str | None = None
) -> NDArray[np.float32]:
    """Return a random sketch of each row's loss gradient. Time: one forward and backward pass a row, in batches.

    Args:
        pool: n rows.
        scorer: overrides the pool's scorer.
        dim: numbers per row.
        params: regular expression for the names of the parameters; all that are trained by default.

    Returns:
        float32 ``(n, dim)``, memory-mapped; zeros for rows whose answer does not fit in ``max_length``.

    Raises:
        DataError: a row cannot be rendered, or its gradient is not finite; names the row.
        MissingModelError: the scorer cannot be found.
        ParameterError: ``params`` names no parameter.
    """
    return _rows(pool, scorer, params, dim)


def gradient_norm(pool: Pool, *, scorer: str | None = None, params: str | None = None) -> NDArray[np.float64]:
    """Return the exact norm of each row's loss gradient.

    Args:
        pool: n rows.
        scorer: overrides the pool's scorer.
        params: as for `gradient`; GORACS takes the output side of one adapter in the last layer.

    Returns:
        float64 ``(n,)``, >= 0; 0 for rows whose answer does not fit in ``max_length``.

    Raises:
        DataError: a row cannot be rendered, or its gradient is not finite; names the row.
        MissingModelError: the scorer cannot be found.
        ParameterError: ``params`` names no parameter.
    """
    return _rows(pool, scorer, params, None)


def _rows(pool: Pool, scorer: str | None, params: str | None, dim: int | None) -> NDArray[Any]:
    name = pool.scorer if scorer is None else scorer
    if name is None:
        raise DataError("gradient and gradient_norm need a language model: set scorer to a model.")
    what = "gradient" if dim is not None else "gradient_norm"
    folder = pool.store(
        what,
        model=model_fingerprint(name),
        dtype=auto_dtype(default_device()),
        max_length=pool.max_length,
        params=params,
        dim=dim,
        seed=pool.seed if dim is not None else None,
    )
    return map_rows(
        _Gradients(pool, name, params, dim),
        len(pool),
        folder,
        dtype=np.float32 if dim is not None else np.float64,
        width=dim,
        chunk=4 * pool.batch_size,
        log=pool.log,
        what=f"gradients under {name}",
    )


class _Gradients:
    """Gradients of rows of a pool; the model is loaded with the first row that is not on disk yet."""

    def __init__(self, pool: Pool, name: str, params: str | None, dim: int | None) -> None:
        self.pool, self.name, self.params, self.dim = pool, name, params, dim
        self.gradients: Any = None

    def __call__(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        if self.gradients is None:
            from tunesmith.numerics import ExampleGradients

            self.tokenizer = load_tokenizer(self.name)
            self.gradients = ExampleGradients(
                load_model(self.name), params=self.params, batch_size=min(8, self.pool.batch_size)
            )
            self.gradients.log.listeners.append(self._pass_on)
        rows = []
        for i, row in zip(indices, self.pool.rows(indices), strict=True):
            encoded = encode_row(self.pool, row, int(i), self.tokenizer)
            rows.append({"input_ids": encoded.input_ids, "labels": encoded.labels})
        try:
            if self.dim is None:
                return np.asarray(self.gradients.norms(rows))
            return np.asarray(self.gradients.project(rows, dim=self.dim, seed=self.pool.seed))
        except DataError as error:
            if error.row is None:
                raise
            source, number = self.pool.where(int(indices[error.row]))
            raise DataError("the gradient of its loss is not finite.", source=source, row=number) from error

    def _pass_on(self, event: dict[str, Any]) -> None:
        if event["kind"] == "warning":
            self.pool.log.warn(event["message"])
