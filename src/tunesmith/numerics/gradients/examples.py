"""Per-example gradients of one model, sketched or as norms, by batches or by a loop."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.core.events import EventLog
from tunesmith.numerics.gradients.capture import Capture, Layout, Sink, Unsupported, Use, frozen
from tunesmith.numerics.gradients.losses import Encoded, RowLosses
from tunesmith.numerics.gradients.sketching import GradientSketch
from tunesmith.numerics.gradients.squares import squared_norms

__all__ = ["ExampleGradients", "Params", "Row"]

_METHODS = ("auto", "batched", "loop")
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}  # of the comparison with the loop; else 0.1
_BATCH_TOKENS = 8192  # tokens of a batch, padding counted

Row = Mapping[str, Any]
Params = str | Callable[[str], bool] | None
Batched = Callable[[list[Encoded]], torch.Tensor]
Single = Callable[[dict[str, torch.Tensor]], torch.Tensor]


class ExampleGradients:
    """Per-example gradients of one model, for calls in several parts.

    Batched, all rows share a forward and a backward pass. Linear layers, GPT-2's ``Conv1D`` and embeddings give the
    two factors of their gradient; biases a sum; any other module (norms, IA3, DoRA) is run again alone under
    ``torch.func``, vectorised over rows. Uses of one parameter (tied weights, shared modules) add up. Weight gradients
    are not computed, which saves a third of the work, and nothing below the first wanted parameter is
    differentiated. Rows are padded on the right and masked, so a row's result does not depend on its batch but for
    rounding.

    What this way cannot see (a weight used outside its module, tokens that are routed) shows when the first two rows
    are also done one by one: by default the loop then does all.

    Args:
        model: see `projected_gradients`, as for the others.
        params: which parameters.
        reduction: ``"mean"`` or ``"sum"``.
        batch_size: most rows per pass.
        method: ``"auto"``, ``"batched"`` or ``"loop"``.
        log: receives progress and warnings.

    Attributes:
        parameters: name -> parameter, each once.
        method: what is used; settled by the first rows where it was ``"auto"``.

    Raises:
        ParameterError: a parameter is outside its set, or ``params`` names none.
    """

    def __init__(
        self,
        model: Any,
        *,
        params: Params = None,
        reduction: str = "mean",
        batch_size: int = 8,
        method: str = "auto",
        log: EventLog | None = None,
    ) -> None:
        for name, value, valid in (
            ("reduction", reduction, ("mean", "sum")),
            ("method", method, _METHODS),
        ):
            if value not in valid:
                raise ParameterError(name, self, "one of " + ", ".join(map(repr, valid)), value)
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ParameterError("batch_size", self, "an int >= 1", batch_size)
        self.model, self.reduction, self.batch_size, self.method = model, reduction, batch_size, method
        self.log = EventLog() if log is None else log
        self.parameters = _wanted(model, params, self)
        self._loss = RowLosses(model, reduction)
        self._seen: set[str] = set()
        self._sketches: dict[tuple[int, int], GradientSketch] = {}

    def project(self, dataset: Sequence[Row], *, dim: int = 1024, seed: int = 0) -> NDArray[np.float32]:
        """Return the sketches, float32 ``(n, dim)``; see `projected_gradients`."""
        if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
            raise ParameterError("dim", self, "an int >= 1", dim)
        sketch = self._sketch(dim, seed)

        def batched(rows: list[Encoded]) -> torch.Tensor:
            total = torch.zeros((len(rows), *sketch.sides), device=self.model.device)
            self._pass(rows, lambda name, use, last: sketch.add(total, name, use))
            return total.flatten(1)

        def one(gradients: dict[str, torch.Tensor]) -> torch.Tensor:
            parts = [sketch.explicit(name, g.unsqueeze(0)).flatten() for name, g in gradients.items()]
            return torch.stack(parts).sum(0)

        return self._over(dataset, batched, one, (dim,)).astype(np.float32)

    def norms(self, dataset: Sequence[Row]) -> NDArray[np.float64]:
        """Return the norms, float64 ``(n,)``; see `per_example_grad_norms`."""

        def batched(rows: list[Encoded]) -> torch.Tensor:
            squares = torch.zeros(len(rows), dtype=torch.float64, device=self.model.device)
            kept: dict[str, list[Use]] = {}

            def add(name: str, use: Use, last: bool) -> None:
                kept.setdefault(name, []).append(use)
                if last:  # what was kept can go
                    squares.add_(squared_norms(kept.pop(name), self.parameters[name].shape))

            self._pass(rows, add)
            for name, uses in kept.items():  # of which some use did not reach the loss
                squares.add_(squared_norms(uses, self.parameters[name].shape))
            return squares.clamp_(min=0).sqrt()

        def one(gradients: dict[str, torch.Tensor]) -> torch.Tensor:
            return torch.stack([g.double().square().sum() for g in gradients.values()]).sum().sqrt()

        return self._over(dataset, batched, one, ())

    def _sketch(self, dim: int, seed: int) -> GradientSketch:
        """Return the sketch, kept for the next rows."""
        if (dim, seed) not in self._sketches:
            self._sketches = {(dim, seed): GradientSketch(self.parameters, dim, seed)}
        return self._sketches[dim, seed]

    def _over(
        self, dataset: Sequence[Row], batched: Batched, one: Single, tail: tuple[int, ...]
    ) -> NDArray[np.float64]:
        rows = [_checked(row, i) for i, row in enumerate(dataset)]
        out = np.zeros((len(rows), *tail))
        trained = [i for i, row in enumerate(rows) if (row["labels"][1:] != -100).any()]
        order = sorted(trained, key=lambda i: -len(rows[i]["input_ids"]))
        if order and self.method == "auto":
            self.method = self._settle(
                [rows[i] for i in sorted({order[-1], order[len(order) // 2]})], batched, one
            )
        progress = self.log.progress("gradients", len(order))
        for group in self._groups(order, rows):
            some = [rows[i] for i in group]
            values = torch.stack([*map(one, self._loop(some))]) if self.method == "loop" else batched(some)
            finite = torch.isfinite(values.reshape(len(group), -1)).all(1)
            if not bool(finite.all()):
                raise DataError(
                    "the gradient of its loss is not finite.", row=group[int((~finite).nonzero()[0])]
                )
            out[group] = values.double().cpu().numpy()
            progress.advance(len(group))
        return out

    def _groups(self, order: list[int], rows: list[Encoded]) -> Iterator[list[int]]:
        """Yield batches of similar length, longest first, so that a lack of memory shows at once."""
        begin = 0
        while begin < len(order):
            longest = len(rows[order[begin]]["input_ids"])
            size = max(1, min(self.batch_size, _BATCH_TOKENS // longest))
            yield order[begin : begin + size]
            begin += size

    def _settle(self, rows: list[Encoded], batched: Batched, one: Single) -> str:
        """Return ``"batched"`` if both ways agree on some rows, else ``"loop"``."""
        try:
            ours = batched(rows)
        except torch.OutOfMemoryError:
            raise
        except (Unsupported, RuntimeError) as error:
            reason = str(error)
        else:
            singly = list(self._loop(rows))
            used = {name for gradients in singly for name, g in gradients.items() if bool(g.any())}
            missed = sorted(used - self._seen)
            theirs = torch.stack([*map(one, singly)]).double()
            off = float((ours.double() - theirs).norm() / theirs.norm().clamp(min=1e-30))
            if not missed and off <= _TOLERANCE.get(self.model.dtype, 0.1):
                return "batched"
            reason = f"the uses of {missed[0]} are not seen" if missed else f"they are off by {off:.2g}"
        self.log.warn(
            f"Gradients are computed by one backward pass per row, since for {type(self.model).__name__} they "
            f"cannot be had in batches: {reason}."
        )
        return "loop"

    def _loop(self, rows: list[Encoded]) -> Iterator[dict[str, torch.Tensor]]:
        """Yield each row's gradients in float32, by a backward pass of its own."""
        for row in rows:
            with frozen(self.model, self.parameters), torch.enable_grad():
                found = torch.autograd.grad(
                    self._loss([row]), list(self.parameters.values()), allow_unused=True
                )
            yield {
                name: torch.zeros_like(p, dtype=torch.float32) if g is None else g.float()
                for (name, p), g in zip(self.parameters.items(), found, strict=True)
            }

    def _pass(self, rows: list[Encoded], sink: Sink) -> None:
        """Run one batch forward and backward; each use of a wanted parameter goes to ``sink``."""
        capture = Capture(self.model, self.parameters)

        def ready(layout: Layout) -> None:
            capture.begin(layout, sink)

        try:
            with frozen(self.model, {}), torch.enable_grad():
                loss = self._loss(rows, ready)
                if loss.requires_grad:  # else no wanted parameter was used at all
                    torch.autograd.backward(loss)
        finally:
            capture.remove()
        self._seen = set(capture.calls)


