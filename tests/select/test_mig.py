import itertools
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.select import MIGSelector, dialogue_quality, encode_tags, label_graph, propagation

GOLDEN = {
    case["name"]: case
    for case in json.loads((Path(__file__).parents[1] / "golden" / "mig.json").read_text())["cases"]
}
RULES = ("first_order", "exact")


def array(value):
    return np.array(value["data"], dtype=value["dtype"]).reshape(value["shape"])


def random_pool(seed, n=60, labels=8, low=0.5):
    """Rows of one to three labels, positive qualities, label vectors in two loose groups."""
    rng = np.random.default_rng(seed)
    tags = [rng.choice(labels, size=rng.integers(1, 4), replace=False).tolist() for _ in range(n)]
    groups = rng.normal(size=(3, 5))
    vectors = groups[rng.integers(0, 3, labels)] + 0.5 * rng.normal(size=(labels, 5))
    return {
        "tags": tags,
        "quality": low + rng.gamma(2.0, 5.0, n),
        "label_embeddings": dict(enumerate(vectors)),
    }


def hand(alpha, gain):
    """Dossier item 7: two labels with weight 0.95, rows (10, 0), (9, 0), (0, 5)."""
    selector = MIGSelector(alpha=alpha, gain=gain)
    similarity = [[1, 0.95], [0.95, 1]]
    return selector.fit(np.array([[1, 0], [1, 0], [0, 1]]), quality=[10, 9, 5], label_similarity=similarity)


def dense_scan(selector, budget):
    rows, phi = selector._coverage.rows.toarray(), selector._coverage.phi
    z, alive, order = np.zeros(rows.shape[1]), np.ones(len(rows), bool), []
    for _ in range(budget):
        now = phi.increase(z, rows).sum(1) if selector.gain == "exact" else rows @ phi.slope(z)
        order.append(int(np.argmax(np.where(alive, now, -np.inf))))
        alive[order[-1]] = False
        z += rows[order[-1]]
    return order


@given(st.integers(0, 10_000), st.sampled_from(["power", "exponential"]))
@settings(max_examples=30, deadline=None)
def test_objective_is_monotone_and_submodular(seed, phi):
    selector = MIGSelector(threshold=0.6, phi=phi, gamma=0.05).fit(**random_pool(seed, n=30))
    rng = np.random.default_rng(seed)
    order = rng.permutation(30)
    small, large, d = order[:5], order[:15], order[20]
    gain = [selector.score([*part, d]) - selector.score(part) for part in (small, large)]
    assert gain[0] >= gain[1] - 1e-9
    assert min(gain) >= 0


@pytest.mark.parametrize("gain", RULES)
def test_gains_never_rise_and_prefixes_agree(gain):
    for seed in range(5):
        selector = MIGSelector(threshold=0.6, gain=gain).fit(**random_pool(seed))
        ten = selector.select(10)
        assert (np.diff(selector.gains_) <= 0).all()
        assert np.array_equal(selector.select(5), ten[:5])


