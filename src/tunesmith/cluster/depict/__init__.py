"""DEPICT: an autoencoder and soft-max clusters trained together (Dizaji et al. 2017, arXiv 1704.06327)."""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

if TYPE_CHECKING:
    from tunesmith.cluster.depict.estimator import DEPICT
    from tunesmith.cluster.depict.networks import LayeredAutoencoder, conv_autoencoder, mlp_autoencoder
    from tunesmith.cluster.depict.objective import (
        cluster_loss,
        reconstruction_loss,
        relative_entropy,
        target_distribution,
    )
    from tunesmith.cluster.depict.path_integral import path_integral_labels

__all__ = [
    "DEPICT",
    "LayeredAutoencoder",
    "cluster_loss",
    "conv_autoencoder",
    "mlp_autoencoder",
    "path_integral_labels",
    "reconstruction_loss",
    "relative_entropy",
    "target_distribution",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "DEPICT": "estimator",
        "LayeredAutoencoder": "networks",
        "cluster_loss": "objective",
        "conv_autoencoder": "networks",
        "mlp_autoencoder": "networks",
        "path_integral_labels": "path_integral",
        "reconstruction_loss": "objective",
        "relative_entropy": "objective",
        "target_distribution": "objective",
    },
)
