"""Measures of edits: normalised exact match of free, greedy answers."""

from __future__ import annotations

from typing import Any

import pytest

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.metrics import editing
from tunesmith.metrics.editing import by_part, compute, evaluate_edits, greedy_answers, text_perplexity


def test_the_form_of_an_answer_does_not_count_but_further_words_do() -> None:
    found = compute(
        predictions=["The Paris.", "Paris, France", "paris"], references=["paris", "Paris", "Paris"]
    )
    assert found == {"exact_match": pytest.approx(2 / 3), "scores": [1.0, 0.0, 1.0], "n_empty": 0}
    assert compute(predictions=[""], references=["The A."])["n_empty"] == 1


def test_a_model_that_ends_right_after_the_target_succeeds(
    tiny_model_dir: str, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in model answers with given tokens: with the end of the sequence after the target, and without."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    answer = tiny_tokenizer(" Paris")["input_ids"]
    prompts = ["the capital of France is", "capital"]
    lengths = [len(tiny_tokenizer(prompt)["input_ids"]) for prompt in prompts]

    def speak(script: list[int]) -> None:
        begin = max(lengths)

        def forward(input_ids: Any, past_key_values: Any = None, **_: Any) -> Any:
            from transformers.modeling_outputs import CausalLMOutputWithPast

            nonlocal step
            step = step + 1 if input_ids.shape[1] == 1 or input_ids.shape[1] > begin else 0
            logits = torch.zeros(input_ids.shape[0], 1, len(tiny_tokenizer))
            logits[:, :, script[min(step, len(script) - 1)]] = 1.0
            return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)

        step = 0
        monkeypatch.setattr(model, "forward", forward)

    edits = [{"prompt": prompt, "target_new": "Paris"} for prompt in prompts]
    speak([*answer, tiny_tokenizer.eos_token_id])
    assert evaluate_edits(model, tiny_tokenizer, edits, max_new_tokens=12)["reliability"] == 1.0
    speak([*answer, *tiny_tokenizer(" France")["input_ids"]])
    assert evaluate_edits(model, tiny_tokenizer, edits, max_new_tokens=12)["reliability"] == 0.0


def test_measures_depend_on_what_the_rows_have(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {"p1": "amber", "p2": "no", "r1": "Amber.", "l1": "Paris is old", "l2": "Rome"}
    monkeypatch.setattr(editing, "greedy_answers", lambda _m, _t, prompts, **_: [table[p] for p in prompts])
    rows = [
        {
            "prompt": "p1",
            "target_new": "amber",
            "rephrase_prompt": "r1",
            "locality_prompt": "l1",
            "locality_ground_truth": "Paris",
        },
        {
            "prompt": "p2",
            "target_new": "the",
            "locality_prompt": "l2",
            "locality_ground_truth": "Rom",
        },
    ]
    found = evaluate_edits(None, None, rows, capability=lambda model, tokenizer: 0.25)
    assert found == {
        "reliability": 0.5,
        "n_empty": 1,
        "generalization": 1.0,
        "locality": 0.5,
        "capability": 0.25,
        "scores": {"reliability": [1.0, 0.0], "generalization": [1.0], "locality": [1.0, 0.0]},
    }
    found = evaluate_edits(None, None, rows, locality_before=["Paris is old", "Rome"])
    assert found["locality"] == 1.0
    assert "locality" not in evaluate_edits(None, None, [{"prompt": "p1", "target_new": "amber"}])
    with pytest.raises(ParameterError, match="one answer for each of the 2 locality prompts"):
        evaluate_edits(None, None, rows, locality_before=["Paris"])
    with pytest.raises(DataError, match="no edits to evaluate"):
        evaluate_edits(None, None, [])


def test_answers_are_cut_at_stop_strings(monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.engine import generate

    monkeypatch.setattr(generate, "generate", lambda *_, **__: ["U.S. Navy \n more"])
    tokenizer = lambda text: {"input_ids": [1]}  # noqa: E731
    assert greedy_answers(None, tokenizer, ["x"]) == ["U.S. Navy"]
    assert greedy_answers(None, tokenizer, ["x"], stop=("\n", ".")) == ["U"]


def test_profile_over_the_stream() -> None:
    assert by_part([0, 0, 1, 1, 1, 1], 3) == [0.0, 1.0, 1.0]
    with pytest.raises(ParameterError, match=r"'parts' parameter of by_part must be an int in \[1, 2\]"):
        by_part([0.0, 1.0], 3)


def test_perplexity_of_texts_is_that_of_the_models_own_loss(tiny_model_dir: str, tiny_tokenizer: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32).train()
    ids = torch.tensor([tiny_tokenizer("the cat sat on the mat")["input_ids"]])
    with torch.no_grad():
        expected = float(model(input_ids=ids, labels=ids).loss.exp())
    assert text_perplexity(model, tiny_tokenizer, ["the cat sat on the mat"]) == pytest.approx(
        expected, rel=1e-5
    )
    assert model.training


def test_unequal_lengths_and_nothing_are_refused() -> None:
    with pytest.raises(ParameterError, match="as long as references, which has 2 items"):
        compute(predictions=["a"], references=["a", "b"])
    with pytest.raises(DataError, match="no answers to compare"):
        compute(predictions=[], references=[])
