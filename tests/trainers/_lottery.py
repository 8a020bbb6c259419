"""A lottery-ticket trainer on a tiny model, and a callback that watches it."""

from __future__ import annotations

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from tunesmith.trainers.lottery import LotteryTicketMixin


class Lottery(LotteryTicketMixin, Trainer):
    pass


class Stop(Exception):
    pass


class Watch(TrainerCallback):
    """Keep what is there when phases begin and steps end; stop at a step of a phase."""

    def __init__(self, stop=None):
        self.begins, self.losses, self.state_sizes, self.stop, self.trainer = [], [], [], stop, None

    def on_train_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        weights = {
            n: p.detach().clone() for n, p in model.named_parameters() if not n.startswith("tunesmith")
        }
        self.begins.append((getattr(self.trainer, "phase", None), weights, len(optimizer.state)))

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.losses.append(logs["loss"])

    def on_step_end(self, args, state, control, optimizer=None, **kwargs):
        sizes = [s["exp_avg"].numel() for s in optimizer.state.values() if "exp_avg" in s]
        self.state_sizes.append(sum(sizes))
        if self.stop == (self.trainer.phase, state.global_step):
            raise Stop


def build(model, output, lottery, watch=None, rows=24, kind=Lottery, labels=None, held_out=None, **options):
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 60, (rows, 9), generator=generator)
    data = [{"input_ids": row, "labels": row if labels is None else row[0] % labels} for row in ids]
    options = {"save_strategy": "no", "max_grad_norm": 0.0, "learning_rate": 1e-3, **options}
    args = TrainingArguments(
        output_dir=str(output), per_device_train_batch_size=4, use_cpu=True, disable_tqdm=True, logging_steps=1,
        report_to="none", **options,
    )  # fmt: skip
    trainer = kind(
        model,
        args,
        train_dataset=data,
        eval_dataset=held_out,
        **({} if lottery is None else {"lottery": lottery}),
    )
    if watch is not None:
        watch.trainer = trainer
        trainer.add_callback(watch)
    return trainer


def weights(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
