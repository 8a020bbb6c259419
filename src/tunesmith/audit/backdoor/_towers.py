"""What belongs to the image tower of a model, found by running it: its parameters and its candidate layers.

Nothing is asked of the names but this: stages are siblings called layer1, stage2, ...; blocks lie in a list. One
image is run through the model, and whatever does not take part in it is not the image tower.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

__all__ = ["first_tensor", "layers_of_run", "parameters_of_run"]

_STAGE = re.compile(r"(?:layer|stage|block)s?_?\d+$")


def first_tensor(output: Any) -> Any:
    """Return the tensor of a module's output: itself, or the first entry of a tuple, list or mapping."""
    while not torch.is_tensor(output):
        if isinstance(output, dict):
            output = next(iter(output.values()))
        elif isinstance(output, (tuple, list)) and output:
            output = output[0]
        else:
            return None
    return output


def parameters_of_run(model: nn.Module, run: Callable[[], torch.Tensor]) -> set[str]:
    """Return the names of the parameters that the output of ``run()`` depends on; one forward and backward pass.

    ``requires_grad`` of the parameters is as before afterwards.
    """
    named = dict(model.named_parameters())
    before = {name: p.requires_grad for name, p in named.items()}
    try:
        for p in named.values():
            p.requires_grad_(True)
        with torch.enable_grad():
            grads = torch.autograd.grad(run().sum(), list(named.values()), allow_unused=True)
    finally:
        for name, p in named.items():
            p.requires_grad_(before[name])
    return {name for name, grad in zip(named, grads, strict=True) if grad is not None}


def layers_of_run(model: nn.Module, run: Callable[[], Any]) -> tuple[list[str], set[str]]:
    """Return the candidate layers of the tower that ``run()`` goes through, in order, and those with tokens first.

    Stages or blocks: of all families of siblings that take part (``layer1`` ... ``layer4`` of one parent, or entries
    of one kind in a list, each with modules inside), the one that holds most parameters. A model that has none is
    given by its convolutions and linear layers.

    Args:
        model: the whole model.
        run: a forward pass of one image.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is not None and name not in shapes:
                shapes[name] = tuple(tensor.shape)

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    called = [name for name in shapes if any(True for _ in model.get_submodule(name).parameters())]
    found = max(_families(model, called), key=lambda names: _weight(model, names), default=[])
    if not found:
        found = [name for name in called if _is_linear_map(model.get_submodule(name))]
    # A batch of one image whose first dimension is longer: (tokens, batch, width), as in older open_clip.
    token_first = {
        name for name in found if len(shapes[name]) == 3 and shapes[name][0] > 1 == shapes[name][1]
    }
    return found, token_first


def _families(model: nn.Module, called: Iterable[str]) -> list[list[str]]:
    """Group siblings; outer groups come before inner ones, so that of two equal ones the outer is taken."""
    children: dict[str, list[str]] = defaultdict(list)
    for name in called:
        children[name.rpartition(".")[0]].append(name)
    families = []
    for parent in sorted(children, key=lambda name: (name.count("."), name)):
        stages = [name for name in children[parent] if _STAGE.match(name.rpartition(".")[2])]
        if len(stages) > 1:
            families.append(stages)
        if isinstance(model.get_submodule(parent), (nn.ModuleList, nn.Sequential)):
            inner = [
                name for name in children[parent] if any(True for _ in model.get_submodule(name).children())
            ]
            kinds = Counter(type(model.get_submodule(name)) for name in inner)
            kind, count = kinds.most_common(1)[0] if kinds else (None, 0)
            if count > 1:
                families.append([name for name in inner if type(model.get_submodule(name)) is kind])
    return families


def _weight(model: nn.Module, names: list[str]) -> int:
    return sum(p.numel() for name in names for p in model.get_submodule(name).parameters())


def _is_linear_map(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    leaf = not any(True for _ in module.children())
    return leaf and torch.is_tensor(weight) and weight.dim() > 1 and not isinstance(module, nn.Embedding)
