"""What masked thought is told, and the corruption that follows from it for one tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from tunesmith.core.errors import DataError, ParameterError, nearest
from tunesmith.trainers.masked_thought.noise import draw_noise, eligible_tokens, mask_inputs

__all__ = ["Corruption", "MaskedThought", "check_batch"]

MODES = ("mask", "random", "mixed")


@dataclass
class MaskedThought:
    """Settings of masked thought fine-tuning (Chen et al., ACL 2024, arXiv 2403.02178).

    Attributes:
        rate: p_max, share of the reasoning's tokens that are hidden, in [0, 1]: 0.4 for prose, 0.1 to 0.2 where
            formulas are dense (table 8).
        warmup: rho, share of the steps in which the rate rises from 0; 0 for a fixed rate.
        start: share of the steps before that, without any.
        mode: what stands in a hidden place: ``"mask"``, a mask token; ``"random"``, any token (slightly better on the
            7,000 rows of GSM8K, and no token to add); ``"mixed"``, both.
        replace_rate: share of random tokens with ``"mixed"``, in [0, 1].
        mask_token: the mask token, as text or id. By default the tokenizer's own; `add_mask_token` gives it one. Any
            other token can be reused, that for padding too.
        exclude_special: with ``"random"`` and ``"mixed"`` draw no special tokens; the authors' code may.
        drop_attention_mask: hide corrupted places from attention too; on a par in the paper.
        allow_no_prompt: take rows all of whose tokens are trained. Without a prompt nothing says what the hidden tokens
            were, so such rows are refused by default: their boundary is usually lost.
        seed: of the draws; the trainer's by default.

    Raises:
        ParameterError: a value is outside its set.
    """

    rate: float = 0.4
    warmup: float = 2 / 3
    start: float = 0.0
    mode: str = "mask"
    replace_rate: float | None = None
    mask_token: str | int | None = None
    exclude_special: bool = False
    drop_attention_mask: bool = False
    allow_no_prompt: bool = False
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("rate", "warmup", "start"):
            check_share(name, getattr(self, name), self)
        check_mode(self.mode, self.replace_rate, self)

    @classmethod
    def of(cls, value: Any) -> MaskedThought:
        """Return settings from settings or from a mapping of their fields.

        Raises:
            ParameterError: it is neither, a field is unknown, or a value is outside its set.
        """
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise ParameterError("masked", cls, "a MaskedThought, or a mapping of its fields", value)
        known = [f.name for f in fields(cls)]
        for name in value:
            if name not in known:
                raise ParameterError("masked", cls, f"of {', '.join(known)}.{nearest(name, known)}", name)
        return cls(**value)

    def describe(self) -> dict[str, Any]:
        """Return the settings as JSON-able values, for telling two trainings apart."""
        return asdict(self)

    def corruption(self, tokenizer: Any, seed: int = 0) -> Corruption:
        """Return what these settings do with a tokenizer's tokens.

        Args:
            tokenizer: of transformers, or a processor that has one.
            seed: of the draws, where the settings have none.

        Raises:
            ParameterError: the mode needs a mask token, and there is none.
        """
        return Corruption.of(
            type(self).__name__,
            tokenizer,
            mode=self.mode,
            replace_rate=self.replace_rate,
            mask_token=self.mask_token,
            exclude_special=self.exclude_special,
            drop_attention_mask=self.drop_attention_mask,
            seed=seed if self.seed is None else self.seed,
        )


@dataclass
class Corruption:
    """Changes the input of a batch.

    Attributes:
        mask_id: of the mask token, None where every hit gets a random token.
        replace_rate: r, share of the hits that get one.
        noise_ids: tokens that are drawn, int64 (n,), or n for all ids below.
        drop_attention_mask: hide hits from attention too.
        seed: of the draws.
    """

    mask_id: int | None
    replace_rate: float
    noise_ids: Tensor | int
    drop_attention_mask: bool
    seed: int

    @classmethod
    def of(
        cls,
        owner: Any,
        tokenizer: Any,
        *,
        mode: str,
        replace_rate: float | None,
        mask_token: str | int | None,
        exclude_special: bool,
        drop_attention_mask: bool,
        seed: int,
        vocab_size: int | None = None,
    ) -> Corruption:
        """Return the corruption of some settings; see `MaskedThought` for them, ``owner`` is who is to blame."""
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        r = {"mask": 0.0, "random": 1.0}.get(mode, replace_rate)
        assert r is not None
        mask_id = None if r == 1 else _mask_id(mask_token, tokenizer, owner)
        noise_ids: Tensor | int = 0
        if r > 0:
            size = vocab_size if tokenizer is None or vocab_size is not None else tokenizer.vocab_size
            if not isinstance(size, int) or size < 1:
                expected = f"an int >= 1 where there is no tokenizer, for mode='{mode}'"
                raise ParameterError("vocab_size", owner, expected, size)
            noise_ids = size
            if exclude_special:
                special = [] if tokenizer is None else tokenizer.all_special_ids
                kept = torch.ones(size, dtype=torch.bool)
                kept[[i for i in special if i < size]] = False
                noise_ids = kept.nonzero()[:, 0]
        return cls(mask_id, r, noise_ids, drop_attention_mask, seed)

    def __call__(self, batch: Mapping[str, Any], rate: float, step: int) -> dict[str, Any]:
        """Return the batch with corrupted ``input_ids``; everything else is the same object, at rate 0 these too.

        Raises:
            DataError: there is no attention mask to take places out of.
        """
        batch = dict(batch)
        if rate <= 0:
            return batch
        M, noise, use_noise = draw_noise(
            batch,
            rate,
            seed=self.seed,
            step=step,
            replace_rate=self.replace_rate,
            noise_ids=self.noise_ids,
        )
        if self.drop_attention_mask:
            mask = batch.get("attention_mask")
            if mask is None or mask.shape != M.shape:
                raise DataError(
                    "drop_attention_mask needs an attention mask with one entry per token, and the batch has "
                    f"{'none' if mask is None else f'one of shape {tuple(mask.shape)}'}. "
                    "Leave it off in packed batches."
                )
            batch["attention_mask"] = mask.masked_fill(M, 0)
        batch["input_ids"] = mask_inputs(batch["input_ids"], M, noise, use_noise, self.mask_id)
        return batch

    def fits(self, model: Any, owner: Any) -> None:
        """Check that the model has an embedding for each token that may be put in.

        Raises:
            ParameterError: it has not.
        """
        rows = _rows(model)
        if rows is None:
            return
        if self.mask_id is not None and self.mask_id >= rows:
            expected = f"below {rows:,}, the rows of the model's embedding: add_mask_token(model, tokenizer) adds one"
            raise ParameterError("mask_token", owner, expected, self.mask_id)
        most = self.noise_ids if isinstance(self.noise_ids, int) else int(self.noise_ids.max()) + 1
        if most > rows:
            expected = f"at most {rows:,}, the rows of the model's embedding"
            raise ParameterError("vocab_size", owner, expected, most)


def _rows(model: Any) -> int | None:
    """Return the size of the input embedding, None where it cannot be told (sharded weights are empty)."""
    get = getattr(model, "get_input_embeddings", None)
    layer = None if get is None else get()
    for name in ("num_embeddings", "weight"):
        value = getattr(layer, name, None)
        if value is not None:
            return int(value if isinstance(value, int) else value.shape[0]) or None
    return None


def _mask_id(token: str | int | None, tokenizer: Any, owner: Any) -> int:
    if isinstance(token, int) and not isinstance(token, bool):
        if token < 0:
            raise ParameterError("mask_token", owner, "an id >= 0 or a token's text", token)
        return token
    if isinstance(token, str) and tokenizer is not None:
        found = tokenizer.get_vocab().get(token)
        if found is None:
            raise ParameterError("mask_token", owner, "a token of the tokenizer", token)
        return int(found)
    own = None if tokenizer is None or token is not None else getattr(tokenizer, "mask_token_id", None)
    if own is None:
        raise ParameterError(
            "mask_token",
            owner,
            "a token or its id, because the tokenizer has no mask token: add_mask_token(model, tokenizer) adds one, "
            "any token may be reused, and mode='random' needs none",
            token,
        )
    return int(own)


def check_share(name: str, value: Any, owner: Any) -> None:
    """Raise ParameterError unless a value is a number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ParameterError(name, owner, "a float in [0, 1]", value)


