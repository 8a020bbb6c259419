"""``look`` from end to end on each kind of material: what it finds, says and writes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.look import Look, look

TOPICS = ["river fish water boat", "engine wheel road car", "violin opera song piano"]


def text_rows(n: int = 90) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(n):
        words = TOPICS[i % 3].split()
        question = (
            f"Tell me about {' and '.join(rng.permutation(words))} number {i}, please, in one sentence."
        )
        rows.append({"prompt": question, "completion": f"The {words[i % 4]} is number {i} of its kind."})
    return rows


@pytest.fixture
def texts(tmp_path: Path, write_jsonl: Callable[..., str]) -> str:
    rows = text_rows()
    rows[30]["completion"] = ""
    rows[40]["completion"] = '{"name": "sum", "arguments": {"a": 1'
    for i in (0, 9, 50):  # the first row and the row that is copied are quoted on the page
        rows[i]["prompt"] += " My mail is jane.doe@corp.com."
    rows[10] = dict(rows[9])  # an exact copy
    rows[20] = {"prompt": "What is it? " + rows[9]["prompt"], "completion": rows[9]["completion"]}
    path = Path(write_jsonl(tmp_path / "pile.jsonl", rows))
    with path.open("a") as stream:
        stream.write("{broken\n")
    return str(path)


@pytest.fixture
def page(tmp_path: Path) -> Callable[[Look], tuple[str, dict[str, Any]]]:
    def write(found: Look) -> tuple[str, dict[str, Any]]:
        html, facts = found.write(tmp_path / "out.html")
        return html.read_text(encoding="utf-8"), json.loads(facts.read_text(encoding="utf-8"))

    return write


def test_texts(texts: str, page: Any, tiny_encoder_dir: str, tmp_path: Path, write_jsonl: Any) -> None:
    test = write_jsonl(tmp_path / "test.jsonl", text_rows()[60:62])
    found = look(texts, encoder=tiny_encoder_dir, against=[test])
    facts = found.facts
    assert (facts["kind"], facts["rows"], facts["reading"]["n_read"]) == ("text", 89, 91)
    assert facts["reading"]["reasons"] == {"the answer is empty": 1, "the row is not valid JSON": 1}
    assert facts["copies"]["exact"]["rows"] == 1
    assert facts["copies"]["exact"]["most_repeated"][0]["original"]["row"] == 9
    assert facts["copies"]["near"]["rows"] >= 1
    assert facts["languages"][0]["code"] == "en"
    assert [part["kind"] for part in facts["secrets"]] == ["e-mail address"]
    assert facts["secrets"][0]["examples"][0]["masked"] == "ja…om"
    assert "cut off: open JSON" in {part["problem"] for part in facts["answers"]}
    assert facts["overlap"][0]["evaluation_rows_given_away"] == 2
    assert sum(cluster["rows"] for cluster in facts["clusters"]) == facts["rows"]
    titles = " | ".join(finding["title"] for finding in found.findings)
    for piece in ("Exact copies", "Cannot be used", "Looks like e-mail address", "are in the data: 2 of 2"):
        assert piece in titles
    levels = [finding["level"] for finding in found.findings]
    assert levels == sorted(levels, key=lambda level: level != "grave")
    html, written = page(found)
    assert written == json.loads(json.dumps(facts))
    assert "ja…om" in html
    assert "jane.doe" not in html + json.dumps(written)  # not in any quoted row either
    assert html.count("<svg") == 2
    assert "http" not in html.split("<style>")[1].split("</style>")[0]
    assert "Exact copies" in found.summary()


def test_the_same_seed_gives_the_same_facts(texts: str, tiny_encoder_dir: str) -> None:
    one, two = (look(texts, encoder=tiny_encoder_dir).facts for _ in range(2))
    one["seconds"] = two["seconds"] = 0
    assert one == two


def test_raw_text_and_few_rows(tmp_path: Path, write_jsonl: Any, page: Any, tiny_encoder_dir: str) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [{"text": "one two three"}, {"text": "four five six"}])
    found = look(path, encoder=tiny_encoder_dir)
    assert found.facts["rows"] == 2
    assert "answer_characters" not in found.facts["lengths"]
    assert found.findings[0]["title"] == "Only 2 rows"
    page(found)


def test_a_table(tmp_path: Path, page: Any) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "height": [*rng.normal(0, 1, 60), *rng.normal(9, 1, 60)],
            "colour": ["red"] * 60 + ["blue"] * 60,
            "holes": [None, 1.0, 2.0] * 40,
            "same": 1,
            "nothing": [None] * 120,
        }
    )
    frame.iloc[5] = frame.iloc[4]
    frame.to_csv(tmp_path / "t.csv", index=False)
    found = look(tmp_path / "t.csv")
    facts = found.facts
    assert facts["kind"] == "table"
    kinds = {column["name"]: column["kind"] for column in facts["columns"]}
    assert kinds == {
        "height": "number", "colour": "category", "holes": "number", "same": "constant", "nothing": "empty",
    }  # fmt: skip
    assert facts["copies"]["exact"]["rows"] == 1
    words = {word for cluster in facts["clusters"] for word in cluster["words"]}
    assert {"colour = red", "colour = blue"} <= words
    titles = [finding["title"] for finding in found.findings]
    assert "Columns with many missing values: holes 33 %" in titles
    assert "Columns that are constant: same" in titles
    assert "Columns that are empty: nothing" in titles
    assert "height" in page(found)[0]


def test_a_table_of_words_alone_has_no_map(tmp_path: Path, page: Any) -> None:
    frame = pd.DataFrame({"name": [f"n{i}" for i in range(60)], "list": [[i] for i in range(60)]})
    found = look(frame)
    assert "clusters" not in found.facts
    assert found.findings == []
    assert found.summary().endswith("Nothing unusual.")
    page(found)


def test_vectors(tmp_path: Path, page: Any) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 8)).astype(np.float32)
    x[3] = x[2]
    x[5] = x[4] * 2  # the same direction
    x[7] = 50
    x[9, 0] = np.nan
    np.save(tmp_path / "x.npy", x)
    found = look(tmp_path / "x.npy")
    facts = found.facts
    assert (facts["kind"], facts["rows"]) == ("vectors", 199)
    assert facts["reading"]["reasons"] == {"a value is not finite": 1}
    assert facts["copies"]["exact"]["rows"] == 1
    assert facts["copies"]["near"]["rows"] == 1
    assert facts["outliers"]["farthest"][0]["row"] == 7
    page(found)
    np.savez(tmp_path / "x.npz", one=np.zeros(3), two=x[:20])
    assert look(tmp_path / "x.npz").facts["rows"] == 19


def test_images(tmp_path: Path, page: Any) -> None:
    rng = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    for label in ("light", "dark"):
        (folder / label).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 90, (24, 24, 3)) + (150 if label == "light" else 0)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / label / f"{i}.png")
    shutil.copy(folder / "light" / "0.png", folder / "light" / "copy.png")
    Image.open(folder / "dark" / "3.png").resize((48, 48)).save(folder / "dark" / "large.png")
    (folder / "dark" / "broken.png").write_bytes(b"no image")
    found = look(folder)
    facts = found.facts
    assert (facts["kind"], facts["rows"]) == ("images", 26)
    assert facts["reading"]["bad"][0][0].endswith("broken.png")
    assert facts["copies"]["exact"]["rows"] == 1
    assert facts["copies"]["near"]["rows"] == 1
    assert facts["images"]["folders"] == {"light": 13, "dark": 13}
    html, _ = page(found)
    assert "data:image/jpeg;base64," in html
    assert str(tmp_path) not in json.dumps(facts["clusters"])


def message(call: Callable[[], Any]) -> str:
    with pytest.raises((DataError, ParameterError)) as caught:
        call()
    return str(caught.value)


def test_bad_input_says_what_is_wrong(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "there are no images" in message(lambda: look(empty, kind="images"))
    (empty / "a.png").write_bytes(b"x")
    assert "none of the 1 images can be opened" in message(lambda: look(empty))
    assert "every row has a value that is not finite" in message(lambda: look(np.full((3, 2), np.nan)))
    assert "numbers of shape (rows, columns); got float64 of shape (3,)" in message(lambda: look(np.zeros(3)))
    (tmp_path / "bad.npy").write_bytes(b"x")
    assert "the array cannot be read" in message(lambda: look(tmp_path / "bad.npy"))
    np.savez(tmp_path / "flat.npz", a=np.zeros(3))
    assert "it holds no two-dimensional array" in message(lambda: look(tmp_path / "flat.npz"))
    assert "the table has no rows" in message(lambda: look(pd.DataFrame()))
    (tmp_path / "bad.csv").write_text('a,b\n1,2\n3,4,5,6\n"')
    assert "the table cannot be read" in message(lambda: look(tmp_path / "bad.csv", kind="table"))
    assert "must be one of 'auto', 'text', 'images', 'vectors', 'table'. Got 'sound'" in message(
        lambda: look(np.zeros((3, 2)), kind="sound")
    )
    assert "'max_rows' parameter of look must be an int >= 1. Got 0" in message(
        lambda: look(np.zeros((3, 2)), max_rows=0)
    )
    assert "evaluation rows are compared with texts, and these are vectors" in message(
        lambda: look(np.zeros((3, 2)), against="x.jsonl")
    )
    assert "vectors need no encoder. Leave 'minilm' out" in message(
        lambda: look(np.ones((3, 2)), encoder="minilm")
    )
    found = look(np.random.default_rng(0).normal(size=(30, 3)))
    assert "must be a path that ends in .html" in message(lambda: found.write(tmp_path / "look.txt"))


def test_a_text_encoder_is_refused_for_images(tmp_path: Path, tiny_encoder_dir: str) -> None:
    for i in range(3):
        Image.new("RGB", (8, 8), (i * 80, 0, 0)).save(tmp_path / f"{i}.png")
    with pytest.raises(DataError, match=r"does not take images"):
        look(tmp_path, encoder=tiny_encoder_dir)