def _wanted(model: Any, params: Params, owner: Any) -> dict[str, nn.Parameter]:
    """Return the parameters that are asked for, tied ones once."""
    every = dict(model.named_parameters())
    if params is None:
        found = {name: p for name, p in every.items() if p.requires_grad}
    elif callable(params):
        found = {name: p for name, p in every.items() if params(name)}
    else:
        try:
            pattern = re.compile(params)
        except (re.error, TypeError):
            raise ParameterError(
                "params", owner, "a regular expression, a predicate or None", params
            ) from None
        found = {name: p for name, p in every.items() if pattern.search(name)}
    if not found:
        what = (
            "with a match among the model's parameters"
            if params is not None
            else "given: no parameter is trained"
        )
        raise ParameterError("params", owner, what, params)
    whole = [name for name, p in found.items() if not p.is_floating_point()]
    if whole:
        raise ParameterError("params", owner, f"without {whole[0]}, which is quantised", params)
    return found


def _checked(row: Row, index: int) -> dict[str, NDArray[np.int64]]:
    ids, labels = (np.asarray(row[name], dtype=np.int64) for name in ("input_ids", "labels"))
    if ids.shape != labels.shape or ids.ndim != 1:
        raise DataError(
            f"'input_ids' and 'labels' must be lists of one length. Got {len(ids)} and {len(labels)} instead.",
            row=index,
        )
    return {"input_ids": ids, "labels": labels}
