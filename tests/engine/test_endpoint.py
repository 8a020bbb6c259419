"""A chat endpoint against a server of our own: what it sends, every way to fail, and that the key never shows."""

from __future__ import annotations

import logging
import pickle
import threading
import time
from copy import deepcopy
from typing import Any

import pytest

from chat_server import Server, reply, say
from tunesmith.core.errors import ParameterError
from tunesmith.engine import ChatEndpoint, CutShort, Failure
from tunesmith.engine import endpoint as module
from tunesmith.engine.endpoint import EndpointError

KEY = "sk-very-secret-42"


@pytest.fixture
def server(chat_server: Server) -> Server:
    return chat_server


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def endpoint(server: Server, **more: Any) -> ChatEndpoint:
    return ChatEndpoint(server.url, "small", **{"backoff": 0.0, "retries": 2, "timeout": 5, **more})


def test_what_is_sent_and_what_comes_back(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY + "\n")
    llm = endpoint(server, api_key_env="MY_KEY", extra={"top_p": 0.5}, max_tokens_key="max_completion_tokens")
    chats = [chat(f"q{i} ☕") for i in range(20)]
    assert llm(chats, temperature=0.7, max_new_tokens=9, seeds=list(range(100, 120))) == [
        f"Q{i} ☕" for i in range(20)
    ]
    path, headers, body = sorted(server.requests, key=lambda r: r[2]["seed"])[3]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert body == {
        "model": "small",
        "messages": chats[3],
        "temperature": 0.7,
        "max_completion_tokens": 9,
        "seed": 103,
        "top_p": 0.5,
    }


def test_no_key_and_no_seed_where_none_is_wanted(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert endpoint(server)([chat("a")], seeds=[5]) == ["A"]
    _, headers, body = server.requests[0]
    assert "Authorization" not in headers
    assert "seed" not in body
    assert body["temperature"] == 0.0
    assert endpoint(server)([]) == []


def test_requests_run_side_by_side_but_not_more_than_asked(server: Server) -> None:
    gate = threading.Barrier(3, timeout=10)

    def together(handler: Any, body: Any, n: int) -> None:
        gate.wait()  # passes only when three are here
        say(handler, reply("x"))

    server.answer = together
    assert endpoint(server, concurrency=3, timeout=20)([chat(str(i)) for i in range(9)]) == ["x"] * 9
    assert server.most_at_once == 3


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503])
def test_what_may_pass_is_tried_again(server: Server, status: int) -> None:
    server.answer = lambda h, b, n: say(h, {"error": "busy"}, status) if n < 3 else say(h, reply("late"))
    assert endpoint(server)([chat("a"), chat("b")]) == ["late", "late"]
    assert len(server.requests) == 6


def test_tries_are_used_up_and_the_others_go_on(server: Server) -> None:
    server.answer = lambda h, b, n: (
        say(h, {}, 500) if b["messages"][0]["content"] == "bad" else say(h, reply("good"))
    )
    assert endpoint(server)([chat("x"), chat("bad"), chat("y")]) == [
        "good",
        Failure("no reply after 3 tries: HTTP 500"),
        "good",
    ]
    assert sum(b["messages"][0]["content"] == "bad" for _, _, b in server.requests) == 3


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"<html>", "the answer is not JSON"),
        (b"", "the answer is not JSON"),
        (b"\xff\xfe", "the answer is not JSON"),
        (b"[]", "the answer has no choices[0].message.content"),
        (b'{"choices": []}', "the answer has no choices[0].message.content"),
        (b'{"choices": [{"message": "hello"}]}', "the answer has no choices[0].message.content"),
    ],
)
def test_junk(server: Server, answer: bytes, reason: str) -> None:
    server.answer = lambda h, b, n: say(h, answer)
    assert endpoint(server)([chat("a")]) == [Failure(f"no reply after 3 tries: {reason}")]
    server.answer = lambda h, b, n: say(h, answer) if n < 2 else say(h, reply("fine"))
    assert endpoint(server)([chat("b")]) == ["fine"]


def test_a_reply_without_text_is_not_asked_again(server: Server) -> None:
    server.answer = lambda h, b, n: say(h, reply(None, "content_filter"))
    assert endpoint(server)([chat("a")]) == [Failure("the reply has no text (finish_reason: content_filter)")]
    assert len(server.requests) == 1


