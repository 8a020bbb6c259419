"""The K entries of a model that differ most from another, exactly, without sorting and without a copy of either.

Scores are floating-point numbers of one sign, and their bit patterns read as integers have the same order. So the K-th
largest is found digit by digit: a histogram over the upper 16 bits (2^16 bins spaced like logarithms) says which bin
holds it, a second one over the lower 16 bits of that bin's entries says which value it is. Each pass reads one stretch
of one tensor at a time, in memory or from a file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.core.seeds import child_seed
from tunesmith.tuners.sparse._tensors import PIECE, check_names, open_tensors, pieces, wide

__all__ = ["global_top_k", "random_positions", "top_k_positions"]

Score = Callable[[str, int, int], Tensor]
"""``(name, start, stop)`` -> scores >= 0 of those flat entries, float32 or float64 ``[stop - start]``."""


def top_k_positions(
    score: Score,
    sizes: Mapping[str, int],
    k: int,
    *,
    exclude: Mapping[str, Tensor] | None = None,
    positive: bool = True,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Return the positions of the K largest scores over all tensors together (LT-SFT, arXiv 2110.07560, section 3.1).

    Equal scores are taken in the order of ``sizes`` and of flat positions, so the result does not depend on how one
    flat vector is cut into tensors, on threads, or on the device.

    Args:
        score: reads a stretch of scores; called three times for each (five times for float64), with equal results.
        sizes: tensor name -> number of entries, in order.
        k: how many, >= 0.
        exclude: name -> sorted positions that are not chosen.
        positive: leave out scores of zero; then fewer than ``k`` may be chosen.
        dtype: of the scores, float32 or float64.

    Returns:
        name -> ascending int64 positions on the CPU, for tensors with at least one.

        Time O(N) for N entries; memory of one stretch (2^22 entries) plus the result.

    Raises:
        ParameterError: ``k`` is negative or exceeds the number of entries.
        DataError: a score is not finite.
    """
    excluded = exclude or {}
    available = sum(sizes.values()) - sum(len(index) for index in excluded.values())
    if isinstance(k, bool) or not isinstance(k, int) or not 0 <= k <= available:
        raise ParameterError(
            "k", "top_k_positions", f"an int in [0, {available:,}], the entries there are", k
        )
    if k == 0:
        return {}
    width, integer = (32, torch.int32) if dtype == torch.float32 else (64, torch.int64)

    def keys(name: str, start: int, stop: int) -> Tensor:
        found = score(name, start, stop).to(dtype).abs().view(integer)
        index = excluded.get(name)
        if index is not None:
            inside = index[(index >= start) & (index < stop)] - start
            found[inside.to(found.device)] = -1
        return found

    prefix, need = 0, k
    for shift in range(width - 16, -1, -16):
        counts = torch.zeros(2**16, dtype=torch.int64)
        zeros = 0
        for name, size in sizes.items():
            for start, stop in pieces(size):
                found = keys(name, start, stop)
                if name in excluded:
                    found = found[found >= 0]
                upper = found >> shift
                if shift < width - 16:
                    upper = upper[(upper >> 16) == prefix] & 0xFFFF
                else:
                    zeros += found.numel() - int(found.count_nonzero())
                part = torch.bincount(upper, minlength=2**16)
                counts += part.cpu()
                if shift == width - 16 and bool(part[_infinite(dtype) :].any()):
                    raise DataError("a difference is not a finite number.", source=f"tensor {name}")
        if shift == width - 16 and positive:
            need = min(need, available - zeros)
            if need == 0:
                return {}
        at_least = counts.flip(0).cumsum(0).flip(0)  # entries in this bin or a higher one
        digit = int((at_least >= need).nonzero().max())
        need -= int(at_least[digit]) - int(counts[digit])
        prefix = prefix << 16 | digit
    return _collect(keys, sizes, threshold=prefix, ties=need)


def _infinite(dtype: torch.dtype) -> int:
    """Return the upper 16 bits of infinity; those of NaN are not smaller."""
    return 0x7F80 if dtype == torch.float32 else 0x7FF0


def _collect(keys: Score, sizes: Mapping[str, int], threshold: int, ties: int) -> dict[str, Tensor]:
    """Return the positions of keys above the threshold and of the first ``ties`` equal to it."""
    chosen: dict[str, Tensor] = {}
    for name, size in sizes.items():
        parts = []
        for start, stop in pieces(size):
            found = keys(name, start, stop)
            mask = found > threshold
            if ties:
                equal = (found == threshold).nonzero()[:ties, 0]
                mask[equal] = True
                ties -= len(equal)
            parts.append(mask.nonzero()[:, 0].cpu() + start)
        positions = torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)
        if len(positions):
            chosen[name] = positions
    return chosen


