"""Accuracy of predicted classes."""

import pytest

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.metrics import Accuracy


def test_by_hand():
    found = Accuracy().compute(predictions=["a", "b", "a", "a"], references=["a", "a", "a", "b"])
    assert found["accuracy"] == 0.5
    assert found["balanced_accuracy"] == pytest.approx((2 / 3 + 0) / 2)
    assert found["scores"] == [1.0, 0.0, 1.0, 0.0]


def test_what_cannot_be_compared():
    with pytest.raises(
        ParameterError, match=r"'predictions' parameter of Accuracy must be as many as references \(2\)"
    ):
        Accuracy().compute(predictions=["a"], references=["a", "b"])
    with pytest.raises(DataError, match="accuracy: there is nothing to compare"):
        Accuracy().compute(predictions=[], references=[])
