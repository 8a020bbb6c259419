"""The pre-trained encoder that DR-Tune compares with: a copy, or the model itself with its adapters off."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["FrozenEncoder"]


class FrozenEncoder:
    """Runs the model as it was before training, in evaluation mode, whatever happens to the model.

    Under PEFT it is the same weights with the adapters disabled, and takes no memory. Where training moves anything
    else (weights of the base model, statistics of batch normalisation), or without PEFT, it is a copy: the model's
    memory once more, without gradients and optimiser states.

    Args:
        model: before any step, and before a checkpoint is loaded into it.
        head: name of the layer on top, which does not matter here.

    Attributes:
        copied: the copy, None where adapters are disabled instead.
    """

    def __init__(self, model: nn.Module, head: str) -> None:
        self.head = head
        self.copied: nn.Module | None = None
        if not _only_adapters_move(model, head):
            self.copied = copy.deepcopy(model).eval().requires_grad_(False)
        self.sums = self._sums(model)

    @contextmanager
    def of(self, model: Any) -> Iterator[nn.Module]:
        """Give the frozen model; ``model`` is the one in training."""
        if self.copied is not None:
            yield self.copied
            return
        modes = [(module, module.training) for module in model.modules()]
        # Disabling and enabling adapters sets requires_grad of all their weights, also of those the user froze.
        trained = [(p, p.requires_grad) for p in model.parameters()]
        model.eval()
        try:
            with model.disable_adapter():
                yield model
        finally:
            for module, mode in modes:
                module.training = mode
            for parameter, wanted in trained:
                parameter.requires_grad_(wanted)

    def _sums(self, model: nn.Module) -> torch.Tensor:
        """Return sum and sum of squares of the frozen weights (2,), by which another start is told from this one."""
        skipped = {id(p) for p in model.get_submodule(self.head).parameters()}
        if self.copied is None:
            skipped |= {id(p) for p in _adapters(model)}
        weights = [p.detach() for p in model.parameters() if id(p) not in skipped and p.is_floating_point()]
        pairs = [torch.stack([w.sum(dtype=torch.float64), w.double().square().sum()]).cpu() for w in weights]
        return torch.stack(pairs).sum(0) if pairs else torch.zeros(2, dtype=torch.float64)


def _only_adapters_move(model: nn.Module, head: str) -> bool:
    if not hasattr(model, "disable_adapter"):
        return False
    if any(isinstance(m, nn.modules.batchnorm._NormBase) and m.track_running_stats for m in model.modules()):
        return False
    free = {id(p) for p in [*_adapters(model), *model.get_submodule(head).parameters()]}
    return all(id(p) in free for p in model.parameters() if p.requires_grad)


def _adapters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters that ``disable_adapter`` takes out."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            for name in module.adapter_layer_names:
                own = getattr(module, name, None)
                if isinstance(own, nn.Parameter):
                    yield own
                elif isinstance(own, nn.Module):
                    yield from own.parameters()
        elif isinstance(module, AuxiliaryTrainingWrapper):
            for name, child in module.named_children():
                if name != "original_module":
                    yield from child.parameters()
    prompts = getattr(model, "prompt_encoder", None)  # of prompt and prefix tuning
    if isinstance(prompts, nn.Module):
        yield from prompts.parameters()
