"""Near-duplicates by words, by embedding and by image, against all pairs."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.curate import NearDeduplicate
from tunesmith.curate.near import greedy_minhash, shingles, words
from tunesmith.curate.near.minhash import bands

SENTENCE = "the quick brown fox jumps over the lazy dog near the old river bank at dawn"


def random_texts(n: int, seed: int) -> list[str]:
    """Texts of which every other one is an earlier one with up to a third of its words replaced."""
    rng = np.random.default_rng(seed)
    out: list[list[str]] = []
    for i in range(n):
        if i % 2 and i > 4:
            found = list(out[rng.integers(i)])
            for place in rng.integers(0, len(found), rng.integers(0, len(found) // 3)):
                found[place] = f"w{rng.integers(5000)}"
        else:
            found = [f"w{k}" for k in rng.integers(0, 5000, rng.integers(12, 40))]
        out.append(found)
    return [" ".join(found) for found in out]


def run_minhash(texts: list[str], threshold: float, **options: object) -> tuple[np.ndarray, np.ndarray]:
    return greedy_minhash(lambda rows: [texts[i] for i in rows], len(texts), threshold, **options)


def test_words_and_their_sequences() -> None:
    assert words("Ｈello,  WORLD—2+3!") == ["hello", ",", "world", "—", "2", "+", "3", "!"]
    assert words("Hello, world!", signs=False) == ["hello", "world"]
    assert words("don't") == ["don", "'", "t"]
    assert shingles("a b c d", 3) == {"a b c", "b c d"}
    assert shingles("A  b", 3) == {"a b"}
    assert shingles("", 3) == {""}


def test_bands_by_hand() -> None:
    # r = 6: 1 - 0.8^6 = 0.738, ^21 = 0.0017 <= 0.005; r = 7: 0.790 ^18 = 0.0145.
    assert bands(0.8, 128) == (21, 6)
    assert bands(0.8, 1) == (1, 1)
    assert bands(1.0, 16) == (1, 16)


def test_similarity_by_hand() -> None:
    # 14 sequences of three words; one word in the middle replaced changes three: 11 common, 17 in all.
    changed = SENTENCE.replace("lazy", "sleepy")
    found, similarity = run_minhash([SENTENCE, changed], 11 / 17)
    assert found.tolist() == [-1, 0]
    assert similarity[1] == pytest.approx(11 / 17)
    assert np.isnan(similarity[0])
    assert run_minhash([SENTENCE, changed], 0.66)[0].tolist() == [-1, -1]


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9])
def test_against_all_pairs(threshold: float) -> None:
    texts = random_texts(400, 0)
    sets = [shingles(text, 3) for text in texts]
    kept: list[int] = []
    for i, own in enumerate(sets):
        if all(len(own & sets[j]) / len(own | sets[j]) < threshold for j in kept):
            kept.append(i)
    found, similarity = run_minhash(texts, threshold)
    assert np.flatnonzero(found < 0).tolist() == kept
    for i in np.flatnonzero(found >= 0):
        assert found[found[i]] < 0
        assert similarity[i] == pytest.approx(len(sets[i] & sets[found[i]]) / len(sets[i] | sets[found[i]]))


def test_texts_come_in_chunks_and_the_order_decides() -> None:
    texts = random_texts(2500, 1)
    order = np.random.default_rng(2).permutation(2500)
    found = run_minhash(texts, 0.7, order=order)[0]
    shuffled = run_minhash([texts[i] for i in order], 0.7)[0]
    assert np.array_equal(found[order] < 0, shuffled < 0)


def test_equal_in_every_process() -> None:
    code = (
        "import numpy as np\n"
        "from tunesmith.curate.near import greedy_minhash\n"
        "draw = np.random.default_rng(5).integers(0, 9, (200, 12))\n"
        "texts = [' '.join(map(str, row)) for row in draw]\n"
        "print(greedy_minhash(lambda rows: [texts[i] for i in rows], 200, 0.2, num_perm=16)[0].tolist())"
    )
    outputs = set()
    for seed in ("1", "2"):  # of Python's hashes of text
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        outputs.add(done.stdout)
    assert len(outputs) == 1
    assert sum(i >= 0 for i in json.loads(outputs.pop())) == 3


def test_the_reason_names_the_row() -> None:
    rows = Dataset.from_dict({"text": [SENTENCE, "something else entirely", SENTENCE + " today", SENTENCE]})
    method = NearDeduplicate()
    assert method.fit_transform(rows)["text"][:] == [SENTENCE, "something else entirely"]
    assert method.report_.dropped == [
        (2, "nearly the same words as an earlier row → row 0, similarity 0.93"),
        (3, "nearly the same words as an earlier row → row 0, similarity 1.00"),
    ]
    assert method.report_.reasons == {"nearly the same words as an earlier row": 2}
    assert method.duplicate_of_.tolist() == [-1, -1, 0, 0]


def test_the_best_of_similar_rows_stays() -> None:
    rows = Dataset.from_dict({"text": [SENTENCE, SENTENCE, SENTENCE, "x"], "stars": [1, 5, 5, 0]})
    method = NearDeduplicate(quality="stars")
    assert method.fit_transform(rows)["stars"][:] == [5, 0]
    assert method.duplicate_of_.tolist() == [1, -1, 1, -1]


def test_on_prompts_and_rejected_answers() -> None:
    def talk(question: str, answer: str, rejected: str) -> dict[str, object]:
        turn = [{"role": "assistant", "content": rejected}]
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return {"messages": messages, "rejected": turn}

    rows = Dataset.from_list(
        [talk(SENTENCE, "yes", "no"), talk(SENTENCE, "no", "yes"), talk(SENTENCE, "a " * 30, "b " * 30)]
    )
    assert len(NearDeduplicate(on="prompt").fit_transform(rows)) == 1
    assert len(NearDeduplicate(threshold=0.99).fit_transform(rows)) == 3
    pairs = Dataset.from_dict(
        {"anchor": [SENTENCE] * 2, "positive": ["p"] * 2, "negative": ["a b c d", SENTENCE]}
    )
    assert len(NearDeduplicate().fit_transform(pairs)) == 2


def test_by_the_column_embedding() -> None:
    angles = np.deg2rad([0, 30, 60, 90])
    vectors = 3 * np.column_stack([np.cos(angles), np.sin(angles)])  # scaled to length 1 by the method
    rows = Dataset.from_dict({"text": list("abcd"), "embedding": vectors.tolist()})
    method = NearDeduplicate("embedding", threshold=0.8)
    assert method.fit_transform(rows)["text"][:] == ["a", "c"]
    assert method.report_.dropped[0] == (
        1,
        "nearly the same meaning as an earlier row → row 0, cosine 0.87",
    )


@pytest.mark.parametrize("on", ["row", "prompt"])
def test_by_an_encoder(on: str, tiny_encoder_dir: str) -> None:
    rows = Dataset.from_dict(
        {"text": ["the cat sat on the mat", "plus minus times", "The Cat sat on the mat"]}
    )
    method = NearDeduplicate("embedding", on=on, encoder=tiny_encoder_dir, threshold=0.999)
    assert len(method.fit_transform(rows)) == 3
    same = Dataset.from_dict({"text": ["the cat", "plus minus", "cat the"]})  # the encoder averages words
    assert method.fit_transform(same).num_rows in (2, 3)
    again = Dataset.from_dict({"text": ["the cat", "plus minus", "the cat"]})
    assert method.fit_transform(again)["text"][:] == ["the cat", "plus minus"]


def picture(seed: int, size: int = 64) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)


def stored(image: Image.Image, quality: int) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def test_by_image(tmp_path: object) -> None:
    images = [
        picture(0),
        stored(picture(0, 200), 40),
        picture(1),
        Image.new("RGB", (9, 9), "white"),
        Image.new("RGB", (30, 9), (254, 255, 254)),
        Image.new("RGB", (9, 9), "black"),
    ]
    path = f"{tmp_path}/one.png"
    picture(1, 90).save(path)
    raw = [image if isinstance(image, bytes) else _png(image) for image in images]
    rows = Dataset.from_dict({"text": list("abcdef"), "image": raw})
    method = NearDeduplicate("image")
    assert method.fit_transform(rows)["text"][:] == ["a", "c", "d", "f"]
    assert [reason.partition(",")[0] for _, reason in method.report_.dropped] == [
        "nearly the same image as an earlier row → row 0",
        "nearly the same image as an earlier row → row 3",
    ]
    paths = Dataset.from_dict({"text": ["a", "b"], "image": [path, path]})
    assert len(method.fit_transform(paths)) == 1


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def test_errors() -> None:
    rows = Dataset.from_dict({"text": ["a", "b"], "stars": [1.0, None], "image": ["nowhere.png", None]})
    with pytest.raises(DataError) as caught:
        NearDeduplicate("image", image="picture").fit(rows)
    assert str(caught.value) == (
        "NearDeduplicate needs a column 'picture', but the rows have text, stars, image."
    )
    with pytest.raises(DataError, match=r"^row 0: the image cannot be read: .*nowhere\.png"):
        NearDeduplicate("image").fit_transform(rows)
    with pytest.raises(DataError, match=r"^row 0: the image is missing\."):
        NearDeduplicate("image").fit_transform(rows.select([1]))
    with pytest.raises(DataError, match=r"^row 1: the column 'stars' must hold one finite number a row\."):
        NearDeduplicate(quality="stars").fit_transform(rows)
    ragged = Dataset.from_dict({"text": ["a", "b"], "embedding": [[1.0, 0.0], [1.0]]})
    with pytest.raises(DataError, match=r"^row 1: the column 'embedding' must hold one vector of finite"):
        NearDeduplicate("embedding").fit_transform(ragged)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 0.0}, "'threshold' parameter of greedy_minhash must be a float in (0, 1]. Got 0.0"),
        ({"ngram": 0}, "'ngram' parameter of greedy_minhash must be an int >= 1. Got 0"),
        ({"num_perm": 2.5}, "'num_perm' parameter of greedy_minhash must be an int >= 1. Got 2.5"),
        ({"order": [1]}, "'order' parameter of greedy_minhash must be a permutation of 0 … 1. Got [1]"),
    ],
)
def test_bad_parameters_of_the_function(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ParameterError) as caught:
        run_minhash(["a", "b"], **{"threshold": 0.8, **arguments})
    assert message in str(caught.value)