def check_mode(mode: Any, replace_rate: Any, owner: Any) -> None:
    """Raise ParameterError unless a mode is known and has its share of random tokens exactly where it needs one."""
    if mode not in MODES:
        raise ParameterError("mode", owner, f"one of {', '.join(map(repr, MODES))}", mode)
    if mode == "mixed":
        check_share("replace_rate", replace_rate, owner)
    elif replace_rate is not None:
        raise ParameterError("replace_rate", owner, "left out unless mode='mixed'", replace_rate)


def check_batch(batch: Any, *, allow_no_prompt: bool) -> None:
    """Check that a clean batch has a prompt and a reasoning after it in each row.

    Raises:
        DataError: ids or labels are missing or do not belong together, a row has no trained token, nothing but trained
            tokens, or labels that are not its ids.
    """
    ids, labels = (batch.get(name) for name in ("input_ids", "labels"))
    if ids is None or labels is None:
        missing = " and ".join(f"'{n}'" for n, v in (("input_ids", ids), ("labels", labels)) if v is None)
        raise DataError(f"Masked thought needs 'input_ids' and 'labels', and the batch has no {missing}.")
    if ids.shape != labels.shape or ids.dim() != 2:
        raise DataError(
            f"Masked thought needs 'input_ids' and 'labels' of one shape (rows, tokens), and theirs are "
            f"{tuple(ids.shape)} and {tuple(labels.shape)}. It works on causal language models."
        )
    eligible = eligible_tokens(batch)
    row = _first(~eligible.any(1))
    if row is not None:
        raise DataError(
            "there is no reasoning to hide: no token of the row is trained (labels are -100 everywhere). Leave such "
            "rows out, or raise max_length if it cuts answers off",
            source="batch",
            row=row,
        )
    row = _first((eligible & (ids != labels)).any(1))
    if row is not None:
        raise DataError(
            "labels differ from input_ids at trained tokens. Masked thought needs the clean input: not one that was "
            "masked before (masks are drawn anew in each step), and not shifted labels",
            source="batch",
            row=row,
        )
    if allow_no_prompt:
        return
    free = (
        ~eligible
    )  # the first token of a sequence is predicted from nothing, so it says nothing about a prompt
    free[:, 0] = False
    mask, position = batch.get("attention_mask"), batch.get("position_ids")
    if mask is not None and mask.shape == ids.shape:
        real = mask != 0
        free &= real & (real.cumsum(1) > 1)
    if position is not None and position.shape == ids.shape:
        free &= position != 0
    row = _first(~free.any(1))
    if row is not None:
        raise DataError(
            "all tokens of the row are trained, so it has no prompt from which the hidden ones could be told. Set the "
            "prompt's labels to -100 (completion_only_loss in TRL), or pass allow_no_prompt=True",
            source="batch",
            row=row,
        )


def _first(rows: Tensor) -> int | None:
    """Return the number of the first True; waits for the device."""
    found = rows.nonzero()
    return int(found[0]) if len(found) else None
