from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from tunesmith.core.errors import DataError, MissingModelError, ParameterError
from tunesmith.core.events import EventLog
from tunesmith.data import Pool
from tunesmith.data.features.likelihood import turn_start
from tunesmith.data.features.tags import granularities

TOPICS = ["cats and dogs", "sums of numbers", "cities of France", "the weather in Paris"]


def conversation(question: str, answer: str) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
    }


def dataset(n: int = 24, **columns: Any) -> Dataset:
    rows = [conversation(f"tell me of {TOPICS[i % 4]} {i}", f"{TOPICS[i % 4]} are {i}") for i in range(n)]
    table = {"messages": [r["messages"] for r in rows], "_row": list(range(n)), "_source": ["pool.jsonl"] * n}
    return Dataset.from_dict({**table, **columns})


@pytest.fixture
def events() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def make(tmp_path: Path, tiny_encoder_dir: str, events: list[dict[str, Any]]) -> Any:
    def pool(data: Any = None, **settings: Any) -> Pool:
        settings = {"encoder": tiny_encoder_dir, "cache": tmp_path / "cache", **settings}
        log = EventLog(listeners=[events.append])
        return Pool(dataset() if data is None else data, log=log, **settings)

    return pool


# -- content hash --


def test_content_hash_depends_on_texts_and_order_only() -> None:
    a = dataset()
    assert Pool(a).content_hash == Pool(dataset(quality=[1.0] * 24)).content_hash
    assert (
        Pool(a.select(range(5, 15))).content_hash == Pool(Dataset.from_list(a.to_list()[5:15])).content_hash
    )
    assert Pool(a.select([1, 0])).content_hash != Pool(a.select([0, 1])).content_hash
    two = [Dataset.from_dict({"text": t}) for t in (["ab", "c"], ["a", "bc"], ["abc", ""])]
    assert len({Pool(d).content_hash for d in two}) == 3


def test_content_hash_tells_null_from_empty() -> None:
    pairs = [Dataset.from_dict({"anchor": ["a"], "positive": ["b"], "negative": [n]}) for n in ("", None)]
    assert Pool(pairs[0]).content_hash != Pool(pairs[1]).content_hash


# -- embedding --


def test_embedding_is_normalised_mapped_and_cached(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make().feature("embedding")
    assert first.shape == (24, 16)
    assert first.dtype == np.float32
    assert isinstance(first, np.memmap)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, rtol=1e-5)
    monkeypatch.setattr(
        "tunesmith.data.features.embedding.load_encoder", lambda name: pytest.fail("loaded again")
    )
    np.testing.assert_array_equal(make().feature("embedding"), first)


