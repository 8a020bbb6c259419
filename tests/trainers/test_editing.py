"""LocFT-BF on tiny models: what moves, what stays, and that facts are written."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, Phi3Config, Phi3ForCausalLM

from tunesmith.core.errors import DataError, ParameterError, TrainingError
from tunesmith.metrics.editing import evaluate_edits
from tunesmith.trainers import edit
from tunesmith.trainers.editing import breadth_first, depth_first, edit_loss
from tunesmith.trainers.editing.editor import fine_tune
from tunesmith.trainers.editing.encoding import EncodedEdit, collate, encode_edits, encode_text
from tunesmith.trainers.editing.tuned import TunedWeights
from tunesmith.tuners import LocFTConfig
from tunesmith.tuners.locft import Site, find_sites

FACTS = [
    {"prompt": f"the capital of {place}", "target_new": answer, "rephrase_prompt": f"capital : {place}"}
    for place, answer in zip(
        ("mat", "park", "dog", "city", "unit", "tool"),
        ("cat", "two", "sum", "times", "plus", "Paris"),
        strict=True,
    )
]
FAST = LocFTConfig(layer=1, learning_rate=3e-2, batch_size=4, max_epochs=60)


def fresh(folder: str, dtype: torch.dtype = torch.float32) -> Any:
    """The tiny model with an output layer that can say something: its own logits stay within 1.3 of one another."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
    return model


@pytest.fixture
def model(tiny_model_dir: str) -> Any:
    return fresh(tiny_model_dir)


def gpt2() -> Any:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=400, n_embd=32, n_layer=3, n_head=4, n_positions=64, bos_token_id=2, eos_token_id=2
    )
    return GPT2LMHeadModel(config).eval()


