"""What is noted about a training while it runs: its events, its time, its memory."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from tunesmith.core.events import EventLog

__all__ = ["Reporter", "Stopwatch", "peak_mb", "reset_peak"]


class Stopwatch:
    """Seconds of work, on top of those that earlier attempts have used."""

    def __init__(self) -> None:
        self.before, self.begin = 0.0, time.monotonic()

    def __call__(self) -> float:
        return self.before + time.monotonic() - self.begin


class Reporter(TrainerCallback):
    """Emit the events of a training; the first process only.

    Attributes:
        done_steps: steps of earlier phases of the training, which are counted on.
        done_tokens: tokens seen in them.
        done_losses: their losses, in the form of `SFTResult.losses`.
    """

    def __init__(self, log: EventLog) -> None:
        self.log = log
        self.progress: Any = None
        self.done_steps, self.done_tokens = 0, 0
        self.done_losses: list[tuple[int, float, float]] = []

    def end_phase(self, state: Any) -> None:
        """Count what follows on from here."""
        losses = [e for e in state.log_history if "loss" in e]
        self.done_losses += [(self.done_steps + e["step"], e["loss"], e["learning_rate"]) for e in losses]
        self.done_steps += state.global_step
        self.done_tokens += int(state.num_input_tokens_seen)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer when the number of steps is known."""
        if state.is_world_process_zero:
            self.progress = self.log.progress("training steps", state.max_steps)
            self.progress.start_at(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer after each optimiser step."""
        if self.progress is not None:
            self.progress.advance()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Called by the trainer with each step's loss, and with the held-out loss."""
        if not state.is_world_process_zero:
            return
        if "loss" in logs:
            self.log.emit(
                "metric",
                step=self.done_steps + state.global_step,
                loss=logs["loss"],
                learning_rate=logs["learning_rate"],
                tokens=self.done_tokens + int(state.num_input_tokens_seen),
                **{name: value for name, value in logs.items() if name.startswith("online/")},
            )
        elif "eval_loss" in logs:
            self.log.emit(
                "metric", step=self.done_steps + state.global_step, validation_loss=logs["eval_loss"]
            )


def reset_peak(on_cpu: bool) -> None:
    """Begin the high-water mark of memory anew."""
    if not on_cpu:
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: start the high-water mark again from here
    except OSError:  # elsewhere the mark is that of the whole process
        return


def peak_mb(on_cpu: bool) -> float:
    """Return the high-water mark of memory since then, in MB of 10^6."""
    if not on_cpu:
        return float(torch.cuda.max_memory_allocated()) / 1e6
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024 / 1e6
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
