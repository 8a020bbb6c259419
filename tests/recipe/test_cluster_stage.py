"""The stage ``cluster`` of a recipe: what the method sees, what later stages make of it, and that nothing is redone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tunesmith.core.errors import ConfigError, DataError, ParameterError
from tunesmith.core.events import read_events
from tunesmith.data import Pool, read
from tunesmith.recipe import run
from tunesmith.recipe.clustering import UNLABELLED, agreement, seen_labels, with_known_classes

TOPICS = ["river fish water boat", "engine wheel road car", "violin opera song piano"]


def test_known_classes_are_numbered_and_the_rest_is_hidden() -> None:
    seen = seen_labels(["b", "a", None, "c", " a ", ""], "topic", known=["a", "c"])
    assert seen.classes == ["a", "c"]
    assert seen.y.tolist() == [-1, 0, -1, 1, 0, -1]
    assert seen.names == ["a", "b", "c"]
    assert seen.truth.tolist() == [1, 0, -1, 2, 0, -1]


def test_some_labels_per_class() -> None:
    values = ["a"] * 50 + ["b"] * 3
    seen = seen_labels(values, "topic", per_class=4, seed=0)
    assert [(seen.y == i).sum() for i in (0, 1, UNLABELLED)] == [4, 3, 46]
    assert seen_labels(values, "topic", per_class=4, seed=0).y.tolist() == seen.y.tolist()
    assert seen_labels(values, "topic", per_class=4, seed=1).y.tolist() != seen.y.tolist()


def test_labels_that_cannot_be_used() -> None:
    with pytest.raises(DataError, match="the column 'topic' of labels is empty in every row"):
        seen_labels([None, ""], "topic")
    with pytest.raises(DataError, match="has 1,001 different values"):
        seen_labels([str(i) for i in range(1001)], "topic")
    with pytest.raises(ParameterError, match=r"'known' .* Did you mean 'alpha'\?: alpha, beta. Got 'alpa'"):
        seen_labels(["alpha", "beta"], "topic", known=["alpa"])


def test_the_score_looks_at_hidden_labels_only() -> None:
    seen = seen_labels(["a", "a", "b", "b", "c", "c"], "t", known=["a"])
    scores = agreement(np.array([0, 1, 5, 5, 7, 7]), seen)
    assert scores is not None
    assert (scores["rows"], scores["accuracy"]) == (4, 1.0)
    assert agreement(np.array([0, 0]), seen_labels(["a", "a"], "t")) is None


def test_rows_of_known_classes_get_groups_of_their_own() -> None:
    seen = seen_labels(["a", "b", "", "", "c"], "t", known=["a", "c"])
    labels, names = with_known_classes(np.array([-1, 0, 1, -1, -1]), seen)
    assert labels.tolist() == [2, 0, 1, -1, 3]
    assert names == {2: "a (known)", 3: "c (known)"}
    same, none = with_known_classes(np.array([0, 1, 1, 0, 0]), seen)
    assert (same.tolist(), none) == ([0, 1, 1, 0, 0], {})


def test_columns_can_be_standardized(recipe: Path, tmp_path: Path) -> None:
    from tunesmith.core.events import EventLog
    from tunesmith.recipe.clustering import fit_clusterer

    rng = np.random.default_rng(0)
    clear = np.repeat([0.0, 1.0], 20)[:, None] + rng.normal(0, 0.05, (40, 4))
    X = np.column_stack([clear, 100 * rng.normal(size=40)])
    truth = np.repeat([0, 1], 20)
    found = {}
    for flag in (False, True):
        _, labels = fit_clusterer("kmeans", {"n_clusters": 2}, X, None, 0, EventLog(), standardize=flag)
        found[flag] = max(float((labels == truth).mean()), float((labels != truth).mean()))
    assert found[True] > 0.95
    assert found[False] < 0.9  # the wide column hides the other
    run(recipe, tmp_path / "run", overrides=["cluster.standardize=true"])


@pytest.fixture
def recipe(tmp_path: Path, write_jsonl: Any, tiny_encoder_dir: str) -> Path:
    rows = [
        {
            "prompt": f"say {TOPICS[i % 3]}, {i}",
            "completion": TOPICS[i % 3].split()[i % 4],
            "topic": f"t{i % 3}",
        }
        for i in range(60)
    ]
    write_jsonl(tmp_path / "pool.jsonl", rows)
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"""
name: clustered
data: {{train: {tmp_path}/pool.jsonl}}
features: {{encoder: {tiny_encoder_dir}, quality: constant}}
cluster: {{type: kmeans, n_clusters: 3, labels: topic, known: [t0, t1]}}
select: {{type: mig, budget: 9}}
"""
    )
    return path


def test_clusters_reach_the_selector_the_map_and_the_report(recipe: Path, tmp_path: Path) -> None:
    result = run(recipe, tmp_path / "run")
    folder = tmp_path / "run" / "cluster"
    labels = np.load(folder / "labels.npy")
    facts = json.loads((folder / "clusters.json").read_text())
    assert labels.shape == (60,)
    assert sum(c["rows"] for c in facts["clusters"]) == 60
    assert (facts["labels_seen"], facts["agreement"]) == (40, None)  # a single class is hidden
    with np.load(tmp_path / "run" / "map" / "map.npz") as laid_out:
        assert laid_out["cluster"].tolist() == labels.tolist()
    html = result.report.read_text(encoding="utf-8")
    assert "The pool was grouped by kmeans into 3 clusters, with 40 labels seen." in html
    assert facts["clusters"][0]["name"].split(",")[0] in html
    chosen = np.load(next((tmp_path / "run").glob("arms/*/seed-0/select/indices.npy")))
    assert len(set(labels[chosen].tolist())) == 3  # MIG spreads over the tags, which are the clusters


def test_a_finished_stage_is_not_repeated_and_a_changed_one_is(recipe: Path, tmp_path: Path) -> None:
    def status(stage: str) -> list[str]:
        events = list(read_events(tmp_path / "run" / "events.jsonl"))
        last = max(i for i, e in enumerate(events) if e["kind"] == "run" and e["status"] == "started")
        return [e["status"] for e in events[last:] if e["kind"] == "stage" and e["stage"] == stage]

    run(recipe, tmp_path / "run")
    assert status("cluster") == ["started", "finished"]
    run(recipe, tmp_path / "run")
    assert (status("cluster"), status("select")) == (["skipped"], ["skipped"])
    run(recipe, tmp_path / "run", overrides=["cluster.n_clusters=4"])
    assert (status("cluster"), status("select")) == (["started", "finished"],) * 2


def test_arms_may_differ_in_their_clusterer(recipe: Path, tmp_path: Path) -> None:
    run(recipe, tmp_path / "run", overrides=["compare={cluster.n_clusters: [2, 5], seeds: [0]}"])
    found = [np.load(path).max() + 1 for path in (tmp_path / "run").glob("arms/*/cluster/labels.npy")]
    assert sorted(found) == [2, 5]


def test_what_the_recipe_gets_wrong_is_said(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"cluster\.labels names the column 'topics', which the rows do not have\. Did you"
    ):
        run(recipe, tmp_path / "one", overrides=["cluster.labels=topics"])
    with pytest.raises(
        ConfigError, match=r"unknown key 'n_cluster' in cluster of type 'kmeans'\. Did you mean"
    ):
        run(recipe, tmp_path / "two", overrides=["cluster.n_cluster=3"])
    with pytest.raises(
        ParameterError, match=r"The 'n_clusters' parameter of KMeans must be an int in \[1, 60\]"
    ):
        run(recipe, tmp_path / "three", overrides=["cluster.n_clusters=61"])


def test_a_pool_takes_given_clusters_for_tags(recipe: Path, tmp_path: Path, tiny_encoder_dir: str) -> None:
    rows = read(tmp_path / "pool.jsonl").dataset
    labels = np.arange(60) % 3
    labels[5] = -1
    pool = Pool(rows, encoder=tiny_encoder_dir, cluster_labels=labels)
    tags = pool.feature("tags")
    assert tags[:6] == [["c3:0"], ["c3:1"], ["c3:2"], ["c3:0"], ["c3:1"], []]
    vectors = pool.feature("label_embeddings")
    assert sorted(vectors) == ["c3:0", "c3:1", "c3:2"]
    assert all(np.linalg.norm(v) == pytest.approx(1, abs=1e-6) for v in vectors.values())
    with pytest.raises(
        ParameterError, match="'cluster_labels' parameter of Pool must be an array of 60 whole numbers"
    ):
        Pool(rows, cluster_labels=labels[:5])
