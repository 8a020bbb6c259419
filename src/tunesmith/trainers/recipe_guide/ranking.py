"""Which of several partly trained runs to go on with: lower gradient norm and higher loss early on end better.

Pareja et al. 2024 (arXiv 2412.13337) state the observation without a threshold; the rule below is a formalisation of
ours. Nothing here loads a model: records in, order and flags out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.errors import DataError, ParameterError, shorten

__all__ = ["MIN_RECORDS", "EarlyRun", "Ranking", "RunSignal", "rank_runs", "read_signals"]

MIN_RECORDS = 10
"""Fewer in the window make the order depend on which steps happened to be logged."""
MIN_PROGRESS = 0.01
"""Share of its initial loss that a run must lose within the window to count as learning."""
FIELDS = ("samples_seen", "loss", "grad_norm", "lr")

Record = Mapping[str, Any]


@dataclass(frozen=True)
class EarlyRun:
    """The log of a run's first optimiser steps.

    Attributes:
        records: one mapping per optimiser step: ``samples_seen`` (rows, cumulative), ``loss`` (mean over the trained
            tokens of the step), ``grad_norm`` (before clipping), ``lr``.
        setting: what must be equal for two runs to be compared: model, data, tokenizer, template, loss.
    """

    records: Sequence[Record]
    setting: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunSignal:
    """One run's early signals, and what follows from them.

    Attributes:
        run: its id.
        status: ``"keep"``, ``"stop"`` (dominated) or ``"no signal"`` (it has not learned yet).
        g: median of the log of the gradient norms in the window.
        l: mean loss in the window's second half.
        score: rank by g (rising) plus rank by l (falling) among the kept runs, low is good; None for the others.
        rank: place among the kept runs from 1; runs with equal scores share it. None for the others.
        dominated_by: runs with a lower g and a higher l.
        progress: share of its initial loss that the run has lost.
        n_records: optimiser steps in the window.
        lr: its highest learning rate in the window.
    """

    run: str
    status: Literal["keep", "stop", "no signal"]
    g: float
    l: float  # noqa: E741  (the paper's symbol, never alone)
    score: float | None
    rank: int | None
    dominated_by: tuple[str, ...]
    progress: float
    n_records: int
    lr: float


@dataclass(frozen=True)
class Ranking:
    """Runs in order: the kept ones from the best, then those without a signal, then the dominated ones.

    Attributes:
        samples: the window.
        runs: one per run.
    """

    samples: float
    runs: tuple[RunSignal, ...]

    @property
    def order(self) -> list[str]:
        """Ids of all runs."""
        return [run.run for run in self.runs]

    def _of(self, status: str) -> list[str]:
        return [run.run for run in self.runs if run.status == status]

    @property
    def kept(self) -> list[str]:
        """Runs to go on with, best first."""
        return self._of("keep")

    @property
    def stopped(self) -> list[str]:
        """Dominated runs."""
        return self._of("stop")

    @property
    def no_signal(self) -> list[str]:
        """Runs that have not learned within the window: neither good nor bad."""
        return self._of("no signal")

    @property
    def ties(self) -> list[list[str]]:
        """Groups of kept runs with equal scores."""
        groups: dict[int | None, list[str]] = {}
        for run in self.runs:
            groups.setdefault(run.rank, []).append(run.run)
        return [runs for rank, runs in groups.items() if rank is not None and len(runs) > 1]


def rank_runs(
    runs: Mapping[str, EarlyRun | Sequence[Record] | str | os.PathLike[str]],
    samples: float,
    *,
    eps_g: float = 0.05,
    eps_l: float = 0.01,
) -> Ranking:
    """Rank partly trained runs by their early signals, and say which are dominated.

    ``g`` is the median log gradient norm over the steps with ``samples_seen <= samples``, ``l`` the mean loss over
    those with ``samples / 2 < samples_seen <= samples``. A run r is dominated if some q has ``g_q < g_r - eps_g`` and
    ``l_q > l_r + eps_l``: stop it. The others are ordered by ``rank(g) + rank(-l)``, equal values sharing their average
    rank; equal sums are ties, listed by learning rate, then id. At least one run survives: dominance has no cycles. A
    run whose loss has fallen by less than 1 % (second half of the window against its first tenth) neither stops others
    nor is stopped.

    Meant for arms of one sweep (learning rate, batch). It says nothing about data, and it is confounded with both: see
    the method's page. Source: Pareja et al. 2024, arXiv 2412.13337; thresholds are ours. Time O(records + runs^2).

    Args:
        runs: id -> `EarlyRun`, its records alone, or the path of an `EarlySignalCallback`.
        samples: the window in rows seen, the same for all: about the first tenth of a run, or 100,000 rows.
        eps_g: margin in the log gradient norm, at least 0.
        eps_l: margin in the loss, in nats, at least 0.

    Returns:
        The order with scores and flags; it does not depend on the order of ``runs``, on a common factor of all gradient
        norms, or on records after the window.

    Raises:
        ParameterError: there are no runs, or a number is outside its set.
        DataError: runs that cannot be compared; a run with fewer than 10 records in the window, or that has not reached
            its end; a record that is not whole. Log every optimiser step: thinner logs change the order.
    """
    if not isinstance(runs, Mapping) or not runs:
        raise ParameterError("runs", rank_runs, "a mapping of at least one run id to its records", runs)
    if not samples > 0:
        raise ParameterError("samples", rank_runs, "a number of rows above 0", samples)
    for name, value in {"eps_g": eps_g, "eps_l": eps_l}.items():
        if not 0 <= value < float("inf"):
            raise ParameterError(name, rank_runs, "a float of at least 0", value)
    read = {str(name): _run(run) for name, run in runs.items()}
    _check_comparable(read)
    names = sorted(read)
    found = [_signals(name, read[name].records, samples) for name in names]
    g, l, progress, lr = (np.array([f[i] for f in found]) for i in range(4))  # noqa: E741
    learns = np.asarray(progress >= MIN_PROGRESS)
    # better[q, r]: q dominates r
    better = (g[:, None] < g[None, :] - eps_g) & (l[:, None] > l[None, :] + eps_l)
    better &= learns[:, None] & learns[None, :]
    stop = np.asarray(better.any(axis=0))
    keep = learns & ~stop
    scores, sums = _rank_sums(g, l, keep), _rank_sums(g, l, learns)
    order = sorted(
        range(len(names)),
        key=lambda i: (
            0 if keep[i] else 2 if stop[i] else 1,
            scores[i] if keep[i] else sums[i] if stop[i] else 0.0,
            lr[i],
            names[i],
        ),
    )
    return Ranking(
        samples,
        tuple(
            RunSignal(
                run=names[i],
                status="keep" if keep[i] else "stop" if stop[i] else "no signal",
                g=float(g[i]),
                l=float(l[i]),
                score=float(scores[i]) if keep[i] else None,
                rank=1 + int((scores[keep] < scores[i]).sum()) if keep[i] else None,
                dominated_by=tuple(names[q] for q in np.flatnonzero(better[:, i])),
                progress=float(progress[i]),
                n_records=int(found[i][4]),
                lr=float(lr[i]),
            )
            for i in order
        ),
    )


def read_signals(path: str | os.PathLike[str]) -> EarlyRun:
    """Read what an `EarlySignalCallback` wrote; a line that a kill has torn is passed over.

    Raises:
        DataError: there is no such file.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError("the records of a run cannot be read.", source=str(path)) from error
    setting: dict[str, Any] = {}
    records: dict[int, Record] = {}
    for line in lines:
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(value, dict) and "setting" in value:
            setting = dict(value["setting"])
        elif isinstance(value, dict):
            records[int(value.get("step", len(records)))] = value
    return EarlyRun(list(records.values()), setting)


