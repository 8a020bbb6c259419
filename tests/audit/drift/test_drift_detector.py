"""The detector: alarms on planted shifts, quiet on clean traffic, resumed exactly, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file
from sklearn.base import clone

from tunesmith.audit.drift import DriftDetector
from tunesmith.audit.drift import state as drift_state
from tunesmith.core.errors import DataError, ParameterError

QUICK: dict[str, Any] = {"replays": 199, "max_held_out": 400, "n_clusters": 4}


def traffic(rng: np.random.Generator, n: int, shift: float = 0.0) -> dict[str, Any]:
    vectors = rng.normal(size=(n, 6)).astype(np.float32)
    vectors[:, 0] += shift
    return {"latency": rng.exponential(size=n) + shift, "error": rng.random(n) < 0.05, "embedding": vectors}


def test_the_dossiers_stream_alarms_within_two_windows_and_seldom_before() -> None:
    clean, late = [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        detector = DriftDetector(100, random_state=seed, replays=199).fit(rng.normal(size=2000))
        live = rng.normal(size=1000)
        live[500:] += 0.7
        results = detector.update(live)
        clean += [r.alarm for r in results[:5]]
        late.append([r.alarm for r in results[5:]].index(True))
    assert max(late) <= 1
    assert np.mean(clean) <= 0.05


def test_clean_windows_of_many_features_seldom_alarm() -> None:
    alarms = []
    for seed in range(4):
        rng = np.random.default_rng(100 + seed)
        detector = DriftDetector(100, random_state=seed, **QUICK).fit(traffic(rng, 1000))
        alarms += [r.alarm for r in detector.update(traffic(rng, 5000))]
    assert len(alarms) == 200
    assert np.mean(alarms) <= 0.05


def test_it_says_what_moved_and_where() -> None:
    rng = np.random.default_rng(0)
    detector = DriftDetector(150, **QUICK).fit(traffic(rng, 900))
    moved = traffic(rng, 150)
    moved["latency"] += 1
    result = detector.check(moved)
    assert result.alarm
    assert result.moved == ["latency"]
    assert result.worst.feature == "latency"
    assert result.worst.ratio > 1
    assert result.worst.value > result.worst.threshold
    assert result.p_value == 1 / 200
    assert result.means["latency"] == pytest.approx(moved["latency"].mean())
    reference, window = np.array(result.clusters["embedding"]).T
    assert reference.sum() == pytest.approx(1)
    assert window.sum() == pytest.approx(1)
    assert [(d.feature, d.statistic) for d in result.drift] == [
        ("latency", "psi"),
        ("latency", "ks"),
        ("error", "psi"),
        ("error", "ks"),
        ("embedding", "cluster psi"),
        ("embedding", "mmd"),
    ]
    assert result.to_dict()["moved"] == ["latency"]
    vectors = traffic(rng, 150)
    vectors["embedding"] = vectors["embedding"] + np.float32(0.8)
    assert detector.check(vectors).moved == ["embedding"]


def test_what_the_reference_never_shows_alarms_when_it_is_more_than_chance() -> None:
    detector = DriftDetector(100, replays=399).fit(np.zeros(900))
    for errors, alarm in ((0, False), (1, False), (10, True)):
        window = np.zeros(100)
        window[:errors] = 1
        assert detector.check(window).alarm == alarm
    assert detector.check(np.zeros(100)).drift[0].threshold is None


def test_batches_of_any_cut_give_the_same_windows(tmp_path: Any) -> None:
    rng = np.random.default_rng(0)
    reference, live = traffic(rng, 700), traffic(rng, 530)
    whole = DriftDetector(100, **QUICK).fit(reference)
    straight = whole.update(live)
    assert [(r.index, r.first, r.rows) for r in straight] == [(i, 100 * i, 100) for i in range(5)]
    assert whole.n_waiting == 30
    assert whole.flush() is None  # 30 rows are too few
    assert whole.n_waiting == 30

    cut = DriftDetector(100, **QUICK).fit(reference)
    found = []
    for begin, end in ((0, 0), (0, 37), (37, 260), (260, 530)):  # saved and loaded between batches
        cut.save(tmp_path / "state", bookmark={"offset": end})
        cut = DriftDetector.load(tmp_path / "state")
        assert cut.bookmark_ == {"offset": end}
        found += cut.update({name: values[begin:end] for name, values in live.items()})
    assert found == straight
    assert cut.n_waiting == 30
    assert sorted(p.name for p in tmp_path.iterdir()) == ["state"]
    assert cut.get_params() == whole.get_params()


def test_the_end_of_a_stream_is_judged_if_it_is_long_enough() -> None:
    rng = np.random.default_rng(0)
    detector = DriftDetector(150, **QUICK).fit(rng.normal(size=600))
    assert len(detector.update(rng.normal(size=290))) == 1
    last = detector.flush()
    assert last is not None
    assert (last.index, last.first, last.rows, detector.n_waiting) == (1, 150, 140, 0)


def test_small_windows_say_so() -> None:
    rng = np.random.default_rng(0)
    detector = DriftDetector(50, **QUICK).fit(rng.normal(size=300))
    assert detector.check(rng.normal(size=50)).note == "50 rows: below 100 only large shifts are seen"
    assert detector.check(rng.normal(size=100)).note == ""


def test_arrays_and_frames_are_features_and_a_clone_is_equal() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(400, 2)), columns=["a", "b"])
    detector = DriftDetector(100, **QUICK).fit(frame)
    assert detector.features_ == ["a", "b"]
    again = clone(detector).fit({"a": frame["a"].to_numpy(), "b": list(frame["b"])})
    assert again.check(frame[:100]) == detector.check(frame[:100])
    assert DriftDetector(100, **QUICK).fit(rng.normal(size=(400, 3))).features_ == ["embedding"]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"window": 1}, "The 'window' parameter of DriftDetector must be an int >= 2. Got 1 instead."),
        ({"window": 2.5}, "The 'window' parameter of DriftDetector must be an int >= 2. Got 2.5 instead."),
        (
            {"n_clusters": 1},
            "The 'n_clusters' parameter of DriftDetector must be an int >= 2. Got 1 instead.",
        ),
        ({"bins": True}, "The 'bins' parameter of DriftDetector must be an int >= 2. Got True instead."),
        (
            {"max_held_out": 1},
            "The 'max_held_out' parameter of DriftDetector must be an int >= 2. Got 1 instead.",
        ),
        (
            {"false_alarm_rate": 0},
            "The 'false_alarm_rate' parameter of DriftDetector must be a float in (0, 1). Got 0 instead.",
        ),
        (
            {"replays": 38},
            "The 'replays' parameter of DriftDetector must be an int >= 39 for a false alarm rate of 0.05. "
            "Got 38 instead.",
        ),
        (
            {"n_clusters": 200},
            "The 'n_clusters' parameter of DriftDetector must be an int in [2, 100]. Got 200 instead.",
        ),
    ],
)
def test_parameters_out_of_range(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError) as error:
        DriftDetector(**{"window": 50, **parameters}).fit(np.zeros((300, 2)))
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ({}, "there is no feature to compare."),
        ([], "there are no rows."),
        (
            np.zeros(299),
            "the reference has 299 usable rows; a window of 100 needs at least 300: a third for bins and clusters, the "
            "rest to compare with. Give more rows or a smaller window.",
        ),
        ({"a": np.zeros(3), "b": np.zeros(4)}, "features differ in their number of rows: a 3, b 4."),
        ({"a": [1.0, 2, math.inf]}, "row 2: the feature 'a' has a value that is not finite."),
        ({"a": ["x", "y"]}, "the feature 'a' must hold a number per row, or a vector, all of one length."),
        (
            {"a": [[1.0], [1, 2]]},
            "the feature 'a' must hold a number per row, or a vector, all of one length.",
        ),
        ({"a": [[1.0, math.nan]]}, "row 0: the feature 'a' has a value that is not finite."),
    ],
)
def test_references_that_cannot_be_used(reference: Any, message: str) -> None:
    with pytest.raises(DataError) as error:
        DriftDetector(100).fit(reference)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("window", "message"),
    [
        (
            {"a": [1.0, 2], "v": np.zeros((2, 3)), "c": [1.0, 2]},
            "the rows have a feature 'c' that the reference lacks; it has 'a', 'v'.",
        ),
        ({"a": [1.0, 2]}, "the rows lack the feature 'v', which the reference has."),
        (
            {"a": [1.0, 2], "v": np.zeros((2, 4))},
            "the feature 'v' has rows of shape (4,), those of the reference have (3,).",
        ),
        ({"a": [1.0], "v": np.zeros((1, 3))}, "a window needs at least 2 rows; this one has 1."),
        (
            {"a": [1.0, math.nan], "v": np.zeros((2, 3))},
            "row 1: the feature 'a' has a value that is not finite.",
        ),
    ],
)
def test_windows_that_cannot_be_used(window: Any, message: str) -> None:
    rng = np.random.default_rng(0)
    detector = DriftDetector(10, **QUICK).fit({"a": rng.normal(size=60), "v": rng.normal(size=(60, 3))})
    with pytest.raises(DataError) as error:
        detector.check(window)
    assert str(error.value) == message
    assert detector.n_waiting == 0


def test_a_detector_that_is_not_fitted() -> None:
    message = "this DriftDetector is not fitted: call fit with clean traffic first."
    for call in (DriftDetector().check, DriftDetector().update, DriftDetector().save):
        with pytest.raises(DataError, match=message):
            call([1.0, 2.0])  # type: ignore[arg-type]


def test_files_that_are_no_state(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"none: there is no such file\."):
        DriftDetector.load(tmp_path / "none")
    whole = tmp_path / "whole"
    detector = DriftDetector(10, **QUICK).fit(np.arange(40.0))
    detector.save(whole)
    (tmp_path / "torn").write_bytes(whole.read_bytes()[:-9])
    (tmp_path / "other").write_text("{}")
    save_file({"a": np.zeros(2)}, tmp_path / "weights")
    for name in ("torn", "other", "weights"):
        with pytest.raises(DataError, match=r"this is no saved DriftDetector, or the file is torn\."):
            DriftDetector.load(tmp_path / name)
    monkeypatch.setattr(drift_state, "_VERSION", 2)
    with pytest.raises(DataError, match=r"the state is of version 1, this program reads 2\. Fit again\."):
        DriftDetector.load(whole)
