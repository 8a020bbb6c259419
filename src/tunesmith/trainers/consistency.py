"""Two passes over each batch whose predictions are pulled together, in any trainer of transformers or TRL.

MoSA (arXiv 2312.02923) needs it: each pass draws its own parts, and the loss between them makes the parts agree before
they are merged. On a model with nothing but dropout to tell the passes apart it is R-Drop (Liang et al. 2021).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax, mse_loss

from tunesmith.core.errors import ParameterError, TrainingError

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer  # what the mixin expects behind it
else:
    _Trainer = object

__all__ = ["Consistency", "ConsistencyMixin", "consistency_loss", "deep_consistency_loss"]

DEEP_BLOCKS = 6
"""The deep term compares so many blocks, the first ones."""
DEEP_WEIGHT = 0.01


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
        A float32 scalar, nats. Time and memory O(rows x classes).
    """
    if mask is not None:
        p1, p2 = p1[mask], p2[mask]
    log1 = log_softmax(p1.float(), dim=-1)
    log2 = log_softmax(p2.float(), dim=-1)
    total = kl_div(log1, log2.detach(), reduction="sum", log_target=True)
    total = total + kl_div(log2, log1.detach(), reduction="sum", log_target=True)
    rows = max(1, log1[..., 0].numel())
    return 0.5 * total / rows


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
            p1, p2, mask = _compared(first, second, inputs.get("labels"))
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
        return (loss, first) if return_outputs else loss

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
        logits, _, mask = _compared(outputs, outputs, inputs["labels"])
        assert mask is not None
        nll = cross_entropy(logits[mask].float(), inputs["labels"][:, 1:][mask], reduction="sum")
        loss = nll / torch.as_tensor(mask.sum() if num_items is None else num_items).clamp(min=1)
        if num_items is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        if hasattr(self, "trained_tokens"):
            self.trained_tokens += int(mask.sum())
        return loss, outputs

    def _without_labels(self, inputs: Any) -> dict[str, Any]:
        plain = {name: value for name, value in inputs.items() if name != "labels"}
        config: Any = getattr(self.model, "config", None)
        return {**plain, "use_cache": False} if hasattr(config, "use_cache") else plain


def _compared(first: Any, second: Any, labels: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return the logits of both passes and which rows count."""
    p1, p2 = _field(first, "logits"), _field(second, "logits")
    if labels is None or labels.dim() < 2 or p1.dim() < 3:
        return p1, p2, None
    length = labels.shape[1]  # prompt tuning puts its virtual tokens in front
    return p1[:, -length:][:, :-1], p2[:, -length:][:, :-1], labels[:, 1:] != -100


def _field(outputs: Any, name: str) -> Any:
    value = outputs.get(name) if isinstance(outputs, dict) else getattr(outputs, name, None)
    if value is None or (isinstance(value, torch.Tensor) and value.numel() == 0):
        raise TrainingError(
            f"The consistency loss compares {name.replace('_', ' ')} of two passes, and the model returned none."
        )
    return value
