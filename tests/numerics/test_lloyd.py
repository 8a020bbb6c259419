import numpy as np
import pytest
from sklearn.cluster import KMeans

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.numerics import kmeans, nearest_center


def mixture(n=3000, k=20, d=16, seed=0, spread=0.6):
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(k, d))
    return (centers[rng.integers(0, k, n)] + spread * rng.normal(size=(n, d))).astype(np.float32)


def test_as_good_as_scikit_learn():
    X = mixture()
    ours = min(kmeans(X, 40, random_state=s, tol=0).inertia for s in range(3))
    peers = min(KMeans(40, n_init=1, random_state=s).fit(X).inertia_ for s in range(3))
    assert ours <= 1.01 * peers


def test_result_belongs_together():
    X = mixture()
    result = kmeans(X, 30, random_state=1)
    labels, distances = nearest_center(X, result.centers)
    assert np.array_equal(labels, result.labels)
    assert result.labels.dtype == np.int32
    assert result.inertia == pytest.approx(distances.sum(), rel=1e-6)
    assert result.centers.shape == (30, 16)
    direct = ((X[:, None] - result.centers) ** 2).sum(-1)
    assert np.allclose(direct.min(1), distances, atol=1e-4)


def test_samples_reach_the_inertia_of_all_rows(monkeypatch):
    from tunesmith.numerics import lloyd

    X = mixture(8000, 50, 8)
    whole = kmeans(X, 32, random_state=0)
    monkeypatch.setattr(lloyd, "_SEED_ROWS", 200)
    nested = kmeans(X, 32, random_state=0)  # 512, 2048, then all 8000 rows
    assert nested.inertia <= 1.02 * whole.inertia
    assert np.array_equal(nested.labels, nearest_center(X, nested.centers)[0])


def test_deterministic_and_input_untouched():
    X = mixture(500)
    before = X.copy()
    X.setflags(write=False)
    a, b = kmeans(X, 7, random_state=3), kmeans(X, 7, random_state=3)
    assert np.array_equal(a.labels, b.labels)
    assert np.array_equal(a.centers, b.centers)
    assert np.array_equal(X, before)


def test_memory_map_equals_array(tmp_path):
    X = mixture(700)
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert np.array_equal(kmeans(mapped, 9, random_state=0).labels, kmeans(X, 9, random_state=0).labels)


def test_far_from_the_origin_no_digits_are_lost():
    X = np.float64(mixture(800, 5, 4, spread=0.05))
    near = kmeans(X, 5, random_state=0, n_init=3)
    far = kmeans((X + 1000).astype(np.float32), 5, random_state=0, n_init=3)
    assert far.inertia == pytest.approx(near.inertia, rel=2e-2)
    assert abs(far.centers - near.centers - 1000).max() < 1e-2


def test_one_cluster_is_the_mean_and_n_clusters_are_the_rows():
    X = mixture(50)
    one = kmeans(X, 1, random_state=0)
    assert np.allclose(one.centers[0], X.mean(0), atol=1e-5)
    all_rows = kmeans(X, 50, random_state=0)
    assert sorted(all_rows.labels) == list(range(50))
    assert all_rows.inertia < 1e-6


def test_duplicates_leave_clusters_empty_without_error():
    X = np.repeat(np.eye(3, dtype=np.float32), 5, axis=0)
    result = kmeans(X, 6, random_state=0)
    assert result.inertia < 1e-10
    assert len(set(result.labels)) == 3
    assert np.isfinite(result.centers).all()


def test_a_cluster_that_loses_its_rows_gets_the_farthest_row():
    X = np.array([[0.0], [0.1], [10.0], [10.1], [50.0]])
    result = kmeans(X, 3, init=np.array([[0.0], [10.0], [1e6]]), tol=0)
    assert sorted(np.round(result.centers[:, 0], 2)) == [0.05, 10.05, 50.0]


def test_spherical_ignores_length():
    rng = np.random.default_rng(0)
    X = np.eye(3)[rng.integers(0, 3, 300)] + 0.05 * rng.normal(size=(300, 3))
    scaled = X * rng.uniform(0.1, 10, (300, 1))
    a, b = (kmeans(m, 3, spherical=True, random_state=0, n_init=3) for m in (X, scaled))
    assert np.array_equal(a.labels, b.labels)
    assert np.allclose(np.linalg.norm(a.centers, axis=1), 1)


def test_restarts_never_end_worse():
    X = mixture(400, 12, 2, spread=0.05)
    runs = [kmeans(X, 12, n_init=m, random_state=5, tol=0).inertia for m in (1, 8)]
    assert runs[1] <= runs[0] * (1 + 1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_clusters": 0}, "The 'n_clusters' parameter of kmeans must be an int in [1, 5]. Got 0 instead."),
        ({"n_clusters": 6}, "The 'n_clusters' parameter of kmeans must be an int in [1, 5]. Got 6 instead."),
        (
            {"n_clusters": True},
            "The 'n_clusters' parameter of kmeans must be an int in [1, 5]. Got True instead.",
        ),
        ({"n_init": 0}, "The 'n_init' parameter of kmeans must be an int >= 1. Got 0 instead."),
        ({"max_iter": 1.5}, "The 'max_iter' parameter of kmeans must be an int >= 1. Got 1.5 instead."),
        ({"tol": 1}, "The 'tol' parameter of kmeans must be a float in [0, 1). Got 1 instead."),
        (
            {"init": "random"},
            "The 'init' parameter of kmeans must be 'k-means++' or an array (n_clusters, d). Got 'random' "
            "instead.",
        ),
        (
            {"init": np.zeros((3, 2))},
            "The 'init' parameter of kmeans must be an array of shape (2, 2). Got (3, 2) instead.",
        ),
    ],
)
def test_parameter_messages(change, message):
    with pytest.raises(ParameterError) as caught:
        kmeans(np.zeros((5, 2)), **{"n_clusters": 2, **change})
    assert str(caught.value) == message


def test_data_messages():
    from scipy import sparse

    X = mixture(40)
    X[17, 3] = np.nan
    with pytest.raises(DataError, match=r"^row 17: the matrix holds a value that is not a finite number"):
        kmeans(X, 2)
    X[17, 3] = np.inf
    with pytest.raises(DataError, match=r"^row 17: "):
        kmeans(X, 2)
    for bad, words in [
        (np.zeros(3), r"got shape \(3,\)"),
        (np.zeros((0, 3)), r"got shape \(0, 3\)"),
        (np.array([["a"]]), "values of type <U1"),
        (sparse.csr_array(np.eye(2)), "got a sparse one"),
    ]:
        with pytest.raises(DataError, match=words):
            kmeans(bad, 1)
    with pytest.raises(DataError, match=r"centres have shape \(2, 3\), but the rows have 2 columns"):
        nearest_center(np.zeros((4, 2)), np.zeros((2, 3)))