def global_top_k(
    base: Any,
    tuned: Any,
    k: int,
    *,
    names: Sequence[str] | None = None,
    exclude: Mapping[str, Tensor] | None = None,
    positive: bool = True,
) -> dict[str, Tensor]:
    """Return the K entries that moved most: the K largest |tuned - base| over all tensors together.

    Args:
        base: a module, a dictionary of tensors, or a path to safetensors weights (a file, or a folder with shards);
            paths are read one tensor at a time, so two 7B models need the memory of their largest tensor.
        tuned: the same weights after tuning, in any of these forms.
        k: how many; ties go to the lowest global position (order of ``names``, then row-major).
        names: the maskable tensors, in order; by default the floating-point ones of ``base``.
        exclude: name -> positions that were chosen before.
        positive: leave out entries that have not moved; then fewer than ``k`` may come back.

    Returns:
        name -> ascending int64 row-major positions.

        Time O(N): 3 passes over both models. Memory: the current tensors where they come from files, the current
        stretch of 2^22 entries, and the result.

    Raises:
        ParameterError: a name is in neither model, shapes differ, a tensor is not floating-point, or ``k`` exceeds
            the entries.
        DataError: a difference is not finite.
    """
    with open_tensors(base, "base", global_top_k) as old, open_tensors(tuned, "tuned", global_top_k) as new:
        if names is None:
            names = [name for name in old.names if old.get(name).is_floating_point()]
        for parameter, tensors in (("base", old), ("tuned", new)):
            check_names(names, [*tensors.names, *tensors.alias], parameter, global_top_k)
        sizes, dtype = {}, torch.float32
        for name in names:
            a, b = old.get(name), new.get(name)
            check_pair(name, a, b, global_top_k)
            sizes[name] = a.numel()
            dtype = torch.promote_types(dtype, torch.promote_types(wide(a.dtype), wide(b.dtype)))
        if not 0 <= k <= sum(sizes.values()):
            raise ParameterError(
                "k", global_top_k, f"an int in [0, {sum(sizes.values()):,}], the maskable entries", k
            )
        return top_k_positions(
            difference(old.get, new.get, dtype), sizes, k, exclude=exclude, positive=positive, dtype=dtype
        )


def check_pair(name: str, base: Tensor, tuned: Tensor, owner: Any) -> None:
    """Raise `ParameterError` unless two tensors of one name are floating-point and of one shape."""
    for parameter, tensor in (("base", base), ("tuned", tuned)):
        if not tensor.is_floating_point():
            expected = "in floating point: a sparse difference to quantised weights has no meaning"
            raise ParameterError(parameter, owner, expected, f"{name}: {tensor.dtype}")
    if base.shape != tuned.shape:
        expected = f"a model whose '{name}' has the shape {tuple(base.shape)} of the base's"
        raise ParameterError("tuned", owner, expected, tuple(tuned.shape))


def difference(base: Callable[[str], Tensor], tuned: Callable[[str], Tensor], dtype: torch.dtype) -> Score:
    """Return the score |tuned - base| of stretches, read from two sources; keeps one pair of tensors open."""
    held: dict[str, tuple[Tensor, Tensor]] = {}

    def score(name: str, start: int, stop: int) -> Tensor:
        if name not in held:
            held.clear()
            held[name] = (tuned(name).detach().reshape(-1), base(name).detach().reshape(-1))
        new, old = held[name]
        return (new[start:stop].to(dtype) - old[start:stop].to(new.device, dtype)).abs_()

    return score


def random_positions(sizes: Mapping[str, int], k: int, seed: int) -> dict[str, Tensor]:
    """Return K positions drawn uniformly without replacement over all entries (the paper's random-mask baseline).

    The K largest of N independent draws, so no list of N positions is made. Equal seeds give equal positions.

    Raises:
        ParameterError: ``k`` is negative or exceeds the number of entries.
    """

    def score(name: str, start: int, stop: int) -> Tensor:
        generator = torch.Generator().manual_seed(child_seed(seed, "mask", name, start // PIECE))
        return torch.rand(stop - start, generator=generator, dtype=torch.float64)

    return top_k_positions(score, sizes, k, positive=False, dtype=torch.float64)
