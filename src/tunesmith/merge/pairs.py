"""Merges of whole models, tensor by tensor: along the arc between two (SLERP), by differences from a base (task
arithmetic), or by any method of mergekit, which is called where it already does the work.

SLERP: K. Shoemake, SIGGRAPH 1985, as mergekit applies it to weights and as used in arXiv 2511.03034, section 4.
Task arithmetic: Ilharco et al., arXiv 2212.04089, eq. 1.

Sums are formed in float32 (float64 for float64 tensors) and rounded once to the tensor's type; whole-number tensors
must be equal. Each result written to a folder is checked before the folder appears, see `tunesmith.merge.checking`.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.core.errors import ParameterError, TunesmithError
from tunesmith.merge.checking import Checker, MergeCheck
from tunesmith.merge.weights import Source, check_equal, open_source, state_of, wide, write_like

__all__ = ["Merged", "merge_with_mergekit", "slerp", "slerp_tensors", "task_arithmetic"]

COLLINEAR = 0.9995


@dataclass
class Merged:
    """The outcome of a merge.

    Attributes:
        state_dict: tensors by name; empty when they were written to ``output``.
        output: folder or file that was written, or None.
        check: what the comparison of parts, merged and reloaded model gave; None where nothing was written.
    """

    state_dict: dict[str, Any]
    output: Path | None = None
    check: MergeCheck | None = None


def slerp_tensors(a: Any, b: Any, t: float, collinear: float = COLLINEAR) -> Any:
    """Return the point at ``t`` of the arc from ``a`` to ``b``.

    ``sin((1 - t) w) / sin(w) a + sin(t w) / sin(w) b`` with ``w`` the angle between them, lengths not touched. Where
    ``|cos w| > collinear``, or one of them is zero, the straight line ``(1 - t) a + t b`` instead: the arc is no
    longer determined by the numbers there.

    Args:
        a: tensor of any shape, taken as one vector.
        b: the same shape.
        t: in [0, 1]; 0 is ``a``, 1 is ``b``.
        collinear: see above.

    Returns:
        float32 (float64 for float64). Time and memory O(size).
    """
    a, b = wide(a), wide(b)
    lengths = float(a.double().norm()), float(b.double().norm())
    cosine = float((a.double() * b.double()).sum()) / (lengths[0] * lengths[1]) if all(lengths) else 1.0
    if abs(cosine) > collinear or t in (0, 1):
        return (1 - t) * a + t * b
    angle = math.acos(max(-1.0, min(1.0, cosine)))
    return math.sin((1 - t) * angle) / math.sin(angle) * a + math.sin(t * angle) / math.sin(angle) * b


def slerp(
    model_a: Any,
    model_b: Any,
    t: float | Callable[[str], float] = 0.5,
    *,
    collinear: float = COLLINEAR,
    into: Any = None,
    output: str | os.PathLike[str] | None = None,
) -> Merged:
    """Merge two models of one architecture along the arc between their weights.

    Two models tuned from one base are nearly collinear in most tensors (1 % apart in independent directions gives a
    cosine of 0.9999), and there SLERP is the plain average.

    Args:
        model_a: a module, a state dictionary, or a path (a safetensors file, or a folder with one or with shards).
        model_b: another, with the same names, shapes and types.
        t: share of ``model_b``, in [0, 1], or a function of the tensor's name.
        collinear: cosine from which on the line replaces the arc.
        into: a module that receives the result.
        output: where to write it, when both models are paths: files like those of ``model_a``.

    Returns:
        The result. Time O(N) for N weights; memory two tensors, and the result or one shard of it.

    Raises:
        ParameterError: ``t`` or ``collinear`` is out of range, or ``output`` is given and the models are no paths.
        DataError: names, shapes, types or whole-number tensors differ; names the tensor.
        TrainingError: what was written does not read back as the same model; nothing is left.
    """
    if not 0 <= collinear <= 1:
        raise ParameterError("collinear", slerp, "a float in [0, 1]", collinear)
    share = t if callable(t) else lambda _: t

    def merged(sources: list[Source], name: str) -> Any:
        at = share(name)
        if not (isinstance(at, (int, float)) and 0 <= at <= 1):
            raise ParameterError(
                "t", slerp, "a float in [0, 1], or a function of a tensor's name that returns one", at
            )
        return slerp_tensors(sources[0].tensor(name), sources[1].tensor(name), float(at), collinear)

    return _merge([model_a, model_b], merged, slerp, into, output)


def task_arithmetic(
    base: Any,
    models: Sequence[Any],
    weights: Sequence[float] | float = 1.0,
    *,
    into: Any = None,
    output: str | os.PathLike[str] | None = None,
) -> Merged:
    """Add weighted differences to a base: ``base + sum_i weights[i] (models[i] - base)``.

    A negative weight takes away what a model learned. Weight 1 of one model gives that model.

    Args:
        base: a module, a state dictionary, or a path, as in `slerp`.
        models: k models tuned from it.
        weights: k finite numbers, or one for all.
        into: a module that receives the result.
        output: where to write it, when all are paths: files like those of ``base``.

    Returns:
        The result. Time O(k N); memory two tensors, and the result or one shard of it.

    Raises:
        ParameterError: there are no models, or ``weights`` do not fit them.
        DataError: names, shapes, types or whole-number tensors differ; names the tensor.
        TrainingError: what was written does not read back as the same model; nothing is left.
    """
    _check_list(models, task_arithmetic)
    numbers = [weights] * len(models) if isinstance(weights, (int, float)) else list(weights)
    if len(numbers) != len(models) or not all(math.isfinite(w) for w in numbers):
        raise ParameterError(
            "weights", task_arithmetic, f"a finite number, or {len(models)} of them", weights
        )

    def merged(sources: list[Source], name: str) -> Any:
        start = wide(sources[0].tensor(name))
        total = start.clone()
        for source, weight in zip(sources[1:], numbers, strict=True):
            total += weight * (wide(source.tensor(name)) - start)
        return total

    return _merge([base, *models], merged, task_arithmetic, into, output)


def merge_with_mergekit(
    models: Sequence[Any],
    method: str,
    *,
    base: Any = None,
    parameters: Mapping[str, Any] | None = None,
    into: Any = None,
    output: str | os.PathLike[str] | None = None,
) -> Merged:
    """Merge by a method of mergekit (``"ties"``, ``"dare_ties"``, ``"della"``, ``"karcher"``, ``"model_stock"`` …).

    One tensor at a time is handed over, so nothing but the files of a shard is held in memory.

    Args:
        models: k models, as in `slerp`.
        method: a name of ``mergekit.merge_methods.registered_methods()``.
        base: the common base, where the method asks for one.
        parameters: of the method, for example ``{"weight": 0.5, "density": 0.2}``; lists hold one value per model,
            the base not counted.
        into: a module that receives the result.
        output: where to write it, when all models are paths.

    Raises:
        TunesmithError: mergekit is not installed, or refuses what it was given.
        ParameterError: there are no models, or mergekit has no such method.
        DataError: names, shapes, types or whole-number tensors differ; names the tensor.
        TrainingError: what was written does not read back as the same model; nothing is left.
    """
    _check_list(models, merge_with_mergekit)
    try:
        from mergekit.merge_methods import merge_tensors, registered_methods
    except ImportError:
        raise TunesmithError(
            f"The method '{method}' needs mergekit. Install it with: pip install 'tunesmith[merge]'"
        ) from None
    names = sorted(known.spec.name for known in registered_methods())
    if method not in names:
        raise ParameterError("method", merge_with_mergekit, f"one of mergekit's: {', '.join(names)}", method)
    every = list(models) if base is None else [base, *models]

    def merged(sources: list[Source], name: str) -> Any:
        tensors = [wide(source.tensor(name)) for source in sources]
        try:
            return merge_tensors(
                tensors, method, parameters=parameters, base_index=None if base is None else 0, name=name
            )
        except (ValueError, TypeError, KeyError) as error:
            raise TunesmithError(
                f"mergekit's method '{method}' refuses the merge at '{name}': {error}"
            ) from error

    return _merge(every, merged, merge_with_mergekit, into, output)


def _check_list(models: Any, caller: Any) -> None:
    if isinstance(models, (Mapping, str, os.PathLike)) or not models:
        raise ParameterError("models", caller, "a list of at least one model", models)


def _merge(
    models: list[Any],
    merged: Callable[[list[Source], str], Any],
    caller: Any,
    into: Any,
    output: str | os.PathLike[str] | None,
) -> Merged:
    """Open the models, form each tensor, and put it where it belongs."""
    if output is not None and not all(isinstance(m, (str, os.PathLike)) for m in models):
        raise ParameterError("output", caller, "None unless all models are paths", str(output))
    with contextlib.ExitStack() as stack:
        sources = [stack.enter_context(open_source(model, caller)) for model in models]
        check_equal(sources)

        def tensor(name: str) -> Any:
            first = sources[0].tensor(name)
            return (
                merged(sources, name).to(first.dtype) if first.is_floating_point() else first.detach().clone()
            )

        if output is not None:
            check = Checker(models)
            folder = write_like(Path(models[0]), Path(output), tensor, check)
            return Merged({}, folder, check.result)
        state = state_of(sources[0], tensor)
    if into is not None:
        into.load_state_dict(state)
    return Merged(state)
