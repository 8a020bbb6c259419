"""Speed and memory of MIG: lazy greedy on sparse rows against dense full scans, and its growth with n.

    python benchmarks/mig.py

Peers, all with the same first-order rule: a dense full scan in NumPy float64 (one matrix-vector product and
one arg-max per pick), whose picks must be equal, and the same in torch float32, which is what the authors'
code does. All work with one thread, and times are processor time, which other work on the machine hardly
changes. Building the rows is timed apart from the selection. A peer's time is the number of picks times its
fastest pick, ours the least of five whole runs (of three, where it grows with n).
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from _common import isolated, machine, save, serve_part, timed, versions

LABELS = 4531  # as the paper's Tulu3 run


def pool(n: int, labels: int = LABELS, seed: int = 0) -> dict[str, Any]:
    """A pool with Zipf-distributed labels, one to five per row, in groups of similar labels."""
    rng = np.random.default_rng(seed)
    popularity = 1 / np.arange(1, labels + 1) ** 0.8
    names = np.array([f"label {j:05d}" for j in rng.permutation(labels)])
    counts = rng.integers(1, 6, n)
    drawn = names[rng.choice(labels, size=int(counts.sum()), p=popularity / popularity.sum())].tolist()
    ends = np.cumsum(counts).tolist()
    tags = [drawn[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    groups = rng.normal(size=(labels // 6, 64))
    vectors = groups[rng.integers(0, len(groups), labels)] + 0.28 * rng.normal(size=(labels, 64))
    quality = rng.gamma(6.0, 3.0, n)
    return {
        "tags": tags,
        "quality": quality,
        "label_embeddings": dict(zip(names.tolist(), vectors, strict=True)),
    }


def against_dense(n: int, picks: int) -> dict[str, Any]:
    """Lazy against dense scans on the same propagated rows."""
    import torch

    from tunesmith.select import MIGSelector

    data = pool(n)
    MIGSelector().fit(**{**data, "tags": data["tags"][:50], "quality": data["quality"][:50]}).select(
        5
    )  # compile
    selector = MIGSelector()
    fit_s, _ = timed(lambda: selector.fit(**data), clock=time.process_time)
    lazy_s, order = timed(lambda: selector.select(picks), repeats=5, clock=time.process_time)
    sparse_rows, phi = selector._coverage.rows, selector._coverage.phi
    dense_build_s, dense = timed(sparse_rows.toarray, clock=time.process_time)

    def scan() -> tuple[float, list[int]]:
        z, alive, picked = np.zeros(dense.shape[1]), np.ones(n, dtype=bool), []
        fastest = np.inf
        for _ in range(picks):
            begin = time.process_time()
            i = int(np.argmax(np.where(alive, dense @ phi.slope(z), -np.inf)))
            picked.append(i)
            alive[i] = False
            z += dense[i]
            fastest = min(fastest, time.process_time() - begin)
        return picks * fastest, picked

    def scan_torch() -> float:
        rows = torch.from_numpy(dense.astype(np.float32))
        z, dead, fastest = torch.zeros(rows.shape[1]), torch.zeros(n), np.inf
        for _ in range(picks):
            begin = time.process_time()
            slope = phi.beta * (z + phi.offset) ** (phi.beta - 1)
            i = int(torch.argmax(rows @ slope + dead))
            dead[i] = -torch.inf
            z += rows[i]
            fastest = min(fastest, time.process_time() - begin)
        return picks * fastest

    dense_s, reference = scan()
    torch_s = scan_torch()
    return {
        "rows": n,
        "labels": LABELS,
        "picks": picks,
        "mean_degree": selector.mean_degree_,
        "fit_s": fit_s,
        "lazy_s": lazy_s,
        "dense_float64_s": dense_s,
        "dense_float32_torch_s": torch_s,
        "dense_build_s": dense_build_s,
        "ratio_to_float64": dense_s / lazy_s,
        "ratio_to_float32_torch": torch_s / lazy_s,
        "same_picks": reference == order.tolist(),
    }


def growth(n: int, picks: int, gain: str) -> dict[str, Any]:
    """One pool alone, for time and peak memory."""
    from tunesmith.select import MIGSelector

    MIGSelector(gain=gain).fit(**pool(50)).select(5)
    data = pool(n)
    selector = MIGSelector(gain=gain)
    fit_s, _ = timed(lambda: selector.fit(**data), repeats=3, clock=time.process_time)
    select_s, _ = timed(lambda: selector.select(picks), repeats=3, clock=time.process_time)
    return {"rows": n, "picks": picks, "gain": gain, "fit_s": fit_s, "select_s": select_s}


def main() -> None:
    """Run everything and save docs/benchmarks/mig.json."""
    dense = isolated(__file__, "against_dense", one_core=True, n=20_000, picks=300)
    sizes = [
        isolated(__file__, "growth", one_core=True, n=n, picks=n // 20, gain=gain)
        for gain in ("first_order", "exact")
        for n in (100_000, 316_000, 1_000_000)
    ]
    totals = {(row["gain"], row["rows"]): row["fit_s"] + row["select_s"] for row in sizes}
    powers = {
        gain: float(np.log10(totals[gain, 1_000_000] / totals[gain, 100_000]))
        for gain in ("first_order", "exact")
    }
    largest = [row for row in sizes if row["rows"] == 1_000_000]
    result = {
        "title": "MIG: lazy greedy on sparse rows",
        "summary": (
            f"Against a dense full scan at {dense['rows']:,} rows, {dense['labels']:,} labels and "
            f"{dense['picks']} picks: {dense['ratio_to_float64']:,.0f} times faster than NumPy float64 and "
            f"{dense['ratio_to_float32_torch']:,.0f} times faster than torch float32, picks equal: "
            f"{'yes' if dense['same_picks'] else 'no'}. A million rows, 50,000 picks: "
            + ", ".join(
                f"{row['gain']} {row['fit_s'] + row['select_s']:.0f} s of one core and "
                f"{row['peak_gib']:.2f} GiB"
                for row in largest
            )
            + " at the peak, the pool's own lists included; time grows like n to the power "
            f"{powers['first_order']:.2f} (first_order) and {powers['exact']:.2f} (exact) from 10^5 "
            f"to 10^6 rows with 5 % picked."
        ),
        "against_dense": dense,
        "growth": sizes,
        "growth_exponent": powers,
        "targets": {"ratio": 300, "peak_gib": 3.0},
        "command": "python benchmarks/mig.py",
        "machine": machine(),
        "versions": versions("numpy", "scipy", "numba", "torch"),
    }
    save("benchmarks", "mig", result)


if __name__ == "__main__" and not serve_part({"against_dense": against_dense, "growth": growth}):
    main()
