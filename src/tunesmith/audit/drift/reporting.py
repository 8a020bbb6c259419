"""The report of a drift audit: verdict, numbers with intervals, tables of windows, features and clusters."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from tunesmith.audit._report import Report, Table
from tunesmith.audit.drift.auditing import Traffic, retrain_trigger
from tunesmith.audit.drift.detector import DriftDetector
from tunesmith.audit.drift.features import EMBEDDING
from tunesmith.audit.drift.pictures import draw_windows
from tunesmith.audit.drift.reading import Skipped
from tunesmith.audit.drift.results import FEW
from tunesmith.core.wording import clip, count, percent

__all__ = ["binomial_interval", "judge", "make_report"]

_MOST_ROWS = 200  # windows in the table: the first ones and all alarms beyond
_CLIP = 120


def binomial_interval(k: int, n: int, alpha: float = 0.05) -> tuple[float, float, float]:
    """Return k / n with its exact interval (Clopper and Pearson 1934)."""
    from scipy.stats import beta

    low = 0.0 if k == 0 else float(beta.ppf(alpha / 2, k, n - k + 1))
    high = 1.0 if k == n else float(beta.ppf(1 - alpha / 2, k + 1, n - k))
    return k / n, low, high


def judge(alarms: list[bool], rate: float) -> str:
    """Return ``"clean"`` without an alarm, ``"suspicious"`` for two in a row or more than chance, else ``"unsure"``.

    More than chance: at least as many would come with probability 5 % or less from windows that alarm at ``rate``.
    """
    from scipy.stats import binom

    if not any(alarms):
        return "clean"
    row = any(a and b for a, b in itertools.pairwise(alarms))
    chance = float(binom.sf(sum(alarms) - 1, len(alarms), rate))
    return "suspicious" if row or chance <= 0.05 else "unsure"


def make_report(
    detector: DriftDetector, traffic: Traffic, subject: str, metric: str | None, examples: bool
) -> Report:
    """Return the report of what was seen."""
    notes = _notes(detector, traffic, examples)
    windows = traffic.windows
    tables = [
        table
        for title, skipped in (("reference", traffic.skipped_reference), ("live log", traffic.skipped_live))
        if (table := _skipped(title, skipped))
    ]
    if not windows:
        verdict = (
            f"There are {count(traffic.left_over, 'usable live row')}, too few for a window of {detector.window:,}: "
            "nothing can be said."
        )
        numbers: dict[str, Any] = {"usable live rows": traffic.left_over}
        return Report("drift", subject, "unsure", verdict, numbers, tables, notes=notes)
    alarms = [window.alarm for window in windows]
    level = judge(alarms, detector.level_)
    if level == "clean" and windows[0].rows < FEW:
        level = "unsure"
    share = binomial_interval(sum(alarms), len(alarms))
    numbers = {
        "windows": len(windows),
        "live rows": sum(window.rows for window in windows),
        "reference rows": detector.n_reference_,
        "share of windows that alarm": share,
        "share that may by chance, at most": detector.false_alarm_rate,
        "smallest p-value": min(window.p_value for window in windows),
    }
    verdict = _verdict(level, traffic, share, detector)
    if any(alarms):
        numbers["first alarm, window"] = alarms.index(True) + 1
    if metric is not None and traffic.baseline is not None:
        verdict += _metric(traffic, metric, numbers)
    tables = [_windows(traffic, metric), _features(traffic), *_clusters(traffic, examples), *tables]
    pictures: dict[str, bytes | str] = {"Windows": draw_windows(windows)}
    return Report("drift", subject, level, verdict, numbers, tables, pictures, notes)


def _verdict(level: str, traffic: Traffic, share: tuple[float, float, float], detector: DriftDetector) -> str:
    windows = traffic.windows
    found = [window for window in windows if window.alarm]
    of = f"{len(found)} of {count(len(windows), 'window')}"
    if not found and level == "clean":
        return (
            f"No window of {windows[0].rows:,} rows differs from the reference: {of} alarm; the true share is at most "
            f"{percent(share[2])} (95 % interval)."
        )
    if not found:
        return f"No window differs from the reference, but windows of {windows[0].rows} rows show only large shifts."
    names = list(dict.fromkeys(name for window in found for name in window.moved))
    where = f"the first begins at row {found[0].first + 1:,} ({traffic.begins[found[0].index]})"
    if level == "suspicious":
        return f"The traffic has changed in {', '.join(names)}: {of} alarm; {where}."
    return (
        f"{of} alarm ({', '.join(names)}; {where}), which up to {percent(detector.false_alarm_rate)} of clean windows "
        "do: look at the next windows."
    )


def _metric(traffic: Traffic, metric: str, numbers: dict[str, Any]) -> str:
    baseline = float(traffic.baseline or 0)
    labelled = [
        (value, n) for value, n in zip(traffic.metric, traffic.metric_rows, strict=True) if value is not None
    ]
    numbers[f"{metric}, baseline"] = baseline
    if not labelled:
        return f" No live row has a number in '{metric}'."
    total = sum(n for _, n in labelled)
    numbers[f"{metric}, live"] = sum(value * n for value, n in labelled) / total
    if baseline <= 0:
        return f" The baseline of '{metric}' is not above 0, so that no relative loss can be told."
    at = retrain_trigger(traffic.metric, baseline)
    if at is None:
        return ""
    numbers["retraining recommended at window"] = at + 1
    return (
        f" Retraining is recommended: '{metric}' was at least 5 % below its baseline of {baseline:.3g} in three "
        f"windows running, up to window {at + 1}."
    )


def _windows(traffic: Traffic, metric: str | None) -> Table:
    windows = traffic.windows
    labels = [(d.feature, d.statistic) for d in windows[0].drift]
    columns = ["window", "first row", "begins", "rows", "alarm", "p", *(f"{f}: {s}" for f, s in labels)]
    rows: list[list[Any]] = []
    for i, window in enumerate(windows):
        if i >= _MOST_ROWS and not window.alarm:
            continue
        row = [i + 1, window.first + 1, traffic.begins[i], window.rows, "ALARM" if window.alarm else ""]
        row += [window.p_value, *(f"{d.value:.3f}{' *' if d.moved else ''}" for d in window.drift)]
        rows.append([*row, traffic.metric[i]] if metric is not None else row)
    if metric is not None:
        columns.append(metric)
    left = len(windows) - len(rows)
    note = "* above its threshold." + (
        f" {left:,} later windows without an alarm are left out." if left else ""
    )
    return Table("Windows", columns, rows, note)


def _features(traffic: Traffic) -> Table:
    windows = traffic.windows
    rows: list[list[Any]] = []
    for place, first in enumerate(windows[0].drift):
        series = [window.drift[place] for window in windows]
        worst = max(series, key=lambda d: d.ratio)
        mean = traffic.reference_means.get(first.feature)
        live = None
        if mean is not None:
            live = float(
                np.average([w.means[first.feature] for w in windows], weights=[w.rows for w in windows])
            )
        rows.append(
            [
                first.feature,
                first.statistic,
                sum(d.moved for d in series),
                worst.value,
                worst.threshold,
                mean,
                live,
            ]
        )
    rows.sort(key=lambda row: -int(row[2]))
    return Table(
        "Which features moved",
        ["feature", "statistic", "windows", "largest", "threshold then", "mean, reference", "mean, live"],
        rows,
        "Of each statistic, in how many windows it was above its family-wise threshold.",
    )


def _clusters(traffic: Traffic, examples: bool) -> list[Table]:
    shown = [window for window in traffic.windows if window.alarm] or traffic.windows
    tables = []
    for name in traffic.windows[0].clusters:
        pairs = np.array([window.clusters[name] for window in shown])  # (windows, k, 2)
        before = pairs[0, :, 0]
        after = np.average(pairs[:, :, 1], axis=0, weights=[window.rows for window in shown])
        rows: list[list[Any]] = []
        for c in np.argsort(-np.abs(after - before), kind="stable").tolist():
            row = [c + 1, float(before[c]), float(after[c]), "grew" if after[c] > before[c] else "shrank"]
            if examples and name == EMBEDDING:
                row.append(" | ".join(clip(text, _CLIP) for _, text in traffic.examples.get(c, [])))
            rows.append(row)
        which = "windows that alarm" if traffic.windows and shown[0].alarm else "all windows"
        columns = ["cluster", "share of the reference", f"share of {which}", ""]
        tables.append(
            Table(
                f"Clusters of the {name}",
                [*columns, "live rows nearest to its centre"] if examples and name == EMBEDDING else columns,
                rows,
                "Most changed first." + ("" if examples else " Ask for examples to see texts of each."),
            )
        )
    return tables


def _skipped(title: str, skipped: Skipped) -> Table | None:
    if not skipped.n:
        return None
    return Table(
        f"Rows of the {title} that were not used: {skipped.n:,} of {skipped.n_rows:,}",
        ["where", "why"],
        [[place, reason] for place, reason in skipped.places],
        "; ".join(f"{n:,} × {reason}" for reason, n in skipped.reasons.most_common())
        + ". At most twenty are listed.",
    )


def _notes(detector: DriftDetector, traffic: Traffic, examples: bool) -> list[str]:
    half = percent(detector.false_alarm_rate / 2)
    notes = [
        f"A clean window alarms with probability at most {half} on average over references, if its rows are like "
        f"independent draws from the reference; the margin up to {percent(detector.false_alarm_rate)} is for the one "
        "reference at hand. Traffic that swings by day and night needs a window that covers the cycle.",
        "Drift says that inputs changed, not that answers got worse: measure those on labelled rows.",
    ]
    if examples:
        notes.append("This page quotes users' texts: treat it as confidential as the log.")
    else:
        notes.append("No user's text is in this report.")
    if traffic.windows and min(window.rows for window in traffic.windows) < FEW:
        notes.append(f"Windows of fewer than {FEW} rows show only large shifts.")
    if traffic.windows and traffic.left_over:
        notes.append(
            f"{count(traffic.left_over, 'row')} at the end are too few for a window and were not judged."
        )
    return notes + traffic.notes
