"""A chat model behind an OpenAI-compatible address, as a callable on batches of chats.

Only the standard library is used. The key is read from an environment variable when a request is made; it is part
of no message, no representation and no fingerprint, it is struck out of what the server says, and redirects, which
would carry it to another host, are not followed.
"""

from __future__ import annotations

import email.utils
import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from http.client import HTTPException
from typing import Any, Self
from urllib.parse import urlsplit

from tunesmith.core.errors import ParameterError, TunesmithError, shorten
from tunesmith.core.files import hash_json
from tunesmith.engine.chats import Chat, CutShort, Failure, Reply

__all__ = ["ChatEndpoint", "EndpointError"]

LONGEST_WAIT = 60.0  # seconds between two tries, whatever the server asks for
LARGEST_REPLY = 16_000_000  # bytes
AGAIN = frozenset({408, 409, 425, 429})  # and 5xx: worth another try
HOPELESS = frozenset({401, 403, 404, 405})  # the same for every chat: stop at once
_PATH = "/chat/completions"


class EndpointError(TunesmithError, RuntimeError):
    """An endpoint that refuses every request: a wrong address, model or key."""


class _Again(Exception):
    """A try that failed in a way that may pass."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.after = reason, after


class ChatEndpoint:
    """A model behind ``POST {url}/chat/completions``: OpenAI, vLLM, llama.cpp, Ollama and others.

    Requests run side by side. One that times out, finds nobody, is told 408, 409, 425, 429 or 5xx, or gets what is
    no reply, is tried again after ``backoff``, 2 ``backoff``, 4 ``backoff`` … seconds (half of it by chance; what
    the server asks for by ``Retry-After`` goes before; 60 s at most). When its tries are used up, or the server
    refuses this one request (400, 413, 422), its chat gets a `Failure`. A wrong key, address or model stops at once.
    After ``give_up_after`` chats in a row that got nothing the rest of the call is not asked any more, and the next
    call begins with a single one.

    Args:
        url: address up to ``/v1``, or all of it.
        model: the model's name there.
        api_key_env: name of the environment variable that holds the key; ``None`` sends no key.
        timeout: seconds that a request may take.
        retries: further tries of a request.
        backoff: seconds before the first of them.
        concurrency: requests at a time.
        give_up_after: chats in a row without a reply after which the rest is not asked.
        max_tokens_key: field for the longest reply; some servers want ``max_completion_tokens``.
        extra: further fields of every request, for example ``{"top_p": 0.9}``.

    Raises:
        ParameterError: an argument outside its set.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key_env: str | None = None,
        timeout: float = 120.0,
        retries: int = 4,
        backoff: float = 1.0,
        concurrency: int = 8,
        give_up_after: int = 50,
        max_tokens_key: str = "max_tokens",
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        parts = urlsplit(url) if isinstance(url, str) else None
        if parts is None or parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            # The value is not shown: it may hold a password.
            raise ParameterError(
                "url", self, "an http or https address without a user or password in it", "another"
            )
        if not isinstance(model, str) or not model:
            raise ParameterError("model", self, "the model's name at the endpoint", model)
        for name, value, least in (
            ("retries", retries, 0),
            ("concurrency", concurrency, 1),
            ("give_up_after", give_up_after, 1),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ParameterError(name, self, f"an int >= {least}", value)
        for name, number in (("timeout", timeout), ("backoff", backoff)):
            if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 <= number < 1e6:
                raise ParameterError(name, self, "a number of seconds >= 0", number)
        self.url = url if parts.path.endswith(_PATH) else url.rstrip("/") + _PATH
        self.model, self.api_key_env = model, api_key_env
        self.timeout, self.retries, self.backoff = float(timeout), retries, float(backoff)
        self.concurrency, self.give_up_after = concurrency, give_up_after
        self.max_tokens_key, self.extra = max_tokens_key, dict(extra or {})
        self._in_a_row = 0  # chats without a reply, the latest ones

    def __call__(
        self,
        chats: Sequence[Chat],
        *,
        temperature: float = 0.0,
        max_new_tokens: int = 256,
        seeds: Sequence[int] | None = None,
    ) -> list[Reply]:
        """Return a reply to each chat; see `tunesmith.engine.ChatModel`.

        The seed is sent where ``temperature`` is above 0; whether it is heeded is up to the server.

        Raises:
            EndpointError: the server refuses every request (401, 403, 404, 405, a redirect).
            ParameterError: the environment variable of the key is not set.
        """
        key = self._key()
        bodies = [
            {
                **self.extra,
                "model": self.model,
                "messages": [dict(message) for message in chat],
                "temperature": temperature,
                self.max_tokens_key: max_new_tokens,
                **({"seed": int(seeds[i])} if seeds is not None and temperature > 0 else {}),
            }
            for i, chat in enumerate(chats)
        ]
        replies: list[Reply] = [Failure("")] * len(bodies)
        stop, lock = threading.Event(), threading.Lock()

        def work(i: int) -> None:
            if stop.is_set():
                return
            if self._in_a_row >= self.give_up_after and i > 0:  # the first probes whether it is back
                replies[i] = Failure(f"not asked, since {self.give_up_after} chats in a row got no reply")
                return
            try:
                reply = self._try(bodies[i], key, stop)
            except EndpointError:
                stop.set()  # here and not where it is caught: meanwhile others would ask in vain
                raise
            replies[i] = reply
            with lock:
                self._in_a_row = self._in_a_row + 1 if isinstance(reply, Failure) else 0

        if bodies and self._in_a_row >= self.give_up_after:
            work(0)
            rest = range(1, len(bodies))
        else:
            rest = range(len(bodies))
        with ThreadPoolExecutor(max_workers=min(self.concurrency, max(1, len(bodies)))) as pool:
            futures = [pool.submit(work, i) for i in rest]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise
        return replies

    @property
    def fingerprint(self) -> str:
        """A hash of address, model and further fields; a server that changes its model should get a new name."""
        return hash_json(["endpoint", self.url, self.model, self.extra])

    def _key(self) -> str | None:
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ParameterError(
                "api_key_env", self, "the name of an environment variable that is set", self.api_key_env
            )
        parts = urlsplit(self.url)
        if parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
            warnings.warn(f"The key goes to {parts.hostname} unencrypted, over http.", stacklevel=3)
        return key

    def _try(self, body: dict[str, Any], key: str | None, stop: threading.Event) -> Reply:
        # Waits are scattered, so that requests refused together do not come back together.
        chance = random.Random(hash_json(body))
        for attempt in range(self.retries + 1):
            try:
                return self._post(body, key)
            except _Again as error:
                reason = error.reason
                pause = self.backoff * 2**attempt * (0.5 + chance.random() / 2)
                pause = min(LONGEST_WAIT, pause if error.after is None else max(error.after, 0.0))
            if attempt < self.retries and stop.wait(pause):
                break
        return Failure(f"no reply after {self.retries + 1} tries: {reason}")

    def _post(self, body: dict[str, Any], key: str | None) -> Reply:
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "User-Agent": "tunesmith",
        }
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(
            self.url, json.dumps(body).encode("utf-8", "surrogatepass"), headers, method="POST"
        )
        begin = time.monotonic()
        try:
            with _OPENER.open(request, timeout=self.timeout) as response:
                data = _read(response, begin + self.timeout)
        except urllib.error.HTTPError as error:
            with error:
                return self._refused(error, key)
        except TimeoutError as error:
            raise _Again(f"no answer within {self.timeout:g} s") from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise _Again(f"no answer within {self.timeout:g} s") from error
            raise _Again(_clean(f"no connection ({error.reason})", key)) from error
        except (HTTPException, OSError) as error:
            raise _Again(f"the connection broke ({type(error).__name__})") from error
        return _text_of(data)

    def _refused(self, error: urllib.error.HTTPError, key: str | None) -> Reply:
        """Return a Failure for a request that was refused for itself; raise for all other statuses."""
        try:
            told = _clean(_told(error.read(4000)), key)
        except (HTTPException, OSError):
            told = ""
        said = f"HTTP {error.code}{': ' + told if told else ''}"
        if error.code in AGAIN or error.code >= 500:
            # The words may name the request, and then no two reasons would be alike.
            raise _Again(f"HTTP {error.code}", _seconds(error.headers.get("Retry-After")))
        where = self.url.split("?")[0]
        if error.code in HOPELESS:
            hint = (
                "Set the environment variable named by api_key_env to a valid key."
                if error.code in (401, 403)
                else "Check url and model."
            )
            raise EndpointError(f"{where} refuses requests for the model '{self.model}': {said}. {hint}")
        if error.code < 400:
            raise EndpointError(
                f"{where} redirects (HTTP {error.code}), which is not followed. Give the final url."
            )
        return Failure(f"the request was refused, {said}")

    def __deepcopy__(self, memo: Any) -> Self:
        return self

    def __repr__(self) -> str:
        return f"ChatEndpoint({self.url.split('?')[0]!r}, {self.model!r})"


