"""Drift: is a planted shift seen within two windows, and how often does clean traffic alarm?

Numbers: the dossier's stream, N(0, 1) with 2,000 reference rows and 1,000 live ones, the second half shifted by 0.7;
20 seeds; windows of 50, 100 and 250 rows. Texts: 2,081 different requests of real users (Berkeley Function Calling
Leaderboard v4, its live parts), 1,050 of them drawn as reference, 1,000 others replayed in random order as clean
traffic; then a half in which 10, 30 or 100 % of 500 requests come from elsewhere: word problems (reasoning-gym) or
requests that the benchmark's authors wrote themselves; 20 seeds; windows of 100 and 250 rows; MiniLM embeddings and
text lengths. Arms: tunesmith's detector (false alarm rate 0.05; reference rows split inside it); PSI above 0.25 (of
the number; of the shares of ten k-means clusters of the embeddings), whatever the window; Kolmogorov-Smirnov with p
below 0.01 (numbers); a classifier two-sample test (texts): logistic regression on the embeddings tells the window
from 500 reference rows, three folds, Mann-Whitney p below 0.05. False alarms: share of clean windows. Seen: share of
streams with an alarm in the first two windows of the shift. Delay: mean number of windows from the shift to the first
alarm, that one included, over streams with one. Besides, one detector's own rate: 40 detectors of N(0, 1) with 2,000
reference rows see 60 clean windows of 250 each. Intervals: 95 %, Clopper-Pearson for streams, a bootstrap over seeds
for windows, as those of one seed share its reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from _claim import save
from _drift_texts import embedded
from _parts import stretch
from numpy.typing import NDArray

from tunesmith.audit.drift import DriftDetector, kolmogorov_smirnov, population_stability_index, psi
from tunesmith.audit.drift.reporting import binomial_interval
from tunesmith.numerics import kmeans, nearest_center

SEEDS = range(20)
LIVE, REFERENCE, TEXT_REFERENCE, SHIFT = 1000, 2000, 1050, 0.7
TOPICS, STRENGTHS = ("word problems", "authors' requests"), (0.1, 0.3, 1.0)
OURS = "tunesmith"
RATE_DETECTORS, RATE_WINDOWS = 40, 60
Rows = dict[str, NDArray[Any]]
Arms = dict[str, Callable[[Rows], bool]]


def alarms(arms: Arms, rows: Rows, window: int) -> dict[str, list[bool]]:
    """Return arm -> whether each whole window of the rows alarms."""
    n = len(next(iter(rows.values())))
    starts = range(0, n - window + 1, window)
    parts = [{name: values[i : i + window] for name, values in rows.items()} for i in starts]
    return {arm: [bool(test(part)) for part in parts] for arm, test in arms.items()}


def numbers(seed: int) -> dict[str, dict[str, dict[str, list[bool]]]]:
    """Return "window" -> "clean" or "shifted" -> arm -> alarms."""
    rng = np.random.default_rng(seed)
    reference, live = rng.normal(size=REFERENCE), rng.normal(size=LIVE)
    live[LIVE // 2 :] += SHIFT
    found = {}
    for window in (50, 100, 250):
        detector = DriftDetector(window, random_state=seed).fit({"x": reference})
        arms: Arms = {
            OURS: lambda rows, detector=detector: detector.check(rows).alarm,
            "PSI > 0.25": lambda rows: population_stability_index(reference, rows["x"]) > 0.25,
            "KS, p < 0.01": lambda rows: kolmogorov_smirnov(reference, rows["x"])[1] < 0.01,
        }
        halves = {"clean": live[: LIVE // 2], "shifted": live[LIVE // 2 :]}
        found[str(window)] = {name: alarms(arms, {"x": half}, window) for name, half in halves.items()}
    return found


def classifier(reference: NDArray[np.float32], rng: np.random.Generator) -> Callable[[Rows], bool]:
    """Return a test whether logistic regression tells a window from 500 rows of the reference."""
    from scipy.stats import mannwhitneyu
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    old = reference[rng.choice(len(reference), 500, replace=False)]

    def test(rows: Rows) -> bool:
        X = np.concatenate([old, rows["embedding"]])
        y = np.repeat([0, 1], [len(old), len(rows["embedding"])])
        model = LogisticRegression(class_weight="balanced", max_iter=200)
        folds = StratifiedKFold(3, shuffle=True, random_state=0)
        score = cross_val_predict(model, X, y, cv=folds, method="decision_function")
        return bool(mannwhitneyu(score[y == 1], score[y == 0], alternative="greater").pvalue < 0.05)

    return test


def texts(seed: int, data: dict[str, tuple[Any, Any]]) -> dict[str, dict[str, dict[str, list[bool]]]]:
    """Return "window" -> "clean" or "topic, share" -> arm -> alarms."""
    rng = np.random.default_rng(1000 + seed)

    def take(kind: str, at: NDArray[np.int64]) -> Rows:
        return {"embedding": data[kind][0][at], "text length": data[kind][1][at]}

    order = rng.permutation(len(data["users"][0]))
    reference, clean = take("users", order[:TEXT_REFERENCE]), order[TEXT_REFERENCE:][:LIVE]
    streams = {"clean": take("users", clean)}
    for topic in TOPICS:
        for share in STRENGTHS:
            count = round(share * LIVE / 2)
            new = take(topic, rng.choice(len(data[topic][0]), count, replace=False))
            old = take("users", rng.choice(clean, LIVE // 2 - count, replace=False))
            mixed = rng.permutation(LIVE // 2)
            streams[f"{topic}, {share:.0%}"] = {k: np.concatenate([old[k], new[k]])[mixed] for k in new}
    centers = kmeans(reference["embedding"], 10, random_state=seed).centers
    expected = np.bincount(nearest_center(reference["embedding"], centers)[0], minlength=10)

    def fixed(rows: Rows) -> bool:
        actual = np.bincount(nearest_center(rows["embedding"], centers)[0], minlength=10)
        return psi(expected, actual) > 0.25

    found = {}
    for window in (100, 250):
        detector = DriftDetector(window, random_state=seed).fit(reference)
        arms: Arms = {
            OURS: lambda rows, detector=detector: detector.check(rows).alarm,
            "cluster PSI > 0.25": fixed,
            "classifier, p < 0.05": classifier(reference["embedding"], rng),
        }
        found[str(window)] = {name: alarms(arms, stream, window) for name, stream in streams.items()}
    return found


def own_rate(seed: int) -> float:
    """Return the share of clean windows that one detector alarms on."""
    rng = np.random.default_rng(5000 + seed)
    detector = DriftDetector(250, random_state=seed).fit(rng.normal(size=REFERENCE))
    return float(np.mean([r.alarm for r in detector.update(rng.normal(size=250 * RATE_WINDOWS))]))


def over_references(shares: Sequence[float]) -> dict[str, float]:
    """Return mean and percentile interval over resampled seeds."""
    values = np.asarray(shares)
    draws = np.random.default_rng(0).choice(values, (10_000, len(values))).mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"false alarms": round(float(values.mean()), 4), "low": round(low, 4), "high": round(high, 4)}


def rows_of(name: str, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row per kind of shift, window and arm."""
    rows = []
    for window in runs[0]:
        for stream in (s for s in runs[0][window] if s != "clean"):
            for arm in runs[0][window]["clean"]:
                clean = over_references([float(np.mean(run[window]["clean"][arm])) for run in runs])
                late = [run[window][stream][arm] for run in runs]
                seen = binomial_interval(sum(any(found[:2]) for found in late), len(late))
                delays = [found.index(True) + 1 for found in late if any(found)]
                rows.append(
                    {
                        "data": name if stream == "shifted" else stream,
                        "window": int(window),
                        "arm": arm,
                        **clean,
                        "seen within two windows": round(seen[0], 4),
                        "seen, low": round(seen[1], 4),
                        "seen, high": round(seen[2], 4),
                        "mean delay": round(float(np.mean(delays)), 2) if delays else None,
                        "streams without alarm": len(late) - len(delays),
                    }
                )
    return rows


