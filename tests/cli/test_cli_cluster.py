"""``tunesmith cluster``: labels, map, words and examples for texts, tables, vectors and images."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from tunesmith.cli import app

TOPICS = ["river fish water boat", "engine wheel road car", "violin opera song piano"]


def cluster(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["cluster", *arguments], env={"COLUMNS": "100"})


def labels(folder: str) -> list[dict[str, str]]:
    with Path(folder, "labels.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_jsonl: Any) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"text": f"{TOPICS[i % 3]} {TOPICS[i % 3]} {i}", "topic": ["nature", "road", "music"][i % 3]}
        for i in range(60)
    ]
    write_jsonl("texts.jsonl", rows)


def test_texts(tiny_encoder_dir: str) -> None:
    result = cluster(
        "texts.jsonl", "--clusters", "3", "--encoder", tiny_encoder_dir, "--out", "out", "--labels", "topic"
    )
    assert result.exit_code == 0, result.stderr
    assert "60 rows in 3 clusters by kmeans." in result.stdout
    assert "On 60 labelled rows: accuracy" in result.stdout
    rows = labels("out")
    assert [row["row"] for row in rows] == [str(i) for i in range(60)]
    assert {row["source"] for row in rows} == {"texts.jsonl"}
    facts = json.loads(Path("out/clusters.json").read_text())
    assert sum(c["rows"] for c in facts["clusters"]) == 60
    assert facts["labels_seen"] == 60
    assert {c["name"] for c in facts["clusters"]} == {row["name"] for row in rows}
    assert all(c["words"] and c["examples"][0]["text"] for c in facts["clusters"])
    assert Path("out/clusters.html").read_text().count("<svg") == 1
    svg = Path("out/map.svg").read_text()
    assert svg.startswith("<?xml")
    assert "var(--" not in svg


def test_default_number_of_clusters_and_settings(tiny_encoder_dir: str) -> None:
    result = cluster("texts.jsonl", "--encoder", tiny_encoder_dir, "--set", "n_init=2")
    assert result.exit_code == 0, result.stderr
    facts = json.loads(Path("clusters/clusters.json").read_text())
    assert facts["parameters"] == {"n_init": 2, "n_clusters": 4}  # the root of 60 / 4


def test_table_vectors_and_images() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, 1, (30, 4)), rng.normal(9, 1, (30, 4))])
    frame = pd.DataFrame(x, columns=list("abcd")).assign(kind=["low"] * 30 + [None] * 30)
    frame.to_csv("t.csv", index=False)
    result = cluster("t.csv", "--clusters", "2", "--labels", "kind", "--out", "table")
    assert result.exit_code == 0, result.stderr
    assert {row["cluster"] for row in labels("table")[:30]} != {
        row["cluster"] for row in labels("table")[30:]
    }
    labelled = pd.DataFrame({"a": rng.normal(size=60), "kind": ["low"] * 30 + ["high"] * 30})
    labelled.to_csv("leak.csv", index=False)
    result = cluster("leak.csv", "--clusters", "2", "--labels", "kind", "--out", "leak")
    assert (
        float(result.stdout.split("accuracy ")[1].split(",")[0]) < 0.8
    )  # the labels are no part of the rows
    np.save("x.npy", x)
    assert cluster("x.npy", "--clusters", "2", "--out", "vectors").exit_code == 0
    assert len(labels("vectors")) == 60
    for label, base in (("dark", 0), ("light", 150)):
        Path("pictures", label).mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(base, base + 90, (16, 16, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(f"pictures/{label}/{i}.png")
    result = cluster("pictures", "--clusters", "2", "--labels", "folder", "--out", "images")
    assert result.exit_code == 0, result.stderr
    assert "accuracy 1.000" in result.stdout
    assert labels("images")[0]["source"] == "dark/0.png"
    assert "data:image/jpeg" in Path("images/clusters.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["texts.jsonl", "--method", "kmean"], "There is no method named 'cluster.kmean'. Did you mean", 2),
        (["texts.jsonl", "--set", "n_cluster=3"], "unknown key 'n_cluster' in cluster of type 'kmeans'. Did", 2),
        (["texts.jsonl", "--set", "n_init"], "A setting reads name=value. Got 'n_init' instead.", 2),
        (["texts.jsonl", "--set", "n_init=[1"], "The value of 'n_init' is not valid YAML: [1", 2),
        (["texts.jsonl", "--clusters", "99"], "must be an int in [1, 60], the number of rows. Got 99 instead.", 2),
        (["texts.jsonl", "--labels", "topics"], "--labels names 'topics', which the rows do not have. Did you mean", 1),
        (["texts.jsonl", "--known", "road"], "The 'known' parameter of cluster must be left out without --labels.", 2),
        (["texts.jsonl", "--labels", "topic", "--known", "rod"], "must be values of the column 'topic'", 2),
        (["texts.jsonl", "--labels", "topic", "--per-class", "0"], "'per-class' parameter of cluster must", 2),
        (["texts.jsonl", "--out", "texts.jsonl"], "The 'out' parameter of cluster must be a folder.", 2),
        (["x.npy", "--labels", "a"], "vectors have no column of labels", 1),
    ],
)  # fmt: skip
def test_errors(arguments: list[str], message: str, code: int, tiny_encoder_dir: str) -> None:
    np.save("x.npy", np.random.default_rng(0).normal(size=(20, 3)))
    encoder = [] if arguments[0].endswith("npy") else ["--encoder", tiny_encoder_dir]
    result = cluster(*arguments, *encoder)
    assert message in " ".join(result.stderr.split())
    assert result.exit_code == code
    assert "Traceback" not in result.stderr
    assert Path("texts.jsonl").is_file()
