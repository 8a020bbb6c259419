"""LotteryTicketMixin: what must hold in each phase, over transformers' and TRL's trainers."""

from __future__ import annotations

import pytest
import torch
from _lottery import Lottery, Watch, build, same, weights
from transformers import Trainer, TrainingArguments, set_seed

from tunesmith.core.errors import ParameterError
from tunesmith.trainers.lottery import LotteryTicket, LotteryTicketMixin
from tunesmith.tuners.sparse import SparseDelta, applied_to


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_k_entries_move_and_only_they_have_moments(dtype, tiny_transformer, tmp_path):
    model, inputs = tiny_transformer("llama-tied", dtype)
    base, watch = weights(model), Watch()
    trainer = build(
        model, tmp_path, {"num_params": 500, "dense_steps": 4, "sparse_steps": 5}, watch, weight_decay=0.5
    )
    trainer.train()
    delta = trainer.sparse_delta
    assert [phase for phase, _, _ in watch.begins] == [("dense", 1), ("sparse", 1)]
    assert [size for _, _, size in watch.begins] == [0, 0], "each phase starts without moments"
    assert same(watch.begins[1][1], base), "everything is back at the start before the sparse phase"
    assert watch.state_sizes[-1] == 500
    assert 490 <= delta.nnz <= 500
    assert delta.info["num_params"] == 500
    assert not delta.abs
    assert not any("norm" in name for name, share in delta.shares().items())
    for name, p in model.named_parameters():
        rest = torch.ones(p.numel(), dtype=torch.bool)
        rest[delta.diffs[name][0] if name in delta.diffs else []] = False
        assert torch.equal(p.detach().reshape(-1)[rest], base[name].reshape(-1)[rest])
    assert all(p.dtype == dtype and p.requires_grad for p in model.parameters())
    assert all(values.dtype == torch.float32 for _, values in delta.diffs.values())
    assert model.lm_head.weight is model.model.embed_tokens.weight
    # The model is the base with the delta applied, and the base comes back bit for bit.
    assert applied_to(model)[0] is delta
    fresh, _ = tiny_transformer("llama-tied", dtype)
    delta.save_pretrained(tmp_path / "delta")
    SparseDelta.from_pretrained(tmp_path / "delta").apply(fresh)
    assert torch.equal(fresh(**inputs).logits, model.eval()(**inputs).logits)
    delta.revert(model)
    assert same(weights(model), base)


def test_updates_too_small_for_the_weights_type_are_learned(tiny_transformer, tmp_path):
    model, _ = tiny_transformer("llama", torch.bfloat16)
    trainer = build(model, tmp_path, {"num_params": 50, "dense_steps": 3}, learning_rate=1e-6)
    trainer.train()
    values = torch.cat([v for _, v in trainer.sparse_delta.diffs.values()])
    assert len(values) == 50
    assert 1e-7 < values.abs().max() < 1e-5


def test_all_entries_are_ordinary_fine_tuning_step_for_step(tiny_transformer, tmp_path):
    # GPT-2 has dropout, so equal losses also mean an equal random state.
    plain, start = tiny_transformer("gpt2")[0], Watch()
    trainer = build(plain, tmp_path / "plain", None, start, kind=Trainer, max_steps=6)
    start.stop, start.trainer = None, trainer
    trainer.phase = None
    set_seed(trainer.args.seed)
    trainer.train()
    model, watch = tiny_transformer("gpt2")[0], Watch()
    settings = {"density": 1.0, "dense_steps": 6, "freeze_layer_norm": False}
    trainer = build(model, tmp_path / "ours", settings, watch)
    trainer.train()
    assert watch.losses == start.losses + start.losses
    for (name, a), b in zip(plain.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-7, msg=name)
    # Rows of the embeddings whose tokens never came have not moved, and are not in the delta.
    assert trainer.sparse_delta.nnz < sum(p.numel() for p in model.parameters())


def test_k_zero_changes_the_head_alone(tiny_transformer, tmp_path):
    model, _ = tiny_transformer("bert")
    base, watch = weights(model), Watch()
    trainer = build(model, tmp_path, {"num_params": 0, "dense_steps": 2}, watch, labels=3)
    trainer.train()
    assert trainer.sparse_delta.nnz == 0
    assert set(trainer.sparse_delta.abs) == {"classifier.weight", "classifier.bias"}
    assert same(watch.begins[1][1], base), "the head is back at its start too"
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, base[n])}
    assert moved == {"classifier.weight", "classifier.bias"}


