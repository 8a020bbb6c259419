"""Making rows from the grid: counts, versions, best of n, resuming, shards."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from tunesmith.core.errors import ParameterError
from tunesmith.curate import TextToImageCurator
from tunesmith.curate.fine_t2i import ChatWriter, Taxonomy, TemplateWriter, split_concepts, write_shards


def hashed(texts: Sequence[str]) -> np.ndarray:
    """Bags of words in 64 hashed places, of length 1."""
    x = np.zeros((len(texts), 64), dtype=np.float32)
    for i, text in enumerate(texts):
        for word in text.split():
            x[i, sum(word.encode()) % 64] += 1
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1)


class Painter:
    """Noise of a strength that depends on the seed; counts what it painted."""

    fingerprint = "painter"

    def __init__(self) -> None:
        self.painted, self.die_at = 0, 10**9

    def __call__(
        self, texts: Sequence[str], sizes: Sequence[tuple[int, int]], seeds: Sequence[int]
    ) -> list[Any]:
        out = []
        for _, seed in zip(texts, seeds, strict=True):
            if self.painted >= self.die_at:
                raise RuntimeError("the generator died")
            self.painted += 1
            rng = np.random.default_rng(seed)
            strength = int(rng.integers(2, 200))
            out.append(Image.fromarray(rng.integers(0, strength, (12, 12, 3), dtype=np.uint8)))
        return out


def curator(**parameters: Any) -> TextToImageCurator:
    return TextToImageCurator(**{"embedder": hashed, "dedup_threshold": 0.9, **parameters})


def longer(texts: Sequence[str]) -> list[str]:
    return [f"{text}, in every detail" if len(text) % 3 else "" for text in texts]


def test_prompts_alone() -> None:
    method = curator(enhancer=longer, dedup_threshold=0.75)
    rows = method.generate(200)
    assert method.funnel_[0].n_in == 200
    assert method.funnel_[-1].n_out == len(rows)
    assert len(method.rejected_) == 200 - method.funnel_[-1].n_in > 0
    assert set(rows["version"][:]) == {"original", "enhanced"}
    by_concept: dict[str, set[str]] = {}
    for row in rows:
        by_concept.setdefault(row["concept"], set()).add(row["version"])
    assert sum(map(len, by_concept.values())) == len(rows)
    held = split_concepts(rows["concept"][:], 0.3)
    sides: dict[str, set[bool]] = {}
    for concept, side in zip(rows["concept"][:], held, strict=True):
        sides.setdefault(concept, set()).add(side)
    assert all(len(found) == 1 for found in sides.values())
    again = curator(enhancer=longer, dedup_threshold=0.75)
    assert again.generate(200).to_list() == rows.to_list()
    assert again.set_params(random_state=1).generate(200).to_list() != rows.to_list()


def test_images_and_every_count() -> None:
    from tunesmith.curate.fine_t2i import Sharpness

    method = curator(
        enhancer=longer,
        generator=Painter(),
        aesthetic="sharpness",
        aesthetic_threshold=20_000.0,
        alignment=lambda texts, images: [len(text) % 2 == 0 for text in texts],
        n_candidates=3,
    )
    rows = method.generate(60, shard=7)
    names = [s.name for s in method.funnel_]
    assert names == ["words", "duplicates", "versions", "images", "best of n", "aesthetic", "alignment"]
    for one, two in zip(method.funnel_, method.funnel_[1:], strict=False):
        assert one.n_out == two.n_in
    n_versions = method.funnel_[2].n_out
    assert method.funnel_[3].made == {6: n_versions}
    assert method.funnel_[3].n_out == 6 * n_versions
    assert method.funnel_[-1].n_out == len(rows) > 0
    assert method.generator.painted == 6 * n_versions
    assert len(method.rejected_) == (60 - method.funnel_[1].n_out) + (2 * n_versions - len(rows))
    images = [Image.open(io.BytesIO(row["image"])) for row in rows]
    assert np.allclose(Sharpness()(images), rows["aesthetic"][:])
    assert min(rows["aesthetic"][:]) > 20_000
    assert set(rows["shape"][:]) == {"square", "random"}
    assert set(rows["image_generator"][:]) == {"painter"}


def test_the_best_of_n_and_one_is_the_identity() -> None:
    def all_scores(n: int) -> dict[str, float]:
        method = curator(
            generator=Painter(),
            aesthetic="sharpness",
            aesthetic_threshold=0.0,
            n_candidates=n,
            shapes=["square"],
        )
        rows = method.generate(30)
        return dict(zip(rows["concept"][:], rows["aesthetic"][:], strict=True))

    one, three = all_scores(1), all_scores(3)
    assert set(one) == set(three)
    assert all(three[name] >= one[name] for name in one)  # the first candidate is the same
    assert any(three[name] > one[name] for name in one)


def test_a_killed_run_goes_on_and_ends_equal(tmp_path: Path) -> None:
    parameters: dict[str, Any] = {
        "aesthetic": "sharpness",
        "aesthetic_threshold": 5_000.0,
        "shapes": ["square"],
    }
    straight = curator(generator=Painter(), **parameters)
    expected = straight.generate(40, shard=5)
    painter = Painter()
    painter.die_at = 13
    method = curator(generator=painter, **parameters)
    with pytest.raises(RuntimeError):
        method.generate(40, tmp_path, shard=5)
    assert painter.painted == 13
    painter.die_at = 10**9
    rows = method.generate(40, tmp_path, shard=5)
    assert rows.to_list() == expected.to_list()
    assert method.funnel_ == straight.funnel_
    assert method.rejected_ == straight.rejected_
    again = painter.painted
    assert again == straight.generator.painted + 3  # of the shard in which it died
    assert method.generate(40, tmp_path, shard=5).to_list() == rows.to_list()
    assert painter.painted == again


def test_writers() -> None:
    cells = Taxonomy.load().sample(400, 2)
    texts = TemplateWriter()(cells)
    assert texts == TemplateWriter()(cells)
    assert all(len(text.split()) >= 4 for text in texts)
    assert len(set(texts)) > 350
    asked: list[Any] = []

    def llm(chats: Any, **options: Any) -> list[str]:
        asked.append((chats, options))
        return [' "a fox on a hill at dusk" ' for _ in chats]

    assert ChatWriter(llm)(cells[:2]) == ["a fox on a hill at dusk"] * 2
    chats, options = asked[0]
    assert options["temperature"] == 1.4
    assert options["seeds"] == [cells[0].seed, cells[1].seed]
    assert cells[0].category in chats[0][0]["content"]
    assert cells[0].style in chats[0][0]["content"]
    method = curator(writer=ChatWriter(llm))
    assert len(method.generate(20)) == 1  # a model that always says the same
    with pytest.raises(
        ParameterError, match=r"'n' parameter of TextToImageCurator\.generate must be an int >= 1"
    ):
        method.generate(0)


def test_shards(tmp_path: Path) -> None:
    method = curator(enhancer=longer, generator=Painter())
    rows = method.generate(12)
    files = write_shards(rows, tmp_path / "a", rows_per_shard=4)
    folders = {path.parent.name for path in files}
    assert folders == {
        f"synthetic_{version}_prompt_{shape}_resolution"
        for version in ("original", "enhanced")
        for shape in ("square", "random")
    }
    assert all(path.name.startswith("train-00000") for path in files)
    seen = 0
    for path in files:
        with tarfile.open(path) as archive:
            names = archive.getnames()
            assert len(names) <= 12
            for name in names:
                content = archive.extractfile(name)
                assert content is not None
                data = content.read()
                row = rows[int(name[:9])]
                if name.endswith(".txt"):
                    assert data.decode() == row["text"]
                    seen += 1
                elif name.endswith(".json"):
                    facts = json.loads(data)
                    assert facts["prompts"][row["version"]] == row["text"]
                    assert facts["image_generator"] == "painter"
                else:
                    assert Image.open(io.BytesIO(data)).size == (12, 12)
    assert seen == len(rows)
    again = write_shards(rows, tmp_path / "b", rows_per_shard=4)
    assert [a.read_bytes() for a in files] == [b.read_bytes() for b in again]
    picture = io.BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "PNG")
    real = Dataset.from_dict({"text": ["a photo"], "image": [picture.getvalue()]})
    assert [path.parent.name for path in write_shards(real, tmp_path / "c")] == ["curated"]
    with pytest.raises(
        ParameterError, match="'rows_per_shard' parameter of write_shards must be an int >= 1"
    ):
        write_shards(real, tmp_path, rows_per_shard=0)