def test_alpha_zero_or_no_neighbours_is_the_identity():
    vectors = np.random.default_rng(0).normal(size=(6, 4))
    assert (propagation(label_graph(vectors, 0.1), 0.0) != sparse.eye_array(6)).nnz == 0
    assert (propagation(label_graph(np.eye(6), 0.9), 1.0) != sparse.eye_array(6)).nnz == 0
    pool = random_pool(3)
    alone = MIGSelector(alpha=0).fit(tags=pool["tags"], quality=pool["quality"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        none_near = MIGSelector(threshold=1.0).fit(**pool)
    assert np.array_equal(alone.select(30), none_near.select(30))
    assert alone.mean_degree_ == none_near.mean_degree_ == 0


@pytest.mark.parametrize("gain", RULES)
def test_beta_one_orders_by_quality_times_propagated_mass(gain):
    pool = random_pool(4)
    selector = MIGSelector(beta=1.0, threshold=0.6, gain=gain).fit(**pool)
    vectors = np.stack([pool["label_embeddings"][j] for j in range(8)])
    mass = np.asarray(propagation(label_graph(vectors, 0.6), 1.0).sum(0)).ravel()
    worth = pool["quality"] * np.array([mass[t].sum() for t in pool["tags"]])
    assert selector.select(20).tolist() == np.argsort(-worth, kind="stable")[:20].tolist()
    single = MIGSelector(beta=1.0, alpha=0, gain=gain).fit(tags=[[0]] * 60, quality=pool["quality"])
    assert single.select(60).tolist() == np.argsort(-pool["quality"], kind="stable").tolist()


@pytest.mark.parametrize("gain", RULES)
@pytest.mark.parametrize("phi", [{"beta": 0.5}, {"phi": "exponential", "gamma": 0.1}])
def test_one_label_for_all_orders_by_quality_with_ties_by_index(gain, phi):
    quality = [3.0, 7.0, 3.0, 1.0, 7.0]
    selector = MIGSelector(alpha=0, gain=gain, **phi).fit(tags=[["x"]] * 5, quality=quality)
    assert selector.select(5).tolist() == [1, 4, 0, 2, 3]


@pytest.mark.parametrize("gain", RULES)
def test_equal_qualities_visit_every_label_before_any_repeats(gain):
    labels = np.random.default_rng(0).integers(0, 7, 80)
    selector = MIGSelector(alpha=0, gain=gain).fit(tags=labels[:, None].tolist(), quality=np.full(80, 4.0))
    assert len(set(labels[selector.select(7)])) == 7


@pytest.mark.parametrize(
    ("alpha", "gain", "picks", "gains"),
    [
        (0, "first_order", [0, 2], [126.79, 63.396]),
        (0, "exact", [0, 1], [6.310, 4.234]),
        (1, "first_order", [0, 1], [126.79, 5.218]),
        (1, "exact", [0, 1], [7.247, 4.864]),
    ],
)
def test_hand_worked_example(alpha, gain, picks, gains):
    selector = hand(alpha, gain)
    assert selector.select(2).tolist() == picks
    assert np.allclose(selector.gains_, gains, rtol=2e-4)


def test_hand_worked_first_gains_and_information():
    selector = hand(0, "first_order")
    selector.select(1)
    assert np.allclose(selector.scores_, [126.79, 114.11, 63.40], rtol=1e-4)
    independent, joined = hand(0, "exact"), hand(1, "exact")
    empty = 2 * 1e-6**0.8  # K a^beta, which score() leaves out
    assert joined.score([0, 1]) == pytest.approx(12.1111, abs=5e-5)
    assert joined.score([0, 1]) + empty == pytest.approx(12.1112, abs=5e-5)
    assert independent.score([0, 2]) == pytest.approx(9.9335, abs=1e-4)
    assert independent.score([0, 1]) == pytest.approx(10.5440, abs=1e-4)
    assert independent.score([0, 1, 2]) == pytest.approx(14.1678, abs=1e-4)
    assert independent.score([]) == 0
    assert np.allclose(propagation(label_graph(similarity=[[1, 0.95], [0.95, 1]]), 1.0).toarray()[0], [0.5128, 0.4872], atol=5e-5)  # fmt: skip  # noqa: E501


def test_mass_moves_from_ends_to_hubs():
    w = label_graph(threshold=0.9, similarity=[[1, 0.95, 0], [0.95, 1, 0.92], [0, 0.92, 1]])
    spread = propagation(w, 1.0).toarray()
    assert np.allclose(spread[:, 0], [0.5128, 0.3310, 0], atol=5e-5)
    assert spread[:, 0].sum() == pytest.approx(0.844, abs=5e-4)
    assert np.allclose(spread[:, 1], [0.4872, 0.3484, 0.4792], atol=5e-5)
    assert spread[:, 1].sum() == pytest.approx(1.315, abs=5e-4)
    assert np.allclose(spread.sum(1), 1)


@pytest.mark.parametrize("gain", RULES)
def test_scaling_qualities_and_offset_together_changes_nothing(gain):
    pool = random_pool(6)
    picks = [
        MIGSelector(threshold=0.6, gain=gain, offset=1e-3 * c)
        .fit(**{**pool, "quality": pool["quality"] * c})
        .select(25)
        .tolist()
        for c in (1.0, 64.0, 1 / 1024)
    ]
    assert picks[0] == picks[1] == picks[2]


def test_exact_rule_without_offset_ignores_the_scale_of_qualities():
    pool = random_pool(7)
    a, b = (
        MIGSelector(threshold=0.6, gain="exact", offset=0.0).fit(**{**pool, "quality": pool["quality"] * c})
        for c in (1.0, 4096.0)
    )
    assert np.array_equal(a.select(25), b.select(25))


@pytest.mark.parametrize("gain", RULES)
def test_lazy_sparse_equals_dense_full_scan(gain):
    for seed in range(30):
        options = {
            "gain": gain,
            "threshold": 0.5,
            "alpha": [0.0, 0.6, 1.0, 2.0][seed % 4],
            "norm": seed % 2 == 0,
        }
        selector = MIGSelector(**options).fit(**random_pool(seed))
        assert selector.select(60).tolist() == dense_scan(selector, 60)


def test_exact_greedy_reaches_its_guarantee():
    for seed in range(4):
        selector = MIGSelector(threshold=0.6, gain="exact").fit(**random_pool(seed, n=12))
        best = max(selector.score(subset) for subset in itertools.combinations(range(12), 4))
        assert selector.score(selector.select(4)) >= (1 - 1 / np.e) * best


def test_sum_of_exact_gains_is_the_score():
    selector = MIGSelector(threshold=0.6, gain="exact").fit(**random_pool(8))
    picks = selector.select(20)
    assert selector.score(picks) == pytest.approx(selector.gains_.sum())


def test_blocks_of_the_graph_do_not_matter(monkeypatch):
    from tunesmith.select import labels

    vectors = np.random.default_rng(1).normal(size=(50, 6))
    whole = label_graph(vectors, 0.3)
    monkeypatch.setattr(labels, "_BLOCK_VALUES", 150)
    assert abs(label_graph(vectors, 0.3) - whole).max() < 1e-15


def test_ready_matrix_equals_tags():
    pool = random_pool(9)
    matrix = encode_tags(pool["tags"]).matrix
    vectors = np.stack([pool["label_embeddings"][j] for j in range(8)])
    options = {"quality": pool["quality"], "label_embeddings": vectors}
    by_tags = MIGSelector(threshold=0.6).fit(**pool).select(15)
    for X in (matrix, matrix.toarray()):
        assert np.array_equal(MIGSelector(threshold=0.6).fit(X, **options).select(15), by_tags)
    callable_ = {**pool, "label_embeddings": lambda labels: vectors[labels]}
    assert np.array_equal(MIGSelector(threshold=0.6).fit(**callable_).select(15), by_tags)


def test_tags_without_an_embedding_are_counted_and_warned_of():
    tags = [["a", "zzz"], ["zzz", "yyy"], ["b"]]
    vectors = {"a": [1.0, 0], "b": [1.0, 0.1]}
    with pytest.warns(UserWarning, match="have no embedding") as caught:
        selector = MIGSelector().fit(tags=tags, quality=[1, 9, 1], label_embeddings=vectors)
    assert str(caught[0].message) == ("MIGSelector: 3 tags of 2 rows have no embedding and do not count.")
    assert selector.n_ignored_tags_ == 3
    assert selector.labels_ == ["a", "b"]
    with pytest.warns(UserWarning, match="only 2 of 3 rows carry information") as caught:
        assert selector.select(3).tolist() == [0, 2, 1]
    assert "the last 1 picks" in str(caught[0].message)
    assert selector.gains_[-1] == 0


def test_a_graph_without_neighbours_is_warned_of():
    with pytest.warns(UserWarning, match=r"no two labels have a cosine of at least 0\.9"):
        MIGSelector().fit(np.eye(3), quality=[1, 1, 1], label_embeddings=np.eye(3))


def test_repeated_tags_count_once_and_norm_divides_by_distinct_ones():
    rows = MIGSelector(alpha=0, norm=True).fit(tags=[["a", "b", "b"]], quality=[6.0])._coverage.rows
    assert rows.toarray().tolist() == [[3.0, 3.0]]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"threshold": 0}, "The 'threshold' parameter of MIGSelector must be a float in (0, 1]. Got "
        "0 instead."),
        ({"threshold": 1.1}, "The 'threshold' parameter of MIGSelector must be a float in (0, 1]. "
        "Got 1.1 instead."),
        ({"alpha": -1}, "The 'alpha' parameter of MIGSelector must be a float >= 0. Got -1 instead."),
        ({"beta": 2}, "The 'beta' parameter of MIGSelector must be a float in (0, 1]. Got 2 instead."),
        ({"offset": "a"}, "The 'offset' parameter of MIGSelector must be a float >= 0. Got 'a' instead."),
        ({"gamma": 0}, "The 'gamma' parameter of MIGSelector must be a float > 0. Got 0 instead."),
        (
            {"gain": "lazy"},
            "The 'gain' parameter of MIGSelector must be one of 'first_order', 'exact'. Got 'lazy' instead.",
        ),
        ({"phi": "log"}, "The 'phi' parameter of MIGSelector must be one of 'power', 'exponential'. "
        "Got 'log' instead."),
        (
            {"offset": 0},
            "The 'offset' parameter of MIGSelector must be > 0 when gain='first_order', where the "
            "slope at 0 is "
            "infinite. Got 0 instead.",
        ),
    ],
)  # fmt: skip
def test_parameter_messages(parameters, message):
    with pytest.raises(ParameterError) as caught:
        MIGSelector(**parameters).fit(tags=[["a"]], quality=[1])
    assert str(caught.value) == message


