"""Speed and memory of the entropic transport behind GOT-D, against POT's log-domain Sinkhorn.

    python benchmarks/gotd.py

Two comparisons at 10,000 x 2,000 points of 384 dimensions, costs given to POT ready-made (ours builds its own
inside the clock): at an epsilon that POT can finish, to equal L1 marginal error; and at one so small that
POT's solver in the kernel domain breaks down in float64 too, where POT gets a time limit. The marginal error
of POT's plan is measured outside its clock. Then the whole selector at 100,000 x 10,000, alone in a process,
for its peak memory.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from _common import isolated, machine, save, serve_part, timed, versions

TOL = 1e-3


def points(n: int, seed: int, groups: int = 200, d: int = 384) -> np.ndarray[Any, Any]:
    """Unit vectors in groups of unequal size around a 24-dimensional sheet, as sentence embeddings are."""
    fixed = np.random.default_rng(5)
    sheet = fixed.standard_normal((24, d)) / np.sqrt(24)
    centres = fixed.standard_normal((groups, 24))
    rng = np.random.default_rng(seed)
    share = rng.dirichlet(np.full(groups, 0.3))
    x = (centres[rng.choice(groups, n, p=share)] + 0.6 * rng.standard_normal((n, 24))) @ sheet
    x = (x + 0.35 * rng.standard_normal((n, d))).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def against_pot(relative: float, chunk: int, limit_s: float) -> dict[str, Any]:
    """Both solvers to L1 marginal error TOL; POT in chunks of iterations with its own warm start."""
    import ot

    from tunesmith.numerics.transport import cost_matrix, sinkhorn

    X, Y = points(10_000, 1), points(2_000, 2)
    sinkhorn(X[:2200], Y, tol=0.1)  # compile
    warnings.simplefilter("ignore")
    ours_s, ours = timed(lambda: sinkhorn(X, Y, relative_epsilon=relative, tol=TOL), repeats=3)
    C = cost_matrix(X, Y)
    a, b = np.full(len(X), 1 / len(X)), np.full(len(Y), 1 / len(Y))
    with warnings.catch_warnings(record=True) as caught, np.errstate(all="ignore"):
        warnings.simplefilter("always")
        plain = ot.sinkhorn(a, b, C, ours.epsilon, method="sinkhorn", numItermax=20, stopThr=0)
        breaks = any("numerical errors" in str(w.message) for w in caught) or not np.isfinite(plain).all()
    spent, iterations, error, start = 0.0, 0, np.inf, None
    while error > TOL and spent < limit_s:

        def some(start: Any = start) -> Any:
            return ot.sinkhorn(
                a,
                b,
                C,
                ours.epsilon,
                method="sinkhorn_log",
                numItermax=chunk,
                stopThr=0,
                log=True,
                warmstart=start,
            )

        seconds, (plan, log) = timed(some)
        spent, iterations = spent + seconds, iterations + chunk
        start = (log["log_u"], log["log_v"])
        error = float(np.abs(plan.sum(axis=1) - a).sum() + np.abs(plan.sum(axis=0) - b).sum())
    return {
        "epsilon_over_mean_cost": relative,
        "kernel_domain_breaks": breaks,
        "ours_s": ours_s,
        "ours_sweeps": ours.n_iter,
        "ours_error": ours.error,
        "pot_s": spent,
        "pot_iterations": iterations,
        "pot_error": error,
        "pot_reached": error <= TOL,
        "ratio": spent / ours_s,
    }


def whole(n: int, m: int) -> dict[str, Any]:
    """The selector at full size; the points are made in float32 and count towards the peak."""
    from tunesmith.select.gotd import GOTDSelector

    X, Y = np.concatenate([points(n // 10, 10 + k) for k in range(10)]), points(m, 2)
    selector = GOTDSelector()
    seconds, _ = timed(lambda: selector.fit(X, target_embedding=Y).select(1000))
    return {
        "candidates": n,
        "targets": m,
        "dimensions": X.shape[1],
        "seconds": seconds,
        "sweeps": selector.n_iter_,
        "error": selector.error_,
    }


def main() -> None:
    """Run everything and save docs/benchmarks/gotd.json."""
    warnings.simplefilter("ignore")
    equal = isolated(__file__, "against_pot", relative=0.02, chunk=10, limit_s=120)
    tiny = isolated(__file__, "against_pot", relative=0.0005, chunk=10, limit_s=40)
    large = isolated(__file__, "whole", n=100_000, m=10_000)
    result = {
        "title": "GOT-D: entropic transport with duals",
        "summary": (
            f"10,000 x 2,000, L1 marginal error {TOL:g}: at epsilon = "
            f"{equal['epsilon_over_mean_cost']:g} of the "
            f"mean cost {'' if equal['pot_reached'] else 'at least '}{equal['ratio']:,.0f} times faster than "
            f"ot.sinkhorn(method='sinkhorn_log'); at {tiny['epsilon_over_mean_cost']:g}, where POT's "
            f"kernel-domain solver {'breaks down' if tiny['kernel_domain_breaks'] else 'still works'}, "
            f"{'' if tiny['pot_reached'] else 'at least '}{tiny['ratio']:,.0f} times (POT's error after "
            f"{tiny['pot_s']:.0f} s: {tiny['pot_error']:.2g}, ours after {tiny['ours_s']:.1f} s: "
            f"{tiny['ours_error']:.2g}). 100,000 x 10,000 in 384 dimensions: {large['seconds']:.0f} s, "
            f"{large['peak_gib']:.2f} GiB at the peak, marginal error {large['error']:.2g}."
        ),
        "against_pot": [equal, tiny],
        "full_size": large,
        "targets": {"ratio": 3, "peak_gib": 3.0},
        "command": "python benchmarks/gotd.py",
        "machine": machine(),
        "versions": versions("numpy", "numba", "POT"),
    }
    save("benchmarks", "gotd", result)


if __name__ == "__main__" and not serve_part({"against_pot": against_pot, "whole": whole}):
    main()
