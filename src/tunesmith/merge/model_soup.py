"""Model soup: average the weights of models that were tuned from one common start.

"POINTS", arXiv 2409.04828, section 3.3: one model per candidate dataset, then the mean of all of them
(eq. 5), of the p best (eq. 4), or of those that a greedy pass keeps (Algorithm 1).

Deviations: sums are taken in float32 (float64 for float64 tensors) and rounded once to the tensor's type,
where the released code sums in bfloat16; integer buffers must be equal, where it averages and truncates
them; LoRA factors are refused unless all members share A, because the mean of products B A is not the product
of the means. Averages that keep to one start are the user's promise; nothing in the weights can prove it.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.merge.checking import Checker, MergeCheck
from tunesmith.merge.weights import Source, check_equal, open_source, state_of, wide, write_like

__all__ = ["Soup", "soup"]

METHODS = ("uniform", "weighted", "greedy", "maximum")


@dataclass
class Soup:
    """The outcome of `soup`.

    Attributes:
        state_dict: averaged tensors by name; empty when they were written to ``output``.
        members: indices of the models in the average, in the order they entered.
        weights: their shares, summing to 1.
        trace: for ``greedy`` and ``maximum`` one dictionary per step: ``member``, ``score`` (alone),
            ``soup`` (score with it, greedy only) and ``accepted``.
        output: folder that was written, or ``None``.
        check: what the comparison of parts, average and reloaded model gave, where language models were written.
    """

    state_dict: dict[str, Any]
    members: list[int]
    weights: list[float]
    trace: list[dict[str, Any]] = field(default_factory=list)
    output: Path | None = None
    check: MergeCheck | None = None


def soup(
    models: Sequence[Any],
    weights: Sequence[float] | None = None,
    method: str = "uniform",
    score: Callable[[Any], float] | None = None,
    *,
    members: int | None = None,
    margin: float = 0.0,
    into: Any = None,
    output: str | os.PathLike[str] | None = None,
) -> Soup:
    """Average the weights of models of one architecture.

    Args:
        models: k modules, state dictionaries, or paths (a safetensors file, or a folder with one or with
            shards and their index). Paths are read tensor by tensor.
        weights: k shares >= 0 for ``"weighted"``; they are divided by their sum.
        method: ``"uniform"``, ``"weighted"``, ``"greedy"`` (best first; a model stays when the average does
            not score lower with it) or ``"maximum"`` (the ``members`` best, uniformly).
        score: for ``"greedy"`` and ``"maximum"``: larger is better, deterministic, on validation data. Called
            with ``into`` (or a copy of the first model, if that is a module) carrying the weights, else with
            a state dictionary.
        members: p of ``"maximum"``; 2 to 5 in use.
        margin: by how much greedy must gain to accept; 0 as in the paper, above the noise of ``score``
            otherwise.
        into: a module that receives candidate weights for ``score``, and the result at the end.
        output: folder for the result when the models are paths: shards like those of the first, its other
            files copied, each file whole or absent.

    Returns:
        A `Soup`. The state dictionary shares storage between tied tensors, so a tied weight is averaged once.
        Networks with batch normalisation need their statistics recomputed afterwards.

        Time O(k N) for N parameters, plus k calls of ``score`` for ``"maximum"`` and 2k - 1 for ``"greedy"``.
        Memory, beyond the models: one average; with ``output`` one shard; for ``"greedy"`` the running mean,
        the candidate and a rounded copy.

    Raises:
        ParameterError: a parameter is out of range, or ``score`` is missing or gives a number that is not
            finite.
        DataError: names, shapes, types or integer buffers differ between models; the tensor is named.
        TrainingError: what was written does not read back as the same model; nothing is left.
    """
    _check(models, weights, method, score, members, margin, output)
    with contextlib.ExitStack() as stack:
        sources = [stack.enter_context(open_source(model, soup)) for model in models]
        check_equal(sources)
        _refuse_lora_factors(sources)
        chosen, shares = list(range(len(sources))), [1.0] * len(sources)
        trace: list[dict[str, Any]] = []
        if method == "weighted" and weights is not None:
            chosen = [i for i, w in enumerate(weights) if w > 0]
            shares = [float(weights[i]) for i in chosen]
        elif method in ("greedy", "maximum") and score is not None:
            judge = _Judge(score, into, models[0])
            chosen, trace = _choose(sources, judge, method, members, margin)
            shares = [1.0] * len(chosen)
        total = math.fsum(shares)
        shares = [w / total for w in shares]
        mean = dict(zip(chosen, shares, strict=True))
        if output is not None:
            check = Checker([models[i] for i in chosen])
            folder = write_like(
                Path(models[0]), Path(output), lambda name: _average(sources, name, mean), check
            )
            return Soup({}, chosen, shares, trace, folder, check.result)
        state = state_of(sources[0], lambda name: _average(sources, name, mean))
    if into is not None:
        into.load_state_dict(state)
    return Soup(state, chosen, shares, trace)


def _check(
    models: Sequence[Any],
    weights: Sequence[float] | None,
    method: str,
    score: Callable[[Any], float] | None,
    members: int | None,
    margin: float,
    output: str | os.PathLike[str] | None,
) -> None:
    if isinstance(models, (Mapping, str, os.PathLike)) or not models:
        raise ParameterError("models", soup, "a list of at least one model", models)
    if method not in METHODS:
        raise ParameterError("method", soup, "one of " + ", ".join(map(repr, METHODS)), method)
    k = len(models)
    if (weights is None) == (method == "weighted"):
        raise ParameterError(
            "weights", soup, f"{k} numbers >= 0 with method='weighted', and None otherwise", weights
        )
    if weights is not None:
        good = len(weights) == k and all(math.isfinite(w) and w >= 0 for w in weights) and sum(weights) > 0
        if not good:
            raise ParameterError("weights", soup, f"{k} finite numbers >= 0, not all 0", list(weights))
    if method in ("greedy", "maximum") and not callable(score):
        raise ParameterError("score", soup, f"a callable with method='{method}'", score)
    if method == "maximum" and not (isinstance(members, int) and 1 <= members <= k):
        raise ParameterError("members", soup, f"an int in [1, {k}] with method='maximum'", members)
    if not (math.isfinite(margin) and margin >= 0):
        raise ParameterError("margin", soup, "a finite number >= 0", margin)
    if output is not None and not all(isinstance(m, (str, os.PathLike)) for m in models):
        raise ParameterError("output", soup, "None unless all models are paths", output)


class _Judge:
    """Score a state dictionary, through a module where there is one."""

    def __init__(self, score: Callable[[Any], float], into: Any, first: Any) -> None:
        if into is None and hasattr(first, "load_state_dict"):
            import copy

            into = copy.deepcopy(first)
        self.score, self.into = score, into

    def __call__(self, state: dict[str, Any]) -> float:
        if self.into is not None:
            self.into.load_state_dict(state)
        value = float(self.score(state if self.into is None else self.into))
        if not math.isfinite(value):
            raise ParameterError("score", soup, "a callable that returns a finite number", value)
        return value


def _choose(
    sources: list[Source], judge: _Judge, method: str, members: int | None, margin: float
) -> tuple[list[int], list[dict[str, Any]]]:
    """Return the members that `maximum` or `greedy` keep, and what was scored on the way."""
    alone = [judge(state_of(source, source.tensor)) for source in sources]
    order = sorted(range(len(alone)), key=lambda i: -alone[i])  # stable: ties in the order given
    trace: list[dict[str, Any]] = [{"member": i, "score": alone[i], "accepted": False} for i in order]
    if method == "maximum":
        for step in trace[:members]:
            step["accepted"] = True
        return order[:members], trace
    pool, best, mean = order[:1], alone[order[0]], _wide_state(sources[order[0]])
    trace[0].update(accepted=True, soup=best)
    for i, step in zip(order[1:], trace[1:], strict=True):
        source = sources[i]
        trial = {n: m + (wide(source.tensor(n)) - m) / (len(pool) + 1) for n, m in mean.items()}
        step["soup"] = judge(state_of(source, partial(_narrow, trial, source)))
        if step["soup"] >= best + margin:
            step["accepted"], best, mean = True, step["soup"], trial
            pool.append(i)
    return pool, trace


def _wide_state(source: Source) -> dict[str, Any]:
    names = [name for name in source.names if name == source.tied.get(name, name)]
    return {name: wide(source.tensor(name)) for name in names if source.tensor(name).is_floating_point()}


def _narrow(mean: dict[str, Any], source: Source, name: str) -> Any:
    tensor = source.tensor(name)
    return mean[name].to(tensor.dtype) if name in mean else tensor


def _average(sources: list[Source], name: str, shares: dict[int, float]) -> Any:
    """Return ``sum_i shares[i] * tensor_i`` in the tensors' own type; integer tensors are copied."""
    members = list(shares)
    first = sources[members[0]].tensor(name)
    if not first.is_floating_point() or len(members) == 1:
        return first.detach().clone()
    total = wide(first) * shares[members[0]]
    for i in members[1:]:
        total += wide(sources[i].tensor(name)) * shares[i]
    return total.detach().to(first.dtype)


def _refuse_lora_factors(sources: list[Source]) -> None:
    """Raise unless each LoRA A is the same everywhere: then the mean of B is the mean of the deltas."""
    for name, i in _differing(sources, "lora_A"):
        raise DataError(
            f"the LoRA factor '{name}' differs from that of model 0, and the mean of products B A is not the "
            "product of the means. Merge each adapter first (merge_and_unload), or combine them exactly with "
            'PeftModel.add_weighted_adapter(..., combination_type="cat").',
            source=f"model {i}",
        )


def _differing(sources: list[Source], part: str) -> Iterator[tuple[str, int]]:
    import torch

    for name in sources[0].names:
        if part in name.split("."):
            first = sources[0].tensor(name)
            for i, source in enumerate(sources[1:], 1):
                if not torch.equal(first, source.tensor(name)):
                    yield name, i