GOOD = {"tags": [["a"], ["b"]], "quality": [1.0, 2.0], "label_embeddings": {"a": [1.0, 0], "b": [1.0, 0.1]}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tags": None}, "MIGSelector needs tags, one list per row, or X, a ready matrix (rows, labels)."),
        ({"quality": None}, "MIGSelector needs quality, one number >= 0 per row; ones make all rows "
        "equally good."),
        (
            {"quality": [1.0, -2.0]},
            "row 1: 'quality' must be a finite number >= 0 for MIGSelector, but is -2.0 here (1 "
            "such rows in all).",
        ),
        (
            {"quality": [float("nan"), 1.0]},
            "row 0: 'quality' must be a finite number >= 0 for MIGSelector, but is nan here (1 such "
            "rows in all).",
        ),
        (
            {"quality": [1.0]},
            "'quality' must have one entry per row, but MIGSelector got 1 entries for 2 rows.",
        ),
        ({"quality": ["x", "y"]}, "'quality' must be one number per row, but MIGSelector got other values."),
        (
            {"quality": [[1.0], [2.0]]},
            "'quality' must be one number per row, but MIGSelector got an array of shape (2, 1).",
        ),
        ({"tags": [["a"], "b"]}, "row 1: 'tags' must be one list of strings per row. The row reads: b"),
        (
            {"tags": [["a"], [["b"]]]},
            "row 1: 'tags' must be one list of strings per row. The row reads: [['b']]",
        ),
        ({"tags": [], "quality": []}, "MIGSelector has nothing to choose from: the pool holds no rows."),
        (
            {"label_embeddings": None},
            "MIGSelector with alpha > 0 needs label_embeddings or label_similarity; alpha=0 treats labels as "
            "independent.",
        ),
        (
            {"label_embeddings": {"a": [1.0], "b": [float("inf")]}},
            "row 1: the label's embedding holds a value that is not a finite number.",
        ),
        (
            {"label_embeddings": {"a": [1.0], "b": [1.0, 2.0]}},
            "label embeddings must be vectors of numbers, all of one length.",
        ),
        ({"label_embeddings": np.ones((3, 2))}, "there are 2 labels, but vectors or similarities of 3."),
        (
            {"label_embeddings": [1.0, 2.0]},
            "label embeddings must have shape (labels, columns), but have (2,).",
        ),
        (
            {"label_similarity": [[1, 0.9], [0.2, 1]]},
            "the similarity between labels must be symmetric.",
        ),
        (
            {"label_similarity": [[1, 0.9]]},
            "the similarity between labels must be a square matrix, but has shape (1, 2).",
        ),
        (
            {"label_similarity": [[1, float("nan")], [float("nan"), 1]]},
            "the similarity between labels holds a value that is not a finite number.",
        ),
        (
            {"tags": None, "X": np.array([[1.0, 0], [0, -1]]), "label_embeddings": np.eye(2)},
            "row 1: the label matrix must hold finite numbers >= 0.",
        ),
        (
            {"X": np.zeros((3, 0))},
            "'X' must have one entry per row, but MIGSelector got 3 entries for 2 rows.",
        ),
    ],
)  # fmt: skip
def test_data_messages(change, message):
    with pytest.raises(DataError) as caught:
        MIGSelector().fit(**{**GOOD, **change})
    assert str(caught.value) == message


