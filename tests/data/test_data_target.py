"""The target of a selection: rows that are embedded like the pool's."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset

from tunesmith.core.errors import DataError
from tunesmith.data import Pool


def test_target_embedding_comes_from_the_target_rows(tiny_encoder_dir, tmp_path):
    rows = Dataset.from_dict({"text": ["a cat", "a dog", "the sum of numbers"]})
    target = Dataset.from_dict({"text": ["a cat", "Paris"]})
    pool = Pool(rows, encoder=tiny_encoder_dir, target=target, cache=tmp_path)
    embedding, aim = pool.feature("embedding"), pool.feature("target_embedding")
    assert aim.shape == (2, embedding.shape[1])
    np.testing.assert_allclose(aim[0], embedding[0], atol=1e-6)


def test_target_embedding_without_a_target_says_where_it_comes_from():
    rows = Dataset.from_dict({"text": ["a cat"]})
    with pytest.raises(
        DataError,
        match=r"the feature 'target_embedding' needs rows of the task .* in a recipe .* data\.validation",
    ):
        Pool(rows).feature("target_embedding")
