"""Likelihood of the trained tokens of rows under a causal language model, with logits only where needed.

The logits tensor (rows x tokens x vocabulary) is what fills memory: 32 rows of 512 tokens under a vocabulary of
49,152 words are 3.2 GB in float32, and the output layer of a 135M model of that vocabulary is 28 of its 135 million
weights. So the decoder body is run, the hidden states at the positions that predict trained tokens are gathered,
and only those go through the output layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.errors import ParameterError

__all__ = ["completion_nll", "has_plain_head", "last_states"]

# Model -> whether its head is plain; entries go with their models.
_PLAIN_HEAD: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()

# Rows of logits at once: times 49,152 words and 4 bytes that is 400 MB.
_LOGIT_ROWS = 2048


def completion_nll(
    model: Any,
    input_ids: Sequence[Sequence[int]],
    trained: Sequence[Sequence[bool]],
    pad_id: int,
    *,
    batch_size: int = 32,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the summed negative log-likelihood of each row's trained tokens, and how many there are.

    The first token of a row has nothing before it and is never counted. Rows are batched by length, so that
    little is padded; the result is in the order given. Log-probabilities are computed in float32 whatever the
    model's type, and summed in float64. Memory: hidden states of a batch, and logits of 2,048 tokens.

    Args:
        model: a transformers causal language model in evaluation mode, on any device, in any type.
        input_ids: token ids of b rows of any lengths; an empty row scores 0 on 0 tokens.
        trained: for each row and position whether its token is scored; same lengths.
        pad_id: id that fills short rows up; masked, so any valid id does.
        batch_size: rows per forward pass.

    Returns:
        float64 ``(b,)`` summed nll in nats, and int64 ``(b,)`` tokens scored.

    Raises:
        ParameterError: a row and its mask differ in length.
    """
    import torch

    for ids, mask in zip(input_ids, trained, strict=True):
        if len(ids) != len(mask):
            raise ParameterError(
                "trained", completion_nll, f"a mask of the row's length {len(ids)}", len(mask)
            )
    sums = np.zeros(len(input_ids))
    counts = np.array([sum(map(bool, mask[1:])) for mask in trained], dtype=np.int64)
    # Rows without a scored token need no pass; the longest come first: a lack of memory shows at once.
    order = sorted(np.flatnonzero(counts).tolist(), key=lambda i: -len(input_ids[i]))
    with torch.inference_mode():
        for begin in range(0, len(order), batch_size):
            rows = order[begin : begin + batch_size]
            sums[rows] = _batch_nll(model, [input_ids[i] for i in rows], [trained[i] for i in rows], pad_id)
    return sums, counts


def _batch_nll(
    model: Any, input_ids: list[Sequence[int]], trained: list[Sequence[bool]], pad_id: int
) -> NDArray[np.float64]:
    import torch

    shape = (len(input_ids), max(map(len, input_ids)))
    ids = torch.full(shape, pad_id, dtype=torch.long)
    seen = torch.zeros(shape, dtype=torch.long)
    scored = torch.zeros(shape, dtype=torch.bool)
    for i, (row, mask) in enumerate(zip(input_ids, trained, strict=True)):
        ids[i, : len(row)] = torch.as_tensor(row, dtype=torch.long)
        seen[i, : len(row)] = 1
        scored[i, : len(row)] = torch.as_tensor(mask, dtype=torch.bool)
    row_of, position = scored[:, 1:].nonzero(as_tuple=True)  # the state at t predicts the token at t + 1
    targets = ids[row_of, position + 1]
    device = model.device
    nll = _token_nll(
        model, ids.to(device), seen.to(device), row_of.to(device), position.to(device), targets.to(device)
    )
    sums = np.zeros(shape[0])
    np.add.at(sums, row_of.numpy(), nll.cpu().double().numpy())
    return sums


def _token_nll(model: Any, ids: Any, seen: Any, row_of: Any, position: Any, targets: Any) -> Any:
    """Return the nll of each target, float32, from the states that predict them."""
    import torch
    from torch.nn.functional import cross_entropy

    if has_plain_head(model, ids):
        head = model.get_output_embeddings()
        states = last_states(model, ids, seen)[row_of, position]
    else:
        head = torch.nn.Identity()
        states = model(input_ids=ids, attention_mask=seen, use_cache=False).logits[row_of, position]
    parts = [
        cross_entropy(head(part).float(), target, reduction="none")
        for part, target in zip(states.split(_LOGIT_ROWS), targets.split(_LOGIT_ROWS), strict=True)
    ]
    return torch.cat(parts)


def last_states(model: Any, ids: Any, seen: Any) -> Any:
    """Return the last hidden states, shape (rows, tokens, width), without the output layer."""
    return model.get_decoder()(input_ids=ids, attention_mask=seen, use_cache=False).last_hidden_state


def has_plain_head(model: Any, ids: Any) -> bool:
    """Whether the model's logits are its output layer applied to its last hidden states, and nothing more.

    Many families scale or cap their logits outside the layer (Gemma, Cohere, Granite), under ever new setting
    names. So a few tokens are run both ways, once for each model, and any difference means "ask the model".
    """
    if model not in _PLAIN_HEAD:
        import torch

        probe = ids[:1, :8]
        seen = torch.ones_like(probe)
        try:
            short = model.get_output_embeddings()(last_states(model, probe, seen))
        except (AttributeError, NotImplementedError, TypeError):  # a model without such parts
            _PLAIN_HEAD[model] = False
        else:
            full = model(input_ids=probe, attention_mask=seen, use_cache=False).logits
            _PLAIN_HEAD[model] = short.shape == full.shape and torch.allclose(
                short.float(), full.float(), rtol=1e-5, atol=1e-6
            )
    return _PLAIN_HEAD[model]
