"""Contrastive exploration: the step by hand and the authors' numbers, generation, learning, and what is refused."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.testing import assert_close
from transformers import LogitsProcessorList

from _golden import cases
from _tiny_transformers import build
from tunesmith.audit import CGEConfig, ContrastiveLogitsProcessor, NoveltyExplorer, contrastive_score
from tunesmith.audit.novelty.core import floored, plausible, row_contrast, step_scores
from tunesmith.audit.novelty.pair import Pair
from tunesmith.core.errors import DataError, ParameterError

CASES = cases("cge")
STEPS = [
    name
    for name, case in CASES.items()
    if "plausible" in case["outputs"] and not name.startswith("base_floor")
]


class Bigram(nn.Module):
    """A language model that is a table of logits (V, V): the next token's, given the last."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table.clone())
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=len(table)))
        self.device = torch.device("cpu")

    def get_output_embeddings(self) -> None:
        return None

    def forward(self, input_ids: Any, past_key_values: Any = None, **_: Any) -> Any:
        return SimpleNamespace(logits=self.table[input_ids], past_key_values=None)


class Words:
    """A tokenizer of numbers."""

    bos_token_id, eos_token_id, pad_token_id = 1, None, None
    all_special_ids: tuple[int, ...] = (1,)

    def __init__(self, shift: int = 0) -> None:
        self.shift = shift

    def get_vocab(self) -> dict[str, int]:
        return {str(i): i + self.shift for i in range(6)}

    def decode(self, ids: list[int], **_: Any) -> str:
        return " ".join(map(str, ids))

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split()]}


def tables() -> tuple[Bigram, Bigram]:
    found = CASES["static_sampling_alpha0.1_gamma1.0"]["inputs"]
    return Bigram(found["logits_ft_table"]), Bigram(found["logits_pt_table"])


def test_1_the_worked_step():
    ft, pt = torch.tensor([0.5, 0.3, 0.16, 0.04]).log(), torch.tensor([0.6, 0.1, 0.25, 0.05]).log()
    scores = step_scores(ft, pt, alpha=0.1, gamma=1)
    assert scores.tolist() == pytest.approx([-0.1823, 1.0986, -0.4463, -math.inf], abs=1e-4)
    assert scores.softmax(-1).tolist() == pytest.approx([0.1863, 0.6706, 0.1431, 0], abs=1e-4)


@pytest.mark.parametrize("name", STEPS)
def test_steps_of_the_authors_code(name):
    case = CASES[name]
    inputs, outputs, params = case["inputs"], case["outputs"], case["params"]
    alpha, gamma = params.get("alpha") or 0.0, params.get("gamma", 1.0)
    base = inputs["logits_pt"].log_softmax(-1)
    if name.startswith("base_floor"):
        base = floored(base, top_p=params["beta"] or None, top_k=params["kappa"] or None)
        assert_close(base, outputs["log_p_pt_after_truncation"], atol=case["tolerance"], rtol=0)
        scores = inputs["logits_ft"].log_softmax(-1) - gamma * base
        scores = scores.masked_fill(~plausible(inputs["logits_ft"].log_softmax(-1), alpha), -math.inf)
    else:
        scores = step_scores(inputs["logits_ft"], base, alpha=alpha, gamma=gamma)
    assert_close(scores, outputs["step_scores"], atol=case["tolerance"], rtol=0)
    assert_close(scores.softmax(-1), outputs["probabilities"], atol=case["tolerance"], rtol=0)
    found = plausible(inputs["logits_ft"].log_softmax(-1), alpha)
    assert found.int().tolist() == outputs["plausible"]


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("static_sampling")])
def test_5_scores_of_chosen_tokens_sum_to_the_ratio(name):
    case = CASES[name]
    inputs, outputs, params = case["inputs"], case["outputs"], case["params"]
    ft, pt = inputs["logits_ft_table"], inputs["logits_pt_table"]
    ids = torch.tensor(outputs["sequences"])
    scores = step_scores(ft[ids[:, :-1]], pt[ids[:, :-1]], alpha=params["alpha"], gamma=params["gamma"])
    chosen = scores.gather(-1, ids[:, 1:, None])[..., 0]
    assert_close(chosen, outputs["step_scores_of_chosen"], atol=case["tolerance"], rtol=0)
    ours, theirs = Pair(Bigram(ft), Bigram(pt)).log_likelihoods(ids)
    assert_close((ours - theirs).double().sum(-1), outputs["s_of_x"], atol=case["tolerance"], rtol=0)
    if params["gamma"] == 1:
        assert_close(chosen.sum(-1).double(), outputs["s_of_x"], atol=1e-4, rtol=0)


