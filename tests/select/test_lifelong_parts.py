"""The parts of Adapt-infinity: hand-worked numbers, laws, and parity with the released code."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.select.lifelong import (
    choose_scorer,
    coverage_sample,
    density_quota,
    duplicate_scores,
    grounding,
    histogram_entropy,
    project_gradients,
    prune_duplicates,
    spread_quota,
    token_scores,
    unit_rows,
    waterfill,
)

FILE = Path(__file__).parents[1] / "golden/adapt-infinity.json"
CASES = json.loads(FILE.read_text(encoding="utf-8"))["cases"]
GOLDEN = {case["name"]: case for case in CASES}


def named(prefix: str) -> Any:
    names = [name for name in GOLDEN if name.startswith(prefix)]
    return pytest.mark.parametrize("case", [GOLDEN[name] for name in names], ids=names)


def array(block: dict[str, Any]) -> np.ndarray:
    return np.array(block["data"], dtype=block["dtype"]).reshape(block["shape"])


# --- budgets
# ---------------------------------------------------------------------------------------------------


def test_waterfill_by_hand() -> None:
    assert waterfill([10, 50, 100], 90).tolist() == [10, 40, 40]
    assert waterfill([2, 10, 10], 9).tolist() == [2, 3, 4]
    assert waterfill([5, 6], 14).tolist() == [5, 6]
    assert waterfill([3, 3], 1).tolist() == [0, 1]
    assert waterfill([], 4).tolist() == []


@pytest.mark.parametrize(
    "case", [c for c in CASES if "water_filling_own" in c["outputs"]], ids=lambda case: case["name"]
)
def test_budgets_of_both_variants(case: dict[str, Any]) -> None:
    sizes, total = case["inputs"]["sizes"], case["params"]["total"]
    assert waterfill(sizes, total).tolist() == case["outputs"]["water_filling_own"]
    assert waterfill(sizes, total, variant="official").tolist() == case["outputs"]["budgets"]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12), st.integers(0, 400))
def test_waterfill_sums_exactly_and_is_level(sizes: list[int], budget: int) -> None:
    got = waterfill(sizes, budget)
    assert got.sum() == min(budget, sum(sizes))
    assert (got <= sizes).all()
    open_groups = got < np.array(sizes)
    if (
        open_groups.any()
    ):  # every group that could take more holds at least as much as any other, up to one row
        assert got[open_groups].min() >= got.max() - 1


@named("budget_score_weighted")
def test_spread_quota_is_the_released_one_made_exact(case: dict[str, Any]) -> None:
    labels, total = np.array(case["inputs"]["labels"]), case["params"]["total"]
    got = spread_quota(array(case["inputs"]["el2n"]), labels, 3, total)
    assert got.sum() == total
    assert (got <= np.bincount(labels)).all()
    assert np.abs(got - case["outputs"]["budgets"]).max() <= 1


def test_density_quota() -> None:
    case = GOLDEN["budget_dbp"]
    parts = array(case["inputs"]["features"]), case["inputs"]["labels"], array(case["inputs"]["centroids"])
    want = array(case["outputs"]["shares"])
    assert density_quota(*parts, variant="official") == pytest.approx(want, abs=case["tolerance"])
    own = density_quota(*parts)
    assert own.sum() == pytest.approx(1)
    assert np.argsort(own).tolist() == np.argsort(want).tolist()
    assert density_quota(np.zeros((2, 1)), [0, 1], np.zeros((2, 1))).tolist() == [0.5, 0.5]


# --- entropy
# ---------------------------------------------------------------------------------------------------


def test_entropy_by_hand() -> None:
    assert histogram_entropy(np.repeat([0.0, 1.0, 2.0, 3.0], 7)) == pytest.approx(2)
    assert histogram_entropy([5.0] * 9) == 0
    assert histogram_entropy([0.1 + 0.2, 0.3, 0.3]) == 0  # equal up to rounding
    assert histogram_entropy([np.nan, 3.0, np.inf]) == 0
    assert histogram_entropy([]) == 0
    assert histogram_entropy([1.0, np.nan, 2.0]) == pytest.approx(1)
    assert histogram_entropy([1e300, -1e300]) == pytest.approx(1)


@settings(deadline=None)
@given(
    hnp.arrays(np.int64, st.integers(2, 60), elements=st.integers(-50, 50)),
    st.sampled_from([0.01, 0.5, 3.0, 1000.0]),
    st.integers(-20, 20),
    st.integers(2, 60),
)
def test_entropy_ignores_scale_and_is_bounded(values: np.ndarray, a: float, b: int, bins: int) -> None:
    h = histogram_entropy(values, bins)
    assert 0 <= h <= math.log2(bins) + 1e-12
    if values.std() > 0:
        z = (values - values.mean()) / values.std()
        edges = (np.clip(z, -4, 4) + 4) * bins / 8
        if np.abs(edges - np.round(edges)).min() > 1e-6:
            assert histogram_entropy(a * values + b, bins) == pytest.approx(h, abs=1e-9)
            assert histogram_entropy(-a * values + b, bins) == pytest.approx(h, abs=1e-9)


@named("entropy_")
def test_entropy_matches_the_released_code(case: dict[str, Any]) -> None:
    values = array(case["inputs"]["values"])
    assert histogram_entropy(values, 50, variant="official") == pytest.approx(
        case["outputs"]["H"], abs=case["tolerance"]
    )
    proper = float(case["paper_or_official"].split("would be ")[1].split()[0])
    assert histogram_entropy(values, 49) == pytest.approx(proper, abs=1e-6)  # 50 edges are 49 bins


def test_the_released_entropy_depends_on_the_scale_and_ours_does_not() -> None:
    values = np.random.default_rng(0).standard_normal(1000)
    ours = [histogram_entropy(values * scale) for scale in (0.01, 1, 100)]
    assert ours == pytest.approx([ours[0]] * 3)
    theirs = [histogram_entropy(values * scale, variant="official") for scale in (0.01, 1, 100)]
    assert theirs[2] < 0.5 < theirs[1]


@named("scorer_choice")
def test_choice_of_scorer_matches(case: dict[str, Any]) -> None:
    scores = {name: array(block) for name, block in case["inputs"]["scores"].items()}
    rows = case["inputs"]["cluster_rows"]
    name, entropy = choose_scorer(scores, rows, bins=50, variant="official")
    assert name == case["outputs"]["chosen"]
    assert entropy == pytest.approx(case["outputs"]["H"], abs=case["tolerance"])
    assert choose_scorer(scores, rows, bins=49)[0] == "ppl"


def test_choice_ties_missing_and_constant_scorers() -> None:
    spread, other = np.arange(8.0), np.arange(8.0) * -3
    assert choose_scorer({"a": spread, "b": other})[0] == "a"
    assert choose_scorer({"b": other, "a": spread})[0] == "b"
    assert choose_scorer({"flat": np.ones(8), "a": spread})[0] == "a"
    mostly_missing = np.where(np.arange(8) < 4, spread, np.nan)
    name, entropy = choose_scorer({"ig": mostly_missing, "a": np.repeat([0.0, 1.0], 4)})
    assert (name, list(entropy)) == ("a", ["a"])
    assert choose_scorer({"ig": np.full(8, np.nan)}) == (None, {})


# --- sampling
# --------------------------------------------------------------------------------------------------


@named("ccs_")
def test_coverage_sample_matches_the_released_code(case: dict[str, Any]) -> None:
    values, strata, budget = (
        array(case["inputs"]["values"]),
        case["params"]["strata"],
        case["params"]["budget"],
    )
    got = coverage_sample(values, budget, strata=strata, variant="official")
    assert len(got) == case["outputs"]["count"]
    if "selected" in case["outputs"]:
        assert got.tolist() == case["outputs"]["selected"]
    assert len(set(coverage_sample(values, budget, strata=strata).tolist())) == budget


def test_coverage_sample_by_hand() -> None:
    """Strata of 2, 10 and 10 rows (from the top), budget 9: 2, 3 and 4."""
    values = array(GOLDEN["ccs_strata_2_10_10"]["inputs"]["values"])
    got = values[coverage_sample(values, 9, np.random.default_rng(0), strata=3, trim=0.05)]
    assert [int(((got >= low) & (got < low + 1 + 1e-9)).sum()) for low in (2, 1, 0)] == [2, 3, 4]


def test_one_stratum_without_trim_is_random_sampling() -> None:
    hits = np.zeros(12)
    for seed in range(3000):
        got = coverage_sample(np.arange(12.0) ** 3, 4, np.random.default_rng(seed), strata=1, trim=0)
        hits[got] += 1
    assert np.abs(hits / 3000 - 1 / 3).max() < 0.035  # four standard errors of 0.0086


@settings(deadline=None)
@given(
    hnp.arrays(np.float64, st.integers(0, 80), elements=st.one_of(st.integers(-9, 9), st.just(np.nan))),
    st.integers(0, 100),
    st.integers(1, 20),
    st.sampled_from([0.0, 0.05, 0.2]),
)
def test_coverage_sample_is_exact_and_covers(
    values: np.ndarray, budget: int, strata: int, trim: float
) -> None:
    got = coverage_sample(values, budget, np.random.default_rng(0), strata=strata, trim=trim)
    assert len(got) == len(set(got.tolist())) == min(budget, len(values))
    scored = np.sort(values[np.isfinite(values)])
    cut = int(trim * len(scored))
    inner = scored[(scored >= scored[cut]) & (scored <= scored[-1 - cut])] if len(scored) else scored
    if len(inner) >= budget and len(inner) and np.ptp(inner) > 0:

        def place(v: np.ndarray) -> set[int]:
            return set(
                np.clip((v - inner.min()) / np.ptp(inner) * strata, 0, strata - 1).astype(int).tolist()
            )

        if budget >= len(place(inner)):
            assert place(values[got]) == place(inner)


def test_fewer_rows_than_strata_do_not_all_come_from_one_end() -> None:
    values = np.arange(60.0)
    for sign in (1, -1):
        means = [coverage_sample(sign * values, 8, np.random.default_rng(seed)).mean() for seed in range(200)]
        assert abs(np.mean(means) - 29.5) < 2  # four standard errors; by index it would be above 50


def test_missing_scores_come_last() -> None:
    values = np.array([np.nan, 1.0, np.nan, 2.0])
    assert sorted(coverage_sample(values, 2, np.random.default_rng(0)).tolist()) == [1, 3]
    assert len(coverage_sample(values, 3, np.random.default_rng(0))) == 3


# --- pruning
# ---------------------------------------------------------------------------------------------------


@named("semdedup")
def test_duplicate_scores_match(case: dict[str, Any]) -> None:
    vectors, labels = array(case["inputs"]["vectors"]), np.array(case["inputs"]["labels"])
    order = np.argsort(labels, kind="stable")
    got = duplicate_scores(vectors, labels)[order]
    assert got == pytest.approx(array(case["outputs"]["M_by_cluster"]), abs=case["tolerance"])
    sizes, total = np.bincount(labels), case["params"]["pool_budget"]
    assert waterfill(sizes, total, variant="official").tolist() == case["outputs"]["cluster_budgets"]
    kept = prune_duplicates(vectors, labels, total, variant="official")
    assert kept.tolist() == sorted(case["outputs"]["kept"])
    assert len(prune_duplicates(vectors, labels, total)) == total


def test_exactly_one_copy_and_all_orthogonal_rows_remain() -> None:
    m, q = 7, 5
    vectors = np.concatenate([np.repeat(np.eye(q + 1)[:1], m, axis=0), np.eye(q + 1)[1:]])
    kept = prune_duplicates(3 * vectors, np.zeros(m + q), q + 1)
    assert kept.tolist() == [0, *range(m, m + q)]
    backwards = prune_duplicates(vectors[::-1], np.zeros(m + q), q + 1)
    assert backwards.tolist() == list(range(q + 1))


def test_no_cluster_is_emptied_and_small_ones_are_untouched() -> None:
    labels = np.array([0] * 3 + [1] * 40 + [2] * 20)
    vectors = np.random.default_rng(0).standard_normal((63, 4))
    kept = prune_duplicates(vectors, labels, 23)
    assert np.bincount(labels[kept]).tolist() == [3, 10, 10]
    assert np.bincount(labels[prune_duplicates(vectors, labels, 3)]).tolist() == [1, 1, 1]


def test_blocks_give_what_one_matrix_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.select.lifelong import pruning

    vectors = np.random.default_rng(0).standard_normal((50, 6))
    whole = duplicate_scores(vectors, np.arange(50) % 3)
    monkeypatch.setattr(pruning, "_BLOCK", 7)
    assert duplicate_scores(vectors, np.arange(50) % 3) == pytest.approx(whole, abs=1e-6)


# --- features and scores
# ---------------------------------------------------------------------------------------


def test_projection_is_unbiased_with_the_stated_spread() -> None:
    rng = np.random.default_rng(0)
    a, b = unit_rows(rng.standard_normal((2, 200)))[0]
    dots = []
    for seed in range(200):
        p = project_gradients(np.stack([a, b]), 128, seed=seed)
        dots.append(float(p[0] @ p[1]))
    assert np.mean(dots) == pytest.approx(float(a @ b), abs=4 * math.sqrt(2 / 128 / 200))
    assert np.std(dots) <= math.sqrt(2 / 128) * 1.1


def test_projection_is_linear_in_blocks_and_keeps_what_is_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.select.lifelong import features

    monkeypatch.setattr(features, "_BLOCK", 16)
    g = np.random.default_rng(0).standard_normal((4, 40))
    p = project_gradients(np.concatenate([g, 2 * g]), 64)
    assert p[4:] == pytest.approx(2 * p[:4], rel=1e-5)
    unit, zero = unit_rows(p)
    assert unit[4:] == pytest.approx(unit[:4], abs=1e-6)  # twice the loss, the same feature
    assert not zero.any()
    head = project_gradients(np.pad(g[:, :16], ((0, 0), (0, 24))), 64)
    tail = project_gradients(np.pad(g[:, 16:], ((0, 0), (16, 0))), 64)
    assert head + tail == pytest.approx(p[:4], abs=1e-5)


def test_zero_rows_stay_zero_and_are_flagged() -> None:
    unit, zero = unit_rows(np.array([[0, 0], [3e200, 4e200], [3e-200, 4e-200]]))
    assert zero.tolist() == [True, False, False]
    assert unit == pytest.approx(np.array([[0, 0], [0.6, 0.8], [0.6, 0.8]]))


def logits_of(p: list[list[float]]) -> torch.Tensor:
    return torch.tensor([[*map(list, p), [0.0] * len(p[0])]]).clamp(min=1e-30).log()


def test_scores_by_hand() -> None:
    labels = torch.tensor([[-100, 0, 1]])
    right = token_scores(logits_of([[1, 0, 0], [0, 1, 0]]), labels)
    assert right["el2n"][0] == pytest.approx(0, abs=1e-6)
    assert right["perplexity"][0] == pytest.approx(1)
    assert right["entropy"][0] == pytest.approx(0, abs=1e-6)
    wrong = token_scores(logits_of([[0, 1, 0], [1, 0, 0]]), labels)
    assert wrong["el2n"][0] == pytest.approx(math.sqrt(2))
    uniform = token_scores(torch.zeros(1, 3, 7), labels)
    assert uniform["perplexity"][0] == pytest.approx(7)
    assert uniform["entropy"][0] == pytest.approx(math.log(7))
    half = token_scores(logits_of([[0.5, 0.5, 0], [0.75, 0.25, 0]]), labels)
    assert half["perplexity"][0] == pytest.approx(0.125**-0.5)
    assert all(np.isnan(v[0]) for v in token_scores(torch.zeros(1, 3, 7), labels * 0 - 100).values())
    assert grounding([2.0, 6.0], [2.0, 3.0]).tolist() == [1.0, 2.0]


@named("token_scores")
def test_token_scores_match(case: dict[str, Any]) -> None:
    logits = torch.from_numpy(array(case["inputs"]["logits"]))
    labels = torch.tensor([case["inputs"]["labels"]])
    got = token_scores(logits, labels, variant="official")
    want = {name: [value] for name, value in case["outputs"].items()}
    for name, value in want.items():
        assert got[name] == pytest.approx(value, rel=case["tolerance"])
    note = case["paper_or_official"]
    paper = token_scores(logits, labels)
    proper = float(note.split("would be ")[1].split(")")[0])
    assert paper["perplexity"][0] == pytest.approx(proper, rel=1e-5)
    supervised = float(note.split("supervised token: ")[1].split(")")[0])
    assert paper["entropy"][0] == pytest.approx(supervised, rel=1e-5)


@named("image_grounding")
def test_grounding_matches_where_both_parts_are_given(case: dict[str, Any]) -> None:
    without = math.exp(case["inputs"]["mean_loss_without_image"])
    got = grounding([without], [case["inputs"]["perplexity_with_image"]])
    assert got[0] == pytest.approx(case["outputs"]["IG"], rel=case["tolerance"])


def test_gradient_norms() -> None:
    case = GOLDEN["grand"]
    norms = np.linalg.norm(array(case["inputs"]["gradients"]), axis=1)
    assert norms == pytest.approx(array(case["outputs"]["grand"]), abs=case["tolerance"])


# --- bad input
# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: waterfill([3, -1], 2),
            "The 'sizes' parameter of waterfill must be a vector of whole numbers >= 0. Got [3, -1] instead.",
        ),
        (
            lambda: waterfill([3], -1),
            "The 'budget' parameter of waterfill must be an int >= 0. Got -1 instead.",
        ),
        (
            lambda: waterfill([5, 6], 14, variant="official"),
            "The 'budget' parameter of waterfill must be at most 11, the pool's size. Got 14 instead.",
        ),
        (
            lambda: histogram_entropy([1.0], 1),
            "The 'bins' parameter of histogram_entropy must be an int >= 2. Got 1 instead.",
        ),
        (
            lambda: histogram_entropy([1.0, 1.0], variant="official"),
            "The 'values' parameter of histogram_entropy must be not constant with variant='official'. "
            "Got [1.0, 1.0] instead.",
        ),
        (
            lambda: histogram_entropy([1e-9, 2e-9], variant="official"),
            "The 'values' parameter of histogram_entropy must be within the bins with variant='official'. "
            "Got [1e-09, 2e-09] instead.",
        ),
        (
            lambda: coverage_sample([1.0], -1),
            "The 'budget' parameter of coverage_sample must be an int >= 0. Got -1 instead.",
        ),
        (
            lambda: coverage_sample([1.0], 1, strata=0),
            "The 'strata' parameter of coverage_sample must be an int >= 1. Got 0 instead.",
        ),
        (
            lambda: coverage_sample([1.0], 1, trim=0.5),
            "The 'trim' parameter of coverage_sample must be a float in [0, 0.5). Got 0.5 instead.",
        ),
        (
            lambda: project_gradients(np.ones((2, 2)), 1),
            "The 'width' parameter of project_gradients must be an int >= 2. Got 1 instead.",
        ),
        (
            lambda: token_scores(torch.zeros(1, 3, 2), torch.zeros(1, 4)),
            "The 'labels' parameter of token_scores must be of shape (1, 3), the logits' (B, L). "
            "Got (1, 4) instead.",
        ),
    ],
)
def test_bad_parameters(call: Any, message: str) -> None:
    with pytest.raises(ParameterError) as error:
        call()
    assert str(error.value) == message


def test_features_must_be_a_matrix() -> None:
    with pytest.raises(DataError) as error:
        unit_rows(np.ones(3))
    assert str(error.value) == "features must be a matrix of numbers (rows, columns); got shape (3,)."