def test_messages_of_score():
    selector = MIGSelector().fit(**GOOD)
    with pytest.raises(DataError, match=r"^row numbers to score must lie in \[0, 1\]\.$"):
        selector.score([2])
    with pytest.raises(DataError, match=r"^row numbers to score must be distinct\.$"):
        selector.score([1, 1])


def test_guards_against_dense_graphs(monkeypatch):
    from tunesmith.select import labels

    monkeypatch.setattr(labels, "MAX_ENTRIES", 20)
    pool = random_pool(1)
    with pytest.raises(ParameterError, match="so high that at most 20 pairs pass it"):
        MIGSelector(threshold=0.01).fit(**pool)
    with pytest.raises(DataError, match=r"the propagated rows would hold .* entries, above the limit of 20"):
        MIGSelector(threshold=0.99).fit(**{**pool, "label_embeddings": dict(enumerate(np.eye(8)))})


@pytest.mark.parametrize("name", [n for n in GOLDEN if n.startswith("graph_")])
def test_golden_graph(name):
    case = GOLDEN[name]
    embeddings = dict(zip(case["inputs"]["labels"], array(case["inputs"]["embeddings"]), strict=True))
    labels = sorted(embeddings)
    assert labels == case["outputs"]["labels_in_index_order"]
    graph = label_graph(np.stack([embeddings[x] for x in labels]), case["params"]["T"])
    assert np.allclose(graph.toarray(), array(case["outputs"]["W"]), atol=case["tolerance"])


