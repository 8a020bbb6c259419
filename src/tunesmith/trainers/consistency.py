"""Two passes over each batch whose predictions are pulled together, in any trainer of transformers or TRL.

MoSA (arXiv 2312.02923) needs it: each pass draws its own parts, and the loss between them makes the parts agree before
they are merged. On a model with nothing but dropout to tell the passes apart it is R-Drop (Liang et al. 2021).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy, log_softmax, mse_loss

from tunesmith.core.errors import ParameterError, TrainingError

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer  # what the mixin expects behind it
else:
    _Trainer = object

__all__ = ["Consistency", "ConsistencyMixin", "consistency_loss", "deep_consistency_loss"]

DEEP_BLOCKS = 6
"""The deep term compares so many blocks, the first ones."""
DEEP_WEIGHT = 0.01
CHUNK = 2**23
"""Logits of one pass whose probabilities are held at once: 32 MiB in float32."""


@dataclass(frozen=True)
class Consistency:
    """Weights of the loss ``CE(p1) + alpha CE(p2) + beta R [+ beta R_deep]``.

    Attributes:
        alpha: of the second pass's own loss, at least 0.
        beta: of the consistency R between the passes, at least 0.
        deep: add R_deep, between the outputs of the first six blocks.

    Raises:
        ParameterError: a weight below 0, or both 0: the second pass would be for nothing.
    """

    alpha: float = 0.0
    beta: float = 1.0
    deep: bool = False

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ParameterError(name, self, "a float of at least 0", value)
        if self.alpha + self.beta == 0:
            raise ParameterError(
                "beta", self, "above 0 where alpha is 0: nothing uses the second pass", self.beta
            )


def consistency_loss(p1: torch.Tensor, p2: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return ``R = [KL(sg(P2) || P1) + KL(sg(P1) || P2)] / 2``, P = softmax(p), sg = no gradient.

    Symmetric, at least 0, and 0 only where the predictions are equal; its gradient with respect to ``p1`` is
    ``(P1 - P2) / (2 rows)``. Computed in float32. MoSA, step 5 (arXiv 2312.02923).

    Args:
        p1: logits of the first pass, (..., classes).
        p2: of the second.
        mask: bool (...); rows that count. The mean is over these; 0 if there are none.

    Returns:
        A float32 scalar, nats. Time O(rows x classes); the probabilities of a few rows at a time are held, and made
        again for the gradients, which are all that is kept beside the logits.
    """
    if mask is None:
        mask = torch.ones(p1.shape[:-1], dtype=torch.bool, device=p1.device)
    rows = mask.reshape(-1).nonzero()[:, 0]
    R: torch.Tensor = _Consistency.apply(p1, p2, rows)  # type: ignore[no-untyped-call]
    return R


