"""CLEAR's arithmetic: hand-worked numbers, properties, and the public re-implementation's numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.curate.clear.confidence import (
    confidence,
    contradiction_similarity,
    decide,
    keep_above,
    normal_form,
    observed_consistency,
    threshold_of,
)
from tunesmith.curate.clear.questions import reflection_value

GOLDEN = {
    case["name"]: case
    for case in json.loads((Path(__file__).parents[1] / "golden" / "clear.json").read_text(encoding="utf-8"))[
        "cases"
    ]
}


def test_hand_example_literal_and_with_the_shortcut() -> None:
    s, r, alpha, beta = [0.9, 0.5], [1, 0], 0.8, 0.7
    reflection = np.mean([reflection_value("(A)"), reflection_value("(C)")])
    assert reflection == 0.75
    literal = observed_consistency(s, r, alpha, exact_shortcut=False)  # (0.72 + 0.2 + 0.4) / 2
    assert literal == pytest.approx(0.66, abs=1e-12)
    assert confidence(literal, reflection, beta) == pytest.approx(0.687, abs=1e-12)
    short = observed_consistency(s, r, alpha)
    assert short == pytest.approx(0.70, abs=1e-12)
    assert confidence(short, reflection, beta) == pytest.approx(0.715, abs=1e-12)
    assert observed_consistency([np.nan, 0.5], r, alpha) == pytest.approx(0.70, abs=1e-12)


def test_similarity_takes_both_orders() -> None:
    assert contradiction_similarity([0.2, 1.0, 0.0], [0.6, 1.0, 0.0]).tolist() == pytest.approx(
        [0.6, 0.0, 1.0]
    )


def test_the_ends_of_the_scale() -> None:
    assert confidence(observed_consistency([0.97] * 5, [1] * 5, 0.8), 1.0, 0.7) == 1.0
    assert confidence(observed_consistency([1.0] * 5, [1] * 5, 0.8, exact_shortcut=False), 1.0, 0.7) == 1.0
    below = confidence(observed_consistency([0.97] * 5, [1] * 5, 0.8, exact_shortcut=False), 1.0, 0.7)
    assert below == pytest.approx(1 - 0.7 * 0.8 * 0.03, abs=1e-12)
    assert confidence(observed_consistency([0.0] * 5, [0] * 5, 0.8), 0.0, 0.7) == 0.0


def test_parts_of_weight_zero_are_not_needed() -> None:
    assert observed_consistency([np.nan] * 4, [1, 0, 0, 1], 0.0) == 0.5
    assert confidence(np.nan, 0.25, 0.0) == 0.25
    assert confidence(0.25, np.nan, 1.0) == 0.25


unit = st.floats(0, 1)
rows = st.lists(st.tuples(unit, st.booleans()), min_size=1, max_size=7)


@settings(max_examples=200, deadline=None)
@given(rows, unit, unit, unit, st.booleans(), st.randoms())
def test_in_the_unit_interval_and_the_order_of_samples_does_not_matter(
    pairs, alpha, beta, reflection, short, chance
):
    def c(part):
        s, r = zip(*part, strict=True)
        return confidence(observed_consistency(s, r, alpha, exact_shortcut=short), reflection, beta)

    shuffled = list(pairs)
    chance.shuffle(shuffled)
    assert 0 <= c(pairs) <= 1
    assert c(shuffled) == pytest.approx(float(c(pairs)), abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(rows, unit, unit, st.integers(0, 6))
def test_turning_a_sample_into_a_copy_of_the_answer(pairs, alpha, p_self, place):
    """With the shortcut O never falls; without it exactly when the sample had o_i > 1 - alpha p_contra(y, y)."""
    s, r = (np.array(part, dtype=float) for part in zip(*pairs, strict=True))
    i = place % len(s)
    copied, same = s.copy(), r.copy()
    copied[i], same[i] = 1 - p_self, 1.0
    for short in (True, False):
        before = observed_consistency(s, r, alpha, exact_shortcut=short)
        after = observed_consistency(copied, same, alpha, exact_shortcut=short)
        if short:
            assert after >= before - 1e-12
        else:
            had, gets = alpha * s[i] + (1 - alpha) * r[i], 1 - alpha * p_self
            assert (after - before) * len(s) == pytest.approx(gets - had, abs=1e-9)


def test_a_fall_needs_a_model_that_contradicts_itself() -> None:
    # At alpha 0.8 an unequal sample has o_i of 0.8 at most, so p_contra(y, y) must exceed 0.25.
    for p_self, falls in ((0.24, False), (0.26, True)):
        before = observed_consistency([1.0], [0], 0.8, exact_shortcut=False)
        after = observed_consistency([1 - p_self], [1], 0.8, exact_shortcut=False)
        assert (after < before) == falls


@pytest.mark.parametrize("n", [1, 2, 7, 10, 101])
def test_the_median_keeps_half_of_distinct_rows(n: int) -> None:
    c = np.random.default_rng(0).permutation(n) / max(n, 2)
    gamma = threshold_of(c, 0.5)
    assert (c > gamma).sum() == n // 2
    assert keep_above(c, gamma, 0.5, 1, np.arange(n)).sum() == max(1, n // 2)


def test_ties_at_the_median_keep_fewer() -> None:
    c = np.array([1.0, 0.7, 0.7, 0.7, 0.2])
    assert keep_above(c, threshold_of(c, 0.5), 0.5, 1, np.zeros(5)).tolist() == [
        True,
        False,
        False,
        False,
        False,
    ]


def test_ties_that_leave_too_few() -> None:
    c, ties = np.full(7, 0.9), np.array([3, 1, 2, 7, 6, 5, 4])
    gamma = threshold_of(c, 0.5)
    assert np.flatnonzero(keep_above(c, gamma, 0.5, 1, ties)).tolist() == [0, 1, 2], (
        "half, the lowest numbers first"
    )
    assert keep_above(c, gamma, 0.5, 5, ties).sum() == 5
    assert keep_above(c, gamma, 0.5, 50, ties).sum() == 7
    assert keep_above(c, gamma, 0.2, 1, ties).sum() == 5, "four fifths of seven"
    assert keep_above(c, 0.9, None, 1, ties).sum() == 0, "a confidence given as such is not softened"


def test_unknown_confidences_stay_and_do_not_move_the_threshold() -> None:
    c = np.array([0.1, np.nan, 0.3, 0.9, np.nan])
    assert threshold_of(c, 0.5) == 0.3
    assert keep_above(c, 0.3, 0.5, 1, np.zeros(5)).tolist() == [False, True, False, True, True]
    assert np.isnan(threshold_of(np.array([np.nan]), 0.5))
    assert keep_above(np.array([np.nan, np.nan]), np.nan, 0.5, 1, np.zeros(2)).all()


def test_decisions() -> None:
    keep, p = [True, True, False, False, False], [0.9, 0.8, 0.9, 0.1, np.nan]
    assert decide(keep, p, 0.8).tolist() == ["replace", "keep", "replace", "remove", "remove"]
    assert decide(keep, np.ones(5), 1.0).tolist() == ["keep", "keep", "remove", "remove", "remove"]
    assert decide(keep, p, 0.8, 1).tolist() == ["replace", "keep", "remove", "remove", "remove"]
    assert decide(keep, p, 0.8, 0).tolist() == ["keep", "keep", "remove", "remove", "remove"]
    assert decide([], [], 0.8).tolist() == []


def test_normal_form() -> None:
    assert normal_form("  It IS\n\tParis ") == normal_form("it is paris")
    assert normal_form("a b") != normal_form("ab")


# The re-implementation compares texts literally and asks one question of the reflection.


def test_golden_confidence() -> None:
    case = GOLDEN["confidence"]
    alpha, beta = case["params"]["alpha"], case["params"]["beta"]
    for i, row in enumerate(case["inputs"]["rows"]):
        r = [float(sample["sample"] == row["target"]) for sample in row["samples"]]
        assert r == [sample["exact_match"] for sample in row["samples"]]
        forward, backward = (
            [np.nan if sample[key] is None else sample[key] for sample in row["samples"]]
            for key in ("contradiction_target_sample", "contradiction_sample_target")
        )
        s = contradiction_similarity(forward, backward)
        observed = observed_consistency(s, r, alpha)
        assert np.where(np.array(r) == 1, 1.0, s).mean() == pytest.approx(
            case["outputs"]["mean_s"][i], abs=1e-6
        )
        assert observed == pytest.approx(case["outputs"]["O"][i], abs=1e-6)
        assert confidence(observed, row["S"], beta) == pytest.approx(
            case["outputs"]["C"]["data"][i], abs=1e-6
        )


def test_golden_missing_reflection_counts_a_half() -> None:
    case = GOLDEN["confidence_missing_reflection"]
    s, r, reflection = (np.array([float(x) for x in row]) for row in case["inputs"]["s_r_S"])
    w = case["params"]["weights"]
    beta = w[0] + w[1]
    observed = observed_consistency(s[:, None], r[:, None], w[0] / beta, exact_shortcut=False)
    ours = confidence(observed, np.nan_to_num(reflection, nan=0.5), beta)
    assert ours == pytest.approx(case["outputs"]["C_with_S_half"], abs=1e-6)
    assert abs(ours[0] - case["outputs"]["C_reimplementation"]["data"][0]) > 0.05, "it drops the part instead"


def test_golden_other_weights() -> None:
    case = GOLDEN["confidence_other_weights"]
    w = np.array(case["params"]["weights"]) / sum(case["params"]["weights"])
    assert w.tolist() == case["outputs"]["weights_normalised"]
    s, r, reflection = (np.array(row) for row in case["inputs"]["s_r_S"])
    beta = w[0] + w[1]
    observed = observed_consistency(s[:, None], r[:, None], w[0] / beta, exact_shortcut=False)
    assert confidence(observed, reflection, beta) == pytest.approx(case["outputs"]["C"]["data"], abs=1e-6)


def test_golden_published_confidences() -> None:
    case = GOLDEN["published_confidences"]
    found = confidence(case["inputs"]["O"], case["inputs"]["S"], case["params"]["beta"])
    assert found == pytest.approx(case["outputs"]["C"], abs=1e-6)


def test_golden_words_of_a_reflection() -> None:
    case = GOLDEN["reflection_reply_parsing"]
    for reply, value in zip(case["inputs"]["replies"], case["outputs"]["values"], strict=True):
        assert reflection_value(reply) == pytest.approx(float(value), abs=1e-6, nan_ok=True), reply
