"""What a lottery-ticket training knows beside the model: the start, the chosen entries and their exact values."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.core.errors import TrainingError
from tunesmith.core.files import atomic_open
from tunesmith.trainers.lottery.moving import Moving, exact
from tunesmith.trainers.lottery.parts import Parts
from tunesmith.tuners.sparse import SparseDelta, random_positions, top_k_positions
from tunesmith.tuners.sparse._tensors import put, take, wide
from tunesmith.tuners.sparse.selection import difference

__all__ = ["START", "VALUES", "Ticket", "read_tensors", "write_tensors"]

START, VALUES = "lottery_start.safetensors", "lottery_values.safetensors"


@dataclass
class Ticket:
    """The state between the phases.

    Attributes:
        model: unwrapped.
        parts: its weights by what happens to them.
        origin: theta0 of the trainable tensors; only in dense phases, empty otherwise.
        chosen: name -> ascending flat positions.
        chosen_origin: theta0 at them, in float32 (float64).
        tuned: their values now, in float32 (float64).
        head_origin: theta0 of the dense tensors.
        heads: their values now, in float32 (float64).
        buffers: values of the model's buffers before a dense phase.
    """

    model: nn.Module
    parts: Parts
    origin: dict[str, Tensor] = field(default_factory=dict)
    chosen: dict[str, Tensor] = field(default_factory=dict)
    chosen_origin: dict[str, Tensor] = field(default_factory=dict)
    tuned: dict[str, Tensor] = field(default_factory=dict)
    head_origin: dict[str, Tensor] = field(default_factory=dict)
    heads: dict[str, Tensor] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.parameters = dict(self.model.named_parameters())
        for name in self.parts.dense:
            self.head_origin[name] = self.parameters[name].detach().clone()
            self.heads[name] = exact(self.parameters[name])

    @torch.no_grad()
    def start_dense(self, on_device: bool) -> Moving:
        """Copy theta0, let all trainable tensors move, and return those that do so in float32 beside the model.

        Args:
            on_device: keep theta0 on the weights' device (for L1), else on the CPU.
        """
        self.buffers = {name: b.detach().clone() for name, b in self.model.named_buffers()}
        moving = Moving(self.model)
        self.model.requires_grad_(False)
        for name in [*self.parts.maskable, *self.parts.dense]:
            parameter = self.parameters[name]
            device = parameter.device if on_device else "cpu"
            if name in self.head_origin:
                self.origin[name] = self.head_origin[name]
                current = self.heads[name]
            else:
                self.origin[name] = parameter.detach().to(device, copy=True)
                if name in self.chosen:
                    put(self.origin[name], self.chosen[name], self.chosen_origin[name])
                current = parameter
            if parameter.dtype == wide(parameter.dtype):
                parameter.requires_grad_(True)
            else:  # updates below half a unit in the last place would vanish
                values = exact(current)
                if name in self.chosen:
                    put(values, self.chosen[name], self.tuned[name])
                moving.add(name, values, None)
        return moving

    @torch.no_grad()
    def choose(self, k: int, moving: Moving) -> dict[str, Tensor]:
        """Return the k entries that moved most in the dense phase among those not chosen yet."""

        def current(name: str) -> Tensor:
            return moving.values(name) if name in moving.index else self.parameters[name]

        kinds = [wide(self.parameters[name].dtype) for name in self.parts.maskable]
        dtype = torch.float64 if torch.float64 in kinds else torch.float32
        score = difference(self.origin.__getitem__, current, dtype)
        return top_k_positions(score, self.parts.maskable, k, exclude=self.chosen, dtype=dtype)

    def draw(self, k: int, seed: int) -> dict[str, Tensor]:
        """Return k entries drawn uniformly."""
        return random_positions(self.parts.maskable, k, seed)

    @torch.no_grad()
    def reset(self) -> None:
        """Put every tensor back to its value before the dense phase, and forget theta0 but for what is chosen."""
        for name, value in self.origin.items():
            self.parameters[name].copy_(value)
        self.restore_values()
        for name, buffer in self.model.named_buffers():
            if name in self.buffers:
                buffer.copy_(self.buffers[name])

    @torch.no_grad()
    def restore_values(self) -> None:
        """Write the chosen entries and the heads into the model."""
        for name, index in self.chosen.items():
            put(self.parameters[name], index, self.tuned[name])
        for name, value in self.heads.items():
            self.parameters[name].copy_(value)

    @torch.no_grad()
    def extend(self, picks: dict[str, Tensor]) -> None:
        """Add chosen entries; the model must be at theta0 outside of those chosen before."""
        for name, new in picks.items():
            old = self.chosen.get(name)
            index = new if old is None else torch.cat([old, new]).sort().values
            start = exact(self.parameters[name], index).cpu()
            tuned = start.clone()
            if old is not None:
                where = torch.searchsorted(index, old)
                start[where] = self.chosen_origin[name].cpu()
                tuned[where] = self.tuned[name].cpu()
            self.chosen[name], self.chosen_origin[name], self.tuned[name] = index, start, tuned
        self.origin = {}

    @torch.no_grad()
    def start_sparse(self) -> Moving:
        """Freeze the model but for the chosen entries and the heads; return what moves beside it."""
        moving = Moving(self.model)
        self.model.requires_grad_(False)
        for name in self.parts.maskable:
            if name in self.chosen:
                moving.add(name, self.tuned[name], self.chosen[name])
        for name in self.parts.dense:
            if self.parameters[name].dtype == wide(self.parameters[name].dtype):
                self.parameters[name].requires_grad_(True)
            else:
                moving.add(name, self.heads[name], None)
        return moving

    @torch.no_grad()
    def end_sparse(self, moving: Moving) -> None:
        """Keep what the sparse phase has learned."""
        for name in self.chosen:
            self.tuned[name] = moving.values(name).detach().cpu().clone()
        for name in self.parts.dense:
            source = moving.values(name) if name in moving.index else self.parameters[name]
            self.heads[name] = exact(source)

    @torch.no_grad()
    def finish(self, threshold: float, base: dict[str, str], info: dict[str, Any]) -> SparseDelta:
        """Return the delta, and leave the model at theta0."""
        diffs, shapes = {}, {}
        for name in self.parts.maskable:
            shapes[name] = tuple(self.parameters[name].shape)
            index = self.chosen.get(name, torch.zeros(0, dtype=torch.int64))
            values = torch.zeros(0)
            if len(index):
                values = self.tuned[name] - self.chosen_origin[name]
                put(self.parameters[name], index, self.chosen_origin[name])
                keep = values.abs() > threshold
                index, values = index[keep], values[keep]
            diffs[name] = (index, values)
        for name, value in self.head_origin.items():
            self.parameters[name].copy_(value)
        heads = {name: value.cpu().clone() for name, value in self.heads.items()}
        return SparseDelta(diffs, shapes, heads, base, info)

    def save(self, folder: Path, identity: dict[str, Any]) -> None:
        """Write what a phase starts from: positions, values, heads, buffers."""
        tensors = {f"head/{name}": t for name, t in self.heads.items()}
        for name, index in self.chosen.items():
            tensors |= {f"index/{name}": index, f"value/{name}": self.tuned[name]}
        tensors |= {f"buffer/{name}": b.detach() for name, b in self.model.named_buffers()}
        write_tensors(folder / START, tensors, identity)

    @torch.no_grad()
    def load(self, folder: Path, identity: dict[str, Any]) -> None:
        """Take up what `save` wrote; the model must be at theta0.

        Raises:
            TrainingError: it is of another training; names what differs.
        """
        tensors, theirs = read_tensors(folder / START)
        different = sorted(key for key in {*theirs, *identity} if theirs.get(key) != identity.get(key))
        if different:
            raise TrainingError(
                f"{folder} holds a part of another training; it differs in: {', '.join(different)}. Give another "
                "output_dir, or start anew without resume_from_checkpoint."
            )
        for name in self.parts.maskable:
            if f"index/{name}" in tensors:
                self.chosen[name], self.tuned[name] = tensors[f"index/{name}"], tensors[f"value/{name}"]
                self.chosen_origin[name] = take(self.parameters[name], self.chosen[name]).to(
                    "cpu", self.tuned[name].dtype
                )
        for name in self.parts.dense:
            self.heads[name] = tensors[f"head/{name}"].to(self.parameters[name].device)
        for name, buffer in self.model.named_buffers():
            if f"buffer/{name}" in tensors:
                buffer.copy_(tensors[f"buffer/{name}"])
        self.restore_values()


def write_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write tensors and JSON-able facts to a safetensors file, whole or not at all."""
    from safetensors.torch import save

    with atomic_open(path, "wb") as stream:
        stream.write(
            save(
                {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()},
                {"about": json.dumps(about, sort_keys=True)},
            )
        )


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote.

    Raises:
        TrainingError: the file is missing.
    """
    from safetensors import safe_open

    if not path.exists():
        raise TrainingError(
            f"{path.parent} holds no state of a lottery-ticket training ({path.name}): it is of another training."
        )
    with safe_open(path, "pt") as handle:
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118  (no mapping)
        return tensors, json.loads(handle.metadata()["about"])