def _run(run: Any) -> EarlyRun:
    if isinstance(run, EarlyRun):
        return run
    return read_signals(run) if isinstance(run, (str, os.PathLike)) else EarlyRun(list(run))


def _check_comparable(runs: dict[str, EarlyRun]) -> None:
    """Compare settings: by a higher loss on other data, or of another model, no run is better."""
    (first, reference), *others = runs.items()
    for name, run in others:
        keys = sorted({*reference.setting, *run.setting})
        different = [key for key in keys if reference.setting.get(key) != run.setting.get(key)]
        if different:
            mine, theirs = (shorten(str(r.setting.get(different[0])), 60) for r in (reference, run))
            raise DataError(
                f"the runs '{first}' and '{name}' cannot be compared: they differ in {', '.join(different)} "
                f"({mine} against {theirs}). Rank runs on the same model, tokenizer, template, data and loss."
            )


def _signals(name: str, records: Sequence[Record], samples: float) -> tuple[float, float, float, float, int]:
    """Return g, l, progress, learning rate and the number of records of one run."""
    seen, loss, norm, lr = _columns(name, records)
    inside = seen <= samples
    n = int(inside.sum())
    if n < MIN_RECORDS:
        raise DataError(
            f"the run '{name}' has {n} records within {samples:,.0f} samples, and at least {MIN_RECORDS} are "
            "needed: log every optimiser step, or widen the window."
        )
    step = np.diff(seen, prepend=0.0).max()  # not the last one: an epoch's last step is shorter
    if n == len(seen) and seen[-1] + step <= samples:
        raise DataError(
            f"the run '{name}' has seen {seen[-1]:,.0f} of the window's {samples:,.0f} samples: train it on, or narrow "
            "the window."
        )
    late = inside & (seen > samples / 2)
    if not late.any():
        raise DataError(f"the run '{name}' has no record in the second half of {samples:,.0f} samples.")
    with np.errstate(divide="ignore"):
        g = float(np.median(np.log(norm[inside])))
    final, initial = float(loss[late].mean()), float(loss[inside][: max(1, n // 10)].mean())
    progress = (initial - final) / initial if initial > 0 else 0.0
    return g, final, progress, float(lr[inside].max()), n


def _columns(name: str, records: Sequence[Record]) -> list[NDArray[np.float64]]:
    """Return samples_seen, loss, grad_norm and lr of all records, in order of samples_seen."""
    for i, record in enumerate(records):
        for key in FIELDS:
            value = record.get(key)
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not np.isfinite(value)
                or value < 0
            ):
                raise DataError(
                    f"record {i} of the run '{name}' needs '{key}', a finite number of at least 0. "
                    f"Got {value!r} instead."
                )
    table = np.array([[record[key] for key in FIELDS] for record in records], dtype=np.float64)
    table = table.reshape(-1, len(FIELDS))
    return list(table[np.argsort(table[:, 0], kind="stable")].T)


def _rank_sums(g: NDArray[Any], l: NDArray[Any], of: NDArray[Any]) -> NDArray[np.float64]:  # noqa: E741
    """Return rank(g) + rank(-l) among the runs ``of``, with average ranks; 0 for the others."""
    from scipy.stats import rankdata

    sums = np.zeros(len(g))
    if of.any():
        sums[of] = rankdata(g[of]) + rankdata(-l[of])
    return sums
