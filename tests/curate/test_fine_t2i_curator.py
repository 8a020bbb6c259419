"""TextToImageCurator on rows that are there: reasons, thresholds, judges, order of filters, scores on disk, CLIP."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image, ImageFilter

from tunesmith.core.errors import DataError, MissingModelError, ParameterError
from tunesmith.curate import TextToImageCurator
from tunesmith.curate.fine_t2i import ChatJudge, CLIPAlignment, Sharpness


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def noise(seed: int, blur: float = 0.0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(blur))


def angles(texts: Sequence[str]) -> np.ndarray:
    """A text that ends in a number points there, in degrees."""
    a = np.deg2rad([float(text.split()[-1]) for text in texts])
    return np.column_stack([np.cos(a), np.sin(a)])


def rows_at(*degrees: float, **columns: list[Any]) -> Dataset:
    return Dataset.from_dict({"text": [f"one two three four {d}" for d in degrees], **columns})


def kept(method: TextToImageCurator, rows: Dataset) -> list[int]:
    method.fit(rows).transform(rows)
    gone = {i for i, _ in method.report_.dropped}
    return [i for i in range(len(rows)) if i not in gone]


def test_greedy_deduplication_by_hand() -> None:
    method = TextToImageCurator(embedder=angles)
    assert kept(method, rows_at(0, 30, 60, 90)) == [0, 2]
    assert method.report_.dropped[0] == (
        1,
        "nearly the same prompt as an earlier row → row 0, cosine 0.87",
    )
    assert kept(TextToImageCurator(embedder=angles, dedup_threshold=0.7), rows_at(0, 40, 75)) == [0, 2]
    assert kept(TextToImageCurator(embedder=angles, dedup_threshold=1.01), rows_at(0, 0, 0)) == [0, 1, 2]
    assert kept(TextToImageCurator(embedder=angles, dedup_threshold=0.999), rows_at(0, 0, 0)) == [0]


def test_every_reason_and_the_funnel() -> None:
    rows = Dataset.from_dict(
        {
            "text": [
                "too short 0",
                "one two three four 0",
                "one two three four 5",
                "a violent scene of 90",
                "one two three wrong 180",
                "one two three four 270",
                "one two three four 315",
                "one two three four 135",
                "one two three four 45",
            ],
            "category": ["sport"] * 9,
            "aesthetic": [9, 9, 9, 9, 9, 5.5, 9, None, 9],
            "real": [False] * 9,
            "image": [png(noise(i)) for i in range(8)] + [b"no image"],
        }
    )
    method = TextToImageCurator(
        embedder=angles,
        safety=lambda texts: ["violent" not in text for text in texts],
        attributes=lambda some: ["no" if "wrong" in row["text"] else "yes" for row in some],
        alignment=lambda texts, images: [not text.endswith("315") for text in texts],
    )
    assert kept(method, rows) == [1]
    reasons = [reason for _, reason in method.report_.dropped]
    assert reasons[:-1] == [
        "prompt of fewer than 5 words → 3",
        "nearly the same prompt as an earlier row → row 1, cosine 1.00",
        "prompt judged unsafe",
        "prompt does not fit its category, style or tasks",
        "aesthetic score not above 5.5 → 5.5",
        "image does not show what its prompt says",
        "aesthetic score is not a number",
    ]
    assert reasons[-1].startswith("image cannot be read → the image cannot be read: ")
    assert [(s.name, s.n_in, s.n_out) for s in method.funnel_] == [
        ("words", 9, 8),
        ("duplicates", 8, 7),
        ("safety", 7, 6),
        ("attributes", 6, 5),
        ("image", 5, 4),
        ("aesthetic", 4, 2),
        ("alignment", 2, 1),
    ]
    assert np.prod([s.kept for s in method.funnel_]) == pytest.approx(1 / 9)
    assert method.shares_ == {"sport": (1.0, 1.0)}


def test_photographs_have_their_own_threshold() -> None:
    rows = rows_at(0, 90, 180, 270, aesthetic=[5.5, 5.6, 6.5, 6.4], real=[False, False, True, True])
    assert kept(TextToImageCurator(embedder=angles), rows) == [1, 2]


@pytest.mark.parametrize("seed", range(3))
def test_running_again_on_the_output_drops_nothing_and_higher_thresholds_keep_subsets(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rows_at(*rng.uniform(0, 360, 80), aesthetic=rng.uniform(3, 9, 80).tolist())
    method = TextToImageCurator(embedder=angles, probes=None, groups=4)
    out = method.fit(rows).transform(rows)
    assert len(out) < 80
    assert len(method.fit(out).transform(out)) == len(out)
    plain = [
        set(kept(TextToImageCurator(dedup_threshold=None, aesthetic_threshold=t), rows)) for t in (4, 6, 8)
    ]
    assert plain[2] < plain[1] < plain[0]


def test_the_order_of_independent_filters_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    rows = rows_at(
        *rng.uniform(0, 360, 60),
        aesthetic=rng.uniform(3, 9, 60).tolist(),
        image=[png(noise(i)) for i in range(60)],
    )
    filters = {
        "aesthetic": TextToImageCurator(dedup_threshold=None, alignment=None),
        "alignment": TextToImageCurator(
            dedup_threshold=None,
            aesthetic_threshold=-1.0,
            alignment=lambda texts, images: [float(t.split()[-1]) % 1 for t in texts],
            alignment_threshold=0.4,
        ),
        "safety": TextToImageCurator(
            dedup_threshold=None,
            aesthetic_threshold=-1.0,
            safety=lambda texts: [float(t.split()[-1]) > 90 for t in texts],
        ),
    }
    results = set()
    for order in itertools.permutations(filters):
        out = rows
        for name in order:
            out = filters[name].fit(out).transform(out)
        results.add(tuple(out["text"][:]))
    assert len(results) == 1
    assert 0 < len(results.pop()) < 60


def test_judges_that_cannot_be_read_and_graded_scores() -> None:
    rows = rows_at(0, 90, 180, image=[png(noise(i)) for i in range(3)])
    unread = TextToImageCurator(embedder=angles, alignment=lambda texts, images: ["yes", "hm", None])
    assert kept(unread, rows) == [0]
    assert unread.report_.reasons == {"the verdict on image and prompt could not be read": 2}
    graded = TextToImageCurator(
        embedder=angles, alignment=lambda texts, images: [0.25, 0.1, float("nan")], alignment_threshold=0.25
    )
    assert kept(graded, rows) == [0]
    columns = rows_at(0, 90, 180, alignment=[0.3, 0.2, None])
    assert kept(TextToImageCurator(embedder=angles), columns) == [0]


def test_a_language_model_as_judge() -> None:
    def llm(chats: Any, **options: Any) -> list[str]:
        return ["No." if "scene" in chat[0]["content"] else "Yes." for chat in chats]

    rows = Dataset.from_dict({"text": ["one two three four 0", "a scene with blood 90"]})
    method = TextToImageCurator(embedder=angles, safety=ChatJudge(llm, "Is this prompt safe?"))
    assert kept(method, rows) == [0]
    labelled = rows.add_column("style", ["anime", "collage"])
    fits = TextToImageCurator(
        embedder=angles, attributes=ChatJudge(llm, "Does the text fit its labels?"), max_words=9
    )
    assert kept(fits, labelled) == [0]


def test_sharpness_tells_blur() -> None:
    scores = Sharpness()([noise(0), noise(0, 1.0), Image.new("L", (9, 9), 7), Image.new("L", (2, 2))])
    assert scores[0] > 20 * scores[1] > 0
    assert scores[2:] == [0.0, 0.0]
    rows = rows_at(0, 90, image=[png(noise(1)), png(noise(1, 2.0))])
    method = TextToImageCurator(embedder=angles, aesthetic="sharpness", aesthetic_threshold=scores[1])
    assert kept(method, rows) == [0]


class Counting:
    """A scorer that counts calls and may fail in the middle."""

    fingerprint = "counting"

    def __init__(self) -> None:
        self.seen, self.fail_at = 0, 10**9

    def __call__(self, images: Sequence[Any]) -> list[float]:
        if self.seen + len(images) > self.fail_at:
            raise RuntimeError("the scorer died")
        self.seen += len(images)
        return [float(np.asarray(image).mean()) for image in images]


def test_scores_are_kept_and_a_scorer_that_dies_loses_only_its_chunk(monkeypatch: Any) -> None:
    from tunesmith.curate.fine_t2i import scoring

    monkeypatch.setattr(scoring, "_CHUNK", 4)
    rows = rows_at(*range(0, 300, 30), image=[png(noise(100 + i)) for i in range(10)])
    scorer = Counting()
    scorer.fail_at = 9
    method = TextToImageCurator(dedup_threshold=None, aesthetic=scorer, aesthetic_threshold=127.0)
    with pytest.raises(RuntimeError):
        method.fit(rows).transform(rows)
    assert scorer.seen == 8
    scorer.fail_at = 10**9
    first = method.fit(rows).transform(rows)["text"][:]
    assert scorer.seen == 10
    assert method.fit(rows).transform(rows)["text"][:] == first
    assert scorer.seen == 10


def test_shares_before_and_after_and_balance() -> None:
    names = ["portrait"] * 6 + ["sign"] * 2
    rows = rows_at(*range(0, 320, 40), category=names)
    method = TextToImageCurator(embedder=angles, balanced=True)
    out = method.fit(rows).transform(rows)
    # Shares of 37.9 / 9 and 17.4 / 5: two signs stand beside 2 × 4.211 / 3.48 = 2.42 portraits.
    assert sorted(out["category"][:]) == ["portrait"] * 2 + ["sign"] * 2
    assert method.report_.reasons == {"more rows than the share of its category": 4}
    assert method.shares_ == {"portrait": (0.75, 0.5), "sign": (0.25, 0.5)}


def test_instructions_and_pairs_without_images() -> None:
    talk = [
        {"role": "system", "content": "x " * 300},
        {"role": "user", "content": "one two three four 0"},
        {"role": "assistant", "content": "y"},
    ]
    rows = Dataset.from_list([{"messages": talk}, {"messages": talk[1:]}])
    assert kept(TextToImageCurator(embedder=angles), rows) == [0]
    pairs = Dataset.from_dict({"anchor": ["one two three four 0", "a b"], "positive": ["x", "y"]})
    assert kept(TextToImageCurator(embedder=angles), pairs) == [0]


@pytest.fixture(scope="module")
def clip_dir(tmp_path_factory: Any, tiny_tokenizer: Any) -> str:
    """Folder of a tiny random CLIP."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("tiny-clip")
    small = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = CLIPConfig(
        text_config={
            **small,
            "vocab_size": len(tiny_tokenizer),
            "max_position_embeddings": 20,
            "eos_token_id": tiny_tokenizer.eos_token_id,
            "bos_token_id": 1,
            "pad_token_id": tiny_tokenizer.pad_token_id,
        },
        vision_config={**small, "image_size": 30, "patch_size": 6},
        projection_dim=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return str(folder)


def test_clip_alignment(clip_dir: str) -> None:
    scorer = CLIPAlignment(clip_dir, batch_size=2)
    texts = ["the cat", "a much longer prompt " * 20, "dog"]
    images = [noise(0), noise(1).resize((90, 40)), noise(2).convert("L")]
    together = scorer(texts, images)
    alone = np.concatenate([scorer([t], [i]) for t, i in zip(texts, images, strict=True)])
    assert together.shape == (3,)
    assert (np.abs(together) <= 1).all()
    assert np.allclose(together, alone, atol=1e-5)
    assert len(set(together.round(6))) == 3


def test_clip_in_the_pipeline(clip_dir: str) -> None:
    rows = rows_at(0, 90, 180, 270, image=[png(noise(i)) for i in range(4)])
    cosines = CLIPAlignment(clip_dir)(rows["text"][:], [noise(i) for i in range(4)])
    t = float(np.median(cosines))
    method = TextToImageCurator(embedder=angles, alignment=clip_dir, alignment_threshold=t)
    assert kept(method, rows) == np.flatnonzero(cosines >= t).tolist()
    (reason,) = method.report_.reasons
    assert reason == f"image and prompt agree less than {t:g}"


def test_errors(tiny_model_dir: str, tmp_path: Any) -> None:
    rows = rows_at(0, 90, image=[png(noise(0)), png(noise(1))])
    with pytest.raises(DataError) as caught:
        TextToImageCurator(aesthetic="sharpness", image="picture").fit(rows)
    assert str(caught.value) == (
        "TextToImageCurator needs a column 'picture' for aesthetic, but the rows have text, image."
    )
    with pytest.raises(DataError, match="the scorer 'safety' returned 1 scores for 2 rows"):
        kept(TextToImageCurator(dedup_threshold=None, safety=lambda texts: [True]), rows)
    with pytest.raises(
        DataError, match=r"the scorer .aesthetic. must return numbers, booleans or replies\. Got list"
    ):
        kept(TextToImageCurator(dedup_threshold=None, aesthetic=lambda images: [[1], [2]]), rows)
    with pytest.raises(DataError, match="the embedder returned an array of shape"):
        kept(TextToImageCurator(embedder=lambda texts: np.ones(2)), rows)
    with pytest.raises(DataError, match=r"the embedding has length 1\.414"):
        kept(TextToImageCurator(embedder=lambda texts: np.ones((2, 2))), rows)
    with pytest.raises(DataError, match="there is no category 'x' in the taxonomy"):
        kept(TextToImageCurator(taxonomy=_grid()), rows_at(0, category=["x"]))
    with pytest.raises(MissingModelError, match="There is no CLIP-type model in"):
        CLIPAlignment(str(tmp_path))(["a"], [noise(0)])
    with pytest.raises(
        MissingModelError, match="has no towers for text and images; a CLIP-type model is needed"
    ):
        CLIPAlignment(tiny_model_dir)(["a"], [noise(0)])


def _grid() -> Any:
    from tunesmith.curate.fine_t2i import Taxonomy

    return Taxonomy({"sport": 1.0}, {"anime": 1.0}, {("colour",): 1.0}, {"opener": 1.0})


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"aesthetic": "sharpness", "aesthetic_threshold": -1.0},
            "a number from 0 to inf, the range of its scorer",
        ),
        (
            {"alignment": "folder", "alignment_threshold": 1.5},
            "a number from -1 to 1, the range of its scorer",
        ),
        ({"aesthetic_threshold": "high"}, "a number"),
    ],
)
def test_thresholds_outside_the_range_of_their_scorer(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError) as caught:
        TextToImageCurator(**parameters).fit(rows_at(0))
    assert f"must be {message}. Got" in str(caught.value)
