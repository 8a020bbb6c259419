import numpy as np
import pytest

from tunesmith.numerics import Concave, ConcaveCoverage, lazy_greedy

PHIS = [Concave(), Concave(beta=0.5, offset=0.3), Concave("exponential", gamma=0.05)]


def full_scan(coverage, budget, rule):
    """The definition: every gain of every row at every step, dense."""
    rows, phi = coverage.rows.toarray(), coverage.phi
    z, alive, order, gains = np.zeros(rows.shape[1]), np.ones(len(rows), bool), [], []
    for _ in range(budget):
        now = phi.increase(z, rows).sum(1) if rule == "exact" else rows @ phi.slope(z)
        i = int(np.argmax(np.where(alive, now, -np.inf)))
        order.append(i)
        gains.append(now[i])
        alive[i] = False
        z += rows[i]
    return order, gains


def random_coverage(seed, phi, n=80, width=12):
    from scipy import sparse

    rng = np.random.default_rng(seed)
    rows = rng.random((n, width)) * (rng.random((n, width)) < 0.25) * 10
    return ConcaveCoverage(sparse.csr_array(rows), phi)


@pytest.mark.parametrize("rule", ["first_order", "exact"])
@pytest.mark.parametrize(
    "phi", [Concave(), Concave(beta=0.5, offset=0.3), Concave("exponential", gamma=0.05)]
)
def test_compiled_lazy_equals_full_scan(phi, rule):
    for seed in range(20):
        coverage = random_coverage(seed, phi)
        order, gains = full_scan(coverage, 60, rule)
        result = coverage.greedy(60, rule)
        assert result.order.tolist() == order
        assert np.allclose(result.gains, gains, rtol=1e-9)
        assert (np.diff(result.gains) <= 0).all()


def test_python_lazy_equals_full_scan_and_evaluates_less():
    coverage = random_coverage(1, Concave(), n=300)
    rows, phi, z = coverage.rows.toarray(), coverage.phi, np.zeros(12)
    calls = []

    def gain(i):
        calls.append(i)
        return float(phi.increase(z, rows[i]).sum())

    def take(i):
        z.__iadd__(rows[i])

    picks, gains = lazy_greedy(gain, take, 300, 50)
    assert picks.tolist() == full_scan(coverage, 50, "exact")[0]
    assert (np.diff(gains) <= 0).all()
    assert len(calls) < 300 * 50 / 3


def test_ties_go_to_the_lowest_index_in_both():
    from scipy import sparse

    coverage = ConcaveCoverage(
        sparse.csr_array(np.array([[5.0, 0], [5, 0], [0, 5], [0, 5], [5, 0]])), Concave()
    )
    for rule in ("first_order", "exact"):
        assert coverage.greedy(5, rule).order.tolist() == [0, 2, 1, 3, 4]
    assert lazy_greedy(lambda i: 1.0, lambda i: None, 4, 4)[0].tolist() == [0, 1, 2, 3]


def test_given_upper_bounds_spare_the_first_gains():
    calls = []

    def gain(i):
        calls.append(i)
        return float(i)

    picks, gains = lazy_greedy(gain, lambda i: None, 5, 2, upper=[10, 10, 10, 10, 10])
    assert picks.tolist() == [4, 3]
    assert gains.tolist() == [4.0, 3.0]
    assert len(calls) == 6  # five bounds replaced by gains, one re-evaluation of the second pick
    assert lazy_greedy(gain, lambda i: None, 5, 0)[0].tolist() == []


def test_offset_zero_has_a_finite_exact_gain():
    from scipy import sparse

    coverage = ConcaveCoverage(sparse.csr_array(np.array([[4.0], [9.0]])), Concave(beta=0.5, offset=0.0))
    result = coverage.greedy(2, "exact")
    assert result.order.tolist() == [1, 0]
    assert np.allclose(result.gains, [3, 13**0.5 - 3])
    assert coverage.value([0, 1]) == pytest.approx(13**0.5)


def test_increase_keeps_digits_that_a_difference_loses():
    phi = Concave(offset=0.0)
    step = phi.increase(1e12, 1e-6)
    assert step == pytest.approx(float(phi.slope(1e12)) * 1e-6, rel=1e-9)
