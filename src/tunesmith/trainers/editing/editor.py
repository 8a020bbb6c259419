"""Editing a model: `edit`."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.core.seeds import child_seed
from tunesmith.data.edits import find_conflicts, read_edits
from tunesmith.trainers.editing.encoding import Batch, EncodedEdit, collate, encode_edits
from tunesmith.trainers.editing.loops import LoopResult, breadth_first, depth_first
from tunesmith.trainers.editing.lower import LowerStates
from tunesmith.trainers.editing.objective import edit_loss
from tunesmith.trainers.editing.prefixes import with_prefixes
from tunesmith.trainers.editing.tuned import TunedWeights
from tunesmith.tuners.locft import LocFTConfig, find_sites

__all__ = ["EditResult", "edit", "fine_tune", "without_conflicts"]


@dataclass
class EditResult:
    """What an editing did.

    Attributes:
        model: the edited model, the one that was passed.
        edits: the edits written, in order.
        names: tuned parameters.
        layer: number of the tuned layer; None for the whole model.
        epoch_losses: mean loss of each epoch over all edits (depth first: last loss of each edit), in nats.
        batch_losses: loss of each batch before its step.
        steps: optimizer steps.
        converged: whether the loss ended below the threshold.
        cached: whether the frozen layers below the tuned one were run once only.
        seconds: time in the loop.
        before: old values of the tuned parameters, by name.
    """

    model: Any
    edits: list[dict[str, str]]
    names: list[str]
    layer: int | None
    epoch_losses: list[float]
    batch_losses: list[float]
    steps: int
    converged: bool
    cached: bool
    seconds: float
    before: dict[str, torch.Tensor] = field(repr=False, default_factory=dict)

    def delta(self) -> dict[str, torch.Tensor]:
        """Return what was added to each tuned parameter, in float32 (from the weights as they are now)."""
        now = dict(self.model.named_parameters())
        return {name: now[name].detach().float() - old.float() for name, old in self.before.items()}

    def undo(self) -> None:
        """Put the old values back, bit for bit (also if the weights have changed again since)."""
        now = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, old in self.before.items():
                now[name].copy_(old)


def edit(
    model: Any,
    tokenizer: Any,
    edits: Any,
    config: LocFTConfig | None = None,
    *,
    conflicts: str = "error",
    after_epoch: Callable[[int, float], None] | None = None,
) -> EditResult:
    """Write facts into a causal language model by LocFT-BF (Yang et al., ICLR 2026, arXiv 2509.22072).

    One matrix is fine-tuned with Adam on mini-batches of all edits, epoch after epoch, until the loss is small; all
    other weights keep their bits. The prompt is fed raw, the space before the target and the end of the sequence are
    learned with it, and padding never matters. Measure the result with `metrics.editing.evaluate_edits`.

    Time: at most E_max n forward passes from the tuned layer on, and as many backward passes down to it.

    Args:
        model: a transformers causal language model without adapters, not quantised; changed in place. In bfloat16 or
            float16 the steps are taken on a float32 copy of the tuned matrix.
        tokenizer: its tokenizer.
        edits: a path, a ``Dataset`` or rows with ``prompt`` and ``target_new`` (see `data.edits.read_edits`).
        config: where and how; `LocFTConfig` by default.
        conflicts: two edits of one prompt with different targets cannot both succeed: ``"error"``, or ``"newest"`` to
            keep the later one.
        after_epoch: called after each epoch with its number and mean loss (depth first: after each edit), for example
            to measure general ability on the way.

    Returns:
        The result; ``result.undo()`` takes the edits back.

    Raises:
        ParameterError: a parameter is outside its set, or model or tokenizer does not fit.
        DataError: edits are malformed or contradict each other.
        TrainingError: the loss is not finite; the old weights are back.
    """
    config = LocFTConfig() if config is None else config
    if not isinstance(config, LocFTConfig):
        raise ParameterError("config", edit, "a LocFTConfig or None", config)
    rows = without_conflicts(read_edits(edits), conflicts)
    sites, layer = find_sites(model, config)
    learned = with_prefixes(model, tokenizer, rows, config.n_prefixes, config.seed)
    encoded = encode_edits(tokenizer, learned, config.append_eos)
    tuned = TunedWeights(model, sites, config.rate)
    begin = time.perf_counter()
    try:
        loop, cached = fine_tune(
            tuned, encoded, config, layer, pad_id=_pad(tokenizer), after_epoch=after_epoch
        )
    except BaseException:
        _restore(tuned)
        raise
    return EditResult(
        model=model,
        edits=rows,
        names=[site.name for site in sites],
        layer=layer,
        epoch_losses=loop.epoch_losses,
        batch_losses=loop.batch_losses,
        steps=loop.steps,
        converged=loop.converged,
        cached=cached,
        seconds=time.perf_counter() - begin,
        before=tuned.before,
    )


def fine_tune(
    tuned: TunedWeights,
    encoded: Sequence[EncodedEdit],
    config: LocFTConfig,
    layer: int | None,
    *,
    pad_id: int = 0,
    order: Callable[[int], Sequence[int]] | None = None,
    after_epoch: Callable[[int, float], None] | None = None,
) -> tuple[LoopResult, bool]:
    """Run a pipeline on encoded edits; return its result and whether the lower layers were cached.

    ``order`` gives the edits' order in an epoch, by default a shuffle from ``config.seed`` and the epoch.
    """
    model, n = tuned.model, len(encoded)
    takes = inspect.signature(model.forward).parameters

    def shuffled(epoch: int) -> list[int]:
        return [int(i) for i in np.random.default_rng(child_seed(config.seed, "edits", epoch)).permutation(n)]

    def run(rows: list[int]) -> tuple[Batch, torch.Tensor]:
        batch = collate([encoded[i] for i in rows], pad_id, model.device)
        more: dict[str, Any] = {"use_cache": False} if "use_cache" in takes else {}
        if "position_ids" in takes:  # without them GPT-2 would count positions from the padding
            more["position_ids"] = batch.positions
        if "logits_to_keep" in takes:  # a vocabulary's logits only where a target is predicted
            more["logits_to_keep"] = batch.longest_target + 1
        return batch, model(input_ids=batch.ids, attention_mask=batch.mask, **more).logits

    def loss_of(rows: list[int]) -> torch.Tensor:
        if cached:
            lower.use(rows)
        batch, logits = run(rows)
        return edit_loss(logits, batch.labels[:, -logits.shape[1] :], config.loss)[0]

    with ExitStack() as stack:
        stack.enter_context(tuned.only_these())
        cached = False
        if config.cache_states and layer:
            lower = LowerStates(model, layer, [len(one) for one in encoded])
            if lower.possible():
                cached = _trusted(lower, run, stack, config.batch_size)
        if config.pipeline == "depth_first":
            loop = depth_first(
                loss_of,
                n,
                tuned.new_update,
                max_steps=config.max_epochs,
                threshold=config.loss_threshold,
                after_edit=after_epoch,
            )
        else:
            loop = breadth_first(
                loss_of,
                n,
                tuned.new_update(),
                batch_size=config.batch_size,
                max_epochs=config.max_epochs,
                threshold=config.loss_threshold,
                order=shuffled if order is None else order,
                after_epoch=after_epoch,
            )
    return loop, cached


def _trusted(lower: LowerStates, run: Callable[[list[int]], Any], stack: ExitStack, batch_size: int) -> bool:
    """Fill the cache and keep it in use if the model gives the same logits with it on the first batch."""
    lower.fill(run, batch_size)
    rows = list(range(min(batch_size, len(lower.lengths))))
    with torch.no_grad():
        whole = run(rows)[1].float()
        with lower:
            lower.use(rows)
            short = run(rows)[1].float()
    tolerance = 1e-4 if lower.model.dtype in (torch.float32, torch.float64) else 2e-2
    # Rows of padding differ: what a masked position holds does not matter, so only the last position is compared.
    same = bool((whole[:, -1] - short[:, -1]).abs().max() <= tolerance * max(1.0, float(whole.abs().max())))
    if same:
        stack.enter_context(lower)
    return same


def without_conflicts(rows: list[dict[str, str]], conflicts: str) -> list[dict[str, str]]:
    """Return the edits without contradictions: refuse them, or keep the newest of each prompt.

    Raises:
        ParameterError: ``conflicts`` is neither ``"error"`` nor ``"newest"``.
        DataError: two edits of one prompt have different targets, and they are to be refused.
    """
    if conflicts not in ("error", "newest"):
        raise ParameterError("conflicts", edit, "'error' or 'newest'", conflicts)
    found = find_conflicts(rows)
    if found and conflicts == "error":
        earlier, later = found[0]
        raise DataError(
            f"{len(found)} edits contradict an earlier one of the same prompt: rows {earlier} and {later} want "
            f"'{rows[earlier]['target_new']}' and '{rows[later]['target_new']}'. Remove one, or pass "
            "conflicts='newest'.",
            row=later,
            content=rows[later]["prompt"],
        )
    if not found:
        return rows
    last = {row["prompt"].strip(): row["target_new"].strip() for row in rows}
    return [row for row in rows if last[row["prompt"].strip()] == row["target_new"].strip()]


def _pad(tokenizer: Any) -> int:
    return int(tokenizer.pad_token_id) if tokenizer.pad_token_id is not None else 0


def _restore(tuned: TunedWeights) -> None:
    with torch.no_grad():
        for name, old in tuned.before.items():
            tuned.parameters[name].copy_(old)
