"""Gradients of a pool's rows: those of the scorer on the rows' answers, kept on disk, continued after a kill."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset

from tunesmith.core.errors import DataError
from tunesmith.core.events import EventLog
from tunesmith.data import Pool
from tunesmith.data.preflight import encode_dataset
from tunesmith.engine.models import load_model, load_tokenizer
from tunesmith.numerics import per_example_grad_norms, projected_gradients


def dataset(n: int = 10) -> Dataset:
    return Dataset.from_list(
        [
            {
                "messages": [
                    {"role": "user", "content": f"add {i}"},
                    {"role": "assistant", "content": "cat " * (1 + i % 3)},
                ]
            }
            for i in range(n)
        ]
    )


def make(folder: str, cache, **more) -> Pool:
    return Pool(dataset(), scorer=folder, cache=cache, batch_size=1, **more)


def test_they_are_the_scorers_gradients_of_the_answers(tiny_model_dir, tmp_path):
    pool = make(tiny_model_dir, tmp_path, seed=3)
    model = load_model(tiny_model_dir)
    rows = list(encode_dataset(dataset(), load_tokenizer(tiny_model_dir), max_length=512)[0])
    found = pool.feature("gradient", dim=32)
    assert (found.dtype, found.shape) == (np.float32, (10, 32))
    np.testing.assert_allclose(
        found, projected_gradients(model, rows, dim=32, seed=3, batch_size=1), rtol=1e-5
    )
    norms = pool.feature("gradient_norm", params="v_proj")
    assert norms.dtype == np.float64
    np.testing.assert_allclose(
        norms, per_example_grad_norms(model, rows, params="v_proj", batch_size=1), rtol=1e-5
    )
    assert {"gradient", "gradient_norm"} <= set(pool.features_available)


def test_what_is_done_is_not_done_again(tiny_model_dir, tmp_path, monkeypatch):
    from tunesmith.numerics import ExampleGradients

    calls = []
    project = ExampleGradients.project

    def counted(self, rows, **options):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(len(rows))
        return project(self, rows, **options)

    monkeypatch.setattr(ExampleGradients, "project", counted)
    with pytest.raises(KeyboardInterrupt):
        make(tiny_model_dir, tmp_path).feature("gradient", dim=16)
    assert calls == [4, 4]
    calls[:] = [0]
    whole = make(tiny_model_dir, tmp_path).feature("gradient", dim=16)
    assert calls == [0, 2]  # the last two of ten rows
    monkeypatch.undo()
    np.testing.assert_allclose(
        whole, make(tiny_model_dir, tmp_path / "new").feature("gradient", dim=16), rtol=1e-5
    )


def test_a_selector_is_given_its_norms(tiny_model_dir, tiny_encoder_dir, tmp_path):
    from tunesmith.select import GORACSSelector

    pool = make(tiny_model_dir, tmp_path, encoder=tiny_encoder_dir, target=dataset(4))
    assert len(pool.fit(GORACSSelector(lam=0.1)).select(3)) == 3


def test_they_need_a_scorer(tmp_path):
    pool = Pool(dataset(), cache=tmp_path)
    with pytest.raises(DataError, match="the feature 'gradient' needs a language model: set scorer"):
        pool.feature("gradient")
    with pytest.raises(
        DataError, match="gradient and gradient_norm need a language model: set scorer to a model"
    ):
        pool.feature("gradient_norm", params="v_proj")


def test_a_row_that_is_not_finite_is_named(tiny_model_dir, tmp_path, monkeypatch):
    from tunesmith.numerics import ExampleGradients

    def bad(self, rows, **options):
        raise DataError("the gradient of its loss is not finite.", row=1)

    monkeypatch.setattr(ExampleGradients, "project", bad)
    with pytest.raises(DataError, match=r"row 1: the gradient of its loss is not finite"):
        make(tiny_model_dir, tmp_path).feature("gradient", dim=4)


def test_warnings_of_the_gradients_reach_the_pools_log(tiny_model_dir, tmp_path, monkeypatch):
    from tunesmith.numerics import ExampleGradients

    monkeypatch.setattr(
        ExampleGradients,
        "project",
        lambda self, rows, **o: (self.log.warn("slow"), np.zeros((len(rows), 4)))[1],
    )
    events = []
    make(tiny_model_dir, tmp_path, log=EventLog(listeners=[events.append])).feature("gradient", dim=4)
    assert "slow" in [e.get("message") for e in events]