def test_the_random_mask_has_no_dense_phase(tiny_transformer, tmp_path):
    masks = []
    for seed in (0, 0, 1):
        model, watch = tiny_transformer("llama")[0], Watch()
        settings = {"num_params": 300, "method": "random", "sparse_steps": 2, "seed": seed}
        trainer = build(model, tmp_path, settings, watch)
        trainer.train()
        assert [phase for phase, _, _ in watch.begins] == [("sparse", 1)]
        assert watch.state_sizes[-1] == 300
        masks.append({n: i.tolist() for n, (i, _) in trainer.sparse_delta.diffs.items()})
    assert masks[0] == masks[1] != masks[2]


def test_iterations_share_k_and_keep_what_was_chosen(tiny_transformer, tmp_path):
    model, watch = tiny_transformer("bert")[0], Watch()
    settings = {"num_params": 101, "n_iterations": 2, "dense_steps": 2, "threshold": 0.0, "l1_dense": 1.0}
    trainer = build(model, tmp_path, settings, watch, labels=3)
    trainer.train()
    assert [phase for phase, _, _ in watch.begins] == [
        ("dense", 1),
        ("sparse", 1),
        ("dense", 2),
        ("sparse", 2),
    ]
    head = 3 * 32 + 3
    assert (watch.state_sizes[3] - head, watch.state_sizes[-1] - head) == (50, 101)
    assert trainer.sparse_delta.nnz == 101
    assert same(watch.begins[3][1], watch.begins[2][1]), "back to where the second dense phase began"


def test_accumulation_equals_a_large_batch(tiny_transformer, tmp_path):
    found = []
    for accumulate in (1, 2):
        model, _ = tiny_transformer("llama")
        settings = {"num_params": 200, "dense_steps": 3, "l1_dense": 5.0, "l1_sparse": 5.0}
        trainer = build(model, tmp_path, settings, gradient_accumulation_steps=accumulate, optim="sgd")
        if accumulate == 1:
            trainer.args.per_device_train_batch_size = 8
            trainer._train_batch_size = 8
        trainer.train()
        found.append(trainer.sparse_delta)
    for name in found[0].diffs:
        torch.testing.assert_close(found[0].dense(name), found[1].dense(name), rtol=1e-3, atol=1e-7)


def test_a_task_is_learned_on_top_of_a_language(tiny_transformer, tmp_path):
    """The recipe of section 3: the source's delta is replaced by the target's under the task's."""
    model, _ = tiny_transformer("llama")
    base = weights(model)
    language = build(model, tmp_path, {"num_params": 150, "dense_steps": 2})
    language.train()
    source = language.sparse_delta
    task = build(model, tmp_path, {"num_params": 150, "dense_steps": 2}, rows=8)
    task.train()
    change = task.sparse_delta
    assert change.base == source.base, "both know the model below all deltas"
    target = 0.5 * source
    source.revert(model)
    target.apply(model)
    assert [d is e for d, e in zip(applied_to(model), (change, target), strict=True)] == [True, True]
    expected = base["model.embed_tokens.weight"] + change.dense("model.embed_tokens.weight")
    expected += target.dense("model.embed_tokens.weight")
    torch.testing.assert_close(model.model.embed_tokens.weight.detach(), expected, rtol=0, atol=1e-6)
    change.revert(model)
    target.revert(model)
    assert same(weights(model), base)


def test_freezing_the_output_embedding_unties_it(tiny_transformer, tmp_path):
    model, _ = tiny_transformer("llama-tied")
    base = weights(model)
    settings = {"density": 0.5, "dense_steps": 2, "freeze_output_embedding": True}
    trainer = build(model, tmp_path, settings)
    trainer.train()
    name = "model.embed_tokens.weight"
    assert torch.equal(model.lm_head.weight, base[name])
    assert not torch.equal(model.get_parameter(name), base[name])
    assert trainer.sparse_delta.info["untied_output"] is True
    fresh, inputs = tiny_transformer("llama-tied")
    trainer.sparse_delta.apply(fresh)
    assert torch.equal(fresh(**inputs).logits, model.eval()(**inputs).logits)
    trainer.sparse_delta.revert(model)
    assert model.lm_head.weight is model.get_parameter(name)
    assert same(weights(model), base)


