"""Rows are encoded, counted and, where they cannot be trained on, listed with their reason."""

from __future__ import annotations

import json

import pytest
from datasets import Dataset

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.data.preflight import encode_dataset


def chat(question: str, answer: str) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def test_labels_cover_the_answer_and_its_end(tiny_tokenizer):
    encoded, report = encode_dataset(
        Dataset.from_list([chat("what is the capital ?", "Paris .")]), tiny_tokenizer, max_length=None
    )
    row = encoded[0]
    trained = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    assert tiny_tokenizer.decode(trained) == "Paris .<|im_end|>"
    assert row["_index"] == 0
    assert report.trained_tokens == len(trained)
    assert report.tokens == len(row["input_ids"])
    assert "".join(text for text, on in report.sample if on) == "Paris .<|im_end|>"
    assert "".join(text for text, _ in report.sample) == tiny_tokenizer.decode(row["input_ids"])


def test_all_tokens_but_the_first_are_counted(tiny_tokenizer):
    encoded, report = encode_dataset(
        Dataset.from_list([{"text": "the cat sat"}]), tiny_tokenizer, max_length=None
    )
    assert encoded[0]["labels"][0] == -100
    assert report.trained_tokens == report.tokens - 1


def test_bad_rows_are_listed_and_do_not_stop_the_others(tiny_tokenizer):
    rows = [
        chat("one", "two"),
        {"messages": [{"role": "user", "content": "hello"}]},
        {"messages": []},
        chat("x " * 100, "late"),
        chat("two", "three " * 40),
    ]
    encoded, report = encode_dataset(Dataset.from_list(rows), tiny_tokenizer, max_length=60)
    assert encoded["_index"][:] == [0, 4]
    assert (report.n_rows, report.n_kept, report.n_dropped) == (5, 2, 3)
    assert (report.n_truncated, report.n_without_labels) == (1, 1)
    assert [row for row, _ in report.dropped] == [1, 2, 3]
    assert report.reasons == {
        "the last message is not an assistant's, so there is nothing to learn.": 1,
        "the row has neither messages nor text": 1,
        "max_length=60 cuts off every trained token": 1,
    }
    assert [row for row, _ in report.truncated] == [4]
    assert report.longest == max(length for _, length in [*report.truncated, (3, report.longest)])
    json.dumps(report.to_dict())


def test_a_template_that_raises_concerns_its_row_only(tiny_tokenizer):
    import copy

    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if 'bad' in m['content'] %}{{ raise_exception('no bad words') }}{% "
        "endif %}"
        "{{ m['role'] }}:{{ m['content'] }}<|im_end|>{% endfor %}{% if add_generation_prompt "
        "%}assistant:{% endif %}"
    )
    _, report = encode_dataset(
        Dataset.from_list([chat("ok", "fine"), chat("bad", "fine")]), tokenizer, max_length=None
    )
    assert report.dropped == [(1, "the chat template fails: TemplateError: no bad words")]


def test_too_many_cut_rows_stop_the_run(tiny_tokenizer):
    rows = [chat("one", "two " * 50), chat("one", "two"), chat("two", "one"), chat("cat", "dog")]
    _, report = encode_dataset(Dataset.from_list(rows), tiny_tokenizer, max_length=40)
    report.check(0.25, 0)
    with pytest.raises(
        DataError,
        match=r"1 of 4 rows \(25\.0%\) were cut at max_length=40, more than max_truncated=20\.0% permits; "
        r"the longest "
        r"row has \d+ tokens\. Raise train\.max_length, take long rows out, or raise "
        r"preflight\.max_truncated\.",
    ):
        report.check(0.2, 0)


def test_too_many_dropped_rows_stop_the_run(tiny_tokenizer):
    rows = [chat("one", "two"), {"messages": []}]
    _, report = encode_dataset(Dataset.from_list(rows), tiny_tokenizer, max_length=40)
    report.check(0, 0.5)
    with pytest.raises(
        DataError,
        match=r"1 of 2 rows \(50\.0%\) cannot be trained on, more than max_dropped=20\.0% permits: 1 × "
        r"the row has "
        r"neither messages nor text\. Repair these rows, raise train\.max_length",
    ):
        report.check(0, 0.2)


def test_nothing_left(tiny_tokenizer):
    with pytest.raises(
        DataError,
        match=r"There is nothing to train on: none of the 1 rows can be used: 1 × the row has neither",
    ):
        encode_dataset(Dataset.from_list([{"messages": []}]), tiny_tokenizer, max_length=40)
    with pytest.raises(DataError, match=r"There is nothing to train on: the dataset has no rows\."):
        encode_dataset(Dataset.from_list([]), tiny_tokenizer, max_length=40)


def test_parameters(tiny_tokenizer):
    data = Dataset.from_list([chat("one", "two")])
    with pytest.raises(
        ParameterError,
        match=r"The 'loss' parameter of encode_dataset must be one of 'completion', 'assistant', 'all'. "
        "Got 'some'",
    ):
        encode_dataset(data, tiny_tokenizer, max_length=40, loss="some")
    with pytest.raises(
        ParameterError, match="The 'max_length' parameter of encode_dataset must be an int of at least"
    ):
        encode_dataset(data, tiny_tokenizer, max_length=1)
