"""Base of the clusterers that train a network and a head on vectors or images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from tunesmith.cluster._base import Clusterer
from tunesmith.cluster._torch import on_rows, resolve_device, to_tensor
from tunesmith.core.errors import DataError, ParameterError

__all__ = ["NetworkClusterer"]


class NetworkClusterer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, Clusterer):
    """A clusterer with ``network_`` and ``head_`` that takes rows, images, or images as rows (``image_shape``).

    After the fit both modules rest on the CPU, so a pickle loads anywhere; they visit the device to predict.
    """

    network_: Any
    head_: Any

    def _check(self, X: Any, *, fitting: bool) -> NDArray[Any]:
        """Return X as float rows (N, d) or images (N, C, H, W), checked against the shape of the fit.

        Raises:
            DataError: X is neither, or its images have another shape.
            ParameterError: ``image_shape`` does not fit X.
        """
        name = type(self).__name__
        X = validate_data(
            self,
            X,
            reset=fitting,
            dtype=[np.float64, np.float32],
            allow_nd=True,
            ensure_min_samples=2 if fitting else 1,
        )
        if X.ndim not in (2, 4):
            raise DataError(
                f"{name} needs X of the shape (rows, features) or (images, channels, height, width); it has the shape "
                f"{X.shape}."
            )
        given = None if self.image_shape is None else tuple(self.image_shape)
        if fitting:
            self.image_shape_ = tuple(X.shape[1:]) if X.ndim == 4 else given
        shape = self.image_shape_
        if shape is not None and (len(shape) != 3 or (fitting and given not in (None, shape))):
            raise ParameterError("image_shape", self, f"(C, H, W), here {X.shape[1:]}", given)
        if shape is not None and X.shape[1:] != shape and (X.ndim == 4 or X.shape[1] != np.prod(shape)):
            raise DataError(
                f"{name} needs images of the shape {shape}; the rows of X have the shape {X.shape[1:]}."
            )
        return X if shape is None else X.reshape(len(X), *shape)

    def _run(self, X: Any, of_features: Callable[[Tensor], Tensor] | None = None) -> NDArray[Any]:
        """Return ``of_features`` (None: the features themselves) of all rows, in the floating type of X."""
        check_is_fitted(self)
        X = self._check(X, fitting=False)
        device, modules = resolve_device(self.device, self), (self.network_, self.head_)
        dtype = next(self.head_.parameters()).dtype

        def of_rows(x: Tensor) -> Tensor:
            features = self._features(x)
            return features if of_features is None else of_features(features)

        try:
            for module in modules:
                module.to(device)
            return on_rows(of_rows, to_tensor(X, device).to(dtype)).cpu().numpy().astype(X.dtype, copy=False)
        finally:
            for module in modules:
                module.cpu()

    def _features(self, x: Tensor) -> Tensor:
        """Return features (n, d) of rows on the device."""
        found: Tensor = self.network_(x)
        return found

    def transform(self, X: Any) -> NDArray[Any]:
        """Return the features (n, d) that the head works on, in the floating type of X."""
        return self._run(X)
