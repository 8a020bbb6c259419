"""`SparseDelta`: what a training changed, as positions and values that can be added, subtracted, saved and stacked.

"Composable Sparse Fine-Tuning for Cross-Lingual Transfer", Ansell, Ponti, Korhonen, Vulić, ACL 2022, arXiv 2110.07560.
Deviations from the released code: `revert` is bit-exact and puts heads back; positions are int64 and row-major, so
tensors of any number of dimensions and of more than 2^31 entries are right; another base is refused.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.core.errors import ParameterError
from tunesmith.tuners.sparse import applying, files
from tunesmith.tuners.sparse._tensors import check_names, hash_tensor, open_tensors, wide
from tunesmith.tuners.sparse.selection import check_pair, global_top_k

__all__ = ["SparseDelta"]

THRESHOLD = 1e-7
"""Differences of at most this size are dropped, as in the released code."""


class SparseDelta:
    """A sparse difference between the weights of two models, and dense tensors (heads) that replace the base's.

    Args:
        diffs: tensor name -> (ascending row-major flat positions, int64 ``[k_p]``; values ``[k_p]``).
        shapes: tensor name -> shape of the whole tensor, for each name in ``diffs``.
        abs: tensor name -> dense tensor that replaces the base's: the head of a task.
        base: tensor name -> hash of the base's tensor, to refuse another base; empty checks nothing.
        info: JSON-able facts about the training, such as ``num_params`` (K) and ``n_maskable``.

    Raises:
        ParameterError: positions are not ascending, leave the tensor, or do not match the values.

    Example::

        language = SparseDelta.from_models(base, tuned_on_text)
        task = SparseDelta.from_pretrained("task-delta")
        with (language + task).applied(base):
            ...
    """

    def __init__(
        self,
        diffs: Mapping[str, tuple[Tensor, Tensor]],
        shapes: Mapping[str, Sequence[int]],
        abs: Mapping[str, Tensor] | None = None,
        base: Mapping[str, str] | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        self.diffs = dict(diffs)
        self.shapes = {name: tuple(shapes[name]) for name in diffs}
        self.abs = dict(abs or {})
        self.base = dict(base or {})
        self.info = dict(info or {})
        for name, (index, values) in self.diffs.items():
            size = math.prod(self.shapes[name])
            fits = index.dtype == torch.int64 and index.ndim == 1 and index.shape == values.shape
            if fits and len(index):
                fits = bool((index[1:] > index[:-1]).all()) and int(index[0]) >= 0 and int(index[-1]) < size
            if not fits:
                expected = f"ascending int64 positions below {size:,} with one value each for '{name}'"
                raise ParameterError("diffs", type(self), expected, index)

    @classmethod
    def from_models(
        cls,
        base: Any,
        tuned: Any,
        *,
        k: int | None = None,
        names: Sequence[str] | None = None,
        dense: Sequence[str] = (),
        threshold: float = THRESHOLD,
        info: Mapping[str, Any] | None = None,
    ) -> SparseDelta:
        """Return the difference of two models.

        Args:
            base: a module, a dictionary of tensors, or a path to safetensors weights (read one tensor at a time).
            tuned: the same model after tuning, in any of these forms.
            k: keep only the K largest differences over all tensors (`global_top_k`); by default all.
            names: tensors to compare; by default all floating-point ones of ``base`` except ``dense``.
            dense: tensors of ``tuned`` that are kept whole (a head); they need not be in ``base``.
            threshold: differences of at most this size are dropped.
            info: facts to keep with the delta.

        Returns:
            The delta, with values in float32 (float64 for float64 models) and hashes of the base.

            Time O(N), memory of one tensor and of the result; with ``k`` three more passes.

        Raises:
            ParameterError: names or shapes differ, or a tensor is not floating-point.
        """
        if not threshold >= 0:
            raise ParameterError("threshold", "SparseDelta.from_models", "a float >= 0", threshold)
        with open_tensors(base, "base", cls) as old, open_tensors(tuned, "tuned", cls) as new:
            if names is None:
                names = [n for n in old.names if n not in dense and old.get(n).is_floating_point()]
            check_names(names, [*old.names, *old.alias], "base", cls)
            check_names([*names, *dense], [*new.names, *new.alias], "tuned", cls)
            chosen = None if k is None else global_top_k(base, tuned, k, names=names)
            diffs, shapes, hashes = {}, {}, {}
            for name in names:
                a, b = old.get(name), new.get(name)
                check_pair(name, a, b, cls)
                kind = torch.promote_types(wide(a.dtype), wide(b.dtype))
                flat = (b.reshape(-1).to(kind) - a.reshape(-1).to(b.device, kind)).cpu()
                if chosen is None:
                    index = (flat.abs() > threshold).nonzero()[:, 0]
                else:
                    index = chosen.get(name, torch.zeros(0, dtype=torch.int64))
                    index = index[flat[index].abs() > threshold]
                diffs[name], shapes[name] = (index, flat[index]), tuple(a.shape)
                hashes[name] = hash_tensor(a)
            heads = {name: new.get(name).detach().cpu().clone() for name in dense}
        facts = {"n_maskable": sum(math.prod(shape) for shape in shapes.values()), **(info or {})}
        return cls(diffs, shapes, heads, hashes, facts)

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str]) -> SparseDelta:
        """Read a delta that `save_pretrained` wrote: a folder or the file.

        Raises:
            DataError: there is none, or it is of another kind.
        """
        return cls(**files.read(Path(path)))

    @classmethod
    def from_official(cls, path: str | os.PathLike[str]) -> SparseDelta:
        """Read a ``pytorch_diff.bin`` of cambridgeltl/composable-sft: a folder or the file.

        Raises:
            DataError: there is none, or it is of another kind.
        """
        return cls(**files.read_official(path))

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``folder/sparse_delta.safetensors``, whole or not at all; return its path. 12 bytes per entry."""
        return files.write(self, Path(folder))

    def apply(self, model: nn.Module, *, with_abs: bool | None = None, check_base: bool = True) -> None:
        """Add the delta to a model in place; several may be applied, in any order.

        Sums are taken in float32 (float64) and rounded once to the weights' type. Only names of the model with entries
        need to be there, so a delta of a language model fits a classifier with the same body.

        Args:
            model: a torch module; for a PEFT model, ``model.get_base_model()``.
            with_abs: replace the dense tensors too: True requires them, None does if there are any, False does not (a
                language's head has no place in a task model).
            check_base: compare the hashes of the base, below the deltas that are applied already. O(N) time.

        Raises:
            ParameterError: a name is not in the model, a shape differs, weights are quantised, the base is another one,
                or ``with_abs=True`` and there is no dense tensor. The model is untouched then.
        """
        applying.apply(model, self, with_abs, check_base)

    def revert(self, model: nn.Module) -> None:
        """Take the delta off a model again, bit for bit; other deltas that are applied stay. O(their entries).

        Raises:
            ParameterError: this object has not been applied to the model.
        """
        applying.revert(model, self)

    @contextlib.contextmanager
    def applied(
        self, model: nn.Module, *, with_abs: bool | None = None, check_base: bool = True
    ) -> Iterator[nn.Module]:
        """Apply the delta inside a ``with`` block, which receives the model."""
        self.apply(model, with_abs=with_abs, check_base=check_base)
        try:
            yield model
        finally:
            self.revert(model)

    def __add__(self, other: Any) -> SparseDelta:
        """Return the sum: positions of either, values added where both have one, heads of both.

        Raises:
            ParameterError: the bases or shapes differ, or both have the same head with different values.
        """
        if isinstance(other, int) and other == 0:  # the start of sum()
            return self
        if not isinstance(other, SparseDelta):
            return NotImplemented
        return self._plus(other, 1.0)

    __radd__ = __add__

    def __sub__(self, other: Any) -> SparseDelta:
        """Return the difference; heads are this delta's own, because a dense tensor has nothing to subtract from.

        Raises:
            ParameterError: the bases or shapes differ.
        """
        return self._plus(other, -1.0) if isinstance(other, SparseDelta) else NotImplemented

    def __mul__(self, factor: Any) -> SparseDelta:
        """Return the delta with all values times a number; heads and positions stay."""
        if isinstance(factor, bool) or not isinstance(factor, (int, float)):
            return NotImplemented
        diffs = {name: (index, values * factor) for name, (index, values) in self.diffs.items()}
        return SparseDelta(diffs, self.shapes, self.abs, self.base, self.info)

    __rmul__ = __mul__

    def __neg__(self) -> SparseDelta:
        return self * -1.0

    def __eq__(self, other: object) -> bool:
        """Equal positions, values, heads, shapes and bases; what `info` says does not count."""
        if not isinstance(other, SparseDelta):
            return NotImplemented
        same = (self.shapes, self.base, set(self.abs)) == (other.shapes, other.base, set(other.abs))
        return same and all(
            torch.equal(a, b)
            for mine, theirs in (
                *((self.diffs[name], other.diffs[name]) for name in self.diffs),
                *(((self.abs[name],), (other.abs[name],)) for name in self.abs),
            )
            for a, b in zip(mine, theirs, strict=True)
        )

    __hash__ = None  # type: ignore[assignment]

    def _plus(self, other: SparseDelta, factor: float) -> SparseDelta:
        owner = "SparseDelta + SparseDelta" if factor > 0 else "SparseDelta - SparseDelta"
        for name in self.base.keys() & other.base.keys():
            if self.base[name] != other.base[name]:
                raise ParameterError("other", owner, "a delta of the same base", f"another base's '{name}'")
        for name in self.shapes.keys() & other.shapes.keys():
            if self.shapes[name] != other.shapes[name]:
                expected = f"a delta in which '{name}' has the shape {self.shapes[name]}"
                raise ParameterError("other", owner, expected, other.shapes[name])
        heads = dict(self.abs)
        if factor > 0:
            for name, tensor in other.abs.items():
                if name in heads and not torch.equal(heads[name], tensor):
                    expected = "a delta with other heads; drop one side's with without_abs()"
                    raise ParameterError("other", owner, expected, f"another '{name}'")
                heads[name] = tensor
        diffs = dict(self.diffs)
        for name, (index, values) in other.diffs.items():
            mine = diffs.get(name)
            diffs[name] = (index, values * factor) if mine is None else _sum(mine, (index, values * factor))
        info = {key: value for key, value in self.info.items() if other.info.get(key) == value}
        if self.info.get("untied_output") or other.info.get("untied_output"):
            info["untied_output"] = True
        return SparseDelta(diffs, {**other.shapes, **self.shapes}, heads, {**other.base, **self.base}, info)

    def without_abs(self) -> SparseDelta:
        """Return the delta without its dense tensors."""
        return SparseDelta(self.diffs, self.shapes, None, self.base, self.info)

    @property
    def nnz(self) -> int:
        """Number of entries over all tensors."""
        return sum(len(index) for index, _ in self.diffs.values())

    @property
    def density(self) -> float:
        """Entries by the number of entries that could have been chosen (of the tensors named, if that is unknown)."""
        total = self.info.get("n_maskable") or sum(math.prod(shape) for shape in self.shapes.values())
        return self.nnz / total if total else 0.0

    def shares(self) -> dict[str, float]:
        """Return tensor name -> share of all entries, largest first: embeddings can swallow a budget."""
        total = max(self.nnz, 1)
        found = {name: len(index) / total for name, (index, _) in self.diffs.items() if len(index)}
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))

    def overlap(self, other: SparseDelta) -> int:
        """Return how many entries both deltas have. O(k log k)."""
        shared = self.diffs.keys() & other.diffs.keys()
        return sum(int(torch.isin(self.diffs[n][0], other.diffs[n][0]).sum()) for n in shared)

    def dense(self, name: str) -> Tensor:
        """Return the difference of one tensor as a dense tensor of its shape."""
        index, values = self.diffs[name]
        flat = torch.zeros(math.prod(self.shapes[name]), dtype=values.dtype)
        flat[index] = values
        return flat.reshape(self.shapes[name])

    def __repr__(self) -> str:
        heads = f", {len(self.abs)} dense tensors" if self.abs else ""
        tensors = sum(1 for index, _ in self.diffs.values() if len(index))
        return f"SparseDelta({self.nnz:,} entries in {tensors} tensors, density {self.density:.3%}{heads})"


def _sum(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Add two sparse vectors with ascending positions."""
    index, where = torch.unique(torch.cat([a[0], b[0]]), sorted=True, return_inverse=True)
    kind = torch.promote_types(a[1].dtype, b[1].dtype)
    values = torch.zeros(len(index), dtype=kind)
    values[where[: len(a[0])]] = a[1].to(kind)
    values[where[len(a[0]) :]] += b[1].to(kind)
    return index, values