def test_a_reply_that_reached_its_longest_length_is_told(server: Server) -> None:
    server.answer = lambda handler, body, n: say(handler, reply(" so far ", "length"))
    (got,) = ChatEndpoint(server.url, "m")([chat("q")])
    assert isinstance(got, CutShort)
    assert got == "so far"


def test_time_out(server: Server) -> None:
    done = threading.Event()
    server.answer = lambda h, b, n: done.wait(20) and None if n < 2 else say(h, reply("at last"))
    llm = endpoint(server, timeout=0.3)
    assert llm([chat("a")]) == ["at last"]
    server.answer = lambda h, b, n: done.wait(20) and None
    assert llm([chat("b")]) == [Failure("no reply after 3 tries: no answer within 0.3 s")]
    done.set()


def test_a_server_that_drips_is_given_up(server: Server) -> None:
    def drip(handler: Any, body: Any, n: int) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(200):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)

    server.answer = drip
    assert endpoint(server, timeout=0.3, retries=0)([chat("a")]) == [
        Failure("no reply after 1 tries: no answer within 0.3 s")
    ]


def test_a_connection_that_breaks_and_one_that_cannot_be_made(server: Server) -> None:
    def cut(handler: Any, body: Any, n: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b"{")

    server.answer = cut
    (broken,) = endpoint(server)([chat("a")])
    # With a length announced the standard library may hand over the stump.
    assert broken in (
        Failure("no reply after 3 tries: the connection broke (IncompleteRead)"),
        Failure("no reply after 3 tries: the answer is not JSON"),
    )
    server.close()
    (refused,) = endpoint(server)([chat("a")])
    assert refused.reason.startswith("no reply after 3 tries: no connection (")
    server.__init__()  # type: ignore[misc]  # something for the fixture to close