class _Redirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None  # urllib then raises the redirect as an HTTPError


_OPENER = urllib.request.build_opener(_Redirect)


def _read(response: Any, deadline: float) -> bytes:
    """Read a response to its end; the timeout of a socket alone would let one byte a minute go on for ever."""
    parts: list[bytes] = []
    size = 0
    while part := response.read1(1 << 16):
        parts.append(part)
        size += len(part)
        if size > LARGEST_REPLY:
            raise _Again(f"the answer is larger than {LARGEST_REPLY:,} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError
    return b"".join(parts)


def _text_of(data: bytes) -> Reply:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise _Again("the answer is not JSON") from error
    try:
        choice = value["choices"][0]
        text = choice["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise _Again("the answer has no choices[0].message.content") from error
    if not isinstance(text, str):
        return Failure(f"the reply has no text (finish_reason: {choice.get('finish_reason')})")
    cut = choice.get("finish_reason") == "length"
    return CutShort(text.strip()) if cut else text.strip()


def _told(data: bytes) -> str:
    """Return what the body of a refusal says."""
    text = data.decode("utf-8", "replace")
    try:
        value = json.loads(text)
        text = value["error"]["message"] if isinstance(value["error"], dict) else value["error"]
    except (ValueError, KeyError, TypeError):
        pass
    return shorten(str(text), 200)


def _clean(text: str, key: str | None) -> str:
    return text.replace(key, "***") if key else text


def _seconds(value: str | None) -> float | None:
    """Return what ``Retry-After`` asks for, given in seconds or as a date."""
    if value is None:
        return None
    try:
        return float(value)
    except ValueError:
        pass
    try:
        return email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    except (TypeError, ValueError):
        return None
