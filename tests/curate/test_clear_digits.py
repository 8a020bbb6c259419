"""CLEAR without a language model: the experiment of benchmarks/claims/clear.py over its first two seeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest


def test_the_confidence_finds_flipped_labels_and_a_fitting_cut_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks" / "claims"))
    import clear as claim

    runs = [claim.run(seed) for seed in range(2)]

    def mean(arm: str, measure: str = "accuracy") -> float:
        return float(np.mean([run[arm][measure] for run in runs]))

    assert mean("detector", "confidence") > 0.9
    for name in claim.RULES:
        arm = claim.FILTER.format(name)
        assert mean(arm) > mean(arm, "same size"), "better than as many random rows"
    assert mean(claim.CORRECT.format("20 %")) >= mean(claim.ALL)