def losses(case: dict[str, Any], rows: list[list[int]], renormalise: bool) -> torch.Tensor:
    ids, inputs, params = torch.tensor(rows), case["inputs"], case["params"]
    ft, pt = inputs["logits_ft_table"][ids], inputs["logits_pt_table"][ids]
    counted = ids[:, 1:] != params["pad_token"]
    return -row_contrast(ft, pt, ids, counted, gamma=params["gamma"], renormalise=renormalise)


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("row_losses")])
def test_rows_in_the_authors_code(name):
    case = CASES[name]
    rows, outputs, tolerance = case["inputs"]["input_ids"], case["outputs"], case["tolerance"]
    assert_close(losses(case, rows, False), outputs["unnormalised_loss"], atol=tolerance, rtol=0)
    assert_close(-losses(case, rows, False), outputs["mean_contrast"], atol=tolerance, rtol=0)
    assert_close(losses(case, rows, True), outputs["renormalised_loss"], atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("extract")])
def test_rows_that_the_authors_code_extracts(name):
    case = CASES[name]
    rows = [row for batch in case["inputs"]["input_ids_batches"] for row in batch]
    order = losses(case, rows, name.endswith("_renormalised")).argsort()[: case["params"]["distill_num"]]
    assert [rows[i] for i in order] == case["outputs"]["chosen_rows"]


def test_2_equal_models_are_uniform_on_the_plausible_set():
    ft, _ = tables()
    scores = step_scores(ft.table, ft.table, alpha=0.3)
    assert set(scores.unique().tolist()) == {0.0, -math.inf}
    found = NoveltyExplorer(ft, copy.deepcopy(ft), Words(), CGEConfig("static", length=8)).explore(3)
    assert [text.score for text in found] == [0.0] * 3


def test_3_the_corners():
    ft, pt = tables()
    plain = ft.table.log_softmax(-1)
    assert_close(step_scores(ft.table, pt.table, alpha=0, gamma=0), plain)
    filtered = step_scores(ft.table, pt.table, alpha=0.3, gamma=0)  # min-p sampling
    kept = plain.exp() >= 0.3 * plain.exp().amax(-1, keepdim=True)
    assert_close(filtered[kept], plain[kept])
    assert filtered[~kept].isneginf().all()
    greedy = step_scores(ft.table, pt.table, alpha=1)
    assert greedy.argmax(-1).tolist() == ft.table.argmax(-1).tolist()
    assert (greedy.isfinite().sum(-1) == 1).all()
    ratio = step_scores(ft.table, pt.table, alpha=0)
    assert_close(ratio, plain - pt.table.log_softmax(-1))


