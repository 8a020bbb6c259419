"""BSDetector with a scripted model: which calls are made, what they come to, and what failures do."""

from __future__ import annotations

import doctest
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.core.events import EventLog
from tunesmith.curate import BSDetector
from tunesmith.curate.clear import detector as module
from tunesmith.curate.clear.nli import EmbeddingContradiction, NLIModel, open_nli
from tunesmith.engine import Failure, LocalLLM


class Script:
    """A model that answers by a function of the chat and a running number; keeps what it was asked."""

    def __init__(self, reply: Callable[[str, int, float], Any]) -> None:
        self.reply, self.asked = reply, []

    def __call__(self, chats: Any, *, temperature: float, max_new_tokens: int, seeds: Any) -> list[Any]:
        out = []
        for chat, seed in zip(chats, seeds, strict=True):
            self.asked.append((chat, temperature, seed))
            out.append(self.reply(chat[-1]["content"], len(self.asked) - 1, temperature))
        return out


def scripted(samples: list[str], reflections: list[str]) -> Script:
    state = {"s": 0, "r": 0}

    def reply(text: str, number: int, temperature: float) -> str:
        kind, texts = ("s", samples) if temperature > 0 else ("r", reflections)
        state[kind] += 1
        return texts[(state[kind] - 1) % len(texts)]

    return Script(reply)


def table(values: dict[tuple[str, str], float]) -> Any:
    def nli(premises: Any, hypotheses: Any) -> list[float]:
        nli.pairs += list(zip(premises, hypotheses, strict=True))
        return [values[pair] for pair in zip(premises, hypotheses, strict=True)]

    nli.pairs = []
    return nli


def test_hand_example() -> None:
    # Sample 1 equals the answer, sample 2 has s = 1 - (0.4 + 0.6) / 2 = 0.5; reflection A then C.
    llm = scripted(["It is.\nAnswer:  PARIS", "Answer: Lyon"], ["(A)", "(C)"])
    nli = table(
        {("Paris", "Lyon"): 0.4, ("Lyon", "Paris"): 0.6, ("Paris", "PARIS"): 0.2, ("PARIS", "Paris"): 0.0}
    )
    detector = BSDetector(llm, nli=nli, n_samples=2)
    assert detector.score(["Capital of France?"], ["Paris"]) == pytest.approx([0.715], abs=1e-12)
    assert sorted(nli.pairs) == [("Lyon", "Paris"), ("Paris", "Lyon")], "an equal sample is not judged"
    judged = detector.judged_
    assert judged.observed == pytest.approx([0.70], abs=1e-12)
    assert (judged.reflection.tolist(), judged.failed, judged.unread) == ([0.75], [None], 0)
    # Literally: s_1 = 1 - (0.2 + 0.0) / 2 = 0.9, O = (0.92 + 0.40) / 2 = 0.66.
    detector.set_params(exact_shortcut=False)
    assert detector.score(["Capital of France?"], ["Paris"]) == pytest.approx([0.687], abs=1e-12)


def test_the_calls_of_a_row() -> None:
    llm = scripted(["x"], ["(A)"])
    BSDetector(llm, n_samples=3, alpha=0.0, max_new_tokens=9).score(
        [[{"role": "user", "content": "q"}]], ["y"]
    )
    heats = [temperature for _, temperature, _ in llm.asked]
    assert heats == [1.0, 1.0, 1.0, 0.0, 0.0]
    seeds = [seed for _, _, seed in llm.asked[:3]]
    assert len(set(seeds)) == 3
    assert [len(chat) for chat, _, _ in llm.asked] == [1, 1, 1, 1, 3], "the second reflection reads the first"
    assert "really sure" in llm.asked[4][0][-1]["content"]


def test_weights_of_zero_spare_calls() -> None:
    def boom(premises: Any, hypotheses: Any) -> Any:
        raise AssertionError("must not be called")

    llm = scripted(["Answer: y", "Answer: z"], ["(B)"])
    only_o = BSDetector(llm, nli=boom, alpha=0.0, beta=1.0, n_samples=4)
    assert only_o.score(["q"], ["y"]).tolist() == [0.5], "the rate of exact matches"
    assert {temperature for _, temperature, _ in llm.asked} == {1.0}
    assert np.isnan(only_o.judged_.reflection).all()
    llm.asked.clear()
    only_s = BSDetector(llm, nli=boom, beta=0.0)
    assert only_s.score(["q"], ["y"]).tolist() == [0.0]
    assert {temperature for _, temperature, _ in llm.asked} == {0.0}
    assert np.isnan(only_s.judged_.observed).all()