@pytest.mark.parametrize("name", [n for n in GOLDEN if n.startswith("propagation_")])
def test_golden_propagation(name):
    case = GOLDEN[name]
    spread = propagation(array(case["inputs"]["W"]), case["params"]["alpha"]).toarray()
    assert np.allclose(spread.T, array(case["outputs"]["A_transposed"]), atol=case["tolerance"])


@pytest.mark.parametrize("norm", [False, True])
def test_golden_vectorize(norm):
    case = GOLDEN[f"vectorize_norm{norm}"]
    tags = [list(dict.fromkeys(row)) for row in case["inputs"]["tags"]]
    quality = array(case["inputs"]["scores"])
    ours = MIGSelector(alpha=0, norm=norm).fit(tags=tags, quality=quality)._coverage.rows.toarray()
    theirs = array(case["outputs"]["E"]).astype(float)
    if norm:  # the code's divisor of row 2 counts the tag written twice; ours is the number of labels
        theirs[2] *= 3 / 2
    assert np.allclose(ours, theirs, atol=case["tolerance"])


@pytest.mark.parametrize("name", [n for n in GOLDEN if n.startswith(("hand_", "select_", "ties"))])
def test_golden_selection(name):
    case = GOLDEN[name]
    p, given_ = case["params"], case["inputs"]
    selector = MIGSelector(
        threshold=1e-6,
        alpha=p["alpha"],
        beta=p["beta"],
        offset=p["a"],
        norm=p["norm"],
        phi={"pow": "power", "exp": "exponential"}[p.get("phi", "pow")],
        gamma=p.get("gamma", 1.0),
    )
    matrix = encode_tags(given_["tags"], range(given_["W"]["shape"][0])).matrix
    selector.fit(matrix, quality=array(given_["scores"]), label_similarity=array(given_["W"]))
    order = selector.select(p["N"])
    assert order.tolist() == case["outputs"]["order"]
    assert np.allclose(selector.gains_, array(case["outputs"]["gains"]), rtol=case["tolerance"])
    if "z_final" in case["outputs"]:
        z = np.asarray(selector._coverage.rows[order].sum(axis=0)).ravel()
        assert np.allclose(z, array(case["outputs"]["z_final"]), rtol=case["tolerance"])


def test_golden_dialogue_scores():
    case = GOLDEN["dialogue_scores"]
    for row, wanted in zip(case["inputs"]["rows"], case["outputs"]["rows"], strict=True):
        value = dialogue_quality(row["quality"], row["complexity"])
        assert value == pytest.approx(wanted["score"], abs=case["tolerance"])
        encoded = encode_tags([row["tags"]], case["params"]["valid_tags"])
        kept = [encoded.labels[j] for j in encoded.matrix.indices]
        assert sorted(kept) == sorted(set(wanted["tags"]))
        assert encoded.n_ignored == len(row["tags"]) - len(wanted["tags"])
    with pytest.raises(DataError, match="quality and complexity for each turn, but has 1 and 2"):
        dialogue_quality([1.0], [1.0, 2.0])
