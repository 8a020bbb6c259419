"""Checkpoints that count only when they are whole: each has a marker, written after everything else.

A process killed while it saves leaves a folder without a marker; the next one removes it and continues from
the last marked one. The marker also says which training it belongs to, so that other data or settings are
refused instead of silently continued (hiyouga/LlamaFactory issue 7085).
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from tunesmith.core.errors import TrainingError
from tunesmith.core.files import read_json, write_json

__all__ = ["MARKER", "Marker", "describe_last", "find_checkpoint"]

MARKER = "complete.json"
KEPT = 2  # a checkpoint may hold weights that are no longer finite; the one before it is then still there


def find_checkpoint(
    folder: Path, identity: dict[str, Any], resume: bool
) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest whole checkpoint and its marker, removing folders that a killed process left
    unfinished.

    Args:
        folder: where checkpoints are kept.
        identity: what the training is made of; must equal that of the marker.
        resume: False removes every checkpoint.

    Raises:
        TrainingError: the checkpoints belong to another training; names what differs.
    """
    found = []
    for path in sorted(folder.glob("checkpoint-*")):
        match = re.fullmatch(r"checkpoint-(\d+)", path.name)
        if match is None or not path.is_dir():
            continue
        if not resume or not (path / MARKER).exists():
            shutil.rmtree(path)
        else:
            found.append((int(match[1]), path))
    if not found:
        return None
    path = max(found)[1]
    marker = read_json(path / MARKER)
    theirs = marker["identity"]
    different = sorted(key for key in {*theirs, *identity} if theirs.get(key) != identity.get(key))
    if different:
        raise TrainingError(
            f"{folder} holds checkpoints of another training; it differs in: {', '.join(different)}. Give "
            "another folder, or resume=False to discard them."
        )
    return path, marker


def describe_last(folder: Path) -> str:
    """Say where the last whole checkpoint is, for an error message."""
    steps = sorted(int(path.parent.name.rsplit("-", 1)[1]) for path in folder.glob(f"checkpoint-*/{MARKER}"))
    if not steps:
        return "No checkpoint was written before."
    return f"The last good checkpoint is {folder / f'checkpoint-{steps[-1]}'}."


class Marker(TrainerCallback):
    """Write the marker of a checkpoint, after all processes have written their part, if its weights are
    finite.

    Args:
        trainer: a `_trl_compat.Trainer`.
        identity: see `find_checkpoint`.
        clock: returns the seconds trained so far, over all attempts.
    """

    def __init__(self, trainer: Any, identity: dict[str, Any], clock: Any) -> None:
        self.trainer, self.identity, self.clock = trainer, identity, clock

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer when the checkpoint's files are written."""
        import torch

        if args.world_size > 1:
            torch.distributed.barrier()
        if not state.is_world_process_zero or not finite_weights(self.trainer.model):
            return
        write_json(
            Path(args.output_dir, f"checkpoint-{state.global_step}", MARKER),
            {
                "step": state.global_step,
                "trained_tokens": self.trainer.trained_tokens,
                "seconds": round(self.clock(), 3),
                "identity": self.identity,
            },
        )


def finite_weights(model: Any) -> bool:
    """Whether all weights that are trained are finite; reads each once."""
    import torch

    return all(bool(torch.isfinite(p).all()) for p in model.parameters() if p.requires_grad)
