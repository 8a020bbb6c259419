"""Masked thought: what must hold of the draws, the rates, the mask token and the collator."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from _thoughts import rows
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.trainers import MaskedThought, MaskedThoughtCollator
from tunesmith.trainers.masked_thought import draw_noise, mask_rate

MASK = 1  # <|im_start|>: any token of the vocabulary can be reused
PAD = DataCollatorForLanguageModeling(0)


def collator(inner: Any = PAD, **kwargs: Any) -> MaskedThoughtCollator:
    if kwargs.get("mode", "mask") != "random":
        kwargs = {"mask_token": MASK, **kwargs}
    if kwargs.get("mode", "mask") != "mask":
        kwargs = {"vocab_size": 400, **kwargs}
    return MaskedThoughtCollator(inner, **kwargs)


def wide(tokens: int = 10_000, n: int = 10) -> dict[str, torch.Tensor]:
    """One batch of rows with a prompt of 20 and as many eligible tokens in all as said."""
    return PAD(_equal(tokens // n, n))


def _equal(answer: int, n: int) -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 400, (n, 20 + answer), generator=generator).tolist()
    return [{"input_ids": row, "labels": [-100] * 20 + row[20:]} for row in ids]


def test_a_rate_of_zero_gives_the_plain_batch_and_draws_nothing() -> None:
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    plain, found = PAD(rows(4)), collator(rate=0.0)(rows(4))
    assert list(found) == list(plain)
    for name, value in plain.items():
        assert found[name].numpy().tobytes() == value.numpy().tobytes()
    collator(rate=0.7, mode="mixed", replace_rate=0.5)(rows(4))
    assert torch.equal(torch.random.get_rng_state(), state)


@given(
    p=st.floats(0, 1),
    mode=st.sampled_from(["mask", "random", "mixed"]),
    seed=st.integers(0, 9),
    n=st.integers(1, 5),
)
@settings(max_examples=40, deadline=None)
def test_labels_prompt_and_padding_never_change(p: float, mode: str, seed: int, n: int) -> None:
    extra = {"replace_rate": 0.5} if mode == "mixed" else {}
    plain = PAD(rows(n, seed=seed))
    found = collator(rate=p, mode=mode, seed=seed, **extra)(rows(n, seed=seed))
    assert torch.equal(found["labels"], plain["labels"])
    assert torch.equal(found["attention_mask"], plain["attention_mask"])
    kept = plain["labels"] == -100
    assert torch.equal(found["input_ids"][kept], plain["input_ids"][kept])
    assert found["input_ids"].dtype == torch.int64
    assert int(found["input_ids"].max()) < 400


@pytest.mark.parametrize("r", [0.0, 1.0, 0.3])
def test_the_share_of_hits(r: float) -> None:
    batch = wide()
    eligible = batch["labels"] != -100
    assert int(eligible.sum()) == 10_000
    M, noise, use_noise = draw_noise(batch, 0.4, seed=0, replace_rate=r, noise_ids=400)
    assert not (M & ~eligible).any()
    assert abs(float(M[eligible].float().mean()) - 0.4) <= 0.0147  # 3 standard errors
    if r:
        drawn = noise[eligible].float()
        assert (int(drawn.min()), int(drawn.max())) == (0, 399)
        assert abs(float(drawn.mean()) - 199.5) <= 3 * 115.5 / 100
    if r == 0.3:
        assert isinstance(use_noise, torch.Tensor)
        assert abs(float(use_noise[eligible].float().mean()) - 0.3) <= 3 * (0.3 * 0.7 / 10_000) ** 0.5
        both = (use_noise & M)[eligible].float().mean()  # which kind does not depend on whether
        assert abs(float(both) - 0.12) <= 3 * (0.12 * 0.88 / 10_000) ** 0.5


def test_draws_of_places_rows_and_steps_do_not_depend_on_each_other() -> None:
    batch = wide()
    M = [draw_noise(batch, 0.5, step=s)[0][:, 20:].float() * 2 - 1 for s in range(4)]
    error = 3 / 10_000**0.5
    assert abs(float((M[0][:, 1:] * M[0][:, :-1]).mean())) < error  # neighbours
    assert abs(float((M[0] * M[0].roll(1, 0)).mean())) < error  # rows
    for later in M[1:]:
        assert abs(float((M[0] * later).mean())) < error  # steps
    other = draw_noise(batch, 0.5, seed=1)[0][:, 20:].float() * 2 - 1
    assert abs(float((M[0] * other).mean())) < error  # seeds


def test_epochs_differ_and_equal_steps_agree() -> None:
    row = _equal(64, 1)
    for p in (0.1, 0.5, 0.9):
        first = collator(rate=p, seed=3)
        one, two = first(row)["input_ids"], first(row)["input_ids"]
        assert not torch.equal(one, two)
        again = collator(rate=p, seed=3)
        assert torch.equal(again(row)["input_ids"], one)
        again.step = 1
        assert torch.equal(again(row)["input_ids"], two)
        assert not torch.equal(collator(rate=p, seed=4)(row)["input_ids"], one)


def test_draws_do_not_depend_on_how_rows_are_put_together(tiny_tokenizer: Any) -> None:
    """Padding, on either side, the neighbours in the batch, and packing without padding."""
    from transformers import DataCollatorForSeq2Seq

    data = rows(4)
    inners = [PAD, DataCollatorForLanguageModeling(0, padding_free=True)]
    for side in ("left", "right"):
        tiny = pickle.loads(pickle.dumps(tiny_tokenizer))
        tiny.padding_side = side
        inners.append(DataCollatorForSeq2Seq(tiny))
    for row in data:
        row["attention_mask"] = [1] * len(row["input_ids"])
    found = []
    for inner in inners:
        batch = collator(inner, rate=0.5)(data)
        kept = batch["attention_mask"] == 1 if "attention_mask" in batch else torch.ones(1, 1) > 0
        found.append(batch["input_ids"][kept.expand_as(batch["input_ids"])].tolist())
    alone = [collator(rate=0.5)([row])["input_ids"][0].tolist() for row in data]
    found.append([token for row in alone for token in row])
    assert found.count(found[0]) == len(found)
    assert MASK in found[0]


def test_a_rate_of_one_leaves_the_question_and_positions() -> None:
    data = _equal(6, 2)
    data[1]["input_ids"][:20] = data[0]["input_ids"][:20]
    batch = collator(rate=1.0)(data)
    assert batch["input_ids"][:, 20:].unique().tolist() == [MASK]
    assert torch.equal(batch["input_ids"][0], batch["input_ids"][1])
    assert not torch.equal(batch["labels"][0], batch["labels"][1])


def test_a_changed_token_changes_only_what_follows(tiny_model_dir: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()
    batch = PAD(_equal(12, 1))
    before = model(**batch)
    for i in (22, 31):
        ids = batch["input_ids"].clone()
        ids[0, i] = MASK
        after = model(**{**batch, "input_ids": ids})
        assert torch.allclose(after.logits[:, :i], before.logits[:, :i], atol=1e-5)
        assert not torch.allclose(after.logits[:, i], before.logits[:, i], atol=1e-3)
        if i == 31:  # the last token predicts nothing
            assert float(after.loss) == pytest.approx(float(before.loss), abs=1e-6)
        else:
            assert abs(float(after.loss - before.loss)) > 1e-5


def test_the_rate_of_a_step() -> None:
    rates = [mask_rate(s, 300, 0.4, 2 / 3) for s in range(300)]
    assert rates[0] == 0
    assert rates[100] == pytest.approx(0.4 * 100 / 201)
    assert rates[100] == pytest.approx(0.1990, abs=5e-5)
    assert rates[200] == pytest.approx(0.3980, abs=5e-5)
    assert set(rates[201:]) == {0.4}
    assert rates == sorted(rates)
    assert [mask_rate(s, 300, 0.2, 0.0) for s in (0, 1, 299)] == [0.2, 0.2, 0.2]
    assert [mask_rate(s, 100, 0.2, 0.0, start=0.5) for s in (0, 49, 50)] == [0.0, 0.0, 0.2]
    assert mask_rate(75, 100, 0.4, 0.49, start=0.5) == pytest.approx(0.2)


def test_random_tokens_can_leave_special_ones_out(tiny_tokenizer: Any) -> None:
    assert tiny_tokenizer.all_special_ids == [2, 0]
    special = MaskedThoughtCollator(PAD, tiny_tokenizer, rate=1.0, mode="random")
    without = MaskedThoughtCollator(PAD, tiny_tokenizer, rate=1.0, mode="random", exclude_special=True)
    some, none = (c(_equal(1000, 10))["input_ids"][:, 20:] for c in (special, without))
    assert {0, 2} <= set(some.unique().tolist()) == set(range(400))
    assert set(none.unique().tolist()) == set(range(400)) - {0, 2}


def test_the_padding_token_can_be_the_mask_and_attention_stays(tiny_tokenizer: Any) -> None:
    batch = MaskedThoughtCollator(None, tiny_tokenizer, mask_token="<|pad|>", rate=0.8)(rows(4))
    plain = PAD(rows(4))
    assert torch.equal(batch["attention_mask"], plain["attention_mask"])
    assert int((batch["input_ids"] == 0).sum()) > int((plain["input_ids"] == 0).sum()) + 10


def test_hidden_places_can_be_taken_out_of_attention() -> None:
    batch = collator(rate=0.5, drop_attention_mask=True)(rows(4))
    plain = PAD(rows(4))
    hidden = batch["input_ids"] != plain["input_ids"]
    assert hidden.any()
    assert torch.equal(batch["attention_mask"], plain["attention_mask"] * ~hidden)
    packed = collator(
        DataCollatorForLanguageModeling(0, padding_free=True), rate=0.5, drop_attention_mask=True
    )
    with pytest.raises(
        DataError, match=r"^drop_attention_mask needs an attention mask with one entry per token, and "
    ):
        packed(rows(2))


def test_a_collator_can_be_pickled_for_workers() -> None:
    first = collator(rate=0.5, mode="mixed", replace_rate=0.5)
    again = pickle.loads(pickle.dumps(first))
    assert torch.equal(first(rows(4))["input_ids"], again(rows(4))["input_ids"])


def test_workers_draw_anew_in_each_epoch() -> None:
    from torch.utils.data import DataLoader

    loader = DataLoader(_equal(64, 2), batch_size=1, collate_fn=collator(rate=0.5), num_workers=1)
    one, two = ([batch["input_ids"] for batch in loader] for _ in range(2))
    assert not any(torch.equal(a, b) for a, b in zip(one, two, strict=True))


BAD_ROWS = [
    (
        {"input_ids": [5, 6, 7], "labels": [-100, -100, -100]},
        "batch, row 1: there is no reasoning to hide: no token of the row is trained (labels are -100 everywhere). "
        "Leave such rows out, or raise max_length if it cuts answers off",
    ),
    (
        {"input_ids": [5, 6, 7], "labels": [5, 6, 7]},
        "batch, row 1: all tokens of the row are trained, so it has no prompt from which the hidden ones could be "
        "told. Set the prompt's labels to -100 (completion_only_loss in TRL), or pass allow_no_prompt=True",
    ),
    (
        {"input_ids": [5, 6, 1], "labels": [-100, 6, 7]},
        "batch, row 1: labels differ from input_ids at trained tokens. Masked thought needs the clean input: not one "
        "that was masked before (masks are drawn anew in each step), and not shifted labels",
    ),
]


@pytest.mark.parametrize(("row", "message"), BAD_ROWS)
@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_rows_that_cannot_be_used_are_named(row: dict[str, Any], message: str, rate: float) -> None:
    with pytest.raises(DataError) as caught:
        collator(rate=rate)([*rows(1), row])
    assert str(caught.value) == message


def test_rows_without_a_prompt_can_be_allowed() -> None:
    row = {"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8]}
    packed = DataCollatorForLanguageModeling(0, padding_free=True)  # takes the label of each first token out
    for inner in (PAD, packed):
        with pytest.raises(DataError, match="has no prompt"):
            collator(inner)([row])
        batch = collator(inner, allow_no_prompt=True, rate=1.0)([row])
        assert batch["input_ids"][0, 1:].tolist() == [MASK] * 3


def test_batches_of_another_form_are_refused() -> None:
    with pytest.raises(DataError) as caught:
        collator(lambda features: {"inputs_embeds": torch.ones(1, 2, 3)})([])
    assert str(caught.value) == (
        "Masked thought needs 'input_ids' and 'labels', and the batch has no 'input_ids' and 'labels'."
    )
    two = {"input_ids": torch.ones(2, 5).long(), "labels": torch.ones(2, 3).long()}
    with pytest.raises(DataError) as caught:
        collator(lambda features: two)([])
    assert str(caught.value) == (
        "Masked thought needs 'input_ids' and 'labels' of one shape (rows, tokens), and theirs are (2, 5) and (2, 3). "
        "It works on causal language models."
    )


NO_MASK = (
    "The 'mask_token' parameter of MaskedThoughtCollator must be a token or its id, because the tokenizer has no mask "
    "token: add_mask_token(model, tokenizer) adds one, any token may be reused, and mode='random' needs none. Got None "
    "instead."
)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"rate": 1.5},
            "The 'rate' parameter of MaskedThoughtCollator must be a float in [0, 1]. Got 1.5 instead.",
        ),
        (
            {"rate": -0.1},
            "The 'rate' parameter of MaskedThoughtCollator must be a float in [0, 1]. Got -0.1 instead.",
        ),
        (
            {"mode": "swap"},
            "The 'mode' parameter of MaskedThoughtCollator must be one of 'mask', 'random', 'mixed'. Got "
            "'swap' instead.",
        ),
        (
            {"mode": "mixed"},
            "The 'replace_rate' parameter of MaskedThoughtCollator must be a float in [0, 1]. Got None instead.",
        ),
        (
            {"replace_rate": 0.5},
            "The 'replace_rate' parameter of MaskedThoughtCollator must be left out unless mode='mixed'. Got "
            "0.5 instead.",
        ),
        ({}, NO_MASK),
        ({"mode": "mixed", "replace_rate": 0.5}, NO_MASK),
        (
            {"mask_token": "<nothing>"},
            "The 'mask_token' parameter of MaskedThoughtCollator must be a token of the tokenizer. Got '<nothing>' "
            "instead.",
        ),
        (
            {"mask_token": -1},
            "The 'mask_token' parameter of MaskedThoughtCollator must be an id >= 0 or a token's text. Got -1 instead.",
        ),
    ],
)
def test_parameters_outside_their_set(tiny_tokenizer: Any, kwargs: Any, message: str) -> None:
    with pytest.raises(ParameterError) as caught:
        MaskedThoughtCollator(PAD, tiny_tokenizer, **kwargs)
    assert str(caught.value) == message


def test_what_is_needed_without_a_tokenizer() -> None:
    with pytest.raises(ParameterError) as caught:
        MaskedThoughtCollator(PAD, mode="random")
    assert str(caught.value) == (
        "The 'vocab_size' parameter of MaskedThoughtCollator must be an int >= 1 where there is no tokenizer, for "
        "mode='random'. Got None instead."
    )
    with pytest.raises(ParameterError) as caught:
        MaskedThoughtCollator(mask_token=1)
    assert str(caught.value) == (
        "The 'collator' parameter of MaskedThoughtCollator must be given where no tokenizer with a padding token is. "
        "Got None instead."
    )


def test_settings_of_a_recipe(tiny_tokenizer: Any) -> None:
    found = MaskedThought.of(
        {"rate": 0.2, "mode": "mixed", "replace_rate": 0.1, "mask_token": "<|im_start|>"}
    )
    assert found.describe()["rate"] == 0.2
    corruption = found.corruption(tiny_tokenizer, 7)
    assert (corruption.mask_id, corruption.replace_rate, corruption.seed) == (1, 0.1, 7)
    with pytest.raises(ParameterError, match=r"Did you mean 'warmup'\?. Got 'warmpu' instead.$"):
        MaskedThought.of({"warmpu": 0.5})
    with pytest.raises(ParameterError) as caught:
        MaskedThought.of(0.4)
    assert str(caught.value) == (
        "The 'masked' parameter of MaskedThought must be a MaskedThought, or a mapping of its fields. Got 0.4 instead."
    )
    for name in ("rate", "warmup", "start"):
        with pytest.raises(ParameterError) as caught:
            MaskedThought(**{name: 2.0})
        assert str(caught.value) == (
            f"The '{name}' parameter of MaskedThought must be a float in [0, 1]. Got 2.0 instead."
        )
    with pytest.raises(ParameterError) as caught:
        mask_rate(1, 10, 2.0)
    assert (
        str(caught.value) == "The 'p_max' parameter of mask_rate must be a float in [0, 1]. Got 2.0 instead."
    )
    with pytest.raises(ParameterError) as caught:
        mask_rate(1, 10, variant="other")
    assert (
        str(caught.value)
        == "The 'variant' parameter of mask_rate must be 'paper' or 'official'. Got 'other' instead."
    )
