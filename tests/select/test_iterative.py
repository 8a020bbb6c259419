"""Iterative kMQ: Eq. 6 by hand, exact budgets over rounds, resume, feedback from models, and bad input."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone

from tunesmith.core.errors import DataError, ParameterError, TunesmithError
from tunesmith.select.feedback import answer_and_score, perplexity_feedback, reward_feedback
from tunesmith.select.iterative import IterativeKMeansSelector
from tunesmith.select.kmeans import KMeansSelector


def fitted(sizes: tuple[int, ...] = (20, 20, 20), **parameters: Any) -> IterativeKMeansSelector:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    selector = IterativeKMeansSelector(**{"sampling": "random", "random_state": 0, **parameters})
    return selector.fit(labels=labels)


def per_cluster(selector: IterativeKMeansSelector, values: list[float]) -> np.ndarray:
    return np.array(values)[selector.labels_[selector.selected_]]


def test_eq_6_by_hand() -> None:
    selector = fitted(n_rounds=3, normaliser="ratio")
    selector.begin(36)
    assert selector.weights_ == pytest.approx([1 / 3] * 3)
    selector.propose()
    selector.update(per_cluster(selector, [2, 1, 1]))
    assert selector.weights_ == pytest.approx([0.5, 0.25, 0.25])
    new = selector.propose()
    assert np.bincount(selector.labels_[new]).tolist() == [6, 3, 3]
    selector.update(per_cluster(selector, [1, 1, 2]))
    assert selector.weights_ == pytest.approx([0.4, 0.2, 0.4])


def test_the_softmax_alone_is_the_released_form() -> None:
    selector = fitted(history=False)
    for scores in ([2, 1, 1], [2, 1, 1], [0, 0, 0]):
        selector.begin(9)
        selector.propose()
        selector.weights_ = np.array([0.8, 0.1, 0.1])  # does not matter without history
        selector.update(per_cluster(selector, scores))
        want = [0.576117, 0.211942, 0.211942] if sum(scores) else [1 / 3] * 3
        assert selector.weights_ == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("normaliser", ["softmax", "ratio"])
def test_equal_scores_change_nothing_and_the_lowest_never_gains(normaliser: Any) -> None:
    selector = fitted((30, 30, 30), n_rounds=4, normaliser=normaliser)
    selector.begin(40)
    selector.propose()
    selector.update(per_cluster(selector, [1, 2, 3]))
    before = selector.weights_
    selector.propose()
    selector.update(per_cluster(selector, [2, 2, 2]))
    assert selector.weights_ == pytest.approx(before)
    selector.propose()
    selector.update(per_cluster(selector, [1, 5, 1.5]))
    assert selector.weights_[0] < before[0]


def test_clusters_without_scores_take_the_mean_of_the_others() -> None:
    selector = fitted(n_rounds=2)
    selector.begin(12)
    selector.propose()
    in_first = selector.selected_[selector.labels_[selector.selected_] == 0]
    in_second = selector.selected_[selector.labels_[selector.selected_] == 1]
    rows = np.concatenate([in_first, in_second[:1]])
    selector.update([4.0] * len(in_first) + [1.0], rows=rows)
    assert selector.history_[-1]["means"] == [4.0, 1.0, 2.5]
    assert selector.history_[-1]["scored"] == [2, 1, 0]
    assert selector.weights_[0] > selector.weights_[2] > selector.weights_[1] > 0


def test_a_floor_lets_a_cluster_recover() -> None:
    selector = fitted(floor=0.3)
    selector.begin(30)
    selector.propose()
    selector.update(per_cluster(selector, [0, 0, -800]))
    assert selector.weights_ == pytest.approx([0.45, 0.45, 0.1])


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 15), min_size=1, max_size=6),
    st.integers(1, 5),
    st.floats(0, 1),
    st.integers(0, 2**31 - 1),
)
def test_no_row_twice_and_the_exact_budget(sizes: list[int], rounds: int, share: float, seed: int) -> None:
    selector = fitted(tuple(sizes), n_rounds=rounds)
    budget = max(1, round(share * sum(sizes)))
    rng = np.random.default_rng(seed)
    seen: list[int] = []

    def train(rows: np.ndarray, number: int) -> Any:
        assert rows[: len(seen)].tolist() == seen
        assert len(rows) > len(seen)
        seen[:] = rows.tolist()
        return rng.normal(size=len(rows)) * 50

    picked = selector.run(train, budget)
    assert len(picked) == len(set(picked.tolist())) == budget
    assert selector.done
    assert sum(sum(row["counts"]) for row in selector.history_) == budget
    assert selector.weights_.sum() == pytest.approx(1)
    per_round = [sum(row["counts"]) for row in selector.history_]
    assert per_round[:-1] == [budget // len(per_round)] * (len(per_round) - 1)


def test_size_weights_without_feedback_are_kmq() -> None:
    rng = np.random.default_rng(0)
    x, quality = rng.normal(size=(300, 5)), rng.normal(size=300)
    whole = KMeansSelector(6, random_state=4).fit(x, quality=quality)
    rounds = IterativeKMeansSelector(6, n_rounds=1, w0="size", random_state=4).fit(x, quality=quality)
    assert rounds.select(60).tolist() == whole.select(60).tolist()
    equal = KMeansSelector(6, allocation="equal", random_state=4).fit(x, quality=quality)
    three = IterativeKMeansSelector(6, n_rounds=3, random_state=4).fit(x, quality=quality)
    assert sorted(three.select(54).tolist()) == sorted(equal.select(54).tolist())


def test_select_is_a_whole_run_and_repeats_itself() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(200, 4))
    calls = []

    def feedback(rows: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
        calls.append(number)
        return rows[:10], x[rows[:10], 0]

    selector = IterativeKMeansSelector(5, sampling="random", feedback=feedback, random_state=2)
    assert selector.required_features() == ("embedding",)
    first = selector.fit(x).select(50)
    assert calls == [1, 2, 3]
    assert len(set(first.tolist())) == 50
    assert selector.select(50).tolist() == first.tolist()
    assert clone(selector).fit(x).select(50).tolist() == first.tolist()
    assert np.isfinite(selector.scores_).all()
    assert len(selector.select(2)) == 2


def test_permuted_rows_with_their_ids_give_the_permuted_answer() -> None:
    labels, order = np.repeat([0, 1, 2], 15), np.random.default_rng(0).permutation(45)
    values = np.random.default_rng(1).normal(size=45)

    def run(at: np.ndarray) -> list[int]:
        selector = IterativeKMeansSelector(sampling="random", random_state=3).fit(labels=labels[at], ids=at)
        return at[selector.run(lambda rows, number: values[at[rows]], 18)].tolist()

    assert sorted(run(order)) == sorted(run(np.arange(45)))


def test_continues_from_json_state_as_the_straight_run() -> None:
    def score(selector: IterativeKMeansSelector) -> np.ndarray:
        return np.sin(selector.selected_.astype(float))

    straight = fitted((30, 20, 10), n_rounds=4)
    straight.run(lambda rows, number: np.sin(rows.astype(float)), 31)
    broken = fitted((30, 20, 10), n_rounds=4)
    broken.begin(31)
    broken.propose()
    broken.update(score(broken))
    broken.propose()
    text = json.dumps(broken.get_state())
    fresh = fitted((30, 20, 10), n_rounds=4)
    fresh.set_state(json.loads(text))
    fresh.update(score(fresh))
    while not fresh.done:
        fresh.propose()
        fresh.update(score(fresh))
    assert fresh.selected_.tolist() == straight.selected_.tolist()
    assert fresh.weights_.tolist() == straight.weights_.tolist()
    assert fresh.get_state() == straight.get_state()
    with pytest.raises(DataError) as error:
        fitted((30, 20, 11)).set_state(json.loads(text))
    assert str(error.value) == (
        "the state belongs to a selector with other clusters or another seed; fit with the same rows (or "
        "labels) "
        "and the same random_state before set_state."
    )
    with pytest.raises(DataError) as error:
        fresh.set_state({"format": 2})
    assert str(error.value) == "this is no state of an IterativeKMeansSelector."


@pytest.fixture(scope="module")
def tiny(tiny_model_dir: str, tiny_tokenizer: Any) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval(), tiny_tokenizer


PROMPTS = [
    [{"role": "user", "content": "what is the capital of France ?"}],
    [{"role": "user", "content": "2"}],
]


def test_perplexity_feedback_is_eq_7(tiny: tuple[Any, Any]) -> None:
    import torch

    model, tokenizer = tiny
    gold, generated = ["Paris .", "4"], ["the dog", "the cat sat"]
    got = perplexity_feedback(model, tokenizer)(PROMPTS, gold, generated)

    def log_ppl(prompt: Any, answer: str) -> float:
        head = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        start = tokenizer(head)["input_ids"]
        ids = start + tokenizer(answer + "<|im_end|>")["input_ids"]
        with torch.no_grad():
            log_p = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        return -float(np.mean([log_p[i - 1, ids[i]].item() for i in range(len(start), len(ids))]))

    want = [log_ppl(p, g) - log_ppl(p, o) for p, g, o in zip(PROMPTS, gold, generated, strict=True)]
    assert got == pytest.approx(want, abs=1e-5)
    same = perplexity_feedback(model, tokenizer)(PROMPTS, gold, gold)
    assert same == pytest.approx([0, 0], abs=1e-6)
    whole = perplexity_feedback(model, tokenizer, over="all")(PROMPTS, gold, generated)
    assert np.abs(whole - got).max() > 1e-4
    with pytest.raises(DataError, match="row 0: nothing of the answer fits in max_length=3"):
        perplexity_feedback(model, tokenizer, max_length=3)(PROMPTS, gold, generated)


def test_reward_feedback_is_the_difference_of_rewards(tiny: tuple[Any, Any]) -> None:
    import torch
    from transformers import LlamaForSequenceClassification

    model, tokenizer = tiny
    config = type(model.config)(**{**model.config.to_dict(), "num_labels": 1})
    torch.manual_seed(0)
    reward = LlamaForSequenceClassification(config).eval()
    scorer = reward_feedback(reward, tokenizer)
    gold, generated = ["Paris .", "4"], ["the dog ran to the park", "5"]
    got = scorer(PROMPTS, gold, generated)
    assert got == pytest.approx(-scorer(PROMPTS, generated, gold), abs=1e-6)
    assert scorer(PROMPTS, gold, gold) == pytest.approx([0, 0], abs=1e-6)
    alone = [scorer([p], [g], [o])[0] for p, g, o in zip(PROMPTS, gold, generated, strict=True)]
    assert got == pytest.approx(alone, abs=1e-5)  # padding does not count
    with pytest.raises(ParameterError) as error:
        reward_feedback(reward, tokenizer, label=1)
    assert (
        str(error.value)
        == "The 'label' parameter of reward_feedback must be an int in [0, 0]. Got 1 instead."
    )


def test_answer_and_score_hands_the_models_answers_to_the_scorer(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    rows = [
        {"messages": [*prompt, {"role": "assistant", "content": gold}]}
        for prompt, gold in zip(PROMPTS, ["Paris", "4"], strict=True)
    ]
    seen: dict[str, Any] = {}

    def scorer(prompts: Any, gold: Any, generated: Any) -> np.ndarray:
        seen.update(prompts=prompts, gold=gold, generated=generated)
        return np.array([1.0, 2.0])

    got = answer_and_score(model, tokenizer, rows, scorer, max_new_tokens=4)
    assert got.tolist() == [1.0, 2.0]
    assert (seen["prompts"], seen["gold"]) == (PROMPTS, ["Paris", "4"])
    assert all(isinstance(text, str) for text in seen["generated"])
    with pytest.raises(DataError) as error:
        answer_and_score(model, tokenizer, rows, lambda p, g, o: np.zeros(3), max_new_tokens=1)
    assert str(error.value) == "the scorer returned shape (3,) for 2 rows; one score each is needed."
    with pytest.raises(DataError, match=r"^row 1: feedback needs messages that end in an answer\."):
        answer_and_score(model, tokenizer, [rows[0], {"text": "x"}], scorer)


FORM = "The '{}' parameter of IterativeKMeansSelector must be {}. Got {} instead."


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_rounds": 0}, FORM.format("n_rounds", "an int >= 1", 0)),
        ({"w0": "equal"}, FORM.format("w0", "'uniform' or 'size'", "'equal'")),
        ({"normaliser": "max"}, FORM.format("normaliser", "'softmax' or 'ratio'", "'max'")),
        ({"floor": 1.0}, FORM.format("floor", "a float in [0, 1)", 1.0)),
        ({"feedback": 3}, FORM.format("feedback", "a callable or None", 3)),
        ({"sampling": "closest"}, FORM.format("sampling", "'quality' or 'random'", "'closest'")),
    ],
)
def test_bad_parameters(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError) as error:
        fitted(**parameters)
    assert str(error.value) == message


def test_steps_out_of_order_and_feedback_that_does_not_fit() -> None:
    selector = fitted(n_rounds=1)
    with pytest.raises(TunesmithError) as error:
        selector.propose()
    assert str(error.value) == "No run was begun: call begin(budget) first."
    selector.begin(5)
    with pytest.raises(TunesmithError) as error:
        selector.update([])
    assert str(error.value) == "update follows propose, once a round."
    selector.propose()
    with pytest.raises(TunesmithError) as error:
        selector.propose()
    assert str(error.value) == (
        "All 1 rounds were proposed and the budget of 5 rows is spent; begin again for another run."
    )
    outside = int(np.setdiff1d(np.arange(60), selector.selected_)[0])
    with pytest.raises(DataError) as refusal:
        selector.update([1.0], rows=[outside])
    assert str(refusal.value) == f"row {outside} has feedback but was not chosen (1 such rows)."
    with pytest.raises(DataError, match="one score per row"):
        selector.update([1.0])
    with pytest.raises(DataError, match="not a finite number"):
        selector.update([np.nan] * 5)
    with pytest.raises(
        ParameterError, match="'over' parameter of perplexity_feedback must be 'answer' or 'all'"
    ):
        perplexity_feedback(None, None, over="prompt")
    with pytest.raises(ParameterError) as budget:
        selector.begin(61)
    assert str(budget.value) == FORM.format("budget", "an int in [1, 60] or a float in (0, 1]", 61)
    ratio = fitted(normaliser="ratio")
    ratio.begin(6)
    ratio.propose()
    with pytest.raises(ParameterError, match="positive under normaliser='ratio'"):
        ratio.update([0.0, 0.0])
