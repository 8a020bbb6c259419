"""Perplexity of answers, and how much the question helps with them (IFD).

IFD, "instruction-following difficulty": Li et al. 2023, "From Quantity to Quality" (arXiv 2308.12032),
equation 5, here as the ratio of perplexities that the authors' data selection computes:
``exp(mean nll(answer | question)) / exp(mean nll(answer))``.

The unconditional pass sees the answer after the start of an assistant turn alone (BOS and the turn's header,
as the chat template writes them), not after an empty text and not after a template's default system prompt:
the model then knows that an answer comes and nothing of what was asked. Both passes score the same token ids,
so their means are over the same tokens. Where a template has neither header nor BOS, the end-of-sequence
token stands for the start, as it separates documents in training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.errors import DataError
from tunesmith.data.rows import row_kind
from tunesmith.data.templates import EncodedRow, encode_messages, encode_text, render_prompt
from tunesmith.engine.lm import completion_nll
from tunesmith.engine.local import finished, map_rows
from tunesmith.engine.models import auto_dtype, default_device, load_model, load_tokenizer, model_fingerprint

if TYPE_CHECKING:
    from tunesmith.data.pool import Pool

__all__ = ["encode_row", "ifd", "perplexity", "turn_start"]

# Columns of what is kept on disk, float64: summed nll, tokens, whether the row was cut.
_WIDTH = 3


def perplexity(pool: Pool, *, scorer: str | None = None) -> NDArray[np.float32]:
    """Return exp(mean negative log-likelihood) of each answer given what comes before it.

    The answer is the last assistant turn with its end-of-turn token; of raw text all of it. Time: one forward
    pass a row.

    Args:
        pool: n rows.
        scorer: overrides the pool's scorer.

    Returns:
        float32 ``(n,)``; NaN where no token of the answer fits in ``max_length``.

    Raises:
        DataError: a row cannot be rendered by the model's chat template; names the row.
        MissingModelError: the scorer cannot be found.
    """
    return _mean_exp(_nll(pool, scorer, given_prompt=True)).astype(np.float32)


def ifd(pool: Pool, *, scorer: str | None = None) -> NDArray[np.float32]:
    """Return the ratio of an answer's perplexity with its question to that without.

    Below 1 the question helps. Time: two forward passes a row, one of them shared with `perplexity`.

    Args:
        pool: n rows with a prompt and an answer.
        scorer: overrides the pool's scorer.

    Returns:
        float32 ``(n,)``; NaN where no token of the answer fits in ``max_length``.

    Raises:
        DataError: the rows have no prompts, or one cannot be rendered.
        MissingModelError: the scorer cannot be found.
    """
    if "messages" not in pool.has:
        raise DataError("the feature 'ifd' needs rows with a prompt and an answer (column 'messages').")
    given, alone = _nll(pool, scorer, given_prompt=True), _nll(pool, scorer, given_prompt=False)
    return (_mean_exp(given) / _mean_exp(alone)).astype(np.float32)


def turn_start(tokenizer: Any) -> list[int]:
    """Return the token ids that open an assistant turn with nothing before it."""
    header: list[int] = []
    if getattr(tokenizer, "chat_template", None):
        question = [{"role": "user", "content": "x"}]
        closed = tokenizer.apply_chat_template(question, tokenize=False)
        opened = render_prompt(question, tokenizer)
        if opened.startswith(closed):
            header = list(tokenizer(opened[len(closed) :], add_special_tokens=False)["input_ids"])
    if getattr(tokenizer, "add_bos_token", False) and tokenizer.bos_token_id is not None:
        return [tokenizer.bos_token_id, *header]
    return header or ([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])


def _mean_exp(table: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        return np.exp(table[:, 0] / table[:, 1])  # 0 / 0 is the NaN that means "nothing to score"


def _nll(pool: Pool, scorer: str | None, *, given_prompt: bool) -> NDArray[np.float64]:
    name = pool.scorer if scorer is None else scorer
    if name is None:
        raise DataError("perplexity and ifd need a language model: set scorer to a model.")
    dtype = auto_dtype(default_device())
    folder = pool.store(
        "nll",
        model=model_fingerprint(name),
        dtype=dtype,
        max_length=pool.max_length,
        given_prompt=given_prompt,
    )
    table = finished(folder)
    if table is None:
        table = map_rows(
            _Scorer(pool, name, dtype, given_prompt),
            len(pool),
            folder,
            dtype=np.float64,
            width=_WIDTH,
            chunk=4 * pool.batch_size,  # a minute or two of work on two slow cores
            log=pool.log,
            what=f"scoring answers {'after' if given_prompt else 'without'} their prompts with {name}",
        )
    cut, empty = int(table[:, 2].sum()), int((table[:, 1] == 0).sum())
    if cut and given_prompt:
        pool.log.warn(
            f"{cut:,} of {len(pool):,} rows are longer than max_length = {pool.max_length} tokens and were "
            f"scored on what fits; {empty:,} of them have no token of the answer left and get NaN."
        )
    return table


class _Scorer:
    """Scores rows of a pool; the model is loaded with the first row that is not on disk yet."""

    def __init__(self, pool: Pool, name: str, dtype: str, given_prompt: bool) -> None:
        self.pool, self.name, self.dtype, self.given_prompt = pool, name, dtype, given_prompt
        self.model: Any = None

    def __call__(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        if self.model is None:
            self.model = load_model(self.name, dtype=self.dtype)
            self.tokenizer = load_tokenizer(self.name)
            self.start = turn_start(self.tokenizer)
        encoded = [self._encode(row, int(i)) for i, row in zip(indices, self.pool.rows(indices), strict=True)]
        nll, tokens = completion_nll(
            self.model,
            [e.input_ids for e in encoded],
            [e.trained for e in encoded],
            self.tokenizer.pad_token_id,
            batch_size=self.pool.batch_size,
        )
        return np.column_stack([nll, tokens, [e.truncated for e in encoded]]).astype(np.float64)

    def _encode(self, row: dict[str, Any], index: int) -> EncodedRow:
        whole = encode_row(self.pool, row, index, self.tokenizer)
        if self.given_prompt or row_kind(row) != "messages":
            return whole
        answer = [i for i, trained in zip(whole.input_ids, whole.trained, strict=True) if trained]
        ids = self.start + answer
        return EncodedRow(ids, [False] * len(self.start) + [True] * len(answer), whole.truncated)


def encode_row(pool: Pool, row: dict[str, Any], index: int, tokenizer: Any) -> EncodedRow:
    """Tokenise a row of a pool as it is scored: the last answer of a conversation is trained, or all of a text.

    Raises:
        DataError: it cannot be rendered; names the row.
    """
    try:
        if row_kind(row) == "messages":
            return encode_messages(row["messages"], tokenizer, max_length=pool.max_length)
        text = row["text"] if row_kind(row) == "text" else f"{row['anchor']}\n{row['positive']}"
        return encode_text(text, tokenizer, max_length=pool.max_length)
    except DataError as error:
        source, number = pool.where(index)
        raise DataError(str(error), source=source, row=number) from error
