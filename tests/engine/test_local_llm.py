"""A local model as a callable on chats: equal to generating by hand, sampling tied to seeds, too long chats."""

from __future__ import annotations

import pickle
from collections import Counter
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch

from tunesmith.core.errors import DataError, MissingModelError, ParameterError
from tunesmith.engine import ChatEndpoint, Failure, LocalLLM, ask, open_llm
from tunesmith.engine.generate import _draw, generate
from tunesmith.engine.models import load_model, load_tokenizer
from tunesmith.engine.prompts import prompt_ids


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


CHATS = [chat("the cat"), chat("what is the capital of France ?"), chat("the cat"), chat("1 2 3")]


@pytest.fixture(scope="module")
def llm(tiny_model_dir: str) -> LocalLLM:
    return LocalLLM(tiny_model_dir, dtype="float32", device="cpu")


def test_greedy_equals_generate(llm: LocalLLM, tiny_model_dir: str) -> None:
    model, tokenizer = (
        load_model(tiny_model_dir, dtype="float32", device="cpu"),
        load_tokenizer(tiny_model_dir),
    )
    by_hand = generate(model, tokenizer, [prompt_ids(c, tokenizer) for c in CHATS], max_new_tokens=6)
    assert llm(CHATS, max_new_tokens=6, seeds=[9, 8, 7, 6]) == by_hand
    assert LocalLLM(model, tokenizer)(CHATS, max_new_tokens=6) == by_hand
    assert llm([]) == []


def test_sampling_belongs_to_the_seed_and_not_to_the_batch(llm: LocalLLM) -> None:
    together = llm(CHATS, temperature=1.0, max_new_tokens=8, seeds=[1, 2, 3, 1])
    alone = [
        llm([c], temperature=1.0, max_new_tokens=8, seeds=[s])[0]
        for c, s in zip(CHATS, [1, 2, 3, 1], strict=True)
    ]
    assert together == alone
    assert llm(CHATS[::-1], temperature=1.0, max_new_tokens=8, seeds=[1, 3, 2, 1]) == together[::-1]
    assert together[0] != together[2], "equal chats, other seeds"
    assert llm(CHATS[:2], temperature=1.0, max_new_tokens=8) == llm(
        CHATS[:2], temperature=1.0, max_new_tokens=8, seeds=[0, 1]
    )
    before = torch.random.get_rng_state()
    llm(CHATS, temperature=1.0, max_new_tokens=2)
    assert torch.equal(torch.random.get_rng_state(), before), "the global state is left alone"


def test_a_draw_inverts_the_cumulative_distribution() -> None:
    # p = 0.5, 0.3, 0.2, so u below 0.5 is token 0, below 0.8 token 1, else token 2.
    scores = torch.log(torch.tensor([[0.5, 0.3, 0.2]])).repeat(5, 1)
    uniform = np.array([[0.0], [0.49], [0.51], [0.79], [0.999999]])
    ids = torch.zeros((5, 4), dtype=torch.long)
    assert _draw(uniform, 1.0, 4)(ids, scores).argmax(1).tolist() == [0, 0, 1, 1, 2]
    # At temperature 0.5 the probabilities are squared and normalised: 0.6579, 0.2368, 0.1053.
    uniform = np.array([[0.65], [0.66], [0.89], [0.90], [1 - 1e-16]])
    assert _draw(uniform, 0.5, 4)(ids, scores).argmax(1).tolist() == [0, 1, 1, 2, 2]
    forbidden = torch.tensor([[-torch.inf, 0.0, -torch.inf]])
    assert _draw(np.zeros((1, 1)), 1.0, 4)(ids[:1], forbidden).argmax().item() == 1


def test_samples_follow_the_models_distribution(llm: LocalLLM) -> None:
    model, tokenizer = llm._parts()
    ids = prompt_ids(CHATS[0], tokenizer)
    with torch.inference_mode():
        p = model(torch.tensor([ids])).logits[0, -1].float().softmax(-1).numpy()
    n = 2000
    draws = _draw(np.random.default_rng(0).random((n, 1)), 1.0, len(ids))(
        torch.zeros((n, len(ids)), dtype=torch.long), torch.log(torch.tensor(p)).repeat(n, 1)
    ).argmax(1)
    counts = Counter(draws.tolist())
    top = int(p.argmax())
    assert abs(counts[top] / n - p[top]) < 4 * (p[top] * (1 - p[top]) / n) ** 0.5


