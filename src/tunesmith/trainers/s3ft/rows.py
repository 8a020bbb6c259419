"""Rows in and out: prompt and gold answer of each, and the same rows with another answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.core.files import hash_json
from tunesmith.data.rows import last_answer
from tunesmith.trainers.s3ft.prompts import Prompt

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["AUDIT", "prompts_and_golds", "with_targets"]

AUDIT = (
    "s3ft_prediction",
    "s3ft_prediction_verdict",
    "s3ft_paraphrase",
    "s3ft_paraphrase_verdict",
    "s3ft_gold",
)
Pair = tuple[Prompt, str]


def prompts_and_golds(dataset: Dataset, gold: str, source_column: str, owner: Any) -> list[Pair]:
    """Return prompt and gold answer of each row.

    Raises:
        DataError: missing columns, an empty prompt or gold answer, no answer in the messages, two rows with one ``id``,
            or rows that were built before.
        ParameterError: the data have a column named as ``source_column``.
    """
    has = dataset.column_names
    if "s3ft_gold" in has:
        raise DataError(
            "the rows have a column 's3ft_gold': they were built before, and their answers are no gold answers. Build "
            "from the rows as they were."
        )
    if source_column in has:
        raise ParameterError("source_column", owner, "a name that is no column of the data", source_column)
    if "messages" in has:
        wanted = ["messages"]
        if gold != "completion":
            expected = "left out where the rows have 'messages', whose last answer is the gold answer"
            raise ParameterError("gold", owner, expected, gold)
    else:
        wanted = ["prompt", gold]
        missing = [name for name in wanted if name not in has]
        if missing:
            hint = " Name the column of the gold answers with gold=." if missing == [gold] else ""
            raise DataError(
                f"the rows have no column {' and no column '.join(map(repr, missing))}; wanted are 'messages', or "
                f"'prompt' and '{gold}'. They have {', '.join(has) or 'no columns'}.{hint}"
            )
        if gold != "completion" and "completion" in has:
            raise ParameterError(
                "gold", owner, "'completion' where the rows have that column, since it will hold the targets", gold
            )  # fmt: skip
    if "id" in has:
        _check_ids(dataset.with_format(None)["id"][:])
    pairs = []
    for i, row in enumerate(dataset.select_columns(wanted).with_format(None)):
        assert isinstance(row, dict)
        try:
            pairs.append(_pair(row, gold))
        except DataError as error:
            raise DataError(str(error), row=i, content=repr(row)) from None
    return pairs


def _check_ids(ids: Sequence[Any]) -> None:
    first: dict[Any, int] = {}
    for i, value in enumerate(ids):
        if value is not None and first.setdefault(value, i) != i:
            raise DataError(f"rows {first[value]} and {i} have the same id, {value!r}.")


def _pair(row: Mapping[str, Any], gold: str) -> Pair:
    if "messages" in row:
        messages = [_message(m) for m in row["messages"] or []]
        last = last_answer(messages)
        if last is None:
            raise DataError("the messages have no answer of the assistant.")
        prompt: Prompt = messages[:last]
        answer = messages[last]["content"]
    else:
        given = row["prompt"]
        prompt = given if isinstance(given, str) else [_message(m) for m in given or []]
        answer = _answer_text(row[gold])
    if not prompt or (isinstance(prompt, str) and not prompt.strip()):
        raise DataError("the prompt is empty.")
    if not isinstance(answer, str) or not answer.strip():
        raise DataError("the gold answer is empty.")
    return prompt, answer


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    # Arrow fills keys that other messages have with None.
    return {key: value for key, value in message.items() if value is not None}


def _answer_text(value: Any) -> Any:
    """Return a completion's text: it may be a message in a list, as TRL has it."""
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 1:
        return value[0].get("content") if isinstance(value[0], Mapping) else None
    return value


def with_targets(
    dataset: Dataset, targets: Sequence[str], columns: Mapping[str, Sequence[Any]], gold: str
) -> Dataset:
    """Return the rows with other answers and with further columns of texts; all else stays.

    Args:
        dataset: n rows as `prompts_and_golds` takes them.
        targets: n texts.
        columns: name -> n texts or None.
        gold: the gold answers' column; ``completion`` is added beside it where that is another.
    """
    from datasets import Dataset, Features, Value

    chat = "messages" in dataset.column_names
    features = dict(dataset.features)
    if not chat and "completion" not in features:
        features["completion"] = Value("string")
    features |= {name: Value("string") for name in columns}

    if len(dataset) == 0:  # map would leave out the new columns
        return Dataset.from_dict({name: [] for name in _first(features, columns)}, Features(features))

    def change(batch: dict[str, list[Any]], rows: list[int]) -> dict[str, list[Any]]:
        new: dict[str, list[Any]] = {name: [values[i] for i in rows] for name, values in columns.items()}
        if chat:
            new["messages"] = [
                _with_answer(m, targets[i]) for m, i in zip(batch["messages"], rows, strict=True)
            ]
            return new
        old = batch.get("completion", [""] * len(rows))
        new["completion"] = [
            targets[i] if isinstance(value, str) else [{**value[0], "content": targets[i]}]
            for value, i in zip(old, rows, strict=True)
        ]
        return new

    mark = hash_json([dataset._fingerprint, gold, list(targets), {k: list(v) for k, v in columns.items()}])
    out: Dataset = dataset.with_format(
        None
    ).map(
        change,
        batched=True,
        with_indices=True,
        features=Features(features),
        keep_in_memory=True,  # a cache file would lie beside the data that were given
        load_from_cache_file=False,
        new_fingerprint=mark[:16],
    )
    return out.select_columns(_first(out.column_names, columns))


def _first(names: Iterable[str], columns: Iterable[str]) -> list[str]:
    """Return the names with those that matter in front."""
    names = list(names)
    front = [name for name in ("messages", "prompt", "completion", *columns) if name in names]
    return [*front, *(name for name in names if name not in front)]


def _with_answer(messages: Sequence[Mapping[str, Any]], text: str) -> list[dict[str, Any]]:
    turns = [dict(message) for message in messages]
    last = last_answer(turns)
    assert last is not None  # as was checked when they were read
    turns[last]["content"] = text
    return turns
