"""The whole audit: a log of live requests against clean ones, window by window, as events and as a report."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.audit._report import Report
from tunesmith.audit.drift.detector import DriftDetector
from tunesmith.audit.drift.features import (
    EMBEDDING,
    TIME_FIELDS,
    Place,
    RequestFeatures,
    fields_of,
    request_text,
    unknown_numbers,
)
from tunesmith.audit.drift.reading import Skipped, read_requests, source_name
from tunesmith.audit.drift.results import WindowResult
from tunesmith.core.errors import DataError, ParameterError
from tunesmith.core.events import EventLog
from tunesmith.core.seeds import child_seed

__all__ = ["Traffic", "audit_drift", "retrain_trigger"]

SHOWN = 3


@dataclass
class Traffic:
    """What the report is made of; grows by a few numbers per window.

    Attributes:
        windows: verdicts in order.
        begins: per window, the time of its first row (its place in the log where rows have none).
        metric: per window, the mean of the metric over rows that have it; None without such a row.
        metric_rows: rows with a metric, per window.
        baseline: the metric to hold, None where there is no metric.
        reference_means: feature of numbers -> mean of the held-out rows.
        skipped_reference: rows of the reference that could not be used.
        skipped_live: those of the live log.
        left_over: rows at the end that fill no window.
        examples: cluster -> (distance, text) of live rows nearest to its centre; empty unless asked for.
        notes: what was left out.
    """

    windows: list[WindowResult] = field(default_factory=list)
    begins: list[str] = field(default_factory=list)
    metric: list[float | None] = field(default_factory=list)
    metric_rows: list[int] = field(default_factory=list)
    baseline: float | None = None
    reference_means: dict[str, float] = field(default_factory=dict)
    skipped_reference: Skipped = field(default_factory=Skipped)
    skipped_live: Skipped = field(default_factory=Skipped)
    left_over: int = 0
    examples: dict[int, list[tuple[float, str]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def audit_drift(
    reference: Any,
    live: Any,
    *,
    text_field: str | None = None,
    features: Sequence[str] | None = None,
    encoder: str | None = "minilm",
    window: int = 250,
    false_alarm_rate: float = 0.05,
    n_clusters: int = 10,
    metric: str | None = None,
    baseline: float | None = None,
    examples: bool = False,
    max_reference: int = 5_000,
    batch_size: int = 32,
    random_state: int = 0,
    subject: str = "",
    log: EventLog | None = None,
) -> Report:
    """Tell where live requests stop looking like the reference, and which of their features moved.

    Stage 7 of arXiv 2408.13296. Compared are embeddings of the texts, their lengths, and the numbers and flags that the
    rows of both carry (tokens, latency, errors); see `RequestFeatures` and, for the thresholds, `DriftDetector`.

    The live log is streamed: memory holds one window of it, and a few numbers for each window before. Of the reference
    at most ``max_reference`` rows, drawn at random, are kept and embedded. Time: that of embedding, plus some tens of
    milliseconds a window.

    Args:
        reference: the training pool, or traffic known to be clean: a file of JSON lines, a folder of such logs, a list
            of paths, a ``datasets.Dataset`` or rows, see `read_requests`.
        live: what is to be examined, likewise, in the order it was served.
        text_field: field of the text; by default the first of prompt, text, messages, input, ... that a row has.
        features: what to compare; by default everything.
        encoder: alias, folder or Hub id of a sentence encoder; None compares numbers alone.
        window: rows per window.
        false_alarm_rate: the share of clean windows that may alarm.
        n_clusters: clusters of the embeddings.
        metric: field with a score or a flag such as ``"correct"``, higher is better, where answers were labelled. If
            its mean is 5 % below the baseline in three windows running, the report recommends to retrain.
        baseline: of the metric; by default its mean in the reference.
        examples: show clipped texts of live rows. Off, the report holds no user's text.
        max_reference: most rows of the reference.
        batch_size: texts per forward pass of the encoder.
        random_state: seed of draws, split, clusters and replays.
        subject: the log's name in the report.
        log: receives ``progress``, an event ``drift`` per window and a ``warning`` with ``alarm: true`` per alarm.

    Returns:
        A report of level ``"suspicious"`` where more windows alarm than chance explains or two in a row do;
        ``"unsure"`` where fewer do, or where windows are too few or too small to say; else ``"clean"``.

    Raises:
        ParameterError: a parameter is out of range.
        UnknownNameError: ``features`` names what the reference lacks.
        DataError: a log is missing, empty or without a usable row; the reference is shorter than three windows; there
            is no metric to compare with.
        MissingModelError: the encoder cannot be found.
    """
    from tunesmith.audit.drift.reporting import make_report

    if isinstance(max_reference, bool) or not isinstance(max_reference, int) or max_reference < 1:
        raise ParameterError("max_reference", audit_drift, "an int >= 1", max_reference)
    if baseline is not None and not (isinstance(baseline, (int, float)) and 0 < baseline < math.inf):
        raise ParameterError("baseline", audit_drift, "a finite number > 0", baseline)
    log = EventLog() if log is None else log
    detector = DriftDetector(
        window, false_alarm_rate=false_alarm_rate, n_clusters=n_clusters, random_state=random_state
    )
    requests = RequestFeatures(text_field, features, encoder, batch_size)
    traffic = Traffic()
    rows = _draw(reference, max_reference, random_state, traffic)
    requests.fit(rows, reference, skip=() if metric is None else (metric,))
    rows = list(requests.usable(rows, traffic.skipped_reference))
    if not rows:
        raise traffic.skipped_reference.nothing_left(source_name(reference))
    if metric is not None:
        traffic.baseline = _baseline(rows, metric, reference) if baseline is None else float(baseline)
    detector.check_size(len(rows))
    stream = requests.usable(read_requests(live, traffic.skipped_live), traffic.skipped_live)
    parts = _chunks(stream, window)
    first = next(parts, None)
    if first is None:
        raise traffic.skipped_live.nothing_left(source_name(live))
    columns = requests.columns([row for _, row in rows], log)
    detector.fit(columns)
    traffic.reference_means = {
        name: float(values.mean()) for name, values in detector.held_out_.items() if values.ndim == 1
    }
    traffic.notes += requests.notes
    for part in itertools.chain([first], parts):
        _watch(part, detector, requests, traffic, metric, examples, log)
    traffic.left_over = detector.n_waiting
    return make_report(detector, traffic, subject or source_name(live), metric, examples)


def retrain_trigger(
    values: Sequence[float | None], baseline: float, drop: float = 0.05, windows: int = 3
) -> int | None:
    """Return the first window at which a metric was ``drop`` below its baseline in ``windows`` windows running.

    Args:
        values: per window, higher is better; None (nothing labelled) neither counts nor breaks a run.
        baseline: to compare with, > 0.
        drop: relative, in (0, 1).
        windows: in a row, >= 1.

    Raises:
        ParameterError: a parameter is out of range.
    """
    for name, value, good, expected in (
        ("baseline", baseline, baseline > 0, "a number > 0"),
        ("drop", drop, 0 < drop < 1, "a float in (0, 1)"),
        ("windows", windows, windows >= 1, "an int >= 1"),
    ):
        if not good:
            raise ParameterError(name, retrain_trigger, expected, value)
    run = 0
    for i, found in enumerate(values):
        if found is None:
            continue
        run = run + 1 if found <= baseline * (1 - drop) + 1e-12 else 0
        if run == windows:
            return i
    return None


def _draw(source: Any, most: int, random_state: int, traffic: Traffic) -> list[Place]:
    """Return at most ``most`` rows, each subset equally likely, in their order (Vitter's algorithm R)."""
    rng = np.random.default_rng(child_seed(random_state, "reference"))
    kept: list[tuple[int, Place]] = []
    n = 0
    for n, row in enumerate(read_requests(source, traffic.skipped_reference), 1):
        if len(kept) < most:
            kept.append((n, row))
        elif (at := int(rng.integers(n))) < most:
            kept[at] = (n, row)
    if n > most:
        traffic.notes.append(f"{most:,} of {n:,} rows of the reference, drawn at random, were used.")
    return [row for _, row in sorted(kept, key=lambda pair: pair[0])]


def _chunks(rows: Iterator[Place], size: int) -> Iterator[list[Place]]:
    while part := list(itertools.islice(rows, size)):
        yield part


def _watch(
    part: list[Place],
    detector: DriftDetector,
    requests: RequestFeatures,
    traffic: Traffic,
    metric: str | None,
    examples: bool,
    log: EventLog,
) -> None:
    """Take in one window's rows, the last ones of a log perhaps fewer."""
    rows = [row for _, row in part]
    if not detector.n_rows_:
        more = unknown_numbers(rows, [*detector.features_, *([metric] if metric else [])])
        if requests.features is None and more:
            traffic.notes.append(f"Numbers that the reference lacks are not compared: {', '.join(more)}.")
    columns = requests.columns(rows)
    results = detector.update(columns)
    if not results and (last := detector.flush()) is not None:
        results = [last]
    if examples and EMBEDDING in columns:
        _keep_examples(columns[EMBEDDING], rows, detector, requests, traffic)
    for result in results:
        traffic.windows.append(result)
        when = next((str(rows[0][name]) for name in TIME_FIELDS if rows[0].get(name) is not None), part[0][0])
        traffic.begins.append(when)
        scores = [] if metric is None else _scores(rows, metric)
        traffic.metric.append(float(np.mean(scores)) if scores else None)
        traffic.metric_rows.append(len(scores))
        _tell(result, when, traffic.metric[-1], log)


def _tell(result: WindowResult, when: str, metric: float | None, log: EventLog) -> None:
    fields = {
        "window": result.index,
        "first": result.first,
        "rows": result.rows,
        "begins": when,
        "alarm": result.alarm,
        "p_value": result.p_value,
        "moved": result.moved,
        "values": {f"{d.feature}, {d.statistic}": d.value for d in result.drift},
        "thresholds": {f"{d.feature}, {d.statistic}": d.threshold for d in result.drift},
    }
    if metric is not None:
        fields["metric"] = metric
    log.emit("drift", **fields)
    if result.alarm:
        log.warn(
            f"drift: window {result.index + 1}, from row {result.first + 1:,} on, differs from the reference in "
            f"{', '.join(result.moved)} (p = {result.p_value:.3g}).",
            alarm=True,
            window=result.index,
        )


def _scores(rows: Sequence[Mapping[str, Any]], metric: str) -> list[float]:
    values = [dict(fields_of(row)).get(metric) for row in rows]
    return [float(v) for v in values if isinstance(v, (int, float)) and np.isfinite(v)]


def _baseline(rows: list[Place], metric: str, source: Any) -> float:
    scores = _scores([row for _, row in rows], metric)
    if not scores:
        raise DataError(
            f"no row has a number in the metric's field '{metric}': give its baseline.",
            source=source_name(source),
        )
    return float(np.mean(scores))


def _keep_examples(
    vectors: NDArray[np.float32],
    rows: list[dict[str, Any]],
    detector: DriftDetector,
    requests: RequestFeatures,
    traffic: Traffic,
) -> None:
    from tunesmith.numerics import nearest_center

    labels, squared = nearest_center(vectors, detector.centers_[EMBEDDING])[:2]
    for row, label, distance in zip(rows, labels.tolist(), squared.tolist(), strict=True):
        text = str(request_text(row, requests.text_field))
        kept = traffic.examples.setdefault(label, [])
        traffic.examples[label] = heapq.nsmallest(SHOWN, [*kept, (float(distance), text)])