def snapshot(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def moved(model: Any, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


def test_facts_are_written_into_one_matrix_and_taken_back(model: Any, tiny_tokenizer: Any) -> None:
    before = snapshot(model)
    model.train()
    seen: list[tuple[int, float]] = []
    result = edit(model, tiny_tokenizer, FACTS, FAST, after_epoch=lambda *row: seen.append(row))
    name = "model.layers.1.mlp.down_proj.weight"
    assert moved(model, before) == {name} == set(result.names)
    assert result.layer == 1
    assert result.converged
    assert result.cached
    assert [loss for _, loss in seen] == result.epoch_losses
    assert result.epoch_losses[-1] < 1e-2 <= result.epoch_losses[-2]
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert evaluate_edits(model, tiny_tokenizer, FACTS, max_new_tokens=8)["reliability"] == 1.0
    now = model.get_parameter(name).detach().clone()
    torch.testing.assert_close(before[name] + result.delta()[name], now)
    result.undo()
    assert moved(model, before) == set()


def test_runs_repeat_and_the_order_follows_the_seed(tiny_model_dir: str, tiny_tokenizer: Any) -> None:
    def losses(seed: int) -> list[float]:
        model = fresh(tiny_model_dir)
        config = LocFTConfig(layer=1, learning_rate=1e-2, batch_size=4, max_epochs=2, seed=seed)
        return edit(model, tiny_tokenizer, FACTS, config).batch_losses

    assert losses(0) == losses(0)
    assert losses(0) != losses(1)


def test_sample_mean_and_token_mean_of_the_worked_example() -> None:
    # Two words: the target's logit z over 0 costs log(1 + exp(-z)).
    def logit(nll: float) -> float:
        return -math.log(math.expm1(nll))

    costs = [[0.0, 0.0, 0.9], [0.3, 0.3, 0.3]]  # at the positions that predict tokens 1, 2, 3
    logits = torch.tensor([[[logit(c) if c else 0.0, 0.0] for c in [*row, 1.0]] for row in costs])
    labels = torch.tensor([[-100, -100, -100, 0], [-100, 0, 0, 0]])
    loss, each = edit_loss(logits, labels)
    assert each.tolist() == pytest.approx([0.9, 0.3])
    assert float(loss) == pytest.approx(0.6)
    assert float(edit_loss(logits, labels, "token")[0]) == pytest.approx(0.45)
    with pytest.raises(
        ParameterError, match="'reduction' parameter of edit_loss must be 'sample' or 'token'"
    ):
        edit_loss(logits, labels, "mean")


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_padding_changes_no_loss(kind: str, model: Any) -> None:
    model = gpt2() if kind == "gpt2" else model
    short, long = EncodedEdit((5, 6), (7, 2)), EncodedEdit(tuple(range(10, 22)), (9, 8, 2))

    def each(edits: list[EncodedEdit], pad: int) -> torch.Tensor:
        batch = collate(edits, pad)
        with torch.no_grad():
            logits = model(
                input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False
            ).logits
        return edit_loss(logits, batch.labels)[1]

    alone = each([short], 0)
    for pad in (0, 2):  # 2 ends a sequence: as padding it hides no label
        torch.testing.assert_close(each([short, long], pad)[:1], alone, rtol=0, atol=1e-5)
    assert collate([short, long], 2).labels[0].tolist()[-2:] == [7, 2]
    assert (collate([short, long], 2).labels[0] != -100).sum() == 2


def test_depth_first_and_breadth_first_coincide_on_one_edit(tiny_model_dir: str, tiny_tokenizer: Any) -> None:
    ends = []
    for pipeline in ("breadth_first", "depth_first"):
        model = fresh(tiny_model_dir)
        config = LocFTConfig(layer=1, learning_rate=3e-2, max_epochs=60, pipeline=pipeline)
        result = edit(model, tiny_tokenizer, FACTS[:1], config)
        ends.append((result.batch_losses, result.steps, result.converged, snapshot(model)))
    assert ends[0][:3] == ends[1][:3]
    assert ends[0][1] == len(ends[0][0]) - 1
    assert all(torch.equal(ends[0][3][name], ends[1][3][name]) for name in ends[0][3])


def test_depth_first_forgets_what_it_has_written(model: Any, tiny_tokenizer: Any) -> None:
    config = LocFTConfig(
        layer=1, learning_rate=3e-2, max_epochs=60, pipeline="depth_first", cache_states=False
    )
    result = edit(model, tiny_tokenizer, FACTS, config)
    assert result.converged
    assert max(result.epoch_losses) < 1e-2, "each edit sticks when its turn ends"
    encoded = encode_edits(tiny_tokenizer, FACTS)
    loop, _ = fine_tune(
        TunedWeights(model, [Site(result.names[0])], 1e-2),
        encoded,
        LocFTConfig(max_epochs=1, loss_threshold=1e9),
        None,
    )
    assert loop.epoch_losses[0] > 1e-2, "after the whole run, on average, they no longer do"


def test_below_the_threshold_nothing_moves_and_one_epoch_is_enough(model: Any, tiny_tokenizer: Any) -> None:
    before = snapshot(model)
    result = edit(model, tiny_tokenizer, FACTS, LocFTConfig(layer=1, loss_threshold=100.0))
    assert moved(model, before) == set()
    assert (result.steps, len(result.epoch_losses), result.converged) == (0, 1, True)


def test_every_edit_is_visited_once_an_epoch_and_skipped_batches_take_no_step() -> None:
    weight = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.Adam([weight])
    visited: list[list[int]] = []

    def loss_of(rows: list[int]) -> torch.Tensor:
        visited.append(rows)
        return weight * 0 + (5.0 if 3 in rows else 0.0)

    def update(loss: torch.Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    loop = breadth_first(
        loss_of, 7, update, batch_size=3, max_epochs=4, threshold=0.01, order=lambda epoch: range(7)
    )
    assert visited == [[0, 1, 2], [3, 4, 5], [6]] * 4
    assert loop.batch_sizes == [3, 3, 1] * 4
    assert loop.epoch_losses == [pytest.approx(15 / 7)] * 4
    assert (loop.steps, optimizer.state[weight]["step"].item()) == (4, 4)
    assert not loop.converged


def test_each_edit_of_depth_first_has_an_optimizer_of_its_own() -> None:
    made: list[int] = []

    def new_update() -> Any:
        made.append(0)
        return lambda loss: None

    loop = depth_first(lambda rows: torch.tensor(1.0), 3, new_update, max_steps=2, threshold=0.01)
    assert (len(made), loop.steps, loop.batch_losses, loop.converged) == (3, 6, [1.0] * 6, False)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_cache_of_lower_layers_changes_nothing(
    kind: str, tiny_model_dir: str, tiny_tokenizer: Any
) -> None:
    runs = []
    for cache in (False, True):
        model = gpt2() if kind == "gpt2" else fresh(tiny_model_dir)
        config = LocFTConfig(layer=1, learning_rate=1e-3, batch_size=4, max_epochs=3, cache_states=cache)
        result = edit(model, tiny_tokenizer, FACTS, config)
        assert result.cached is cache
        assert all("forward" not in module.__dict__ for module in model.modules())
        runs.append(result.batch_losses)
    assert runs[0] == pytest.approx(runs[1], abs=1e-4)


def test_low_precision_weights_take_steps_that_they_could_not_hold() -> None:
    model = torch.nn.Linear(2, 1, bias=False, dtype=torch.bfloat16)
    torch.nn.init.ones_(model.weight)
    update = TunedWeights(model, [Site("weight")], 5e-5).new_update()
    for _ in range(200):
        update(-model.weight.sum())
    # 200 steps of 5e-5 are 0.01; bfloat16 has steps of 1/128 above 1, so each single one would be lost.
    assert model.weight.tolist() == [[1.0078125, 1.0078125]]


def test_a_bfloat16_model_is_edited_and_restored_bit_for_bit(
    tiny_model_dir: str, tiny_tokenizer: Any
) -> None:
    model = fresh(tiny_model_dir, torch.bfloat16)
    before = snapshot(model)
    result = edit(model, tiny_tokenizer, FACTS, FAST)
    assert model.dtype == torch.bfloat16
    assert evaluate_edits(model, tiny_tokenizer, FACTS, max_new_tokens=8)["reliability"] == 1.0
    result.undo()
    assert moved(model, before) == set()


def test_of_a_fused_matrix_the_gates_keep_their_bits(tiny_tokenizer: Any) -> None:
    sizes = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 24, "num_attention_heads": 4}
    model = Phi3ForCausalLM(
        Phi3Config(**sizes, num_hidden_layers=2, pad_token_id=0, bos_token_id=2, eos_token_id=2)
    )
    before = snapshot(model)
    config = LocFTConfig(layer=1, module="mlp_up", learning_rate=1e-2, max_epochs=2)
    (name,) = edit(model, tiny_tokenizer, FACTS, config).names
    assert moved(model, before) == {name}
    now = model.get_parameter(name)
    assert torch.equal(now[:24], before[name][:24])
    assert not torch.equal(now[24:], before[name][24:])


def test_the_space_belongs_to_the_target_and_the_prompts_ids_come_first(tiny_tokenizer: Any) -> None:
    one = encode_text(tiny_tokenizer, "the capital is", "Paris")
    assert list(one.prompt) == tiny_tokenizer("the capital is")["input_ids"]
    assert tiny_tokenizer.decode(one.target) == " Paris<|im_end|>"
    assert encode_text(tiny_tokenizer, "the capital is", " Paris") == one
    assert encode_text(tiny_tokenizer, "the capital is", "Paris", append_eos=False).target == one.target[:-1]

    class Merging:
        """Joins the space before a word with the word before it."""

        eos_token_id = 0

        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            return {"input_ids": [len(word) for word in text.replace("is P", "isP").split()]}

    merged = encode_text(Merging(), "capital is", "Paris")
    assert (merged.prompt, merged.target) == ((7, 2), (5, 0))


def test_prefixes_add_copies_of_each_edit(model: Any, tiny_tokenizer: Any) -> None:
    from tunesmith.trainers.editing.prefixes import with_prefixes

    grown = with_prefixes(model, tiny_tokenizer, FACTS[:2], 3, seed=0)
    assert len(grown) == 8
    assert grown == with_prefixes(model, tiny_tokenizer, FACTS[:2], 3, seed=0)
    assert [row["target_new"] for row in grown] == ["cat"] * 4 + ["two"] * 4
    assert all(row["prompt"].endswith(". the capital of mat") for row in grown[1:4])
    config = LocFTConfig(layer=1, n_prefixes=1, batch_size=3, max_epochs=1, learning_rate=1e-3)
    result = edit(model, tiny_tokenizer, FACTS[:3], config)
    assert (len(result.edits), len(result.batch_losses)) == (3, 2)


def test_contradicting_edits_are_refused_or_the_newest_kept(model: Any, tiny_tokenizer: Any) -> None:
    rows = [*FACTS, {**FACTS[0], "target_new": "mat"}]
    with pytest.raises(DataError, match=r"row 6: 1 edits contradict .* rows 0 and 6 want 'cat' and 'mat'"):
        edit(model, tiny_tokenizer, rows, FAST)
    config = LocFTConfig(layer=1, max_epochs=1)
    assert edit(model, tiny_tokenizer, rows, config, conflicts="newest").edits == rows[1:]
    with pytest.raises(ParameterError, match="'conflicts' parameter of edit must be 'error' or 'newest'"):
        edit(model, tiny_tokenizer, rows, config, conflicts="oldest")


def test_a_loss_that_is_not_finite_leaves_the_old_weights(model: Any, tiny_tokenizer: Any) -> None:
    before = snapshot(model)

    def poison(epoch: int, loss: float) -> None:
        with torch.no_grad():
            model.model.norm.weight.fill_(torch.nan)

    with pytest.raises(TrainingError, match=r"Editing stopped after 2 steps: the loss is nan"):
        edit(model, tiny_tokenizer, FACTS, FAST, after_epoch=poison)
    assert moved(model, before) == {"model.norm.weight"}


def test_what_is_refused(model: Any, tiny_tokenizer: Any) -> None:
    with pytest.raises(ParameterError, match="'config' parameter of edit must be a LocFTConfig or None"):
        edit(model, tiny_tokenizer, FACTS, {"layer": 1})  # type: ignore[arg-type]

    class Endless:
        eos_token_id = None

        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": []}

    with pytest.raises(ParameterError, match="one with an end-of-sequence token, or append_eos=False"):
        encode_edits(Endless(), FACTS)
    with pytest.raises(DataError, match="row 0: the prompt or the target has no token"):
        encode_edits(Endless(), FACTS, append_eos=False)


def test_the_default_place_is_one_matrix_at_70_percent(model: Any) -> None:
    sites, layer = find_sites(model, LocFTConfig())
    assert ([site.name for site in sites], layer) == (["model.layers.1.mlp.down_proj.weight"], 1)
