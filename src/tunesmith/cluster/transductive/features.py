"""Scaling of embeddings before clustering, and the shift of the rows to label onto the labelled ones.

"CL2N" (centre, then scale to length 1) follows SimpleShot (Wang et al. 2019, arXiv 1911.04623); Ziko et al. 2021
(arXiv 2106.09516) report it throughout.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from tunesmith.cluster._base import check_parameters
from tunesmith.core.errors import DataError, ParameterError

__all__ = ["NORMALISATIONS", "FeatureNormalizer", "align_queries", "normalize_features"]

NORMALISATIONS = ("cl2n", "l2n", "un")


def normalize_features(
    X: ArrayLike, method: str = "cl2n", base_mean: ArrayLike | None = None
) -> NDArray[Any]:
    """Return rows scaled as few-shot classification scales them.

    Args:
        X: ``(N, D)``; float32 stays float32, all else becomes float64.
        method: ``"cl2n"``: subtract ``base_mean``, then divide each row by its length; ``"l2n"``: only divide;
            ``"un"``: leave as is.
        base_mean: ``(D,)`` mean embedding of the encoder's training data; by default the mean of X.

    Returns:
        ``(N, D)``, a copy unless ``"un"``.

    Raises:
        ParameterError: an unknown method, or a mean of the wrong length.
        DataError: a row of length 0, which has no direction; names the first.
    """
    if method not in NORMALISATIONS:
        raise ParameterError("method", normalize_features, f"one of {', '.join(NORMALISATIONS)}", method)
    x = np.asarray(X)
    if x.dtype != np.float32:
        x = x.astype(np.float64, copy=False)
    if method == "un":
        return x
    if method == "cl2n":
        mean = x.mean(axis=0, dtype=np.float64) if base_mean is None else np.asarray(base_mean)
        if mean.shape != x.shape[1:]:
            raise ParameterError("base_mean", normalize_features, f"of the shape {x.shape[1:]}", mean.shape)
        x = x - mean.astype(x.dtype)
    length = np.sqrt(np.einsum("ij,ij->i", x, x))
    if not length.all():
        what = "after centring " if method == "cl2n" else ""
        raise DataError(
            f"the row has length 0 {what}and so no direction; drop it or use another normalisation.",
            row=int(np.argmin(length)),
        )
    return x / length[:, None]


def align_queries(support: ArrayLike, query: ArrayLike) -> NDArray[Any]:
    """Return the rows to label, shifted so that their mean is that of the labelled rows.

    It helps where both hold the classes in the same shares, and harms where they do not.

    Args:
        support: ``(S, D)`` labelled rows.
        query: ``(Q, D)`` rows to label.
    """
    s, q = np.asarray(support), np.asarray(query)
    return q + (s.mean(axis=0) - q.mean(axis=0))


class FeatureNormalizer(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """`normalize_features` as a transformer: ``fit`` learns the mean, of the encoder's training data for instance.

    Source: SimpleShot (Wang et al. 2019, arXiv 1911.04623). Time O(n d), memory one copy of X.

    Args:
        method: ``"cl2n"``, ``"l2n"`` or ``"un"``.

    Attributes:
        mean_: ``(D,)`` mean of the rows seen by ``fit``.
        n_features_in_: D.
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {"method": [StrOptions(set(NORMALISATIONS))]}

    def __init__(self, method: str = "cl2n"):
        self.method = method

    def fit(self, X: ArrayLike, y: Any = None) -> FeatureNormalizer:
        """Learn the mean of X (N, D).

        Raises:
            ParameterError: an unknown method.
        """
        check_parameters(self)
        rows = validate_data(self, X, dtype=[np.float64, np.float32])
        self.mean_ = rows.mean(axis=0, dtype=np.float64)
        return self

    def transform(self, X: ArrayLike) -> NDArray[Any]:
        """Return X (N, D) scaled.

        Raises:
            DataError: a row of length 0.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        return normalize_features(X, self.method, self.mean_)
