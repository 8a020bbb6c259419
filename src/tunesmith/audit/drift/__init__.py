"""Drift: has the traffic moved away from what the model was tuned and measured on?

Stage 7 of Parthasarathy, Zafar, Khan, Shahid, "The Ultimate Guide to Fine-Tuning LLMs from Basics to Breakthroughs",
arXiv 2408.13296, with the kernel two-sample test of Gretton et al., JMLR 13 (2012), and thresholds from replayed
windows by the maximum statistic of Westfall and Young (1993).
"""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

__all__ = [
    "DriftDetector",
    "FeatureDrift",
    "KernelTest",
    "NewRows",
    "RequestFeatures",
    "WindowResult",
    "audit_drift",
    "kernel_two_sample",
    "kolmogorov_smirnov",
    "mmd2_unbiased",
    "new_rows",
    "population_stability_index",
    "psi",
    "read_requests",
    "retrain_trigger",
]

if TYPE_CHECKING:
    from tunesmith.audit.drift.auditing import audit_drift, retrain_trigger
    from tunesmith.audit.drift.detector import DriftDetector
    from tunesmith.audit.drift.features import RequestFeatures
    from tunesmith.audit.drift.following import NewRows, new_rows
    from tunesmith.audit.drift.reading import read_requests
    from tunesmith.audit.drift.results import FeatureDrift, WindowResult
    from tunesmith.audit.drift.statistics import (
        KernelTest,
        kernel_two_sample,
        kolmogorov_smirnov,
        mmd2_unbiased,
        population_stability_index,
        psi,
    )
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "DriftDetector": "detector",
            "FeatureDrift": "results",
            "KernelTest": "statistics",
            "NewRows": "following",
            "RequestFeatures": "features",
            "WindowResult": "results",
            "audit_drift": "auditing",
            "kernel_two_sample": "statistics",
            "kolmogorov_smirnov": "statistics",
            "mmd2_unbiased": "statistics",
            "new_rows": "following",
            "population_stability_index": "statistics",
            "psi": "statistics",
            "read_requests": "reading",
            "retrain_trigger": "auditing",
        },
    )
