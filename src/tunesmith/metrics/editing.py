"""Measures of an edited model: reliability, generalization, locality, capability.

As in Yang et al. (ICLR 2026, arXiv 2509.22072): the model answers freely, greedily, and must answer with the target and
nothing else. Teacher-forced accuracy, which is common, flatters an editor: it never sees its own mistakes.
"""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tunesmith.core.errors import DataError, ParameterError

__all__ = ["by_part", "compute", "evaluate_edits", "greedy_answers", "normalize_answer", "text_perplexity"]

MAX_NEW_TOKENS = 32


def normalize_answer(text: str) -> str:
    """Lower the case, drop ASCII punctuation, then the articles a, an, the, and collapse white space.

    In this order, so "rock-n-roll" becomes one word, and "A" becomes the empty string.
    """
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def compute(*, predictions: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """Compare answers with targets, both normalised; an answer that runs on is wrong.

    Args:
        predictions: n answers.
        references: n targets.

    Returns:
        ``exact_match`` (mean), ``scores`` (n of 0.0 or 1.0), and ``n_empty``: targets of which nothing is left, which
        any empty answer matches.

    Raises:
        ParameterError: the lengths differ.
        DataError: there is nothing to compare.
    """
    if len(predictions) != len(references):
        expected = f"as long as references, which has {len(references)} items"
        raise ParameterError("predictions", "metrics.editing.compute", expected, f"{len(predictions)} items")
    if not predictions:
        raise DataError("there are no answers to compare.")
    targets = [normalize_answer(text) for text in references]
    scores = [
        float(normalize_answer(text) == target) for text, target in zip(predictions, targets, strict=True)
    ]
    return {
        "exact_match": sum(scores) / len(scores),
        "scores": scores,
        "n_empty": sum(not target for target in targets),
    }


def greedy_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = 64,
    stop: Sequence[str] = ("\n",),
) -> list[str]:
    """Let a model continue raw prompts greedily, each up to its end-of-sequence token or a stop string.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        prompts: n texts, fed as they are.
        max_new_tokens: longest answer in tokens.
        batch_size: prompts per batch.
        stop: strings at which an answer is cut. The authors' evaluation also stops at ``"."``, which cuts answers
            such as "U.S." in two.

    Returns:
        n answers without outer white space.
    """
    from tunesmith.engine.generate import generate

    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    answers = generate(model, tokenizer, ids, max_new_tokens=max_new_tokens, batch_size=batch_size)
    for mark in stop:
        answers = [answer.split(mark)[0].strip() for answer in answers]
    return answers


def evaluate_edits(
    model: Any,
    tokenizer: Any,
    edits: Sequence[Mapping[str, str]],
    *,
    locality_before: Sequence[str] | None = None,
    capability: Callable[[Any, Any], float] | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = 64,
    stop: Sequence[str] = ("\n",),
) -> dict[str, Any]:
    """Measure a model after **all** of its edits.

    Success right after each edit is no reliability: later edits overwrite earlier ones.

    Args:
        model: the edited model.
        tokenizer: its tokenizer.
        edits: rows of `data.edits.read_edits`.
        locality_before: answers of the unedited model to the locality prompts (`greedy_answers`): locality is then the
            share of unchanged answers. Without them it is the share that begins with ``locality_ground_truth``.
        capability: function of model and tokenizer for what the model should still be able to do, for example
            ``lambda model, tokenizer: text_perplexity(model, tokenizer, texts)``.
        max_new_tokens: longest answer in tokens.
        batch_size: prompts per batch.
        stop: see `greedy_answers`.

    Returns:
        ``reliability`` (prompts), ``generalization`` (rephrased prompts), ``locality`` and ``capability``, as far as
        the rows and arguments allow, ``n_empty`` (targets of which normalising leaves nothing), and ``scores``: each
        measure's values by edit that has it.

    Raises:
        DataError: there are no edits.
        ParameterError: ``locality_before`` has another length than there are locality prompts.
    """

    def answers(prompts: list[str]) -> list[str]:
        return greedy_answers(
            model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size, stop=stop
        )

    if not edits:
        raise DataError("there are no edits to evaluate.")
    targets = [row["target_new"] for row in edits]
    found = compute(predictions=answers([row["prompt"] for row in edits]), references=targets)
    result: dict[str, Any] = {"reliability": found["exact_match"], "n_empty": found["n_empty"]}
    scores = {"reliability": found["scores"]}
    rephrased = [row for row in edits if row.get("rephrase_prompt")]
    if rephrased:
        found = compute(
            predictions=answers([row["rephrase_prompt"] for row in rephrased]),
            references=[row["target_new"] for row in rephrased],
        )
        result["generalization"], scores["generalization"] = found["exact_match"], found["scores"]
    if near := _locality(edits, locality_before, answers):
        scores["locality"] = near
        result["locality"] = sum(near) / len(near)
    if capability is not None:
        result["capability"] = float(capability(model, tokenizer))
    return {**result, "scores": scores}


def _locality(
    edits: Sequence[Mapping[str, str]],
    before: Sequence[str] | None,
    answers: Callable[[list[str]], list[str]],
) -> list[float]:
    if before is not None:
        rows = [row for row in edits if row.get("locality_prompt")]
        if len(before) != len(rows):
            expected = f"one answer for each of the {len(rows)} locality prompts"
            raise ParameterError("locality_before", evaluate_edits, expected, f"{len(before)} answers")
        if not rows:
            return []
        now = answers([row["locality_prompt"] for row in rows])
        return [float(a == b) for a, b in zip(now, before, strict=True)]
    rows = [row for row in edits if row.get("locality_prompt") and row.get("locality_ground_truth")]
    if not rows:
        return []
    now = answers([row["locality_prompt"] for row in rows])
    truths = [normalize_answer(row["locality_ground_truth"]) for row in rows]
    return [
        float(f"{normalize_answer(text)} ".startswith(f"{truth} "))
        for text, truth in zip(now, truths, strict=True)
    ]


def by_part(scores: Sequence[float], parts: int = 5) -> list[float]:
    """Return the mean of each of ``parts`` equal stretches of the edits' order: forgetting rises towards the start.

    Raises:
        ParameterError: there are fewer scores than parts, or no part.
    """
    if not 1 <= parts <= len(scores):
        raise ParameterError("parts", by_part, f"an int in [1, {len(scores)}], the number of scores", parts)
    cuts = [round(i * len(scores) / parts) for i in range(parts + 1)]
    return [sum(scores[a:b]) / (b - a) for a, b in itertools.pairwise(cuts)]


def text_perplexity(model: Any, tokenizer: Any, texts: Sequence[str], batch_size: int = 16) -> float:
    """Return the perplexity of raw texts: a cheap stand-in for general ability, lower is better.

    Compare it with the unedited model's.

    Raises:
        DataError: no text has a second token.
    """
    from tunesmith.engine.lm import completion_nll
    from tunesmith.metrics.perplexity import HeldOutPerplexity

    ids = [tokenizer(text)["input_ids"] for text in texts]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    was_training = model.training
    model.eval()
    try:
        sums, counts = completion_nll(
            model, ids, [[True] * len(row) for row in ids], pad, batch_size=batch_size
        )
    finally:
        model.train(was_training)
    return float(HeldOutPerplexity().compute(predictions=sums, references=counts)["perplexity"])
