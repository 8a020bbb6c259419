"""Choosing rows while training: what stays as it was, what is counted, and what a checkpoint brings back."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from tunesmith.core.errors import DataError, ParameterError, TrainingError, UnknownNameError
from tunesmith.core.events import EventLog
from tunesmith.engine.models import load_model, load_tokenizer
from tunesmith.select.online import RandomPolicy, UDSPolicy
from tunesmith.trainers import OnlineSelection, OnlineSelectionMixin, train_sft

UDS = {"policy": "uds", "keep": 2, "proj_dims": [8, 2], "max_length": 16, "buffer_size": 6}
LORA = {"type": "lora", "r": 4, "lora_dropout": 0.2}


def make_rows(n: int = 20) -> Dataset:
    draw = random.Random(1)
    rows = []
    for _ in range(n):
        ids = [draw.randrange(5, 300) for _ in range(draw.randint(6, 14))]
        rows.append({"input_ids": ids, "labels": [-100] * 3 + ids[3:]})
    return Dataset.from_list(rows)


def start(folder: str, output: Any, listeners=(), rows=None, **options):
    settings = {
        "tuner": LORA,
        "learning_rate": 1e-2,
        "epochs": 2.0,
        "batch_size": 4,
        "save_every": 2,
        "seed": 7,
    }
    return train_sft(
        load_model(folder, dtype="float32"),
        load_tokenizer(folder),
        make_rows() if rows is None else rows,
        output_dir=output,
        log=EventLog(listeners=list(listeners)),
        **{**settings, **options},
    )


def assert_same_weights(a, b) -> None:
    theirs = dict(b.model.named_parameters())
    for name, parameter in a.model.named_parameters():
        assert torch.equal(parameter, theirs[name]), name


class Recording(OnlineSelectionMixin):
    def on_selection(self, batch, index, measures):
        seen = self.__dict__.setdefault("seen", [])
        seen.append((len(batch["input_ids"]), index.tolist(), {k: v.clone() for k, v in measures.items()}))


class Plain(Recording, Trainer):
    pass


class Tuned(Recording, SFTTrainer):
    pass


def build(kind, folder, output, online, rows=None, **more):
    tokenizer = load_tokenizer(folder)
    model = more.pop("model", None) or load_model(folder, dtype="float32")
    common = {
        "output_dir": str(output),
        "per_device_train_batch_size": 4,
        "num_train_epochs": 1,
        "learning_rate": 1e-2,
        "use_cpu": True,
        "report_to": "none",
        "logging_steps": 1,
        "disable_tqdm": True,
        "save_strategy": "no",
        "seed": 7,
        **more,
    }
    data = make_rows() if rows is None else rows
    if issubclass(kind, SFTTrainer):
        args = SFTConfig(**common, bf16=False, dataset_kwargs={"skip_prepare_dataset": True})
        return kind(model, args, train_dataset=data, processing_class=tokenizer, online=online)
    collate = DataCollatorForSeq2Seq(tokenizer)
    return kind(model, TrainingArguments(**common), data_collator=collate, train_dataset=data, online=online)


@pytest.mark.parametrize("keep", [4, 1.0])
def test_keeping_all_is_the_plain_training(tiny_model_dir, tmp_path, keep):
    plain = start(tiny_model_dir, tmp_path / "plain")
    kept = start(tiny_model_dir, tmp_path / "kept", online={**UDS, "keep": keep})
    assert kept.losses == plain.losses
    assert_same_weights(kept, plain)
    assert kept.candidates == 0  # nothing was scored


def test_a_warmup_longer_than_the_training_is_the_plain_training(tiny_model_dir, tmp_path):
    plain = start(tiny_model_dir, tmp_path / "plain")
    warm = start(tiny_model_dir, tmp_path / "warm", online={**UDS, "warmup_steps": 100})
    assert warm.losses == plain.losses
    assert_same_weights(warm, plain)


@pytest.mark.parametrize("kind", [Plain, Tuned])
@pytest.mark.parametrize("policy", ["uds", "random", "max_loss"])
def test_steps_and_rows_are_counted(kind, policy, tiny_model_dir, tmp_path):
    """22 rows in batches of 4: five whole ones and a last one of 2, which is kept."""
    online = UDS if policy == "uds" else {"policy": policy, "keep": 2}
    trainer = build(kind, tiny_model_dir, tmp_path, online, make_rows(22))
    trainer.train()
    assert trainer.state.global_step == 6
    assert [size for size, _, _ in trainer.seen] == [4] * 5
    assert all(len(index) == 2 for _, index, _ in trainer.seen)
    assert (trainer.policy.seen_, trainer.policy.kept_) == (20, 10)
    logged = [entry for entry in trainer.state.log_history if "online/kept" in entry]
    assert len(logged) == 5
    assert all(entry["online/kept"] == 0.5 for entry in logged)


def test_the_loss_is_that_of_the_kept_rows(tiny_model_dir, tmp_path):
    """The count that the loss is divided by is taken after the choice, over both micro-batches."""
    trainer = build(
        Plain, tiny_model_dir, tmp_path, UDS, make_rows(8), gradient_accumulation_steps=2, max_steps=1
    )
    model = load_model(tiny_model_dir, dtype="float32").eval()
    rows = {}
    inner = trainer.select

    def select(batch):
        kept = inner(batch)
        rows.setdefault("kept", []).append(kept)
        return kept

    trainer.select = select
    trainer.train()
    total, count = 0.0, 0
    for batch in rows["kept"]:
        assert len(batch["input_ids"]) == 2
        labels = batch["labels"]
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        total += float(
            torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum", ignore_index=-100
            )
        )
        count += int((labels[:, 1:] != -100).sum())
    assert trainer.state.log_history[0]["loss"] == pytest.approx(total / count, rel=1e-4)


def test_accumulation_equals_the_choice_per_micro_batch(tiny_model_dir, tmp_path):
    one = build(Plain, tiny_model_dir, tmp_path / "a", UDS, make_rows(8), max_steps=1)
    two = build(
        Plain, tiny_model_dir, tmp_path / "b", UDS, make_rows(8), max_steps=1, gradient_accumulation_steps=2
    )
    one.train()
    two.train()
    assert [size for size, _, _ in two.seen] == [4, 4]
    assert one.seen[0][1] == two.seen[0][1]


def test_scoring_leaves_random_state_gradients_and_modes(tiny_model_dir, tmp_path):
    trainer = build(Plain, tiny_model_dir, tmp_path, {**UDS, "log_losses": True})
    model = trainer.model.train()
    model.model.norm.eval()
    modes = [module.training for module in model.modules()]
    batch = next(iter(trainer.get_train_dataloader()))
    before = torch.get_rng_state()
    trainer.select(batch)
    assert torch.equal(torch.get_rng_state(), before)
    assert modes == [module.training for module in model.modules()]
    assert all(p.grad is None for p in model.parameters())
    assert not any(value.requires_grad for value in trainer.seen[0][2].values())


@pytest.mark.parametrize("frozen", [True, False])
def test_scores_with_and_without_an_output_layer_pass(frozen, tiny_model_dir, tmp_path):
    """A frozen output layer is never run; the scores are those of the logits all the same."""
    model = load_model(tiny_model_dir, dtype="float32")
    trainer = build(Plain, tiny_model_dir, tmp_path, {**UDS, "log_losses": True}, model=model)
    batch = next(iter(trainer.get_train_dataloader()))
    model.get_output_embeddings().weight.requires_grad_(not frozen)
    found = trainer._measures(batch)
    assert (trainer._layer is not None) == frozen
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    for i, mask in enumerate(batch["attention_mask"].bool()):
        exact = float(torch.linalg.svdvals(logits[i, mask].double()).sum())
        assert float(found["intra"][i]) == pytest.approx(exact, rel=1e-4)
        loss = torch.nn.functional.cross_entropy(logits[i, :-1], batch["labels"][i, 1:], ignore_index=-100)
        assert float(found["loss"][i]) == pytest.approx(float(loss), rel=1e-4)


def test_trailing_padding_of_the_kept_rows_goes(tiny_model_dir, tmp_path):
    rows = Dataset.from_list(
        [{"input_ids": [7] * n, "labels": [-100] + [7] * (n - 1)} for n in (5, 6, 14, 4)]
    )
    trainer = build(Plain, tiny_model_dir, tmp_path, {"policy": "random", "keep": 2}, rows)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.policy.choose = lambda k, count, measures: batch["attention_mask"].sum(1).argsort()[:2]
    trainer.policy.report = lambda index, measures: {}
    kept = trainer.select(batch)
    assert {name: tuple(value.shape) for name, value in kept.items()} == dict.fromkeys(kept, (2, 5))


class Stop(Exception):
    pass


@pytest.mark.parametrize("online", [UDS, {"policy": "random", "keep": 0.5}], ids=["uds", "random"])
def test_interrupted_equals_straight(online, tiny_model_dir, tmp_path):
    """Stopped at step 5, where the memory of 6 has wrapped; continued from step 4, in the first epoch."""
    straight = start(tiny_model_dir, tmp_path / "straight", online=online)

    def stop(event):
        if event["kind"] == "metric" and event["step"] == 5:
            raise Stop

    with pytest.raises(Stop):
        start(tiny_model_dir, tmp_path / "run", [stop], online=online)
    again = start(tiny_model_dir, tmp_path / "run", online=online)
    assert again.losses == straight.losses
    assert_same_weights(again, straight)
    assert (again.candidates, again.kept) == (straight.candidates, straight.kept) == (40, 20)
    assert again.trained_tokens == straight.trained_tokens
    finished = start(tiny_model_dir, tmp_path / "run", online=online)
    assert (finished.candidates, finished.kept) == (40, 20)


def test_another_selection_is_another_training(tiny_model_dir, tmp_path):
    start(tiny_model_dir, tmp_path / "run", epochs=0.5, online=UDS)
    with pytest.raises(TrainingError, match=r"another training; it differs in: online\."):
        start(tiny_model_dir, tmp_path / "run", epochs=0.5, online={**UDS, "alpha": 1.0})


def test_a_checkpoint_without_a_state_is_refused(tiny_model_dir, tmp_path):
    trainer = build(Plain, tiny_model_dir, tmp_path, UDS)
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(
        TrainingError, match=r"checkpoint-3 holds no state of a policy \(online_policy\.safetensors\)"
    ):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_metrics_reach_the_event_log(tiny_model_dir, tmp_path):
    events: list[dict[str, Any]] = []
    online = {**UDS, "log_losses": True}
    start(tiny_model_dir, tmp_path / "run", [events.append], epochs=1.0, online=online)
    metrics = [event for event in events if event["kind"] == "metric"]
    names = {"intra", "inter", "loss", "score"}
    wanted = {f"online/{name}_{part}" for name in names for part in ("kept", "dropped")} | {"online/kept"}
    assert all(wanted <= set(event) for event in metrics)


def test_bfloat16(tiny_model_dir, tmp_path):
    result = train_sft(
        load_model(tiny_model_dir, dtype="bfloat16"),
        load_tokenizer(tiny_model_dir),
        make_rows(),
        output_dir=tmp_path,
        tuner=LORA,
        batch_size=4,
        online=UDS,
    )
    assert (result.candidates, result.kept) == (20, 10)


def test_packed_rows_are_refused(tiny_model_dir, tmp_path):
    class Args:
        packing, padding_free, seed, train_batch_size = True, False, 0, 4

    class Bare:
        def __init__(self):
            self.args = Args()

    class Mixed(OnlineSelectionMixin, Bare):
        pass

    with pytest.raises(
        ParameterError, match=r"'packing' parameter of Mixed must be False: in packed batches a row"
    ):
        Mixed(online={"policy": "random"})


def test_a_model_without_logits_is_refused(tiny_model_dir, tmp_path):
    trainer = build(Plain, tiny_model_dir, tmp_path, UDS)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer._takes_states = lambda model, inputs: False
    trainer.model.forward = lambda **inputs: torch.zeros(1)
    with pytest.raises(DataError, match="Online selection needs a model that returns logits, and this one"):
        trainer.select(batch)


def test_losses_need_labels(tiny_model_dir, tmp_path):
    trainer = build(Plain, tiny_model_dir, tmp_path, {"policy": "max_loss", "keep": 1})
    batch = {k: v for k, v in next(iter(trainer.get_train_dataloader())).items() if k != "labels"}
    with pytest.raises(DataError, match="The losses of rows need labels, and the batch has none"):
        trainer.select(batch)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ({"keep": 0}, ParameterError, r"'keep' parameter of OnlineSelection must be an int >= 1 .* Got 0"),
        ({"keep": 1.5}, ParameterError, r"'keep' .* or a float in \(0, 1\] \(share\)\. Got 1.5"),
        ({"warmup_steps": -1}, ParameterError, r"'warmup_steps' .* must be an int >= 0\. Got -1"),
        ({"policy": "usd"}, UnknownNameError, r"no method named 'online.usd'\. Did you mean 'online.uds'"),
        ({"alfa": 1}, ParameterError, r"'parameters' .* must be of UDSPolicy .*'alfa'"),
        ({"alpha": -1}, ParameterError, r"'alpha' parameter of UDSPolicy must be a float >= 0"),
        (0.5, ParameterError, r"'online' parameter of train_sft must be a mapping such as .* Got 0.5"),
    ],
)
def test_settings_are_checked(value, error, message):
    with pytest.raises(error, match=message):
        OnlineSelection.of(value)


def test_settings():
    assert [OnlineSelection(keep=keep).rows(8) for keep in (1, 8, 0.5, 0.01, 1.0)] == [1, 8, 4, 1, 8]
    with pytest.raises(ParameterError, match=r"'keep' .* must be at most the batch's 8 rows\. Got 9"):
        OnlineSelection(keep=9).rows(8)
    assert OnlineSelection.of({"policy": "random"}, seed=3).policy.random_state == 3
    assert OnlineSelection.of({"policy": "random", "random_state": 5}, seed=3).policy.random_state == 5
    assert isinstance(OnlineSelection(RandomPolicy(), keep=1).policy, RandomPolicy)
    assert isinstance(OnlineSelection().policy, UDSPolicy)
