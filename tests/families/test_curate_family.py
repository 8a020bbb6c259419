"""What every filter and repair of the registry promises. A new method adds one row and inherits all of it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from arithmetic_llm import Adder, differ
from datasets import Dataset
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from tunesmith import methods
from tunesmith.core.errors import DataError, ParameterError
from tunesmith.curate import CurateReport, Curator


def conversations(n: int) -> Dataset:
    """n questions with answers, of which each row 4, 9, 14 … repeats the row four before it."""
    rows = []
    for i in range(n):
        j = i - 4 if i % 5 == 4 else i
        question = {"role": "user", "content": f"What is {j} plus {j % 3}?"}
        answer = {"role": "assistant", "content": f"It is {j + j % 3 + (j % 4 == 3)}."}
        rows.append({"messages": [question, answer], "number": i, "note": None if i % 2 else f"n{i}"})
    # Without rows the columns must still have their types.
    return (Dataset.from_list(rows) if rows else conversations(1).select([])).with_format(None)


def letters(texts: list[str]) -> np.ndarray:
    """Counts of characters, of length 1."""
    x = np.array(
        [np.bincount(np.frombuffer(t.encode() + b" ", np.uint8), minlength=256) for t in texts], float
    )
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@dataclass(frozen=True)
class Row:
    """A method with parameters, and what rows it works on."""

    name: str
    parameters: Callable[[], dict[str, Any]] = dict
    bad: tuple[tuple[str, Any, str], ...] = ()  # parameter, value, how the message phrases "must be …"
    changes: dict[str, Any] = field(default_factory=dict)  # a parameter to set by set_params
    rows: Callable[[int], Dataset] = conversations
    drops: bool = True  # something of 30 rows is dropped
    repairs: bool = False  # rows may be changed
    refuses: tuple[str, ...] = ()  # kinds of rows, "text" or "pairs", that are an error
    columns: tuple[str, ...] = ()  # columns that it adds
    says: str = ""  # for the test's name, where a method has several rows

    def __str__(self) -> str:
        return f"{self.name}({self.says})"

    def create(self, **more: Any) -> Any:
        return methods.create(self.name, **{**self.parameters(), **more})

    def run(self, n: int = 30, **more: Any) -> tuple[Any, Dataset, Dataset]:
        """Return the fitted method, its input and its output."""
        method, rows = self.create(**more), self.rows(n)
        return method, rows, method.fit(rows).transform(rows)


def clear(**more: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"llm": Adder(), "nli": differ, **more}


CLEAR_BAD = (
    ("llm", None, "given: a model's id, a mapping with 'url' and 'model', or a callable"),
    ("threshold", "half", "'median', a share to drop such as '20%', or a number in [0, 1]"),
    ("n_samples", 0, "an int >= 1"),
    ("temperature", -1, "a finite number > 0"),
    ("beta", 2, "a number in [0, 1]"),
    ("min_keep", 0, "an int >= 1"),
)
ROWS = [
    Row(
        "curate.clear_filter",
        clear(threshold="20%"),
        bad=CLEAR_BAD,
        changes={"threshold": 0.5},
        refuses=("text", "pairs"),
        columns=("clear_confidence",),
    ),
    Row(
        "curate.clear",
        clear(),
        bad=(*CLEAR_BAD, ("correction_threshold", 1.1, "a number in [0, 1]")),
        changes={"correction_threshold": 1.0},
        repairs=True,
        refuses=("text", "pairs"),
        columns=("clear_confidence", "clear_action", "clear_better_confidence", "clear_original"),
    ),
    Row(
        "curate.dedup",
        bad=(("on", "answer", "'row' or 'prompt'"),),
        changes={"on": "prompt"},
    ),
    Row("curate.dedup", lambda: {"on": "prompt"}, changes={"on": "row"}, says="prompt"),
    Row(
        "curate.near_dedup",
        bad=(
            ("by", "sound", "'words', 'embedding' or 'image'"),
            ("on", "answer", "'row' or 'prompt'"),
            ("threshold", 0, "None or a float in (0, 1]"),
            ("ngram", 0, "an int >= 1"),
            ("groups", 0, "None or an int >= 1"),
            ("probes", -1, "None or an int >= 0"),
        ),
        changes={"threshold": 0.4},
    ),
    Row(
        "curate.near_dedup",
        lambda: {"on": "prompt", "threshold": 0.95},
        changes={"ngram": 2},
        says="prompt",
    ),
    Row(
        "curate.text_to_image",
        lambda: {"embedder": letters, "dedup_threshold": 0.999},
        bad=(
            ("min_words", -1, "an int >= 0"),
            ("max_words", 4, "an int >= 5"),
            ("dedup_threshold", 0, "None or a number > 0"),
            ("groups", 0, "None or an int >= 1"),
            ("probes", -1, "None or an int >= 0"),
            ("n_candidates", 0, "an int >= 1"),
            ("aesthetic", "nice", "None, 'sharpness' or a callable on images"),
            ("alignment", 3, "None, a model's folder, or a callable on prompts and images"),
            ("safety", "guard", "None or a callable"),
            ("shapes", ["round"], "a list of 'square' and 'random'"),
            ("aesthetic_threshold", None, "a number"),
        ),
        changes={"min_words": 6},
    ),
    Row(
        "curate.contamination",
        lambda: {"against": conversations(40).select([2, 7, 35])},
        bad=(
            ("by", "sound", "'words', 'embedding' or 'both'"),
            ("on", "answer", "'prompt' or 'row'"),
            ("action", "mark", "'drop' or 'flag'"),
            ("ngram", 0, "an int >= 1"),
            ("common", 0, "an int >= 1"),
            ("common_rows", 0, "None or an int >= 1"),
            ("share", 1.5, "a float in [0, 1]"),
            ("threshold", 0, "a float in (0, 1]"),
            ("against", 3, "paths, ids or datasets"),
        ),
        changes={"ngram": 4, "share": 0.0},
    ),
    Row(
        "curate.contamination",
        lambda: {"against": conversations(40).select([2, 7, 35]), "action": "flag"},
        changes={"on": "row"},
        drops=False,
        columns=("contamination",),
        says="flag",
    ),
]
every = pytest.mark.parametrize("row", ROWS, ids=str)
BAD = [(row, *bad) for row in ROWS for bad in row.bad]


def content(dataset: Dataset, without: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    return dataset.remove_columns([c for c in without if c in dataset.column_names]).to_list()


def test_every_registered_curator_has_a_row() -> None:
    ours = {
        name
        for name in methods.names("curate.*")
        if isinstance(c := methods.get(name), type)
        and issubclass(c, Curator)
        and c.__module__.startswith("tunesmith.")
    }
    assert ours == {row.name for row in ROWS}


@every
def test_something_happens(row: Row) -> None:
    method, rows, out = row.run()
    assert (len(out) < len(rows)) == row.drops
    assert bool(method.report_.changed) == row.repairs


@every
def test_nothing_is_dropped_without_a_reason(row: Row) -> None:
    method, rows, out = row.run()
    report = method.report_
    assert (report.n_in, report.n_out) == (len(rows), len(out))
    assert len(report.dropped) == len(rows) - len(out) == sum(report.reasons.values())
    assert all(isinstance(reason, str) and len(reason) > 5 for _, reason in report.dropped)
    numbers = [i for i, _ in report.dropped]
    assert numbers == sorted(set(numbers))
    assert set(numbers) <= set(range(len(rows)))
    assert list(report.reasons.values()) == sorted(report.reasons.values(), reverse=True)


@every
def test_rows_stay_in_order_and_other_columns_come_through(row: Row) -> None:
    method, rows, out = row.run()
    gone = {i for i, _ in method.report_.dropped}
    kept = [i for i in range(len(rows)) if i not in gone]
    for column in set(rows.column_names) - {"messages", *row.columns}:
        assert out[column][:] == [rows[column][i] for i in kept]
    assert set(out.column_names) == {*rows.column_names, *row.columns}


@every
def test_a_row_is_changed_only_with_a_line_in_the_report(row: Row) -> None:
    method, rows, out = row.run()
    gone = {i for i, _ in method.report_.dropped}
    changed = {i: (old, new) for i, _, old, new in method.report_.changed}
    assert not gone & set(changed)
    survivors = [i for i in range(len(rows)) if i not in gone]
    for i, before, after in zip(
        survivors, (rows[i] for i in survivors), content(out, row.columns), strict=True
    ):
        if i not in changed:
            assert after == before
        elif "messages" in before:
            old, new = changed[i]
            assert (before["messages"][-1]["content"], after["messages"][-1]["content"]) == (old, new)
            assert old != new
            assert after["messages"][:-1] == before["messages"][:-1], "a prompt never changes"


@every
def test_the_input_is_not_modified(row: Row) -> None:
    rows = row.rows(30)
    before, mark = rows.to_list(), rows._fingerprint
    row.create().fit(rows).transform(rows)
    assert rows.to_list() == before
    assert rows._fingerprint == mark


@every
def test_equal_inputs_give_equal_outputs_and_reports(row: Row) -> None:
    (a, _, first), (b, _, second) = row.run(), row.run()
    assert first.to_list() == second.to_list()
    assert a.report_ == b.report_


@every
def test_running_again_gives_the_same(row: Row) -> None:
    method, rows, out = row.run()
    report = deepcopy(method.report_)
    assert method.transform(rows).to_list() == out.to_list()
    assert method.report_ == report
    assert method.fit(rows).transform(rows).to_list() == out.to_list()
    assert method.report_ == report


@every
def test_fit_transform_is_fit_then_transform(row: Row) -> None:
    _, rows, out = row.run()
    assert row.create().fit_transform(rows).to_list() == out.to_list()


@every
def test_fit_returns_self_and_counts(row: Row) -> None:
    method = row.create()
    assert method.fit(row.rows(30)) is method
    assert method.n_rows_ == 30
    assert not hasattr(method, "report_")


@every
def test_transform_before_fit(row: Row) -> None:
    with pytest.raises(NotFittedError, match="is not fitted yet"):
        row.create().transform(row.rows(3))


@every
def test_no_rows(row: Row) -> None:
    method, rows, out = row.run(0)
    assert len(out) == 0
    assert method.report_ == CurateReport()
    assert set(rows.column_names) <= set(out.column_names)


@every
@pytest.mark.parametrize("n", [1, 2, 3])
def test_tiny_input(row: Row, n: int) -> None:
    method, _, out = row.run(n)
    assert len(out) == n - len(method.report_.dropped)
    assert method.report_.n_in == n


@every
def test_transform_of_other_rows_than_those_of_fit(row: Row) -> None:
    method, _, _ = row.run()
    other = row.rows(12)
    out = method.transform(other)
    assert method.report_.n_in == 12
    assert len(out) == 12 - len(method.report_.dropped)


@every
def test_a_view_counts_its_own_rows(row: Row) -> None:
    rows = row.rows(30)
    order = np.random.default_rng(3).permutation(30)[:17].tolist()
    view, copy = rows.select(order), Dataset.from_list([rows[i] for i in order], features=rows.features)
    one, two = row.create(), row.create()
    assert one.fit(view).transform(view).to_list() == two.fit(copy).transform(copy).to_list()
    assert one.report_ == two.report_
    assert one.report_.n_in == 17


@every
@pytest.mark.parametrize("kind", ["text", "pairs"])
def test_other_kinds_of_rows_are_taken_or_refused_in_words(row: Row, kind: str) -> None:
    texts = ["one", "two", "One", "three"]
    columns = {"text": texts} if kind == "text" else {"anchor": texts, "positive": texts[::-1]}
    rows = Dataset.from_dict(columns)
    if kind in row.refuses:
        with pytest.raises(DataError, match=r"needs (rows with|conversations|a column)"):
            row.create().fit(rows)
        return
    method = row.create()
    out = method.fit(rows).transform(rows)
    assert len(out) == 4 - len(method.report_.dropped)


@every
def test_odd_texts(row: Row) -> None:
    if "messages" not in row.rows(1).column_names:
        pytest.skip("not rows of conversations")
    odd = ["", " ", "naïve ☕ 漢字", "\u2028", "a" * 20_000, "<|im_end|>", "{{ 7 * 7 }}", "\x00"]
    rows = [
        {"messages": [{"role": "user", "content": f"q {t}"}, {"role": "assistant", "content": f"{t} a"}]}
        for t in odd
    ]
    dataset = Dataset.from_list(rows)
    method = row.create()
    out = method.fit(dataset).transform(dataset)
    assert len(out) == len(rows) - len(method.report_.dropped)


@every
def test_global_random_state_is_left_alone(row: Row) -> None:
    np.random.seed(7)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    row.run()
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@every
def test_parameters_are_stored_untouched(row: Row) -> None:
    method = row.create()
    before = method.get_params(deep=False)
    copies = {name: repr(value) for name, value in before.items()}
    rows = row.rows(12)
    method.fit(rows).transform(rows)
    after = method.get_params(deep=False)
    assert all(after[name] is before[name] for name in before)
    assert {name: repr(value) for name, value in after.items()} == copies


@every
def test_clone_and_set_params(row: Row) -> None:
    method, _, _ = row.run(12)
    twin = clone(method)
    assert not hasattr(twin, "n_rows_")
    assert not hasattr(twin, "report_")
    assert repr(twin.get_params(deep=False)) == repr(method.get_params(deep=False))
    rows = row.rows(30)
    twin.set_params(**row.changes)
    assert (
        twin.fit(rows).transform(rows).to_list()
        == row.create(**row.changes).fit(rows).transform(rows).to_list()
    )


@every
def test_pickle_of_a_fitted_method(row: Row) -> None:
    method, rows, out = row.run()
    again = pickle.loads(pickle.dumps(method))
    assert again.transform(rows).to_list() == out.to_list()
    assert again.report_ == method.report_


@pytest.mark.parametrize(
    ("row", "name", "value", "expected"), BAD, ids=[f"{b[0]}-{b[1]}-{b[2]!r}" for b in BAD]
)
def test_bad_parameters(row: Row, name: str, value: Any, expected: str) -> None:
    method = row.create(**{name: value})
    with pytest.raises(ParameterError) as caught:
        method.fit(row.rows(6))
    assert str(caught.value) == (
        f"The '{name}' parameter of {type(method).__name__} must be {expected}. Got {value!r} instead."
    )


def test_every_method_has_a_bad_parameter_to_refuse() -> None:
    takes = {row.name for row in ROWS if row.create().get_params(deep=False)}
    assert takes == {row.name for row in ROWS if row.bad}


@every
def test_the_report_is_saved_and_read_again(row: Row, tmp_path: Any) -> None:
    method, _, _ = row.run()
    method.report_.save(tmp_path / "report.json")
    assert CurateReport.load(tmp_path / "report.json") == method.report_
    method.report_.save_lines(tmp_path / "rows.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines == list(method.report_.lines())
    assert [(line["row"], line["reason"]) for line in lines if line["action"] == "drop"] == (
        method.report_.dropped
    )
    assert [line["row"] for line in lines] == sorted(line["row"] for line in lines)


@every
def test_the_report_in_words(row: Row) -> None:
    method, rows, out = row.run()
    text = str(method.report_)
    assert text.startswith(f"{len(rows):,} rows in, {len(out):,} out.")
    for reason, count in method.report_.reasons.items():
        assert f"\n  {count:,} × {reason}" in text
    assert sum(count for action, _, count in method.report_.table() if action == "dropped") == len(
        rows
    ) - len(out)


@every
def test_docstring_tells_parameters_and_cost(row: Row) -> None:
    method = methods.get(row.name)
    for name in row.create().get_params(deep=False):
        assert f"\n        {name}: " in method.__doc__, name
    assert any(word in method.__doc__ for word in ("Time", "O(", "Cost"))
    assert "emory" in method.__doc__