def span(rows: list[dict[str, Any]], key: str) -> str:
    """Return the range of a share over rows."""
    low, high = (f(row[key] for row in rows) for f in (min, max))
    return f"{low:.0%}" if low == high else f"{low:.1%} to {high:.1%}"


def main() -> None:
    """Run and write docs/claims/drift.json."""
    data = embedded()

    def job(name: str) -> dict[str, Any]:
        kind, seed = name.split()
        if kind == "rate":
            return {"rate": own_rate(int(seed))}
        return numbers(int(seed)) if kind == "numbers" else texts(int(seed), data)

    jobs = [f"{kind} {seed}" for kind in ("numbers", "texts") for seed in SEEDS]
    done = stretch("drift", [*jobs, *(f"rate {i}" for i in range(RATE_DETECTORS))], job)
    table = rows_of("N(0, 1), shift 0.7", [done[f"numbers {seed}"] for seed in SEEDS])
    table += rows_of("texts", [done[f"texts {seed}"] for seed in SEEDS])
    rates = [done[f"rate {i}"]["rate"] for i in range(RATE_DETECTORS)]
    ours = [row for row in table if row["arm"] == OURS]
    whole = [
        r for r in ours if r["window"] >= 100 and (r["data"].startswith("N(") or r["data"].endswith("100%"))
    ]
    weak = [row for row in ours if row not in whole and row["window"] >= 100]
    holds = all(r["false alarms"] <= 0.05 for r in ours) and all(
        r["seen within two windows"] == 1 for r in whole
    )
    rate = over_references(rates)
    least = "; ".join(
        f"{row['data']} in windows of {row['window']}: {row['seen within two windows']:.0%}" for row in weak
    )
    others = "; ".join(
        f"{arm} {min(found):.1%} to {max(found):.1%}"
        for arm in dict.fromkeys(row["arm"] for row in table)
        if arm != OURS and (found := [row["false alarms"] for row in table if row["arm"] == arm])
    )
    save(
        "drift",
        {
            "title": "Drift of numbers and of texts",
            "claim": "An alarm comes within two windows of a planted shift, and at most 5 % of clean windows alarm.",
            "verdict": f"{'Holds' if holds else 'Does not hold throughout'} where all traffic shifts and windows have "
            f"100 rows or more: {span(whole, 'seen within two windows')} of streams alarm within two windows, "
            f"{span(ours, 'false alarms')} of clean windows alarm. Where part of the traffic shifts, seen within two "
            f"windows: {least}. Clean windows "
            f"that alarm in other arms: {others}. Over {RATE_DETECTORS} detectors with a reference each, "
            f"{rate['false alarms']:.1%} ({rate['low']:.1%} to {rate['high']:.1%}) of clean windows alarm; "
            f"{np.mean(np.array(rates) <= 0.05):.0%} of the detectors stay at or below 5 %, the worst is at "
            f"{max(rates):.1%}.",
            "holds": holds,
            "setting": " ".join(" ".join((__doc__ or "").split("\n\n")[1:]).split()),
            "seeds": list(SEEDS),
            "streams": table,
            "rates of single detectors": {
                "mean": rate["false alarms"],
                "values": [round(r, 4) for r in rates],
            },
            "command": "python benchmarks/claims/drift.py",
        },
    )


if __name__ == "__main__":
    main()
