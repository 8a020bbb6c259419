"""CLEAR over an endpoint that is down for some rows: these are kept and reported, and only they are asked again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from datasets import Dataset

from chat_server import Server, reply, say
from tunesmith.curate import AutoFilter, BSDetector

SUMS = [("1 + 1", "2"), ("2 + 2", "5"), ("3 + 3", "6"), ("4 + 4", "9"), ("5 + 5", "10"), ("6 + 6", "0")]


def adds(body: dict[str, Any]) -> dict[str, Any]:
    text = body["messages"][0]["content"]
    a, b = map(int, re.findall(r"(\d+) \+ (\d+)", text)[0])
    if "Proposed answer" in text:
        return reply("(A)" if f"Proposed answer:\n{a + b}\n" in text else "(B)")
    return reply(f"Answer: {a + b}")


def test_rows_without_replies_are_kept_and_only_they_are_asked_again(
    chat_server: Server, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("CLEAR_KEY", "sk-hidden")

    def answer(handler: Any, body: dict[str, Any], n: int) -> None:
        text = body["messages"][0]["content"]
        if "2 + 2" in text:
            say(handler, {"error": "overloaded"}, 503)
        elif "6 + 6" in text:
            say(handler, b"<html>junk</html>")
        elif n == 1 and "5 + 5" in text:
            say(handler, {}, 429)  # passes on the second try
        else:
            say(handler, adds(body))

    chat_server.answer = answer
    llm = {"url": chat_server.url, "model": "m", "api_key_env": "CLEAR_KEY", "retries": 1, "backoff": 0.0}
    options: dict[str, Any] = {"alpha": 0.0, "n_samples": 2, "threshold": 0.5, "cache": tmp_path}
    rows = Dataset.from_list([{"prompt": f"{q}?", "completion": a} for q, a in SUMS])
    method = AutoFilter(llm, **options)
    out = method.fit(rows).transform(rows)
    assert out["prompt"][:] == ["1 + 1?", "2 + 2?", "3 + 3?", "5 + 5?", "6 + 6?"]
    unjudged = "kept, since it could not be judged → no reply after 2 tries: "
    assert method.report_.noted == [
        (1, f"{unjudged}HTTP 503"),
        (5, f"{unjudged}the answer is not JSON"),
    ]
    assert [row for row, _ in method.report_.dropped] == [3]
    assert "sk-hidden" not in str(method.report_.to_dict()) + repr(method)

    chat_server.requests.clear()
    chat_server.answer = lambda handler, body, n: say(handler, adds(body))
    again = AutoFilter(llm, **options)
    assert again.fit_transform(rows)["prompt"][:] == ["1 + 1?", "3 + 3?", "5 + 5?"]
    assert again.report_.noted == []
    asked = {
        re.findall(r"\d \+ \d", body["messages"][0]["content"])[0] for _, _, body in chat_server.requests
    }
    assert asked == {"2 + 2", "6 + 6"}


def test_a_model_named_by_its_id_is_loaded_once(
    tiny_model_dir: str, tmp_path: Path, monkeypatch: Any
) -> None:
    from tunesmith.engine import models

    loads: list[str] = []
    plain = models.load_model
    monkeypatch.setattr(models, "load_model", lambda name, **more: loads.append(name) or plain(name, **more))
    detector = BSDetector(tiny_model_dir, beta=0.0, max_new_tokens=2, cache=tmp_path)
    detector.score(["a"], ["b"])
    detector.score(["c"], ["d"])
    detector.prefers(["a"], ["b"], ["c"])
    assert loads == [tiny_model_dir]
