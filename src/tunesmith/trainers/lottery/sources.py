"""Training one task over several source languages or domains, each with its own delta in turn (LT-SFT's multi-source).

Ansell et al., ACL 2022, arXiv 2110.07560, and the released code's multi-source extension. There a delta is added and
subtracted again at each step, which leaves rounding residues on every entry it touches; here the values that stood
there are stored and written back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Sampler

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.core.seeds import child_seed
from tunesmith.tuners.sparse import SparseDelta

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer  # what the mixin expects behind it
else:
    _Trainer = object

__all__ = ["SourceBatches", "SourceMixin"]


class SourceBatches(Sampler[int]):
    """Draw rows so that each batch has rows of one source, in random order, one that depends on the epoch alone.

    Rows of a source that do not fill a batch wait for another epoch, which shuffles anew.

    Args:
        sources: the source of each row.
        batch_size: rows per batch and process.
        seed: with the epoch, determines the order.
        upsample: source -> how many times its rows come in an epoch, 1 by default.

    Raises:
        ParameterError: a source has too few rows for a batch, or a number is not an int >= 1.
    """

    def __init__(
        self, sources: Sequence[str], batch_size: int, seed: int, upsample: Mapping[str, int] | None = None
    ) -> None:
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0
        times = dict(upsample or {})
        for name, value in times.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ParameterError("upsample", self, f"an int >= 1 for '{name}'", value)
        names = np.asarray(sources)
        self.rows = {
            str(s): np.tile(np.flatnonzero(names == s), times.get(str(s), 1)) for s in np.unique(names)
        }
        for name, rows in self.rows.items():
            if len(rows) < batch_size:
                expected = (
                    f"of at least {batch_size} rows of each source (the batch size), times its upsampling"
                )
                raise ParameterError("train_dataset", self, expected, f"{len(rows)} of '{name}'")

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader when an epoch begins."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(len(rows) // self.batch_size for rows in self.rows.values()) * self.batch_size

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng(child_seed(self.seed, "sources", self.epoch))
        batches = []
        for rows in self.rows.values():
            shuffled = rng.permutation(rows)
            full = len(rows) // self.batch_size
            batches += list(shuffled[: full * self.batch_size].reshape(full, self.batch_size))
        order = rng.permutation(len(batches))
        return iter(np.concatenate([batches[i] for i in order]).tolist())


class SourceMixin(_Trainer):
    """Put each source's delta into the model for the batches of that source, and take it out bit-exactly.

    Example::

        class Task(LotteryTicketMixin, SourceMixin, Trainer):
            pass

        Task(model, args, train_dataset=rows, sources={"de": phi_de, "en": None}, lottery={...})

    Each batch holds rows of one source. Its delta is added before the forward pass and taken out right after the
    backward pass, so before the L1 term, clipping and the update; a source with None runs on the plain model.
    Evaluation does the same; give ``eval_dataset`` as a dictionary with one source in each set. Costs O(entries) per
    pass.

    Args:
        sources: source -> its delta, or None.
        source_column: column of the rows that names the source.
        upsample: source -> how many times its rows come in an epoch.
        *args: of the trainer.
        **kwargs: of the trainer; ``args.remove_unused_columns`` must be False.

    Raises:
        ParameterError: the column is removed, or a row names an unknown source.
        DataError: a batch has rows of several sources.
    """

    def __init__(
        self,
        *args: Any,
        sources: Mapping[str, SparseDelta | None],
        source_column: str = "source",
        upsample: Mapping[str, int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.args.remove_unused_columns:
            expected = f"False, or the column '{source_column}' does not reach the batches"
            raise ParameterError("remove_unused_columns", type(self), expected, True)
        self.sources, self.source_column = dict(sources), source_column
        found = [str(row[source_column]) for row in self.train_dataset]
        for name in sorted(set(found)):
            if name not in self.sources:
                raise ParameterError(
                    "sources", type(self), "a mapping with every source of the rows", f"none for '{name}'"
                )
        self._order = SourceBatches(found, self.args.train_batch_size, self.args.seed, upsample)
        collator: Any = self.data_collator
        self.data_collator: Any = _OneSource(collator, source_column)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        # Private, but the place that TRL's own trainers override for their order of rows.
        return self._order

    def _inside(self, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        rest = {name: value for name, value in inputs.items() if name != self.source_column}
        delta = self.sources[inputs[self.source_column]]
        if delta is None:
            return nullcontext(), rest
        return delta.applied(
            self.accelerator.unwrap_model(self.model), with_abs=False, check_base=False
        ), rest

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Do a forward and a backward pass with the source's delta in the model."""
        context, rest = self._inside(inputs)
        with context:
            return super().training_step(model, rest, *args, **kwargs)

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Evaluate a batch with the source's delta in the model."""
        context, rest = self._inside(inputs)
        with context:
            return super().prediction_step(model, rest, *args, **kwargs)


class _OneSource:
    """Collate rows of one source, and keep its name in the batch."""

    def __init__(self, collator: Any, column: str) -> None:
        self.collator, self.column = collator, column

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        names = {str(row[self.column]) for row in rows}
        if len(names) != 1:
            raise DataError(
                f"a batch has rows of several sources ({', '.join(sorted(names))}); give one set per source."
            )
        batch = self.collator([{k: v for k, v in row.items() if k != self.column} for row in rows])
        return {**batch, self.column: names.pop()}