def test_4_a_lower_alpha_never_shrinks_the_set():
    log_p = torch.randn(20, 30, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    sizes = torch.stack([plausible(log_p, alpha).sum(-1) for alpha in (1.0, 0.5, 0.1, 0.01, 0.0)])
    assert (sizes.diff(dim=0) >= 0).all()
    assert (sizes >= 1).all()


def test_10_a_token_at_the_bound_stays():
    log_p = torch.tensor([0.5, 0.25, 0.25]).log()
    assert plausible(log_p, 0.5).tolist() == [True, True, True]


def test_banned_tokens_leave_the_others_as_they_are():
    ft, pt = tables()
    all_, some = (step_scores(ft.table, pt.table, alpha=0, banned=b) for b in ((), (2, 4)))
    assert some[:, [2, 4]].isneginf().all()
    assert_close(some[:, [0, 1, 3, 5]], all_[:, [0, 1, 3, 5]])


@pytest.mark.parametrize("mode", ["static", "iterative"])
def test_6_nothing_of_the_callers_is_changed(mode):
    ft, pt = tables()
    before = [ft.table.detach().clone(), pt.table.detach().clone()]
    config = CGEConfig(mode, length=10, texts_per_step=2, learning_rate=0.1)
    found = NoveltyExplorer(ft, pt, Words(), config).explore(7)
    assert torch.equal(ft.table, before[0])
    assert torch.equal(pt.table, before[1])
    assert ft.table.grad is None
    assert pt.table.requires_grad
    assert [text.step for text in found] == [0, 0, 1, 1, 2, 2, 3]
    assert [len(text.token_ids) for text in found] == [10] * 7
    again = NoveltyExplorer(ft, pt, Words(), config).explore(7)
    assert [text.token_ids for text in again] == [text.token_ids for text in found]


def test_7_learning_a_text_lowers_its_score():
    ft, pt = tables()
    pair = Pair(ft, pt, iterative=True, learning_rate=0.05)
    ids = torch.tensor([[1, 3, 1, 2, 4]])
    ours, before = (part.sum() for part in pair.log_likelihoods(ids))
    loss = pair.learn(ids)
    assert loss == pytest.approx(float(-before / 4), abs=1e-5)
    _, after = (part.sum() for part in pair.log_likelihoods(ids))
    assert after > before
    assert ours - after < ours - before


def test_8_a_rate_of_zero_is_static():
    ft, pt = tables()
    made = [
        NoveltyExplorer(
            ft, pt, Words(), CGEConfig(mode, length=12, learning_rate=rate, texts_per_step=1)
        ).explore(5)
        for mode, rate in (("static", 5e-5), ("iterative", 0.0))
    ]
    assert [text.token_ids for text in made[0]] == [text.token_ids for text in made[1]]


def llamas() -> tuple[Any, Any]:
    base, _ = build("llama")
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for i, parameter in enumerate(tuned.parameters()):
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
    return tuned, base


@pytest.mark.parametrize("beams", [1, 3])
def test_9_generate_with_the_processor_equals_recomputation(beams):
    tuned, base = llamas()
    ids = torch.tensor([[1, 5, 7], [1, 8, 9]])

    class Recomputed(ContrastiveLogitsProcessor):
        def _base_logits(self, ids: torch.Tensor) -> torch.Tensor:
            return self.base(ids).logits[:, -1]

    made = []
    for kind in (ContrastiveLogitsProcessor, Recomputed):
        processor = kind(base, 0.05, 1.0, model=tuned)
        torch.manual_seed(0)
        out = tuned.generate(
            ids, logits_processor=LogitsProcessorList([processor]), do_sample=beams == 1, num_beams=beams,
            max_new_tokens=8, return_dict_in_generate=True, output_scores=True, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        made.append(out)
    assert torch.equal(made[0].sequences, made[1].sequences)
    for ours, theirs in zip(made[0].scores, made[1].scores, strict=True):
        assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_rows_that_are_filled_up_on_the_left_are_read_as_they_are():
    tuned, base = llamas()
    ids, mask = torch.tensor([[0, 0, 1, 5], [1, 4, 8, 9]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    processor = ContrastiveLogitsProcessor(base, attention_mask=mask)
    scores = tuned(torch.tensor([[1, 5]])).logits[:, -1]
    found = processor(ids, scores.expand(2, -1))[0]
    assert_close(
        found, step_scores(scores[0], base(torch.tensor([[1, 5]])).logits[0, -1]), atol=1e-5, rtol=1e-5
    )


def test_an_adapter_and_its_base_are_one_model():
    base, _ = build("llama")
    tuned = get_peft_model(
        copy.deepcopy(base), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    before = {name: p.detach().clone() for name, p in tuned.named_parameters()}
    flags = {name: p.requires_grad for name, p in tuned.named_parameters()}

    class Ids(Words):
        eos_token_id = 2

    for mode in ("static", "iterative"):
        config = CGEConfig(mode, length=9, texts_per_step=2, learning_rate=1e-2)
        found = NoveltyExplorer(tuned, None, Ids(), config).explore(6)
        two = NoveltyExplorer(tuned, base, Ids(), config).explore(2)
        assert [t.token_ids for t in found[:2]] == [t.token_ids for t in two]  # before anything was learned
        assert [t.score for t in found[:2]] == pytest.approx([t.score for t in two], abs=1e-4)
        assert all(2 not in text.token_ids for text in found)  # nothing ends a text
    assert list(tuned.peft_config) == ["default"]
    assert {name: p.requires_grad for name, p in tuned.named_parameters()} == flags
    assert all(torch.equal(p, before[name]) for name, p in tuned.named_parameters())
    rows = ["1 5 7 9", {"text": "3 8 8 1 4"}]
    alone, pair = (contrastive_score(rows, tuned, b, Ids()) for b in (None, base))
    np.testing.assert_allclose(alone, pair, atol=1e-5)
    assert (alone != 0).all()


def test_rows_are_ranked_by_mean_or_sum():
    tuned, base = llamas()
    rows = [
        "5 7 9 11",
        "8 8",
        {"messages": [{"role": "user", "content": "3 4"}, {"role": "assistant", "content": "6"}]},
    ]
    mean, total = (contrastive_score(rows, tuned, base, Words(), reduction=r) for r in ("mean", "sum"))
    np.testing.assert_allclose(mean * [4, 2, 3], total)
    ids = torch.tensor([[1, 5, 7, 9, 11]])
    ours, theirs = Pair(tuned, base).log_likelihoods(ids)
    assert total[0] == pytest.approx(float((ours - theirs).sum()), abs=1e-4)


def test_loops_are_told():
    table = torch.full((6, 6), -20.0)
    table[:, 3] = 5.0
    with pytest.warns(UserWarning, match="3 of 3 texts repeat themselves"):
        found = NoveltyExplorer(
            Bigram(table), Bigram(torch.zeros(6, 6)), Words(), CGEConfig("static", length=30)
        ).explore(3)
    assert found[0].repetition > 0.9


def test_what_cannot_be_contrasted():
    ft, pt = tables()
    other = Bigram(torch.zeros(7, 7))
    with pytest.raises(
        ParameterError, match=r"must be a model with the vocabulary of the tuned one \(6 tokens\).*7 tokens"
    ):
        NoveltyExplorer(ft, other, Words())
    with pytest.raises(
        ParameterError, match="The 'base' parameter of contrastive_score must be a model with the vocabulary"
    ):
        contrastive_score(["1 2"], ft, other, Words())
    with pytest.raises(
        ParameterError,
        match=r"'base_tokenizer' .* must be the tokenizer of both models. Got 'two that differ",
    ):
        NoveltyExplorer(ft, pt, Words(), base_tokenizer=Words(shift=1))
    special = Words()
    special.all_special_ids = (1, 2)
    with pytest.raises(ParameterError, match="two that differ in their special tokens"):
        NoveltyExplorer(ft, pt, Words(), base_tokenizer=special)
    for kind in (
        lambda: NoveltyExplorer(ft, None, Words()),
        lambda: contrastive_score(["1 2"], ft, None, Words()),
    ):
        with pytest.raises(
            ParameterError, match=r"The 'base' parameter of .* must be a model, or left out where the tuned"
        ):
            kind()
    nobody = Words()
    nobody.bos_token_id = None  # type: ignore[assignment]
    with pytest.raises(
        ParameterError, match="The 'start' parameter of CGEConfig must be a text: this tokenizer has no begin"
    ):
        NoveltyExplorer(ft, pt, nobody)
    assert NoveltyExplorer(ft, pt, nobody, CGEConfig("static", start="3 4", length=5)).explore(1)[
        0
    ].token_ids[:2] == [3, 4]
    with pytest.raises(
        ParameterError, match="'length' parameter of CGEConfig must be more than the 3 tokens of the start"
    ):
        NoveltyExplorer(ft, pt, Words(), CGEConfig(start="3 4", length=3))
    with pytest.raises(
        ParameterError, match=r"The 'n' parameter of NoveltyExplorer.explore must be an int of at least 1"
    ):
        NoveltyExplorer(ft, pt, Words()).explore(0)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("mode", "both", "'static' or 'iterative'"),
        ("alpha", 1.1, r"a float in \[0, 1\]"),
        ("gamma", -1, "a float of at least 0"),
        ("length", 1, "an int of at least 2"),
        ("texts_per_step", 0, "an int of at least 1"),
        ("lora_r", 0, "an int of at least 1"),
        ("learning_rate", -1e-3, "a float of at least 0"),
    ],
)
def test_settings_outside_their_sets(name, value, expected):
    with pytest.raises(
        ParameterError, match=f"The '{name}' parameter of CGEConfig must be {expected}. Got {value!r}"
    ):
        CGEConfig(**{name: value})


def test_rows_that_are_no_text():
    ft, pt = tables()
    with pytest.raises(DataError, match="row 1: a row must be a text, or hold 'messages', 'text' or a pair"):
        contrastive_score(["1 2", {"pixels": 3}], ft, pt, Words())
    with pytest.raises(DataError, match="row 0: a row needs two tokens to have a likelihood"):
        contrastive_score([""], ft, pt, Words())
    with pytest.raises(
        ParameterError, match="The 'reduction' parameter of contrastive_score must be 'mean' or 'sum'"
    ):
        contrastive_score(["1 2"], ft, pt, Words(), reduction="max")