def test_trl(tiny_model_dir, tiny_tokenizer, tmp_path):
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    class Tuned(LotteryTicketMixin, SFTTrainer):
        pass

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    base = weights(model)
    rows = Dataset.from_list([{"text": f"the cat sat on the mat {i}"} for i in range(8)])
    args = SFTConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, per_device_train_batch_size=2, report_to="none",
        disable_tqdm=True, save_strategy="no", gradient_checkpointing=True, learning_rate=1e-3,
    )  # fmt: skip
    lottery = LotteryTicket(num_params=400, dense_epochs=1, sparse_epochs=0.5)
    trainer = Tuned(model, args, train_dataset=rows, processing_class=tiny_tokenizer, lottery=lottery)
    trainer.train()
    assert trainer.sparse_delta.nnz == 400
    assert trainer.state.max_steps == 2
    assert (args.output_dir, args.max_steps, args.num_train_epochs) == (str(tmp_path), -1, 3.0)
    trainer.sparse_delta.revert(model)
    assert same(weights(model), base)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"num_params": -1},
            "The 'num_params' parameter of LotteryTicket must be an int >= 0 or None. Got -1 instead.",
        ),
        (
            {"density": 0.0},
            "The 'density' parameter of LotteryTicket must be a float in (0, 1] or None. Got 0.0 instead.",
        ),
        (
            {"n_iterations": 0},
            "The 'n_iterations' parameter of LotteryTicket must be an int >= 1. Got 0 instead.",
        ),
        (
            {"method": "best"},
            "The 'method' parameter of LotteryTicket must be one of lottery_ticket, random. Got 'best' instead.",
        ),
        (
            {"dense_steps": 0},
            "The 'dense_steps' parameter of LotteryTicket must be an int >= 1 or None. Got 0 instead.",
        ),
        (
            {"dense_epochs": 0},
            "The 'dense_epochs' parameter of LotteryTicket must be a float above 0 or None. Got 0 instead.",
        ),
        (
            {"l1_dense": -1.0},
            "The 'l1_dense' parameter of LotteryTicket must be a float >= 0. Got -1.0 instead.",
        ),
        (
            {},
            "The 'dense_steps' parameter of LotteryTicket must be an int, or 'dense_epochs' a float: a phase needs a "
            "length. Got None instead.",
        ),
        (
            {"dense_steps": 5, "min_steps": 6},
            "The 'min_steps' parameter of LotteryTicket must be at most dense_steps = 5. Got 6 instead.",
        ),
        (
            {"dense_steps": 1, "maskable": ["a"], "dense": ["b"]},
            "The 'dense' parameter of LotteryTicket must be None where 'maskable' is given: it is the rest. "
            "Got ['b'] instead.",
        ),
    ],
)
def test_settings(settings, message):
    with pytest.raises(ParameterError) as error:
        LotteryTicket.of(settings)
    assert str(error.value) == message


def test_settings_of_other_things():
    with pytest.raises(ParameterError, match=r"a LotteryTicket, or a mapping of its fields\. Got 3 instead"):
        LotteryTicket.of(3)
    with pytest.raises(ParameterError) as error:
        LotteryTicket.of({"densty": 0.1})
    assert "Did you mean 'density'?" in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"num_params": 10**6},
            "The 'num_params' parameter of LotteryTicket must be at most 21,696, the maskable entries. "
            "Got 1000000 instead.",
        ),
        (
            {"maskable": ["model.layer.0"]},
            "The 'maskable' parameter of LotteryTicket must be a model with the weight 'model.layer.0'. Got \"",
        ),
        (
            {"dense": ["model", "lm_head"]},
            "The 'maskable' parameter of LotteryTicket must be of at least one trainable weight of the model. "
            "Got None instead.",
        ),
    ],
)
def test_models_and_settings_that_do_not_fit(settings, message, tiny_transformer, tmp_path):
    with pytest.raises(ParameterError) as error:
        build(tiny_transformer("llama")[0], tmp_path, {"dense_steps": 1, **settings})
    assert str(error.value).startswith(message)


def test_what_cannot_be_a_lottery(tiny_transformer, tmp_path):
    model, _ = tiny_transformer("llama")
    model.lm_head.weight = torch.nn.Parameter(torch.zeros(99, 32, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ParameterError) as error:
        build(model, tmp_path, {"dense_steps": 1})
    assert str(error.value) == (
        "The 'model' parameter of LotteryTicketMixin must be in floating point: entries of quantised weights cannot be "
        "tuned one by one. Got 'lm_head.weight: torch.uint8' instead."
    )
    model, _ = tiny_transformer("llama")
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ParameterError, match="The 'optimizers' parameter of Lottery must be left out"):
        Lottery(model, args, optimizers=(optimizer, None), lottery={"dense_steps": 1})
    with pytest.raises(ParameterError, match="The 'model_init' parameter of Lottery must be left out"):
        Lottery(args=args, model_init=lambda: model, lottery={"dense_steps": 1})
