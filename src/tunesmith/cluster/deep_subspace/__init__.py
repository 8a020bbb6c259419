"""Deep subspace clustering without labels or trade-off weights (Sindicic and Kopriva 2025, arXiv 2504.18179)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

if TYPE_CHECKING:
    from tunesmith.cluster.deep_subspace.estimator import DeepSubspaceClustering
    from tunesmith.cluster.deep_subspace.losses import (
        distance_product_loss,
        quality_loss,
        reconstruction_loss,
        self_expression_loss,
    )
    from tunesmith.cluster.deep_subspace.spectral import (
        affinity_from_coefficients,
        ridge_coefficients,
        shifted_laplacian,
        spectral_from_coefficients,
    )

__all__ = [
    "DeepSubspaceClustering",
    "affinity_from_coefficients",
    "distance_product_loss",
    "quality_loss",
    "reconstruction_loss",
    "ridge_coefficients",
    "self_expression_loss",
    "shifted_laplacian",
    "spectral_from_coefficients",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "DeepSubspaceClustering": "estimator",
        "affinity_from_coefficients": "spectral",
        "distance_product_loss": "losses",
        "quality_loss": "losses",
        "reconstruction_loss": "losses",
        "ridge_coefficients": "spectral",
        "self_expression_loss": "losses",
        "shifted_laplacian": "spectral",
        "spectral_from_coefficients": "spectral",
    },
)