def test_the_ends_of_the_scale() -> None:
    yes = BSDetector(scripted(["Answer: y"], ["(A)"]), nli=table({}))
    assert yes.score(["q"], ["y"]).tolist() == [1.0]
    no = BSDetector(scripted(["Answer: n"], ["(B)"]), nli=table({("y", "n"): 1.0, ("n", "y"): 1.0}))
    assert no.score(["q"], ["y"]).tolist() == [0.0]


def test_replies_without_a_choice_count_a_half() -> None:
    detector = BSDetector(scripted([""], ["well …", "(A)"]), beta=0.0)
    assert detector.score(["q"], ["y"]).tolist() == [0.75]
    assert detector.judged_.unread == 1


def test_samples_belong_to_the_prompt() -> None:
    def drawn(random_state: int, prompts: list[str], answers: list[str]) -> list[tuple[str, int]]:
        llm = scripted(["Answer: y"], ["(A)"])
        BSDetector(llm, alpha=0.0, beta=1.0, n_samples=2, random_state=random_state).score(prompts, answers)
        return [(chat[0]["content"][:2], seed) for chat, _, seed in llm.asked]

    one = drawn(0, ["q1", "q2"], ["y", "y"])
    assert drawn(0, ["q2", "q1"], ["z", "z"]) == one[2:] + one[:2], "wherever it stands, whatever the answer"
    assert drawn(0, ["q1", "q1", "q1"], ["a", "b", "a"]) == one[:2], "equal prompts share their samples"
    assert drawn(1, ["q1"], ["y"]) != one[:2]


@pytest.mark.parametrize(("temperature", "where"), [(1.0, "sample"), (0.0, "reflection")])
def test_a_row_without_replies_is_nan_and_says_why(temperature: float, where: str) -> None:
    def reply(text: str, number: int, heat: float) -> Any:
        if "bad" in text and heat == temperature:
            return Failure("no reply after 5 tries: HTTP 500")
        return "Answer: y" if heat else "(A)"

    detector = BSDetector(Script(reply), n_samples=2)
    c = detector.score(["good", "bad", "fine"], ["y", "y", "y"])
    assert c.tolist()[::2] == [1.0, 1.0]
    assert np.isnan(c[1])
    assert detector.judged_.failed == [None, "no reply after 5 tries: HTTP 500", None]


def test_many_rows_in_parts_with_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [f"q{i}" for i in range(10)]
    answers = ["y" if i % 3 else "z" for i in range(10)]

    def run(rows: int) -> tuple[list[float], list[int]]:
        monkeypatch.setattr(module, "_ROWS", rows)
        detector = BSDetector(scripted(["Answer: y"], ["(A)"]), alpha=0.0, n_samples=1)
        events: list[dict[str, Any]] = []
        detector.log = EventLog(listeners=[events.append])
        c = detector.score(prompts, answers)
        return c.tolist(), [e["done"] for e in events][-1:]

    assert run(3) == run(128) == ([pytest.approx(1.0 if i % 3 else 0.3) for i in range(10)], [10])


def test_replies_are_kept_and_failures_asked_again(tmp_path: Path) -> None:
    class Named(Script):
        fingerprint = "named"

    def reply(broken: bool) -> Callable[[str, int, float], Any]:
        return lambda text, n, heat: (
            Failure("down") if broken and "q2" in text and heat else "Answer: y" if heat else "(A)"
        )

    prompts = [f"q{i}" for i in range(4)]
    first = Named(reply(True))
    c = BSDetector(first, n_samples=2, cache=tmp_path).score(prompts, ["y"] * 4)
    assert np.isnan(c).tolist() == [False, False, True, False]
    second = Named(reply(False))
    c = BSDetector(second, n_samples=2, cache=tmp_path).score(prompts, ["y"] * 4)
    assert c.tolist() == [1.0] * 4
    assert len(first.asked) == 4 * 2 + 3 * 2
    assert [(chat[0]["content"][:2], heat) for chat, heat, _ in second.asked[:2]] == [("q2", 1.0)] * 2
    assert len(second.asked) == 4, "two samples and two reflections of the one row"


def test_a_model_that_raises_loses_nothing_kept(tmp_path: Path) -> None:
    class Breaks(Script):
        fingerprint = "breaks"

    def reply(text: str, number: int, heat: float) -> str:
        if number == 300:
            raise RuntimeError("the model broke")
        return "Answer: y"

    broken = Breaks(reply)
    with pytest.raises(RuntimeError, match="the model broke"):
        BSDetector(broken, beta=1.0, cache=tmp_path).score([f"q{i}" for i in range(100)], ["y"] * 100)
    whole = Breaks(lambda text, number, heat: "Answer: y")
    BSDetector(whole, beta=1.0, cache=tmp_path).score([f"q{i}" for i in range(100)], ["y"] * 100)
    assert len(whole.asked) == 500 - 256, "the chunk that was done is not asked again"


# Preferences