def test_embedding_continues_after_an_error(
    make: Any, events: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunesmith.data.features import embedding as module

    straight = np.array(make(cache=None).feature("embedding"))
    whole, mapped = module._encoder, module.map_rows
    monkeypatch.setattr(module, "map_rows", lambda *a, **k: mapped(*a, **{**k, "chunk": 8}))
    calls = {"n": 0}

    def dying(name: str, batch_size: int) -> Any:
        encode = whole(name, batch_size)

        def once(texts: list[str]) -> Any:
            calls["n"] += 1
            if calls["n"] == 4:  # the width probe, two chunks, then death
                raise KeyboardInterrupt
            return encode(texts)

        return once

    monkeypatch.setattr(module, "_encoder", dying)
    with pytest.raises(KeyboardInterrupt):
        make().feature("embedding")
    calls["n"] = 10
    np.testing.assert_array_equal(make().feature("embedding"), straight)
    assert calls["n"] == 12  # the width probe and the one chunk that was missing


def test_a_given_embedding_is_used(make: Any) -> None:
    vectors = [[3.0, 4.0]] * 24
    np.testing.assert_allclose(make(dataset(embedding=vectors)).feature("embedding")[0], [0.6, 0.8])
    assert make(dataset(embedding=vectors)).feature("embedding", encoder=make().encoder).shape == (24, 16)


def test_a_bad_embedding_column(make: Any) -> None:
    with pytest.raises(DataError, match="the column 'embedding' must hold one vector of numbers a row"):
        make(dataset(embedding=[[1.0, 2.0]] * 23 + [[1.0]])).feature("embedding")
    with pytest.raises(DataError, match=r"pool\.jsonl, row 3: the column 'embedding' has a value that"):
        make(dataset(embedding=[[1.0]] * 3 + [[math.nan]] + [[1.0]] * 20)).feature("embedding")


def test_an_encoder_that_is_not_there(make: Any) -> None:
    with pytest.raises(MissingModelError, match="The model 'no/such' could not be loaded"):
        make(encoder="no/such").feature("embedding")


# -- length, columns --


def test_length(make: Any, tiny_model_dir: str) -> None:
    pool = make(Dataset.from_dict({"text": ["one two  three", "", "four"]}), scorer=tiny_model_dir)
    assert pool.feature("length").tolist() == [3, 0, 1]
    assert pool.feature("length").dtype == np.int32
    assert pool.feature("length", unit="characters").tolist() == [14, 0, 4]
    assert pool.feature("length", unit="tokens")[1] == 0
    with pytest.raises(ParameterError, match=r"The 'unit' parameter of the feature 'length' must be one of"):
        pool.feature("length", unit="lines")
    with pytest.raises(DataError, match="a length in tokens needs a tokenizer: set scorer to a model"):
        make(Dataset.from_dict({"text": ["a"]})).feature("length", unit="tokens")


def test_any_column_is_a_feature(make: Any) -> None:
    pool = make(dataset(difficulty=list(range(24)), origin=["web"] * 24))
    assert pool.feature("difficulty").dtype == np.int64
    assert pool.feature("origin") == ["web"] * 24
    assert {"difficulty", "origin", "embedding", "length", "quality", "tags"} <= set(pool.features_available)
    assert "ifd" not in pool.features_available


# -- perplexity and IFD --


def test_perplexity_and_ifd_by_hand(make: Any, tiny_model_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from tunesmith.engine.models import load_model, load_tokenizer

    # bfloat16, which some machines would choose, is right to three digits only.
    monkeypatch.setattr("tunesmith.data.features.likelihood.auto_dtype", lambda device: "float32")
    pool = make(dataset(5), scorer=tiny_model_dir, batch_size=2)
    model, tokenizer = load_model(tiny_model_dir, dtype="float32"), load_tokenizer(tiny_model_dir)

    def mean_nll(context: str, answer: str) -> float:
        before = tokenizer(context, add_special_tokens=False)["input_ids"]
        after = tokenizer(answer, add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            logs = model(torch.tensor([before + after])).logits[0].log_softmax(-1)
        start = len(before)
        return float(-np.mean([logs[start + i - 1, t].item() for i, t in enumerate(after)]))

    header = "<|im_start|>assistant\n"
    for i, row in enumerate(pool.dataset):
        question, answer = (m["content"] for m in row["messages"])
        given = mean_nll(f"<|im_start|>user\n{question}<|im_end|>\n{header}", f"{answer}<|im_end|>")
        alone = mean_nll(header, f"{answer}<|im_end|>")
        assert pool.feature("perplexity")[i] == pytest.approx(math.exp(given), rel=1e-4)
        assert pool.feature("ifd")[i] == pytest.approx(math.exp(given - alone), rel=1e-4)
    np.testing.assert_allclose(pool.feature("quality"), np.clip(1 - pool.feature("ifd"), 0, 1), atol=1e-6)
    assert tokenizer.decode(turn_start(tokenizer)) == header


def test_the_start_of_a_turn_without_a_template(tiny_tokenizer: Any) -> None:
    import copy

    plain = copy.deepcopy(tiny_tokenizer)
    plain.chat_template = None
    assert turn_start(plain) == [plain.eos_token_id]


def test_perplexity_of_raw_text_has_no_ifd(make: Any, tiny_model_dir: str) -> None:
    pool = make(Dataset.from_dict({"text": ["the cat sat", "the dog ran"]}), scorer=tiny_model_dir)
    assert np.isfinite(pool.feature("perplexity")).all()
    assert "perplexity" in pool.features_available
    assert "ifd" not in pool.features_available
    with pytest.raises(DataError, match=r"the feature 'ifd' needs rows with a prompt and an answer"):
        pool.feature("ifd")


def test_rows_that_do_not_fit_are_counted(
    make: Any, tiny_model_dir: str, events: list[dict[str, Any]]
) -> None:
    long_answer, long_prompt = conversation("hi", "word " * 80), conversation("word " * 80, "hi")
    data = Dataset.from_list([conversation("hi", "ho"), long_answer, long_prompt])
    pool = make(data, scorer=tiny_model_dir, max_length=40)
    ifd = pool.feature("ifd")
    assert np.isfinite(ifd[:2]).all()
    assert np.isnan(ifd[2])
    assert pool.feature("quality")[2] == 0
    warnings = [e["message"] for e in events if e["kind"] == "warning"]
    assert warnings == [
        "2 of 3 rows are longer than max_length = 40 tokens and were scored on what fits; 1 of them have no "
        "token of the answer left and get NaN."
    ]


def test_scores_are_cached(make: Any, tiny_model_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make(scorer=tiny_model_dir).feature("perplexity")
    monkeypatch.setattr(
        "tunesmith.data.features.likelihood.load_model", lambda name: pytest.fail("loaded again")
    )
    np.testing.assert_array_equal(make(scorer=tiny_model_dir).feature("perplexity"), first)


def test_a_row_the_template_cannot_render(make: Any, tiny_model_dir: str) -> None:
    data = Dataset.from_dict(
        {"messages": [[{"role": "user", "content": "hi"}]], "_row": [7], "_source": ["pool.jsonl"]}
    )
    with pytest.raises(DataError, match=r"pool\.jsonl, row 7: the last message is not an assistant's"):
        make(data, scorer=tiny_model_dir).feature("perplexity")


def test_no_scorer(make: Any) -> None:
    with pytest.raises(DataError, match="the feature 'perplexity' needs a language model: set scorer"):
        make().feature("perplexity")


# -- tags --


def test_given_tags(make: Any) -> None:
    pool = make(dataset(3, tags=["b, a ,b", None, "x;y, z"]))
    assert pool.feature("tags") == [["b", "a"], [], ["x", "y, z"]]
    vectors = pool.feature("label_embeddings")
    assert list(vectors) == ["a", "b", "x", "y, z"]
    np.testing.assert_allclose([np.linalg.norm(v) for v in vectors.values()], 1, rtol=1e-5)
    assert make(dataset(2, tags=[["q", "q"], []])).feature("tags") == [["q"], []]


def test_cluster_tags(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make()
    tags, vectors = pool.feature("tags"), pool.feature("label_embeddings")
    assert granularities(24) == (1, 8)
    assert all(len(row) == 2 and row[0] == "c1:0" and row[1].startswith("c8:") for row in tags)
    assert set(vectors) == {tag for row in tags for tag in row}
    np.testing.assert_allclose([np.linalg.norm(v) for v in vectors.values()], 1, rtol=1e-5)
    rows = np.array([row[1] == tags[0][1] for row in tags])
    centre = pool.feature("embedding")[rows].mean(axis=0)
    np.testing.assert_allclose(vectors[tags[0][1]], centre / np.linalg.norm(centre), atol=1e-4)
    monkeypatch.setattr("tunesmith.data.features.tags._cluster", lambda *a: pytest.fail("clustered again"))
    assert make().feature("tags") == tags


def test_granularities() -> None:
    assert granularities(1) == (1,)
    assert granularities(1400) == (10, 60)
    assert granularities(1_000_000) == (267, 1600)


def test_bad_tags(make: Any) -> None:
    with pytest.raises(DataError, match=r"pool\.jsonl, row 1: 'tags' must be a list of strings"):
        make(dataset(2, tags=[[1], [2]]).select([1, 0])).feature("tags")
    with pytest.raises(DataError, match="the feature 'tags' needs a column 'tags', or the setting"):
        make(tags="column").feature("tags")


# -- quality --


def test_quality_column_and_default(make: Any, events: list[dict[str, Any]]) -> None:
    assert make(dataset(2, quality=["0.5", "2"])).feature("quality").tolist() == [0.5, 2]
    assert make(dataset(2)).feature("quality").tolist() == [1, 1]
    assert events[-1]["message"].startswith(
        "No quality is known: the rows have no column 'quality' and no scorer"
    )
    with pytest.raises(DataError, match="the feature 'quality' needs a language model: set scorer"):
        make(quality="ifd").feature("quality")
    with pytest.raises(DataError, match="the feature 'quality' needs a column 'quality', or the set"):
        make(quality="column").feature("quality")


@pytest.mark.parametrize(
    ("value", "shown"),
    [(math.nan, "nan"), (math.inf, "inf"), (-0.5, "-0.5"), (None, "None"), ("good", "'good'")],
)
def test_bad_quality_names_the_row(make: Any, value: Any, shown: str) -> None:
    values = [1.0, 1.0, value] if not isinstance(value, str) else ["1", "1", value]
    with pytest.raises(DataError) as error:
        make(dataset(3, quality=values)).feature("quality")
    assert (
        str(error.value) == f"pool.jsonl, row 2: 'quality' must be a finite number >= 0. Got {shown} instead."
    )


# -- fit, errors --


class Recorder:
    def __init__(self, *names: str) -> None:
        self.names = names

    def required_features(self) -> tuple[str, ...]:
        return self.names

    def fit(self, X: Any, y: Any = None, **features: Any) -> Recorder:
        self.X, self.features = X, features
        return self


def test_fit_passes_what_is_required(make: Any) -> None:
    pool = make(dataset(quality=[2.0] * 24))
    selector = pool.fit(Recorder("embedding", "quality", "length"))
    assert selector.X.shape == (24, 16)
    assert set(selector.features) == {"quality", "length"}
    assert pool.fit(Recorder()).X.shape == (24, 0)


def test_a_feature_nothing_provides(make: Any) -> None:
    with pytest.raises(DataError) as error:
        make().fit(Recorder("qualty"))
    assert str(error.value) == (
        "nothing provides the feature 'qualty': the rows have no column of that name, and it is not computed. "
        "Did you mean 'quality'? Computed features: embedding, length, perplexity, ifd, gradient, gradient_norm, tags, "
        "label_embeddings, "
        "quality, target_embedding. Columns: messages, _row, _source."
    )


def test_bad_settings() -> None:
    with pytest.raises(ParameterError, match=r"The 'quality' parameter of Pool must be one of 'auto', 'col"):
        Pool(dataset(), quality="best")
    with pytest.raises(
        ParameterError, match=r"The 'batch_size' parameter of Pool must be an int >= 1\. Got 0"
    ):
        Pool(dataset(), batch_size=0)
    with pytest.raises(DataError, match=r"a pool needs rows with 'messages', 'text' or 'anchor' and 'pos"):
        Pool(Dataset.from_dict({"instruction": ["x"]}))
    with pytest.raises(DataError, match="a pool needs at least one row, and this dataset has none"):
        Pool(Dataset.from_dict({"text": []}))


# -- the real encoder --


@pytest.mark.slow
def test_minilm_and_its_word_table_find_the_topic(tmp_path: Path) -> None:
    texts = [
        "A cat sleeps on the sofa.",
        "The kitten naps on the couch.",
        "Interest rates rose by one percent.",
    ]
    pool = Pool(Dataset.from_dict({"text": texts}), cache=tmp_path)
    for encoder, margin in (("minilm", 0.4), ("static", 0.2)):
        vectors = pool.feature("embedding", encoder=encoder)
        assert vectors.shape == (3, 384)
        assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + margin


@pytest.mark.slow
def test_the_static_encoder_is_the_centred_mean_of_word_pieces(tmp_path: Path) -> None:
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    from tunesmith.engine.models import resolve_encoder

    texts = ["Unbelievable!  Don't\tpanic, 中文 café", "", "a b a"]
    got = Pool(Dataset.from_dict({"text": texts}), encoder="static", cache=tmp_path).feature("embedding")
    folder = Path(resolve_encoder("minilm"))
    table = load_file(str(folder / "model.safetensors"))["embeddings.word_embeddings.weight"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    for i in (0, 2):
        ids = tokenizer.encode(texts[i], add_special_tokens=False).ids
        mean = (table - table.mean(axis=0))[ids].mean(axis=0)
        np.testing.assert_allclose(got[i], mean / np.linalg.norm(mean), atol=1e-5)
    assert not got[1].any()