class _Consistency(torch.autograd.Function):
    """R and its gradients, some rows at a time."""

    @staticmethod
    def forward(ctx: Any, p1: torch.Tensor, p2: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(p1, p2, rows)
        flat1, flat2 = (p.reshape(-1, p.shape[-1]) for p in (p1, p2))
        total = torch.zeros((), dtype=torch.float32, device=p1.device)
        for some in _chunks(rows, p1.shape[-1]):
            log1, log2 = (log_softmax(p[some].float(), dim=-1) for p in (flat1, flat2))
            # the two divergences together; a class that both passes rule out (-inf) adds nothing
            apart = torch.where(log1 == log2, 0.0, log1 - log2)
            total += ((log1.exp() - log2.exp()) * apart).sum()
        return 0.5 * total / max(1, len(rows))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        p1, p2, rows = ctx.saved_tensors
        flat1, flat2 = (p.reshape(-1, p.shape[-1]) for p in (p1, p2))
        found = torch.zeros_like(flat1)
        factor = 0.5 * grads[0] / max(1, len(rows))
        for some in _chunks(rows, p1.shape[-1]):
            P1, P2 = (p[some].float().softmax(-1) for p in (flat1, flat2))
            found[some] = (P1.sub_(P2) * factor).to(found.dtype)
        found = found.view(p1.shape)
        return found, -found, None


def _chunks(rows: torch.Tensor, classes: int) -> Any:
    return torch.split(rows, max(1, CHUNK // classes)) if len(rows) else ()


def deep_consistency_loss(h1: Any, h2: Any, n_hidden: int | None = None) -> torch.Tensor:
    """Return ``R_deep = 0.01 / n_hidden * sum over the first six blocks of MSE(h1_l, h2_l)``.

    Args:
        h1: outputs of the blocks in the first pass, each (B, T, d).
        h2: in the second.
        n_hidden: blocks of the model; as many as given by default.
    """
    blocks = len(h1) if n_hidden is None else n_hidden
    pairs = zip(h1[:DEEP_BLOCKS], h2[:DEEP_BLOCKS], strict=True)
    return torch.stack([mse_loss(a.float(), b.float()) for a, b in pairs]).sum() * (DEEP_WEIGHT / blocks)


class ConsistencyMixin(_Trainer):
    """Adds the second pass to a trainer: ``class MyTrainer(ConsistencyMixin, SFTTrainer): ...``.

    Each training batch runs twice, about twice the time of a step; evaluation runs once. Right under gradient
    accumulation and checkpointing. Language models compare the positions that have labels. Over TRL's SFT trainer the
    loss is the same ``"nll"``, computed from whole logits; TRL's own metrics (entropy, accuracy) are then not logged.

    Args:
        consistency: the weights.
    """

    def __init__(self, *args: Any, consistency: Consistency | None = None, **kwargs: Any) -> None:
        self.consistency = consistency or Consistency()
        super().__init__(*args, **kwargs)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss of both passes.

        Raises:
            TrainingError: the model returns no logits, or no hidden states where the deep term wants them.
        """
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if not isinstance(model, torch.nn.parallel.DistributedDataParallel):
            loss, first = self._both(model, inputs, num_items_in_batch)
            return (loss, first) if return_outputs else loss
        # DDP counts on one backward pass for each call of it: both passes go into one call.
        inner: Any = model.module
        own, kept = inner.__dict__.get("forward"), []

        def restore() -> None:
            if own is None:
                inner.__dict__.pop("forward", None)
            else:
                inner.forward = own

        def both(**given: Any) -> Any:
            restore()
            loss, first = self._both(inner, given, num_items_in_batch)
            kept.append(first)
            return loss

        inner.forward = both
        try:
            loss = model(**inputs)
        finally:
            restore()
        return (loss, kept[0]) if return_outputs else loss

    def _both(self, model: Any, inputs: Any, num_items_in_batch: Any) -> Any:
        """Return the loss of both passes, and the outputs of the first."""
        weights = self.consistency
        if weights.deep:
            inputs = {**inputs, "output_hidden_states": True}
        loss, first = self._pass(super().compute_loss, model, inputs, num_items_in_batch)
        if weights.alpha:
            other, second = self._pass(super().compute_loss, model, inputs, num_items_in_batch)
            loss = loss + weights.alpha * other
        else:
            second = model(**self._without_labels(inputs))
        if weights.beta:
            p1, p2, mask = _compared(first, second, inputs.get("labels"), _predicts_next(model))
            R = consistency_loss(p1, p2, mask)
            if weights.deep:
                h1, h2 = _field(first, "hidden_states")[1:], _field(second, "hidden_states")[1:]
                R = R + deep_consistency_loss(h1, h2)
            if (
                num_items_in_batch is not None and self.loss_is_scaled_for_ga is not False
            ):  # the loss is a share of the whole accumulated batch
                rows = mask.sum() if mask is not None else p1[..., 0].numel()
                R = R * rows / num_items_in_batch
                if self.args.average_tokens_across_devices:
                    R = R * self.accelerator.num_processes
            loss = loss + weights.beta * R
        return loss, first

    def _pass(self, compute: Any, model: Any, inputs: Any, num_items: Any) -> Any:
        """Return the loss of one pass and its outputs, whose logits must have gradients."""
        if not any(base.__name__ == "SFTTrainer" for base in type(self).__mro__):
            return compute(model, dict(inputs), True, num_items)
        # TRL's loss makes no logits; asked for outputs it runs the model once more, without gradients.
        if getattr(self.args, "loss_type", "nll") != "nll":
            raise ParameterError(
                "loss_type", type(self).__name__, "'nll' with two passes", self.args.loss_type
            )
        outputs = model(**self._without_labels(inputs))
        logits, _, mask = _compared(outputs, outputs, inputs["labels"], True)
        assert mask is not None
        nll = cross_entropy(logits[mask].float(), inputs["labels"][:, 1:][mask], reduction="sum")
        loss = nll / torch.as_tensor(mask.sum() if num_items is None else num_items).clamp(min=1)
        if num_items is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        if not torch.isfinite(loss):
            raise TrainingError(f"the loss is {loss.item()}")
        if hasattr(self, "trained_tokens"):  # of our trainer, whose loss this replaces
            count = mask.sum()
            several = self.accelerator.num_processes > 1
            self.trained_tokens += int(self.accelerator.reduce(count, "sum") if several else count)
        return loss, outputs

    def _without_labels(self, inputs: Any) -> dict[str, Any]:
        plain = {name: value for name, value in inputs.items() if name != "labels"}
        config: Any = getattr(self.model, "config", None)
        return {**plain, "use_cache": False} if hasattr(config, "use_cache") else plain


def _compared(
    first: Any, second: Any, labels: Any, next_token: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return the logits of both passes and which rows count; ``next_token``: position t predicts label t + 1."""
    p1, p2 = _field(first, "logits"), _field(second, "logits")
    if labels is None or labels.dim() < 2 or p1.dim() < 3:
        return p1, p2, None
    length = labels.shape[1]  # prompt tuning puts its virtual tokens in front
    p1, p2 = p1[:, -length:], p2[:, -length:]
    return (p1[:, :-1], p2[:, :-1], labels[:, 1:] != -100) if next_token else (p1, p2, labels != -100)


def _predicts_next(model: Any) -> bool:
    """Whether the model shifts labels: causal language models, but not masked ones or token classifiers."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    name = type(base).__name__
    return any(part in name for part in ("CausalLM", "LMHead", "ConditionalGeneration")) and not getattr(
        getattr(base, "config", None), "is_encoder_decoder", False
    )


def _field(outputs: Any, name: str) -> Any:
    value = outputs.get(name) if isinstance(outputs, dict) else getattr(outputs, name, None)
    if value is None or (isinstance(value, torch.Tensor) and value.numel() == 0):
        raise TrainingError(
            f"The consistency loss compares {name.replace('_', ' ')} of two passes, and the model returned none."
        )
    return value
