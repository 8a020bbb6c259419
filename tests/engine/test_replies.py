"""Kept replies: nothing is asked twice, a kill loses one chunk, failures are tried again."""

from __future__ import annotations

import multiprocessing
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tunesmith.core.errors import DiskFullError, ParameterError, TunesmithError
from tunesmith.core.events import EventLog
from tunesmith.engine import CachedLLM, CutShort, Failure
from tunesmith.engine import replies as module


def chats(n: int) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": f"q{i}"}] for i in range(n)]


class Model:
    """Answers with text, temperature and seed; counts; may raise or fail at a chat."""

    fingerprint = "model-one"

    def __init__(self, raises: str = "", fails: Sequence[str] = ()) -> None:
        self.raises, self.fails, self.asked = raises, fails, []

    def __call__(self, chats: Any, *, temperature: float, max_new_tokens: int, seeds: Any) -> list[Any]:
        texts = [chat[-1]["content"] for chat in chats]
        if self.raises in texts:
            raise RuntimeError("the model broke")
        self.asked += texts
        return [
            Failure("no")
            if t in self.fails
            else f"{t} {temperature} {max_new_tokens} {s if temperature else ''}\ud800"
            for t, s in zip(texts, seeds, strict=True)
        ]


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    model = Model()
    plain = model(chats(7), temperature=1.0, max_new_tokens=5, seeds=list(range(7)))
    model.asked.clear()
    first, again = CachedLLM(model, tmp_path, chunk=3), CachedLLM(Model(), tmp_path)
    assert first(chats(7), temperature=1.0, max_new_tokens=5, seeds=list(range(7))) == plain
    assert (first.asked, first.hits, len(model.asked)) == (7, 0, 7)
    assert again(chats(7), temperature=1.0, max_new_tokens=5, seeds=list(range(7))) == plain
    assert (again.asked, again.hits, again.llm.asked) == (0, 7, [])
    assert [path.name for path in tmp_path.iterdir()] == ["model-one.sqlite"]


def test_what_a_reply_depends_on(tmp_path: Path) -> None:
    llm = CachedLLM(Model(), tmp_path)
    for options in (
        {"temperature": 1.0, "seeds": [0]},
        {"temperature": 1.0, "seeds": [1]},
        {"temperature": 0.5, "seeds": [0]},
        {"temperature": 1.0, "seeds": [0], "max_new_tokens": 9},
        {},
    ):
        llm(chats(1), **options)
    assert llm.asked == 5
    llm(chats(1), seeds=[77])
    assert (llm.asked, llm.hits) == (5, 1), "at temperature 0 a reply has no seed"
    other = Model()
    other.fingerprint = "model-two"
    assert CachedLLM(other, tmp_path)(chats(1))
    assert other.asked == ["q0"]


def test_equal_chats_of_one_call_are_asked_once(tmp_path: Path) -> None:
    model = Model()
    replies = CachedLLM(model, tmp_path)([*chats(2), *chats(2)])
    assert replies == [*replies[:2], *replies[:2]]
    assert model.asked == ["q0", "q1"]


def test_a_model_that_raises_loses_its_chunk_only(tmp_path: Path) -> None:
    broken = Model(raises="q5")
    with pytest.raises(RuntimeError, match="the model broke"):
        CachedLLM(broken, tmp_path, chunk=2)(chats(9))
    assert broken.asked == ["q0", "q1", "q2", "q3"]
    whole = Model()
    replies = CachedLLM(whole, tmp_path, chunk=2)(chats(9))
    assert whole.asked == ["q4", "q5", "q6", "q7", "q8"]
    assert replies == CachedLLM(Model(), tmp_path / "other")(chats(9))


def test_failures_are_tried_again(tmp_path: Path) -> None:
    replies = CachedLLM(Model(fails=["q1"]), tmp_path)(chats(3))
    assert replies[1] == Failure("no")
    model = Model()
    assert all(isinstance(reply, str) for reply in CachedLLM(model, tmp_path)(chats(3)))
    assert model.asked == ["q1"]


def _die(folder: str) -> None:
    import os

    class Dying(Model):
        def __call__(self, chats: Any, **options: Any) -> list[Any]:
            if chats[0][-1]["content"] == "q4":
                os._exit(9)
            return super().__call__(chats, **options)

    CachedLLM(Dying(), folder, chunk=2)(chats(8))


def test_a_process_that_dies(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=_die, args=(str(tmp_path),))
    process.start()
    process.join(60)
    assert process.exitcode == 9
    model = Model()
    CachedLLM(model, tmp_path)(chats(8))
    assert model.asked == ["q4", "q5", "q6", "q7"]


def test_what_was_cut_short_stays_so(tmp_path: Path) -> None:
    class Cuts(Model):
        def __call__(self, *args: Any, **options: Any) -> list[Any]:
            return [
                CutShort(text) if text.startswith("q1") else text
                for text in super().__call__(*args, **options)
            ]

    for _ in range(2):
        model = Cuts()
        replies = CachedLLM(model, tmp_path)(chats(3), max_new_tokens=5, seeds=[0, 0, 0])
        assert [isinstance(reply, CutShort) for reply in replies] == [False, True, False]
    assert model.asked == []


def test_progress(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    CachedLLM(Model(), tmp_path, chunk=4, log=EventLog(listeners=[events.append]))(chats(10))
    assert (events[-1]["what"], events[-1]["done"], events[-1]["total"]) == ("replies", 10, 10)


def test_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ParameterError, match=r"must be a model with a text 'fingerprint' that names its replies\. Got"
    ):
        CachedLLM(lambda chats, **kw: [])
    with pytest.raises(
        ParameterError, match=r"'chunk' parameter of CachedLLM must be an int >= 1\. Got 0 instead"
    ):
        CachedLLM(Model(), chunk=0)
    (tmp_path / "model-one.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(
        TunesmithError, match=r"The kept replies in .*model-one\.sqlite cannot be used \(.*remove it"
    ):
        CachedLLM(Model(), tmp_path)(chats(1))

    def full(*args: Any, **kwargs: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(module.sqlite3, "connect", full)
    with pytest.raises(
        DiskFullError, match=r"The disk is full: .* Replies kept before are intact; free some space"
    ):
        CachedLLM(Model(), tmp_path)(chats(1))
