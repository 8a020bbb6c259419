"""What a run shows: lines in a pipe, bars on a terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest

from tunesmith._cli.display import Display, PlainDisplay, RichDisplay, line_of, open_display
from tunesmith._cli.tables import number_text, summary_table, table, time_text

ARM = {"arm": "mig", "seed": 1}


@pytest.mark.parametrize(
    ("event", "line"),
    [
        ({"kind": "stage", "stage": "data", "status": "started"}, "data …"),
        ({"kind": "stage", "stage": "data", "status": "skipped"}, "data: done before"),
        (
            {"kind": "stage", "stage": "train", "status": "finished", "seconds": 75.2, **ARM},
            "[mig, seed 1] train: done in 1 min 15 s",
        ),
        (
            {"kind": "stage", "stage": "train", "status": "failed", "error": "OSError: x"},
            "train: failed (OSError: x)",
        ),
        (
            {
                "kind": "rows",
                "stage": "curate.dedup",
                "rows_in": 4800,
                "rows_out": 4000,
                "reasons": {"duplicate": 800},
            },
            "curate.dedup: 4,800 rows in, 4,000 out; 800 duplicate",
        ),
        ({"kind": "warning", "message": "hot"}, "warning: hot"),
        ({"kind": "message", "message": "hello", "arm": "base"}, "[base] hello"),
        ({"kind": "metric", "step": 5, "validation_loss": 1.23456}, "step 5: validation loss 1.2346"),
        ({"kind": "metric", "step": 5, "loss": 1.0}, None),
        ({"kind": "run", "status": "started"}, None),
    ],
)
def test_the_line_of_an_event(event: dict[str, Any], line: str | None) -> None:
    assert line_of(event) == line


def test_plain_lines_in_a_pipe() -> None:
    stream, now = io.StringIO(), [0.0]
    with PlainDisplay(stream, every=10, clock=lambda: now[0]) as show:
        show({"kind": "stage", "stage": "train", "status": "started", **ARM})
        show({"kind": "metric", "step": 1, "loss": 2.0, **ARM})
        for done in range(1, 5):
            now[0] += 6
            show(
                {"kind": "progress", "what": "steps", "done": done, "total": 1000, "remaining_s": 90.0, **ARM}
            )
        show({"kind": "progress", "what": "reading", "done": 7, "total": None})
        now[0] += 11
        show({"kind": "progress", "what": "reading", "done": 5000, "total": None})
        for _ in range(2):
            show({"kind": "warning", "message": "hot"})
    assert stream.getvalue() == (
        "[mig, seed 1] train …\n"
        "[mig, seed 1] steps (loss 2.0000): 3 of 1,000, 1 min 30 s left\n"
        "reading (loss 2.0000): 5,000\n"
        "warning: hot\n"
    )


def test_the_loss_is_forgotten_with_its_stage() -> None:
    stream, now = io.StringIO(), [0.0]
    show = PlainDisplay(stream, every=0, clock=lambda: now[0])
    show({"kind": "metric", "step": 1, "loss": 2.0})
    show({"kind": "stage", "stage": "train", "status": "finished", "seconds": 1})
    show({"kind": "progress", "what": "answers", "done": 1, "total": 2})
    assert stream.getvalue().splitlines()[-1] == "answers: 1 of 2"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    stream = Terminal()
    with open_display(stream) as show:
        assert isinstance(show, RichDisplay)
        show({"kind": "stage", "stage": "train", "status": "started", **ARM})
        show({"kind": "progress", "what": "steps", "done": 3, "total": 10, "remaining_s": 75, **ARM})
        show.bars.refresh()
        (task,) = show.bars.tasks
        assert (task.completed, task.total, task.fields["left"]) == (3, 10, "1 min 15 s left")
        show({"kind": "warning", "message": "[bold]hot[/bold] [/]"})
        show({"kind": "progress", "what": "steps", "done": 10, "total": 10, "remaining_s": 0, **ARM})
        assert show.bars.tasks == []
        show({"kind": "progress", "what": "reading", "done": 3, "total": None})
        show({"kind": "stage", "stage": "train", "status": "finished", "seconds": 3, **ARM})
        assert show.bars.tasks == []
    text = stream.getvalue()
    assert "[mig, seed 1] train …" in text
    assert "[mig, seed 1] steps" in text
    assert "warning: [bold]hot[/bold] [/]" in text


def test_the_stream_decides() -> None:
    assert isinstance(open_display(io.StringIO()), PlainDisplay)
    assert issubclass(PlainDisplay, Display)


def test_a_table_aligns_and_wraps(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        table(["a", "b"], [["x", 1], ["long", 12345]])
        == "a          b\n----  ------\nx          1\nlong  12,345"
    )
    monkeypatch.setenv("COLUMNS", "40")
    lines = table(["name", "text"], [["n", "word " * 12]], wrap=1).splitlines()
    assert max(map(len, lines)) <= 40
    assert lines[2].startswith("n     word")
    assert lines[3].startswith("      word")
    assert table(["a"], []) == "a\n-"


def test_a_summary_takes_the_columns_as_they_come() -> None:
    text = summary_table([{"arm": "base"}, {"arm": "mig", "train_seconds": 12.345678}])
    assert text.splitlines() == [
        "arm   train seconds",
        "----  -------------",
        "base              -",
        "mig           12.35",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (True, "yes"),
        (False, "no"),
        (1234567, "1,234,567"),
        (0.123456, "0.1235"),
        (123456.7, "123,457"),
        ("x", "x"),
    ],
)
def test_numbers(value: Any, text: str) -> None:
    assert number_text(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "?"), (0.4, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_times(seconds: float | None, text: str) -> None:
    assert time_text(seconds) == text
