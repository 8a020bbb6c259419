"""The audit of drift: logs in, events and a report out, without anybody's text unless asked for."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from tunesmith.audit import Report
from tunesmith.audit.drift import RequestFeatures, audit_drift, retrain_trigger
from tunesmith.audit.drift.features import request_text
from tunesmith.audit.drift.reporting import binomial_interval, judge
from tunesmith.core.errors import DataError, ParameterError, UnknownNameError
from tunesmith.core.events import EventLog, read_events

WORDS = {
    "animals": "the cat sat on mat and dog ran to park",
    "code": "write function adds numbers returns sum",
}


def requests(n: int, seed: int = 0, topic: str = "animals", latency: float = 1.0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    words = WORDS[topic].split()
    return [
        {
            "id": i,
            "time": f"2026-01-01T00:{i // 60:02}:{i % 60:02}",
            "prompt": " ".join(rng.choice(words, 6)),
            "latency_ms": float(rng.exponential(latency)),
            "usage": {"tokens": int(rng.integers(5, 20))},
            "error": bool(rng.random() < 0.03),
        }
        for i in range(n)
    ]


@pytest.fixture
def settings(tiny_encoder_dir: str) -> dict[str, Any]:
    return {"encoder": tiny_encoder_dir, "window": 100, "n_clusters": 4, "subject": "log"}


def test_a_new_topic_is_reported_by_window_feature_and_cluster(
    settings: dict[str, Any], tmp_path: Path, write_jsonl: Any
) -> None:
    reference = write_jsonl(tmp_path / "reference.jsonl", requests(600))
    live = write_jsonl(tmp_path / "live.jsonl", requests(300, 1) + requests(230, 2, "code"))
    log = EventLog(tmp_path / "events.jsonl")
    report = audit_drift(reference, live, log=log, **settings)
    assert report.level == "suspicious"
    assert "embedding" in report.verdict
    assert "the first begins at row 301 (2026-01-01T00:00:00)" in report.verdict
    assert report.numbers["windows"] == 5
    assert report.numbers["first alarm, window"] == 4
    assert report.numbers["share of windows that alarm"] == pytest.approx(binomial_interval(2, 5))
    windows, features, clusters = report.tables
    assert [row[4] for row in windows.rows] == ["", "", "", "ALARM", "ALARM"]
    assert {row[0] for row in features.rows[:2]} == {"embedding"}
    assert {row[0] for row in features.rows} == {
        "embedding",
        "text length",
        "latency_ms",
        "usage.tokens",
        "error",
    }
    assert sum(row[1] for row in clusters.rows) == pytest.approx(1)
    assert sum(row[2] for row in clusters.rows) == pytest.approx(1)
    assert report.pictures["Windows"].startswith(b"\x89PNG")  # type: ignore[arg-type]
    assert any(note.startswith("30 rows at the end") for note in report.notes)
    page = report.to_html() + json.dumps(report.to_dict())
    assert not any(f" {word} " in page for word in ("numbers returns", "adds numbers", "mat and", "cat sat"))
    assert Report.read(report.save(tmp_path / "out"))["level"] == "suspicious"

    events = list(read_events(tmp_path / "events.jsonl"))
    told = [event for event in events if event["kind"] == "drift"]
    assert [event["alarm"] for event in told] == [False, False, False, True, True]
    assert told[3]["first"] == 300
    assert "embedding" in told[3]["moved"]
    assert told[3]["values"]["embedding, mmd"] > told[3]["thresholds"]["embedding, mmd"]
    alarms = [event for event in events if event["kind"] == "warning"]
    assert [event["window"] for event in alarms] == [3, 4]
    assert all(event["alarm"] for event in alarms)
    assert alarms[0]["message"].startswith("drift: window 4, from row 301 on, differs from the reference in ")


def test_texts_are_shown_when_asked_for(settings: dict[str, Any]) -> None:
    live = [{"prompt": f"{row['prompt']} {'x' * 300}"} for row in requests(100, 2, "code")]
    report = audit_drift([{"prompt": r["prompt"]} for r in requests(400)], live, examples=True, **settings)
    shown = " ".join(row[4] for row in report.tables[2].rows)
    assert "function" in shown
    assert "more characters)" in shown  # clipped
    assert any("confidential" in note for note in report.notes)


def test_clean_traffic_is_clean_and_repeats_exactly(settings: dict[str, Any]) -> None:
    reference, live = Dataset.from_list(requests(600)), requests(400, 7)
    report = audit_drift(reference, live, **settings)
    assert report.level == "clean"
    assert report.numbers["share of windows that alarm"][0] == 0
    assert "the true share is at most 60 % (95 % interval)" in report.verdict
    assert audit_drift(reference, live, **settings).to_dict() == report.to_dict()


def test_a_scalar_alone_needs_no_encoder() -> None:
    live = requests(200, 1, latency=2.0)
    report = audit_drift(requests(400), live, encoder=None, window=100)
    assert report.level == "suspicious"
    assert report.tables[1].rows[0][0] == "latency_ms"
    chosen = audit_drift(requests(400), live, features=["usage.tokens"], window=100)
    assert chosen.level == "clean"
    assert {row[0] for row in chosen.tables[1].rows} == {"usage.tokens"}


def test_a_large_reference_is_drawn_from() -> None:
    report = audit_drift(requests(900), requests(100, 1), encoder=None, window=100, max_reference=300)
    assert report.numbers["reference rows"] == 300
    assert "300 of 900 rows of the reference, drawn at random, were used." in report.notes


def test_too_few_live_rows_and_small_windows_are_unsure() -> None:
    report = audit_drift(requests(400), requests(30, 1), encoder=None, window=100)
    assert report.level == "unsure"
    assert (
        report.verdict == "There are 30 usable live rows, too few for a window of 100: nothing can be said."
    )
    small = audit_drift(requests(400), requests(100, 1), encoder=None, window=50)
    assert small.level == "unsure"
    assert (
        small.verdict
        == "No window differs from the reference, but windows of 50 rows show only large shifts."
    )
    assert "Windows of fewer than 100 rows show only large shifts." in small.notes


def test_a_metric_that_stays_low_recommends_retraining() -> None:
    assert retrain_trigger([0.9, 0.85, 0.85, 0.85], 0.9) == 3
    assert retrain_trigger([0.855, 0.855, None, 0.855], 0.9) == 3  # 5 % of 0.9 is 0.045
    assert retrain_trigger([0.85, 0.85, 0.86, 0.85, 0.85], 0.9) is None
    assert retrain_trigger([0.5, 0.5], 0.9, windows=2) == 1
    reference = [{**row, "correct": i % 10 > 0} for i, row in enumerate(requests(400))]
    live = [{**row, "correct": i % 5 > 0} for i, row in enumerate(requests(400, 7))]
    live[3].pop("correct")  # not labelled
    report = audit_drift(reference, live, encoder=None, window=100, metric="correct")
    assert report.numbers["correct, baseline"] == 0.9
    assert report.numbers["correct, live"] == pytest.approx(319 / 399)
    assert report.numbers["retraining recommended at window"] == 3
    assert report.verdict.endswith(
        "Retraining is recommended: 'correct' was at least 5 % below its baseline of 0.9 in three windows running, up "
        "to window 3."
    )
    assert "correct" not in {row[0] for row in report.tables[1].rows}
    good = audit_drift(reference, live, encoder=None, window=100, metric="correct", baseline=0.8)
    assert "retraining recommended at window" not in good.numbers
    with pytest.raises(
        DataError, match=r"rows: no row has a number in the metric's field 'correkt': give its baseline\."
    ):
        audit_drift(reference, live, encoder=None, window=100, metric="correkt")


@pytest.mark.parametrize(
    ("alarms", "level"),
    [
        ([], "clean"),
        ([False] * 5, "clean"),
        ([True, True, *[False] * 30], "suspicious"),  # two in a row
        ([False, True, *[False] * 8], "unsure"),  # P(1 of 10 or more at 2.5 %) = 0.22
        ([True, False, True, False], "suspicious"),  # P(2 of 4 or more) = 0.0037
        ([True], "suspicious"),
    ],
)
def test_how_alarms_are_judged(alarms: list[bool], level: str) -> None:
    assert judge(alarms, 0.025) == level


def test_the_interval_of_a_share() -> None:
    assert binomial_interval(0, 4) == (0, 0, pytest.approx(1 - 0.025 ** (1 / 4)))
    assert binomial_interval(4, 4)[1:] == (pytest.approx(0.025 ** (1 / 4)), 1)


def test_what_is_compared_and_what_is_left_out() -> None:
    rows = [
        (f"row {i}", {**row, "n": i, "score": 1.0 if i % 3 else None}) for i, row in enumerate(requests(60))
    ]
    found = RequestFeatures().fit(rows)
    assert found.names == ["embedding", "text length", "latency_ms", "usage.tokens", "error"]
    assert found.notes == [
        "'n' is left out: it rises from row to row, as a time or an id.",
        "'score' is left out: only 40 of 60 rows have a number there.",
    ]
    numbers = RequestFeatures(encoder=None).fit([("row 0", {"n": 1}), ("row 1", {"n": 1})])
    assert numbers.names == ["n"]
    assert numbers.columns([{"n": True}, {"n": 3}])["n"].tolist() == [1, 3]
    chat = {"messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]}
    assert request_text(chat) == "hello"
    assert request_text({"body": {"prompt": "hi"}}, "body.prompt") == "hi"
    assert request_text({"text": None, "query": "q"}) == "q"


def test_rows_without_text_or_number_are_counted_with_their_place(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    good = requests(210, 3)
    bad: list[dict[str, Any]] = [
        {**good[0], "prompt": 7},
        {**good[0], "prompt": None},
        {**good[0], "latency_ms": math.nan},
        {**good[0], "latency_ms": None},
        {**good[0], "latency_ms": 10**400},
    ]
    path = tmp_path / "live.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*bad, *good]) + "{broken\n")
    report = audit_drift(requests(400), path, **settings)
    assert report.numbers["live rows"] == 200
    table = report.tables[-1]
    assert table.title == "Rows of the live log that were not used: 6 of 216"
    assert table.rows == [
        ["live.jsonl:1", "the text is no string but of type int"],
        ["live.jsonl:2", "no text"],
        ["live.jsonl:3", "'latency_ms' is not finite"],
        ["live.jsonl:4", "no number in 'latency_ms'"],
        ["live.jsonl:5", "'latency_ms' is not finite"],
        ["live.jsonl:216", "not JSON"],
    ]


@pytest.mark.parametrize(
    ("reference", "live", "more", "kind", "message"),
    [
        ([], [{}], {}, DataError, "rows: the log is empty: there is no row in it."),
        (requests(800), [], {}, DataError, "rows: the log is empty: there is no row in it."),
        (
            [{"prompt": 7}] * 9,
            [{}],
            {},
            DataError,
            "rows: 0 of 9 rows can be used: 9 × the text is no string but of type int. First: row 0: the text is no "
            "string but of type int.",
        ),
        (
            requests(800),
            [{"prompt": "x"}] * 9,
            {},
            DataError,
            "rows: 0 of 9 rows can be used: 9 × no number in 'latency_ms'. First: row 0: no number in 'latency_ms'.",
        ),
        (
            requests(50),
            [{"prompt": "x"}] * 9,
            {"features": ["text length"], "text_field": "body"},
            DataError,
            "rows: 0 of 50 rows can be used: 50 × no text in 'body'. First: row 0: no text in 'body'.",
        ),
        (
            [{"user": "a"}] * 9,
            [{}],
            {},
            DataError,
            "rows: there is nothing to compare: no row has a text or a number. Name the text's field with text_field.",
        ),
        (
            requests(40),
            requests(9),
            {"features": ["latncy_ms"]},
            UnknownNameError,
            "There is no feature of the reference named 'latncy_ms'. Did you mean 'latency_ms'? Valid names: ",
        ),
        (
            requests(40),
            requests(9),
            {"encoder": None},
            DataError,
            "the reference has 40 usable rows; a window of 250 needs at least 750",
        ),
        (
            requests(40),
            requests(9),
            {"max_reference": 0},
            ParameterError,
            "The 'max_reference' parameter of audit_drift must be an int >= 1. Got 0 instead.",
        ),
        (
            requests(40),
            requests(9),
            {"metric": "correct", "baseline": 0},
            ParameterError,
            "The 'baseline' parameter of audit_drift must be a finite number > 0. Got 0 instead.",
        ),
        (
            requests(40),
            requests(9),
            {"window": 1},
            ParameterError,
            "The 'window' parameter of DriftDetector must be an int >= 2. Got 1 instead.",
        ),
        (
            requests(40),
            requests(9),
            {"features": "latency_ms"},
            ParameterError,
            "The 'features' parameter of RequestFeatures must be a list of names. Got 'latency_ms' instead.",
        ),
        (
            requests(40),
            requests(9),
            {"features": ["embedding"], "encoder": None},
            ParameterError,
            "The 'encoder' parameter of RequestFeatures must be the name of one where 'embedding' is a feature. Got "
            "None instead.",
        ),
        (
            requests(40),
            requests(9),
            {"batch_size": 0},
            ParameterError,
            "The 'batch_size' parameter of RequestFeatures must be an int >= 1. Got 0 instead.",
        ),
    ],
)
def test_what_is_refused(
    reference: Any, live: Any, more: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as error:
        audit_drift(reference, live, **more)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: retrain_trigger([1], 0),
            "The 'baseline' parameter of retrain_trigger must be a number > 0.",
        ),
        (
            lambda: retrain_trigger([1], 1, drop=1),
            "The 'drop' parameter of retrain_trigger must be a float in (0, 1).",
        ),
        (
            lambda: retrain_trigger([1], 1, windows=0),
            "The 'windows' parameter of retrain_trigger must be an int >= 1.",
        ),
    ],
)
def test_triggers_that_make_no_sense(call: Any, message: str) -> None:
    with pytest.raises(ParameterError) as error:
        call()
    assert str(error.value).startswith(message)


def test_numbers_that_only_the_live_log_has_are_told() -> None:
    live = [{**row, "cost": 1.0} for row in requests(100, 1)]
    report = audit_drift(requests(400), live, encoder=None, window=100)
    assert "Numbers that the reference lacks are not compared: cost." in report.notes
