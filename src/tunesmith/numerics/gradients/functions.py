"""Gradients of a whole dataset's rows in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.events import EventLog
from tunesmith.numerics.gradients.examples import ExampleGradients, Params, Row

__all__ = ["per_example_grad_norms", "projected_gradients"]


def projected_gradients(
    model: Any,
    dataset: Sequence[Row],
    *,
    dim: int = 1024,
    params: Params = None,
    seed: int = 0,
    reduction: str = "mean",
    batch_size: int = 8,
    method: str = "auto",
    log: EventLog | None = None,
) -> NDArray[np.float32]:
    """Return a random sketch of each example's loss gradient.

    Linear in the gradient: the sketch of a difference is the difference of sketches, and inner products are kept in
    expectation. See the module for the error bound.

    Args:
        model: a transformers causal language model or a ``PeftModel`` of one, on any device, in any type. It is run
            in evaluation mode and left as it was.
        dataset: n rows with ``input_ids`` and ``labels`` of equal length, -100 where nothing is learned (what
            `tunesmith.data.preflight.encode_dataset` gives). The first label of a row is never used.
        dim: numbers per row; a power of two is split best.
        params: which parameters: a regular expression that is searched in their names, a predicate of the name, or
            ``None`` for those with ``requires_grad``.
        seed: of the signs. Each parameter's own depend on its name and shape alone, so rows of two calls meet the
            same sketch.
        reduction: ``"mean"`` over the trained tokens of a row, or their ``"sum"``.
        batch_size: most rows per pass; fewer where padded rows exceed 8,192 tokens.
        method: ``"batched"`` (see `ExampleGradients`), ``"loop"`` (one backward pass per row), or ``"auto"``:
            batched where two rows agree with the loop, else the loop, with a warning.
        log: receives progress and warnings.

    Returns:
        float32 ``(n, dim)``; zeros for rows without a trained token.

    Raises:
        ParameterError: a parameter is outside its set, or ``params`` names none.
        DataError: ids and labels differ in length, or a gradient is not finite; names the row.
    """
    gradients = ExampleGradients(
        model, params=params, reduction=reduction, batch_size=batch_size, method=method, log=log
    )
    return gradients.project(dataset, dim=dim, seed=seed)


def per_example_grad_norms(
    model: Any,
    dataset: Sequence[Row],
    *,
    params: Params = None,
    reduction: str = "mean",
    batch_size: int = 8,
    method: str = "auto",
    log: EventLog | None = None,
) -> NDArray[np.float64]:
    """Return the exact Euclidean norm of each example's loss gradient, without a sketch.

    For GORACS (arXiv 2506.04015): ``params=r"layers\\.31\\..*v_proj.*lora_B"`` at a warm-started adapter; only the
    part of the backward pass above those parameters is run.

    Args:
        model: as for `projected_gradients`.
        dataset: as there.
        params: as there.
        reduction: as there.
        batch_size: as there.
        method: as there.
        log: as there.

    Returns:
        float64 ``(n,)``; 0 for rows without a trained token.

    Raises:
        ParameterError: a parameter is outside its set, or ``params`` names none.
        DataError: ids and labels differ in length, or a gradient is not finite; names the row.
    """
    gradients = ExampleGradients(
        model, params=params, reduction=reduction, batch_size=batch_size, method=method, log=log
    )
    return gradients.norms(dataset)
