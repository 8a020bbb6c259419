"""Clustering by semidefinite programs: K-means SDP and likelihood-adjusted SDP, their solvers and their bounds."""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

if TYPE_CHECKING:
    from tunesmith.cluster.sdp.admm import solve_admm
    from tunesmith.cluster.sdp.conic import solve_cvxpy
    from tunesmith.cluster.sdp.kmeans_sdp import KMeansSDP
    from tunesmith.cluster.sdp.la_sdp import LikelihoodAdjustedSDP
    from tunesmith.cluster.sdp.likelihood import affinities, covariance_step, log_likelihood
    from tunesmith.cluster.sdp.low_rank import solve_burer_monteiro
    from tunesmith.cluster.sdp.program import SDPResult, lift, upper_bound
    from tunesmith.cluster.sdp.rounding import argmax_rounding, spectral_rounding

__all__ = [
    "KMeansSDP",
    "LikelihoodAdjustedSDP",
    "SDPResult",
    "affinities",
    "argmax_rounding",
    "covariance_step",
    "lift",
    "log_likelihood",
    "solve_admm",
    "solve_burer_monteiro",
    "solve_cvxpy",
    "spectral_rounding",
    "upper_bound",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "KMeansSDP": "kmeans_sdp",
        "LikelihoodAdjustedSDP": "la_sdp",
        "SDPResult": "program",
        "affinities": "likelihood",
        "argmax_rounding": "rounding",
        "covariance_step": "likelihood",
        "lift": "program",
        "log_likelihood": "likelihood",
        "solve_admm": "admm",
        "solve_burer_monteiro": "low_rank",
        "solve_cvxpy": "conic",
        "spectral_rounding": "rounding",
        "upper_bound": "program",
    },
)
