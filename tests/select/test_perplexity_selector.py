"""The perplexity filter of POINTS: hand-worked numbers, parity, nesting, bands and bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import NotFittedError

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.select.perplexity import PerplexitySelector, perplexity

FILE = Path(__file__).parents[1] / "golden/points.json"
GOLDEN = {case["name"]: case for case in json.loads(FILE.read_text(encoding="utf-8"))["cases"]}


def test_perplexity_by_hand() -> None:
    nll = -np.log([0.5 * 0.25, 1.0, (1 / 7) ** 3])
    assert perplexity(nll, [2, 1, 3]) == pytest.approx([2.8284271, 1.0, 7.0])
    odd = perplexity([0.0, np.inf, 1e6], [0, 2, 1])
    assert np.isnan(odd[0])
    assert np.isinf(odd[1:]).all()


def test_perplexity_matches_the_released_rounding_and_the_paper() -> None:
    for row in GOLDEN["perplexity_from_probabilities"]["outputs"]["rows"]:
        for p, want in (
            (row["p_bfloat16"], row["ppl"]),
            (row["p"], row.get("ppl_without_rounding_own", "inf")),
        ):
            with np.errstate(divide="ignore"):
                got = perplexity([-np.log(p).sum()], [len(p)])[0]
            assert got == pytest.approx(float(want), rel=1e-5)


@pytest.mark.parametrize("number", [0, 1])
def test_perplexity_of_a_caption_from_logits(number: int) -> None:
    """The answer's tokens after the template's 14, less the closing line break; nothing of the prompt."""
    case = GOLDEN[f"caption_perplexity_{number}"]
    logits = np.array(case["inputs"]["logits"]["data"]).reshape(case["inputs"]["logits"]["shape"])[0]
    answer = case["inputs"]["caption_template_ids"][case["params"]["template_prefix"] :]
    start = len(case["inputs"]["prompt_ids"])
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    scored = answer[:-1]
    nll = -sum(log_p[start - 1 + i, token] for i, token in enumerate(scored))
    got = perplexity([nll], [len(scored)])[0]
    proper = float(case["paper_or_official"].split("(paper) ")[1].split()[0])
    assert got == pytest.approx(proper, rel=1e-6)
    assert got == pytest.approx(case["outputs"]["ppl"], rel=2e-3)  # rounded to bfloat16 there


@pytest.mark.parametrize("number", [0, 1, 2])
def test_filter_matches_the_released_code(number: int) -> None:
    case = GOLDEN[f"filter_{number}"]
    ppl = np.array([float(v) for v in case["inputs"]["ppl"]["data"]])
    ppl[case["inputs"]["failed"]] = np.nan
    with pytest.warns(
        UserWarning, match=f"^{len(case['inputs']['failed'])} of {len(ppl)} items have no perplexity"
    ):
        selector = PerplexitySelector().fit(perplexity=ppl)
    assert selector.keep(case["params"]["rho"]).tolist() == case["outputs"]["kept"]


def test_shares_of_the_contract_and_of_the_paper() -> None:
    selector = PerplexitySelector().fit(perplexity=np.arange(1.0, 101))
    assert len(selector.keep(0.29)) == 28
    assert len(selector.select(0.29)) == 29
    assert len(selector.keep(1.0)) == 100
    assert selector.select(3).tolist() == [0, 1, 2]
    with pytest.warns(UserWarning, match="^50 of 100 items"):
        half = PerplexitySelector().fit(perplexity=np.where(np.arange(100) % 2, np.nan, 2.0))
    assert len(half.keep(0.5)) == len(half.select(0.5)) == 25


@settings(deadline=None)
@given(
    st.lists(st.one_of(st.integers(1, 8), st.just(np.inf)), min_size=1, max_size=40),
    st.sampled_from(["low", "mid", "high"]),
)
def test_larger_budgets_extend_smaller_ones(values: list[float], band: str) -> None:
    selector = PerplexitySelector(band=band).fit(perplexity=values)
    whole = selector.select(len(values)).tolist()
    assert sorted(whole) == list(range(len(values)))
    for count in range(1, len(values)):
        assert selector.select(count).tolist() == whole[:count]
    if band == "low":
        assert np.array(values)[whole].tolist() == sorted(values)
    finite = int(np.isfinite(values).sum())
    assert np.isfinite(np.array(values)[whole[:finite]]).all()  # infinity is last in every band


def test_ties_go_by_index() -> None:
    ppl = [2.0, 1.0, 2.0, 1.0, 3.0]
    assert PerplexitySelector().fit(perplexity=ppl).select(5).tolist() == [1, 3, 0, 2, 4]
    assert PerplexitySelector(band="high").fit(perplexity=ppl).select(5).tolist() == [4, 0, 2, 1, 3]
    assert PerplexitySelector(band="mid").fit(perplexity=ppl).select(3).tolist() == [0, 3, 2]


def test_limits_and_lengths_are_counted() -> None:
    selector = PerplexitySelector(min_perplexity=2, max_perplexity=5, min_tokens=4)
    assert selector.required_features() == ("perplexity", "length")
    with pytest.warns(UserWarning, match="^1 of 6 items"):
        selector.fit(perplexity=[1.0, 2.0, 5.0, 6.0, 3.0, np.nan], length=[9, 9, 9, 9, 3, 9])
    assert selector.report_ == {"rows": 6, "failed": 1, "too_short": 1, "outside_limits": 2, "valid": 2}
    assert selector.select(1.0).tolist() == [1, 2]


def test_a_callable_scores_images_with_text() -> None:
    items = [{"image": i, "text": "x" * i} for i in range(1, 5)]
    selector = PerplexitySelector(scorer=lambda rows: [10.0 / row["image"] for row in rows])
    assert selector.required_features() == ()
    assert selector.fit(items).select(2).tolist() == [3, 2]
    assert selector.fit(items, perplexity=[1.0, 2.0, 3.0, 4.0]).select(1).tolist() == [0]
    with pytest.raises(DataError) as error:
        PerplexitySelector(scorer=lambda rows: [1.0]).fit(items)
    assert str(error.value) == "the scorer returned shape (1,) for 4 items; one perplexity each is needed."


FORM = "The '{}' parameter of PerplexitySelector must be {}. Got {} instead."


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: PerplexitySelector(band="best").fit(perplexity=[1.0]),
            FORM.format("band", "one of 'low', 'mid', 'high'", "'best'"),
        ),
        (
            lambda: PerplexitySelector(min_tokens=-1).fit(perplexity=[1.0]),
            FORM.format("min_tokens", "an int >= 0", -1),
        ),
        (
            lambda: PerplexitySelector(max_perplexity=0).fit(perplexity=[1.0]),
            FORM.format("max_perplexity", "a number > 0 or None", 0),
        ),
        (
            lambda: PerplexitySelector(scorer="gpt").fit([1]),
            FORM.format("scorer", "a callable or None", "'gpt'"),
        ),
        (
            lambda: PerplexitySelector().fit(),
            FORM.format("perplexity", "given, unless there is a scorer", "None"),
        ),
        (
            lambda: PerplexitySelector().fit(perplexity=[1.0] * 3).keep(0.3),
            FORM.format("ratio", "a float in (0, 1] that keeps at least one of the 3 valid items", 0.3),
        ),
        (
            lambda: PerplexitySelector().fit(perplexity=[1.0] * 3).select(4),
            FORM.format("budget", "an int in [1, 3] or a float in (0, 1]", 4),
        ),
        (
            lambda: PerplexitySelector().fit(perplexity=[1.0] * 3).select(1.5),
            FORM.format("budget", "an int in [1, 3] or a float in (0, 1]", 1.5),
        ),
    ],
)
def test_bad_parameters(call: Any, message: str) -> None:
    with pytest.raises(ParameterError) as error:
        call()
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("fit", "message"),
    [
        ({"perplexity": []}, "perplexities must be one number per item; got shape (0,)."),
        ({"perplexity": [1.0, -2.0]}, "row 1: a perplexity is > 0. The row reads: -2.0"),
        (
            {"perplexity": [np.nan, np.nan]},
            "no item may be chosen (rows 2, failed 2, too_short 0, outside_limits 0, valid 0).",
        ),
    ],
)
def test_bad_data(fit: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as error:
        PerplexitySelector().fit(**fit)
    assert str(error.value) == message


def test_lengths_must_fit() -> None:
    with pytest.raises(DataError) as error:
        PerplexitySelector(min_tokens=2).fit(perplexity=[1.0, 2.0])
    assert str(error.value) == "min_tokens needs the feature 'length', one number per item; got shape ()."
    with pytest.raises(NotFittedError):
        PerplexitySelector().select(1)
