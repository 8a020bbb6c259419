"""Fine-T2I's rules by hand: counts, grid, limits, thresholds, best of n, verdicts, sizes, splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.curate.fine_t2i import Funnel, Stage, Taxonomy, draw_size, parse_verdict, split_concepts
from tunesmith.curate.fine_t2i.rules import aesthetic_reason, balance, best_of, verdict_reason, word_reason


def test_the_counts_of_the_paper_fit_together() -> None:
    funnel = Funnel(
        [
            Stage("dedup", 44_800_567, 5_555_147, {"near": 44_800_567 - 5_555_147}),
            Stage("safety", 5_555_147, 5_497_062, {"unsafe or long": 5_555_147 - 5_497_062}),
            Stage("attributes", 5_497_062, 5_158_969, {"labels": 5_497_062 - 5_158_969}),
            Stage("variants", 5_158_969, 4 * 5_158_969, made={4: 5_158_969}),
            Stage("strict", 4 * 5_158_969, 6_145_693, {"judge": 4 * 5_158_969 - 6_145_693}),
        ]
    )
    funnel.check()
    assert round(1 - funnel[0].kept, 4) == 0.8760
    assert round(funnel[1].kept, 4) == 0.9895
    assert round(funnel[2].kept, 4) == 0.9385
    assert round(funnel[4].kept, 3) == 0.298
    # Between two expanding stages the kept shares multiply to last over first.
    assert np.prod([s.kept for s in funnel[:3]]) == pytest.approx(5_158_969 / 44_800_567)
    assert 1_615_592 + 1_538_253 + 1_686_498 + 1_305_350 == 6_145_693
    assert 117_389 + 32_654 + 18_381 == 168_424
    assert 6_145_693 + 168_424 == 6_314_117
    # "Over 95 % removed" fits prompts × 4 variants, not prompts.
    assert 1 - 6_145_693 / (4 * 44_800_567) > 0.95 > 1 - 6_145_693 / 44_800_567


def test_stages_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(DataError, match="the counts of the stage 'a' do not add up"):
        Stage("a", 10, 8, {"x": 1})
    with pytest.raises(DataError, match="the counts of the stage 'b' do not add up"):
        Stage("b", 2, 5, made={1: 1, 3: 1})
    with pytest.raises(DataError, match=r"the stage 'd' took in 3 rows, but 'c' let 2 through\."):
        Funnel([Stage("c", 2, 2), Stage("d", 3, 3)]).check()
    both = Funnel([Stage("a", 2, 1, {"x": 1})]) + Funnel([Stage("a", 3, 1, {"x": 1, "y": 1})])
    assert both == [Stage("a", 5, 2, {"x": 2, "y": 1})]
    assert str(both).splitlines() == [
        "a                       5 →            2  40.0% kept",
        "    2 × x",
        "    1 × y",
    ]
    assert both.table()[0] == {"stage": "a", "rows_in": 5, "rows_out": 2, "kept": 0.4, "first_reason": "x"}


def test_the_shipped_grid_has_the_numbers_of_the_paper() -> None:
    grid = Taxonomy.load()
    assert [len(getattr(grid, a)) for a in ("categories", "styles", "tasks", "templates")] == [32, 11, 10, 5]
    groups: dict[str, float] = {}
    for category, share in grid.categories.items():
        groups[grid.groups[category]] = groups.get(grid.groups[category], 0) + share
    assert {name: round(100 * share, 1) for name, share in groups.items()} == {
        "people": 37.9,
        "nature and scenes": 27.8,
        "text rendering": 17.4,
        "design": 10.6,
        "rare cases": 6.3,
    }
    assert sum(groups.values()) == pytest.approx(1)
    assert sorted(map(len, grid.tasks)) == [1] * 4 + [2] * 6
    assert sum(w for tasks, w in grid.tasks.items() if len(tasks) == 2) == pytest.approx(0.369)


@pytest.mark.parametrize("seed", range(5))
def test_draws_follow_the_weights(seed: int) -> None:
    grid, n = Taxonomy.load(), 20_000
    cells = grid.sample(n, seed)
    for axis, names in (
        ("categories", [c.category for c in cells]),
        ("styles", [c.style for c in cells]),
        ("tasks", [c.tasks for c in cells]),
        ("templates", [c.template for c in cells]),
    ):
        for name, p in getattr(grid, axis).items():
            assert abs(names.count(name) / n - p) < 4.5 * np.sqrt(p * (1 - p) / n), (axis, name)


def test_equal_seeds_give_equal_cells_and_more_begin_with_fewer() -> None:
    grid = Taxonomy.load()
    assert grid.sample(50, 3) == grid.sample(50, 3)
    assert grid.sample(50, 3) == grid.sample(80, 3)[:50]
    assert grid.sample(50, 3) != grid.sample(50, 4)
    assert len({cell.concept for cell in grid.sample(200)}) == 200
    assert grid.sample(0) == []


WEIGHTS = "names with weights >= 0 whose sum is positive"


@pytest.mark.parametrize(
    "bad", [{}, {"a": 0.0}, {"a": -1.0, "b": 2.0}, {"a": float("nan")}, {"a": "x"}, {"a": True}]
)
def test_bad_weights(bad: dict[str, object]) -> None:
    good = {"x": 1.0}
    with pytest.raises(ParameterError) as caught:
        Taxonomy(bad, good, {("x",): 1.0}, good)  # type: ignore[arg-type]
    assert str(caught.value) == (
        f"The 'categories' parameter of Taxonomy must be {WEIGHTS}. Got {bad!r} instead."
    )


def test_bad_files_and_labels(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text("groups: {}\nstyles: {a: 1}\n")
    with pytest.raises(DataError, match=r"grid\.yaml: the taxonomy lacks tasks, templates\."):
        Taxonomy.load(path)
    path.write_text("a: [")
    with pytest.raises(DataError, match=r"grid\.yaml: the taxonomy cannot be read"):
        Taxonomy.load(path)
    with pytest.raises(
        DataError, match=r"^row 1: there is no category 'portait' in the taxonomy\. Did you mean 'portrait'"
    ):
        Taxonomy.load().check_labels(["sport", "portait", None])
    with pytest.raises(
        ParameterError, match=r"The 'n' parameter of Taxonomy\.sample must be an int >= 0\. Got -1"
    ):
        Taxonomy.load().sample(-1)


@pytest.mark.parametrize(("count", "kept"), [(0, False), (4, False), (5, True), (150, True), (151, False)])
def test_word_limits(count: int, kept: bool) -> None:
    assert (word_reason("w " * count) is None) == kept


def test_thresholds() -> None:
    assert aesthetic_reason(5.5) == "aesthetic score not above 5.5 → 5.5"
    assert aesthetic_reason(np.nextafter(5.5, 6)) is None
    assert aesthetic_reason(6.5, real=True) is None
    assert aesthetic_reason(6.49, real=True) == "aesthetic score of a photograph below 6.5 → 6.49"
    assert (
        aesthetic_reason(float("nan"))
        == aesthetic_reason(float("nan"), real=True)
        == ("aesthetic score is not a number")
    )


@settings(max_examples=50)
@given(st.lists(st.floats(0, 10), max_size=20), st.floats(0, 10), st.floats(0, 10), st.booleans())
def test_a_higher_threshold_keeps_a_subset(scores: list[float], a: float, b: float, real: bool) -> None:
    low, high = sorted((a, b))

    def kept(t: float) -> set[int]:
        return {
            i for i, s in enumerate(scores) if aesthetic_reason(s, t, real=real, real_threshold=t) is None
        }

    assert kept(high) <= kept(low)


@settings(max_examples=50)
@given(st.lists(st.floats(allow_infinity=False), min_size=1, max_size=9))
def test_the_best_candidate_has_the_highest_score(scores: list[float]) -> None:
    numbers = [s for s in scores if not np.isnan(s)]
    best = best_of(scores)
    if numbers:
        assert scores[best] == max(numbers)
        assert best == scores.index(max(numbers))
    assert best_of(scores[:1]) == 0


def test_verdicts() -> None:
    assert parse_verdict(True) is True
    assert parse_verdict(np.bool_(False)) is False
    assert parse_verdict("Every object is there.\nVERDICT: true") is True
    assert parse_verdict("<think>yes, it looks true</think>\nNo.") is False
    assert parse_verdict("<think>yes, it is cut off") is None
    assert parse_verdict("yes or no") is None
    assert parse_verdict("") is parse_verdict(None) is parse_verdict(0.5) is None
    assert parse_verdict("unknown, nothing") is None  # "no" inside a word is no verdict
    assert verdict_reason(1.0, 0.25, graded=False) is None
    assert verdict_reason(0.0, 0.25, graded=False) == "image does not show what its prompt says"
    assert (
        verdict_reason(float("nan"), 0.25, graded=False)
        == "the verdict on image and prompt could not be read"
    )
    assert verdict_reason(0.25, 0.25, graded=True) is None
    assert verdict_reason(0.2, 0.25, graded=True) == "image and prompt agree less than 0.25 → 0.2"


def test_sizes() -> None:
    rng = np.random.default_rng(0)
    squares = [draw_size("square", rng) for _ in range(300)]
    assert all(w == h and 512 <= w <= 2560 for w, h in squares)
    others = [draw_size("random", rng) for _ in range(600)]
    assert all(w % 16 == h % 16 == 0 and min(w, h) >= 512 and max(w, h) <= 2560 for w, h in others)
    wanted = [a / b for a, b in ((4, 3), (3, 2), (16, 9), (5, 4))]
    found = {min(wanted, key=lambda r: abs(r - max(s) / min(s))) for s in others}
    assert found == set(wanted)
    assert all(min(abs(max(s) / min(s) - r) for r in wanted) < 0.02 for s in others)
    assert 0.4 < np.mean([w > h for w, h in others]) < 0.6
    with pytest.raises(ParameterError, match="'shape' parameter of draw_size must be 'square' or 'random'"):
        draw_size("round", rng)


def test_versions_of_one_concept_never_part() -> None:
    concepts = [f"c{i}" for i in range(2000)] * 2
    held = split_concepts(concepts, 0.2, random_state=1)
    assert held[:2000] == held[2000:]
    assert abs(np.mean(held) - 0.2) < 4.5 * np.sqrt(0.2 * 0.8 / 2000)
    assert split_concepts(concepts[5:9], 0.2, random_state=1) == held[5:9]
    assert split_concepts(concepts, 0.2, random_state=2) != held
    assert not any(split_concepts(concepts, 0.0))
    assert all(split_concepts(concepts, 1.0))
    with pytest.raises(
        ParameterError, match=r"'share' parameter of split_concepts must be a float in \[0, 1\]"
    ):
        split_concepts(["a"], 2)


def test_balance_by_hand() -> None:
    # Weights 1:1, so four of each; "z" has no weight.
    labels = ["x"] * 6 + ["y"] * 4 + ["z"]
    assert balance(labels, {"x": 0.5, "y": 0.5}) == [True] * 4 + [False] * 2 + [True] * 4 + [False]
    assert balance([], {"x": 1.0}) == []
    assert balance(["y"], {"x": 0.5, "y": 0.5}) == [True]