def judged(verdict: Callable[[str, str], str], sure: str = "(A)", samples: list[str] | None = None) -> Script:
    """A judge: ``verdict(first, second)`` is its letter; samples, in turn, override it at a temperature."""
    turn = iter(range(10**6))

    def reply(text: str, number: int, heat: float) -> str:
        if "Which answer is better?" not in text:
            return sure
        if heat and samples:
            return samples[next(turn) % len(samples)]
        first, second = text.split("Answer 1:\n")[1].split("\n\nWhich")[0].split("\n\nAnswer 2:\n")
        return verdict(first, second)

    return Script(reply)


def test_a_fair_judge() -> None:
    llm = judged(lambda first, second: "(A)" if first < second else "(B)")
    p, failed = BSDetector(llm).prefers(["q", "q", "q"], ["a", "b", " A"], ["b", "a", "a"])
    assert p.tolist() == [1.0, 0.0, 0.0]
    assert failed == [None] * 3
    # Row 0: 2 (1 + 5 + 2); row 1: one verdict against it; row 2: equal texts, never asked.
    assert len(llm.asked) == 17


def test_a_judge_that_favours_a_position_prefers_nothing() -> None:
    for letter in ("(A)", "(B)", "(C)", "hm"):
        llm = judged(lambda first, second, letter=letter: letter)
        assert BSDetector(llm).prefers(["q"], ["a"], ["b"])[0].tolist() == [0.0]
    one_order = judged(lambda first, second: "(A)")
    assert BSDetector(one_order).prefers(["q"], ["a"], ["b"], both_orders=False)[0].tolist() == [1.0]


def test_confidence_of_a_verdict_by_hand() -> None:
    # One order, k = 4: equal, equal, tie, opposite: o = 1, 1, 0.4, 0, so O = 0.6; S = 0.5; C = 0.42 + 0.15.
    llm = judged(lambda first, second: "(A)", "(C)", ["(A)", "(A)", "(C)", "(B)"])
    p, _ = BSDetector(llm, n_samples=4).prefers(["q"], ["a"], ["b"], both_orders=False)
    assert p == pytest.approx([0.57], abs=1e-12)


@pytest.mark.parametrize("at", ["verdict", "sample", "reflection"])
def test_a_judge_that_fails(at: str) -> None:
    def reply(text: str, number: int, heat: float) -> Any:
        here = "reflection" if "Which answer" not in text else "sample" if heat else "verdict"
        if here == at:
            return Failure("down")
        return "(A)" if here == "reflection" or "Answer 1:\na" in text else "(B)"

    p, failed = BSDetector(Script(reply)).prefers(["q"], ["a"], ["b"])
    assert np.isnan(p[0])
    assert failed == ["down"]


# Judges of contradiction


