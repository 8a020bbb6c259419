"""Where to rotate: the lower level of RoSTE's bilevel problem (arXiv 2502.09003, equations 9 to 12, Algorithm 1).

The error of a site is ``||Q_w(W R) - W R||^2 + (1/n) sum_j ||Q_x(X_j R) - X_j R||^2`` over n calibration samples
(rows of the batches; padding is left out). Nothing is quantised while the samples run through the model, so what a
site reads does not depend on the choices elsewhere, and one pass measures both alternatives: the two passes of the
paper would read the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from tunesmith.core.errors import ParameterError
from tunesmith.numerics.hadamard import RandomHadamard
from tunesmith.tuners._base import linear_shape
from tunesmith.tuners.roste.attention import head_dim, recording
from tunesmith.tuners.roste.quantizer import Quantizer

__all__ = ["RotationChoice", "measure_inputs", "measure_online"]


@dataclass(frozen=True)
class RotationChoice:
    """The finding at one site.

    Attributes:
        identity: E without rotation.
        hadamard: E with it.
        rotate: whether it is rotated; a tie is not.
    """

    identity: float
    hadamard: float
    rotate: bool


@dataclass
class Probe:
    """Errors at one reading point, summed over the samples.

    Attributes:
        quantizer: Q.
        rotation: R, or None where there is none to choose.
        identity, hadamard: sums of squared errors.
        calls: how often it was read.
    """

    quantizer: Quantizer
    rotation: RandomHadamard | None
    identity: float = 0.0
    hadamard: float = 0.0
    calls: int = 0

    def add(self, x: torch.Tensor) -> tuple[float, float]:
        """Add the errors of rows ``(m, d)``."""
        plain = self.quantizer.error(x)
        turned = plain if self.rotation is None else self.quantizer.error(self.rotation(x))
        self.note((plain, turned))
        return plain, turned

    def note(self, errors: tuple[float, float]) -> None:
        """Add errors that another probe with the same input has measured."""
        self.identity += errors[0]
        self.hadamard += errors[1]
        self.calls += 1


class Calibration:
    """Runs a model over calibration batches and keeps count of samples and padding."""

    def __init__(self, model: Any, batches: Iterable[Any] | None, caller: Any) -> None:
        self.model, self.caller = model, caller
        self.batches = [] if batches is None else batches
        self.samples = 0
        self.mask: torch.Tensor | None = None

    @torch.no_grad()
    def run(self) -> None:
        """Call the model on each batch, in evaluation mode.

        Raises:
            ParameterError: there is no batch, or one is neither a mapping nor a tensor.
        """
        was_training = self.model.training
        self.model.eval()
        device = next(self.model.parameters()).device
        try:
            for batch in self.batches:
                self._call(batch, device)
        finally:
            self.model.train(was_training)
        if not self.samples:
            raise ParameterError(
                "calibration_batches",
                self.caller,
                "at least one batch of inputs with rotation='adaptive', which measures errors on them",
                [],
            )

    def _call(self, batch: Any, device: torch.device) -> None:
        if isinstance(batch, torch.Tensor):
            self.mask = None
            self.samples += len(batch)
            self.model(batch.to(device))
            return
        if not isinstance(batch, Mapping) or not any(torch.is_tensor(v) for v in batch.values()):
            raise ParameterError(
                "calibration_batches",
                self.caller,
                "batches that are a tensor or a dictionary of the model's inputs",
                type(batch).__name__,
            )
        inputs = {
            k: v.to(device) if torch.is_tensor(v) else v
            for k, v in batch.items()
            if k not in ("labels", "num_items_in_batch")
        }
        mask = inputs.get("attention_mask")
        self.mask = mask.bool() if torch.is_tensor(mask) and mask.ndim == 2 else None
        self.samples += next(len(v) for v in inputs.values() if torch.is_tensor(v) and v.ndim)
        self.model(**inputs)

    def rows(self, x: torch.Tensor, width: int, sequence: int = 1) -> torch.Tensor:
        """Return the vectors ``(m, width)`` in ``x``, without those of padding; positions are at ``sequence``."""
        mask = self.mask
        if (
            mask is not None
            and x.ndim > sequence
            and (x.shape[0], x.shape[sequence]) == tuple(mask.shape)
            and not bool(mask.all())
        ):
            x = x.movedim(sequence, 1)[mask]
        return x.reshape(-1, width)


@contextmanager
def measure_inputs(
    calibration: Calibration,
    linears: dict[str, tuple[Any, Probe]],
    caches: dict[int, tuple[Probe, Probe]],
) -> Iterator[None]:
    """Feed the probes while the model runs within the block.

    Args:
        calibration: what runs it.
        linears: name -> layer and probe of what it reads.
        caches: ``id`` of an attention module -> probes of its keys and values.
    """
    last: list[Any] = [None, {}]  # query, key and value read one tensor: measured once per rotation

    def hook(probe: Probe, width: int) -> Any:
        def note(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else kwargs["input"]
            if last[0] is not x:
                last[0], last[1] = x, {}
            key = id(probe.rotation), probe.quantizer
            if key in last[1]:
                probe.note(last[1][key])
            else:
                last[1][key] = probe.add(calibration.rows(x, width))

        return note

    def record(module: Any, key: torch.Tensor, value: torch.Tensor) -> None:
        for probe, x in zip(caches.get(id(module), ()), (key, value), strict=False):
            probe.add(calibration.rows(x, x.shape[-1], sequence=2))

    with ExitStack() as stack:
        for module, probe in linears.values():
            handle = module.register_forward_pre_hook(hook(probe, linear_shape(module)[0]), with_kwargs=True)
            stack.callback(handle.remove)
        if caches:
            stack.enter_context(recording(record))
        yield


def measure_online(
    calibration: Calibration,
    linears: dict[str, Any],
    attention: dict[str, Any],
    quantizers: dict[str, Quantizer],
    rotations: Any,
) -> dict[str, RotationChoice]:
    """Measure each linear layer and each cache on its own: the total is the least of all ``2^l`` choices.

    Args:
        calibration: samples.
        linears: name -> layer.
        attention: name -> causal attention module; empty if the cache is not quantised.
        quantizers: ``weight``, ``activation`` and ``cache``.
        rotations: width -> rotation.

    Returns:
        Site -> finding. Caches are ``<attention>.key`` and ``<attention>.value``. Time: one forward pass, and
        O(log d) passes over inputs and weights.
    """
    probes = {
        name: (module, Probe(quantizers["activation"], rotations(linear_shape(module)[0])))
        for name, module in linears.items()
    }
    caches: dict[int, tuple[Probe, Probe]] = {}
    for name, module in attention.items():
        turn = rotations(head_dim(module, name))
        caches[id(module)] = Probe(quantizers["cache"], turn), Probe(quantizers["cache"], turn)
    with measure_inputs(calibration, probes, caches):
        calibration.run()
    found = {}
    for name, (module, probe) in probes.items():
        weight = weight_of(module)
        plain = quantizers["weight"].error(weight)
        turned = plain if probe.rotation is None else quantizers["weight"].error(probe.rotation(weight))
        found[name] = choose(
            plain + probe.identity / calibration.samples, turned + probe.hadamard / calibration.samples
        )
    for name, module in attention.items():
        for part, probe in zip(("key", "value"), caches[id(module)], strict=True):
            if not probe.calls:
                raise ParameterError(
                    "kv_bits",
                    "RosteConfig",
                    "None for this model, whose attention does not go through transformers' AttentionInterface",
                    name,
                )
            found[f"{name}.{part}"] = choose(
                probe.identity / calibration.samples, probe.hadamard / calibration.samples
            )
    return found


def weight_of(module: Any) -> torch.Tensor:
    """Return the weight in the layout ``(out, in)``."""
    weight: torch.Tensor = module.weight.detach()
    return weight if isinstance(module, torch.nn.Linear) else weight.T


def choose(identity: float, hadamard: float) -> RotationChoice:
    """Return the finding: the smaller error, the identity in a tie."""
    return RotationChoice(identity, hadamard, hadamard < identity)