class Waits:
    """An event whose waits take no time and are kept."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def wait(self, seconds: float) -> bool:
        self.seconds.append(seconds)
        return False


@pytest.mark.parametrize(
    ("after", "least", "most"),
    [
        ("7", 7, 7),
        ("86400", 60, 60),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
        ("soon", 2, 4),  # nonsense: the usual 4 seconds, up to half of them off
        (None, 2, 4),
    ],
)
def test_the_server_says_how_long_to_wait(
    server: Server, after: str | None, least: float, most: float
) -> None:
    headers = {} if after is None else {"Retry_After": after}
    server.answer = lambda h, b, n: say(h, {}, 429, **headers)
    waits = Waits()
    ChatEndpoint(server.url, "m", backoff=4.0, retries=1)._try({"messages": []}, None, waits)  # type: ignore[arg-type]
    (pause,) = waits.seconds
    assert least <= pause <= most


def test_waits_double_up_to_a_minute(server: Server) -> None:
    server.answer = lambda h, b, n: say(h, {}, 503)
    waits = Waits()
    ChatEndpoint(server.url, "m", backoff=16.0, retries=4)._try({"messages": []}, None, waits)  # type: ignore[arg-type]
    one, two, three, four = waits.seconds
    assert 8 <= one <= 16 <= two <= 32 <= three <= 60 == four


@pytest.mark.parametrize("status", [400, 413, 422])
def test_one_request_that_is_refused(server: Server, status: int) -> None:
    server.answer = lambda h, b, n: (
        say(h, {"error": {"message": "too long"}}, status)
        if b["messages"][0]["content"] == "long"
        else say(h, reply("ok"))
    )
    assert endpoint(server)([chat("long"), chat("short")]) == [
        Failure(f"the request was refused, HTTP {status}: too long"),
        "ok",
    ]
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (401, "Set the environment variable named by api_key_env to a valid key."),
        (403, "Set the environment variable named by api_key_env to a valid key."),
        (404, "Check url and model."),
    ],
)
def test_what_is_hopeless_stops_at_once(
    server: Server, monkeypatch: pytest.MonkeyPatch, status: int, hint: str
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    server.answer = lambda h, b, n: say(h, {"error": {"message": f"not with {KEY}"}}, status)
    with pytest.raises(EndpointError) as caught:
        endpoint(server, api_key_env="MY_KEY", concurrency=1)([chat(str(i)) for i in range(50)])
    assert str(caught.value) == (
        f"{server.url}/chat/completions refuses requests for the model 'small': HTTP {status}: not with ***. {hint}"
    )
    assert len(server.requests) == 1


def test_redirects_are_not_followed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    other = Server()
    server.answer = lambda h, b, n: say(h, b"", 302, Location=other.url + "/chat/completions")
    with pytest.raises(
        EndpointError, match=r"redirects \(HTTP 302\), which is not followed\. Give the final url\."
    ):
        endpoint(server, api_key_env="MY_KEY")([chat("a")])
    assert other.requests == []
    other.close()


def test_a_dead_server_is_not_asked_for_every_row(server: Server) -> None:
    server.answer = lambda h, b, n: say(h, {}, 500)
    llm = endpoint(server, retries=0, give_up_after=4, concurrency=1)
    chats = [chat(str(i)) for i in range(40)]
    replies = llm(chats)
    assert (
        replies
        == [Failure("no reply after 1 tries: HTTP 500")] * 4
        + [Failure("not asked, since 4 chats in a row got no reply")] * 36
    )
    assert len(server.requests) == 4
    assert sum("not asked" in r.reason for r in llm(chats)) == 39  # one tries whether it is back
    server.answer = lambda h, b, n: say(h, reply("back"))
    assert llm(chats) == ["back"] * 40


def test_the_key_is_in_no_text(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    llm = endpoint(server, api_key_env="MY_KEY")
    server.answer = lambda h, b, n: say(h, {"error": f"key {KEY} is bad"}, 400)
    (refused,) = llm([chat("a")])
    assert refused == Failure("the request was refused, HTTP 400: key *** is bad")
    texts = [repr(llm), llm.fingerprint, caplog.text, str(pickle.dumps(llm)), str(vars(llm))]
    assert not any(KEY in text for text in texts)


def test_a_key_that_is_not_set_or_goes_over_plain_http(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ParameterError) as caught:
        ChatEndpoint("https://x.example/v1", "m", api_key_env="NO_SUCH_KEY")([chat("a")])
    assert str(caught.value) == (
        "The 'api_key_env' parameter of ChatEndpoint must be the name of an environment variable that is set. Got "
        "'NO_SUCH_KEY' instead."
    )
    monkeypatch.setenv("MY_KEY", KEY)
    with pytest.warns(UserWarning, match=r"The key goes to x\.example unencrypted, over http\."):
        ChatEndpoint("http://x.example/v1", "m", api_key_env="MY_KEY")._key()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"url": "ftp://x/v1"},
            "'url' parameter of ChatEndpoint must be an http or https address without a user",
        ),
        ({"url": "https://me:secret@x/v1"}, "in it. Got 'another' instead."),
        (
            {"model": ""},
            "'model' parameter of ChatEndpoint must be the model's name at the endpoint. Got '' instead.",
        ),
        ({"retries": -1}, "'retries' parameter of ChatEndpoint must be an int >= 0. Got -1 instead."),
        ({"concurrency": 0}, "'concurrency' parameter of ChatEndpoint must be an int >= 1. Got 0 instead."),
        (
            {"give_up_after": True},
            "'give_up_after' parameter of ChatEndpoint must be an int >= 1. Got True instead.",
        ),
        (
            {"timeout": -1},
            "'timeout' parameter of ChatEndpoint must be a number of seconds >= 0. Got -1 instead.",
        ),
        (
            {"backoff": "1"},
            "'backoff' parameter of ChatEndpoint must be a number of seconds >= 0. Got '1' instead.",
        ),
    ],
)
def test_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError) as caught:
        ChatEndpoint(**{"url": "https://x.example/v1", "model": "m", **arguments})
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


def test_addresses_names_and_copies() -> None:
    base, whole = (
        ChatEndpoint("https://x.example/v1/", "m"),
        ChatEndpoint("https://x.example/v1/chat/completions", "m"),
    )
    assert base.url == whole.url == "https://x.example/v1/chat/completions"
    assert base.fingerprint == whole.fingerprint
    assert base.fingerprint != ChatEndpoint("https://x.example/v1", "n").fingerprint
    assert base.fingerprint != ChatEndpoint("https://x.example/v1", "m", extra={"top_p": 0.1}).fingerprint
    assert base.fingerprint == ChatEndpoint("https://x.example/v1", "m", timeout=1, concurrency=2).fingerprint
    assert repr(base) == "ChatEndpoint('https://x.example/v1/chat/completions', 'm')"
    assert deepcopy(base) is base
    assert module._told(b'{"error": {"message": "m"}}') == "m"