def nli_dir(folder: Path, tokenizer: Any, labels: list[str]) -> str:
    """A tiny random classifier whose rows follow ``labels``: equal weights for equal names."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(3)
    model = LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_labels=3,
            pad_token_id=tokenizer.pad_token_id,
            max_position_embeddings=512,
        )
    )
    rows = {name: torch.randn(16) * 3 for name in ("contradiction", "entailment", "neutral")}
    with torch.no_grad():
        for i, name in enumerate(labels):
            model.score.weight[i] = rows.get(name.lower(), torch.zeros(16))
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {name: i for i, name in enumerate(labels)}
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_the_order_of_the_labels_does_not_matter(tmp_path: Path, tiny_tokenizer: Any) -> None:
    pairs = (["the cat sat", "Paris", "1 2 3"], ["the dog ran to the park", "Lyon", "1 2 3"])
    orders = (
        ["contradiction", "entailment", "neutral"],
        ["ENTAILMENT", "neutral", "Contradiction"],
        ["neutral", "CONTRADICTION", "entailment"],
    )
    found = [NLIModel(nli_dir(tmp_path / str(i), tiny_tokenizer, o))(*pairs) for i, o in enumerate(orders)]
    assert found[1] == pytest.approx(found[0], abs=1e-6)
    assert found[2] == pytest.approx(found[0], abs=1e-6)
    assert ((found[0] > 0) & (found[0] < 1)).all()
    assert len(set(found[0].round(6))) == 3
    named = open_nli(str(tmp_path / "0"), BSDetector())
    assert named(*pairs) == pytest.approx(found[0], abs=1e-6)
    small = NLIModel(str(tmp_path / "0"), batch_size=1)
    assert small(*pairs) == pytest.approx(found[0], abs=1e-5), "padding changes nothing"


def test_an_inference_model_without_the_label_and_long_pairs(tmp_path: Path, tiny_tokenizer: Any) -> None:
    with pytest.raises(ParameterError) as caught:
        NLIModel(nli_dir(tmp_path / "a", tiny_tokenizer, ["LABEL_0", "LABEL_1", "LABEL_2"]))
    assert str(caught.value) == (
        "The 'nli' parameter of BSDetector must be a model with one label for contradiction. Got ['LABEL_0', "
        "'LABEL_1', 'LABEL_2'] instead."
    )
    nli = NLIModel(
        nli_dir(tmp_path / "b", tiny_tokenizer, ["contradiction", "entailment", "neutral"]), max_length=20
    )
    with pytest.warns(UserWarning, match="1 of 2 pairs of answers were longer than 20 tokens and cut"):
        assert len(nli(["the cat " * 40, "a"], ["b", "c"])) == 2


def test_embeddings_in_place_of_inference(tiny_encoder_dir: str) -> None:
    nli = EmbeddingContradiction(tiny_encoder_dir)
    texts = ["the cat sat", "the cat sat", "Paris 100"]
    p = nli(texts, ["the cat sat", "Paris 100", "the cat sat"])
    assert p[0] == pytest.approx(0.0, abs=1e-6)
    assert p[1] == pytest.approx(p[2], abs=1e-6)
    assert 0 < p[1] <= 1
    assert open_nli(f"embedding:{tiny_encoder_dir}", None)(["a"], ["b"]).shape == (1,)
    assert open_nli("embedding", None).encoder == "minilm"  # type: ignore[attr-defined]


# Parameters and data


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("llm", None, "given: a model's id, a mapping with 'url' and 'model', or a callable"),
        ("nli", 3, "a model's id, 'embedding' or a callable"),
        ("n_samples", 0, "an int >= 1"),
        ("reflections", 0, "an int >= 1"),
        ("max_new_tokens", True, "an int >= 1"),
        ("temperature", 0.0, "a finite number > 0"),
        ("alpha", 1.1, "a number in [0, 1]"),
        ("beta", "0.7", "a number in [0, 1]"),
        ("cache", True, "a folder, None or False"),
        ("random_state", None, "an int >= 0"),
    ],
)
def test_bad_parameters(name: str, value: Any, expected: str) -> None:
    detector = BSDetector(**{"llm": scripted(["x"], ["(A)"]), **{name: value}})
    with pytest.raises(ParameterError) as caught:
        detector.score(["q"], ["y"])
    assert (
        str(caught.value)
        == f"The '{name}' parameter of BSDetector must be {expected}. Got {value!r} instead."
    )


def test_bad_data() -> None:
    detector = BSDetector(scripted(["x"], ["(A)"]), nli=lambda a, b: [0.5])
    assert detector.score([], []).shape == (0,)
    with pytest.raises(DataError, match="there are 2 prompts and 1 answers"):
        detector.score(["a", "b"], ["c"])
    with pytest.raises(DataError, match="row 1: the prompt is empty, so there is nothing to judge"):
        detector.score(["a", " "], ["c", "d"])
    with pytest.raises(DataError, match="row 0: the answer is empty, so there is nothing to judge"):
        detector.score(["a"], ["\n"])
    with pytest.raises(
        DataError, match=r"must return one probability for each of 2 pairs; got shape \(1,\)\."
    ):
        detector.score(["a"], ["c"])
    detector.set_params(nli=lambda a, b: [0.5, 1.5])
    with pytest.raises(DataError, match=r"got shape \(2,\) with values outside \[0, 1\]\."):
        detector.score(["a"], ["c"])


def test_a_real_model_is_asked_and_not_changed(tiny_model_dir: str, tmp_path: Path) -> None:
    from tunesmith.engine.models import load_model, load_tokenizer

    model, tokenizer = (
        load_model(tiny_model_dir, dtype="float32", device="cpu"),
        load_tokenizer(tiny_model_dir),
    )
    llm = LocalLLM(model, tokenizer)
    before = llm.fingerprint
    options: dict[str, Any] = {"nli": lambda a, b: np.full(len(a), 0.5), "n_samples": 2, "max_new_tokens": 8}
    first = BSDetector(llm, cache=tmp_path, **options).score(["the cat ?", "1 2 3"], ["sat", "4"])
    assert llm.fingerprint == before
    again = BSDetector(llm, cache=False, **options).score(["the cat ?", "1 2 3"], ["sat", "4"])
    assert first.tolist() == again.tolist()
    assert ((first >= 0) & (first <= 1)).all()
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["BSDetector", "AutoFilter", "AutoCorrect"])
def test_the_examples_in_the_documentation(name: str) -> None:
    import tunesmith.curate

    cls = getattr(tunesmith.curate, name)
    runner = doctest.DocTestRunner(verbose=False)
    for test in doctest.DocTestFinder(recurse=False).find(cls, name, globs={}):
        assert test.examples
        runner.run(test, out=lambda text: pytest.fail(text))
    json.dumps(repr(cls()))