def test_too_long_and_empty_chats_fail_alone(llm: LocalLLM, tiny_model_dir: str) -> None:
    short = LocalLLM(tiny_model_dir, max_prompt_tokens=30)
    long = chat("the cat sat " * 40)
    one, two, three = short([CHATS[0], long, CHATS[3]], max_new_tokens=4)
    assert two == Failure("the chat is longer than the 30 tokens that the model takes")
    assert [one, three] == short([CHATS[0], CHATS[3]], max_new_tokens=4)
    assert llm([chat("the cat " * 400)], max_new_tokens=12) == [
        Failure("the chat is longer than the 500 tokens that the model takes")  # 512 positions
    ]


def test_fingerprint_follows_the_weights(llm: LocalLLM, tiny_model_dir: str) -> None:
    model, tokenizer = (
        load_model(tiny_model_dir, dtype="float32", device="cpu"),
        load_tokenizer(tiny_model_dir),
    )
    held = LocalLLM(model, tokenizer)
    before = held.fingerprint
    held(CHATS, temperature=1.0, max_new_tokens=4)
    assert held.fingerprint == before, "asking changes no weight"
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1
    assert held.fingerprint != before
    assert llm.fingerprint == LocalLLM(tiny_model_dir, dtype="float32").fingerprint
    assert llm.fingerprint != LocalLLM(tiny_model_dir, dtype="bfloat16").fingerprint


def test_copies_share_the_model_and_pickles_leave_it_out(llm: LocalLLM) -> None:
    answers = llm(CHATS, max_new_tokens=3)
    assert deepcopy(llm) is llm
    data = pickle.dumps(llm)
    assert len(data) < 5000
    assert pickle.loads(data)(CHATS, max_new_tokens=3) == answers


def test_errors(llm: LocalLLM) -> None:
    with pytest.raises(
        ParameterError, match=r"must be a model's id, or a transformers model with its tokenizer\. Got"
    ):
        LocalLLM(object())
    with pytest.raises(
        ParameterError, match=r"'batch_size' parameter of LocalLLM must be an int >= 1\. Got 0"
    ):
        LocalLLM("m", batch_size=0)
    with pytest.raises(
        ParameterError, match=r"'temperature' parameter of generate must be a finite number >= 0\. Got"
    ):
        llm(CHATS, temperature=-1.0)
    with pytest.raises(
        ParameterError, match=r"'seeds' parameter of generate must be one int >= 0 for each of the"
    ):
        llm(CHATS, temperature=1.0, seeds=[-1, 0, 0, 0])
    with pytest.raises(MissingModelError, match="no/such-model"):
        LocalLLM("no/such-model")(CHATS)


def test_what_may_stand_for_a_model(llm: LocalLLM) -> None:
    assert open_llm(llm) is llm
    assert repr(open_llm("some/model")) == "LocalLLM('some/model')"
    assert open_llm({"model": "m", "batch_size": 3}).batch_size == 3  # type: ignore[attr-defined]
    remote = open_llm({"url": "https://x.example/v1", "model": "m", "timeout": 3})
    assert isinstance(remote, ChatEndpoint)
    assert remote.timeout == 3


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (7, "The 'llm' parameter of F must be a callable, a model's id, or a mapping with 'model' (and 'url' for an "
            "endpoint). Got 7 instead."),
        ("", "(and 'url' for an endpoint). Got '' instead."),
        ({"url": "https://x"}, "(and 'url' for an endpoint). Got {'url': 'https://x'} instead."),
        ({"url": "https://x", "model": "m", "timeot": 3}, "Did you mean 'timeout'. Got 'timeot' instead."),
        ({"model": "m", "tokenizer": 1}, "must be made of arguments of LocalLLM (model, batch_size, "),
    ],
)  # fmt: skip
def test_what_may_not(spec: Any, message: str) -> None:
    with pytest.raises(ParameterError) as caught:
        open_llm(spec, "F")
    assert message in str(caught.value)


def test_ask_checks_what_a_model_returns() -> None:
    assert ask(lambda chats, **kw: ["x"], []) == []
    assert ask(lambda chats, **kw: (c[-1]["content"] for c in chats), [chat("a")]) == ["a"]
    with pytest.raises(DataError, match="the language model returned 1 replies to 2 chats"):
        ask(lambda chats, **kw: ["x"], [chat("a"), chat("b")])
    with pytest.raises(DataError, match=r"reply must be a text or a Failure\. Got NoneType instead"):
        ask(lambda chats, **kw: [None], [chat("a")])
