"""Which input tokens are hidden and what stands in their place: pure functions on tensors.

Masked thought fine-tuning, Chen et al., ACL 2024, arXiv 2403.02178, Eq. 1: ``L = -sum_t log p(w_t | w^s_<t)`` with
``w^s_i = f(w_i, n_i)`` where ``M_i = 1``, ``M_i ~ Bernoulli(p)`` for each target token and 0 for the question's.

Draws come from a hash of (seed, step, what the sequence says, place in it) and not from a generator with a state. So
they are the same however a step is cut into micro-batches, processes or workers and whatever else is drawn in the
training, and they are equal on every device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tunesmith.core.seeds import child_seed

__all__ = ["draw_noise", "eligible_tokens", "mask_inputs"]

BITS = 53
"""Bits of a draw; a rate is compared at this resolution."""
STEP = (
    -7046029254386353131
)  # 0x9E3779B97F4A7C15, 2^64 over the golden ratio: steps of the sequence (SplitMix64)


def mask_inputs(
    input_ids: Tensor, M: Tensor, noise: Tensor, use_noise: Tensor | bool, mask_id: int | None
) -> Tensor:
    """Return ``w^s``: the noise where ``M`` and ``use_noise``, the mask token where ``M`` alone, else the input.

    Args:
        input_ids: w, int64 (B, T).
        M: bool (B, T), the corrupted positions.
        noise: int64 (B, T), tokens for noise of the kind "random".
        use_noise: bool (B, T), or one for all.
        mask_id: id of the mask token; None where ``use_noise`` is True everywhere.

    Returns:
        int64 (B, T), a new tensor. Time and memory O(B T).
    """
    if use_noise is False:
        assert mask_id is not None
        return input_ids.masked_fill(M, mask_id)
    if use_noise is not True:
        assert mask_id is not None
        noise = torch.where(torch.as_tensor(use_noise), noise, mask_id)
    return torch.where(M, noise, input_ids)


def eligible_tokens(batch: Mapping[str, Any]) -> Tensor:
    """Return bool (B, T): the trained tokens, ``labels != -100``; prompt and padding never are."""
    labels: Tensor = batch["labels"]
    return labels != -100


def draw_noise(
    batch: Mapping[str, Any],
    p: float,
    *,
    seed: int = 0,
    step: int = 0,
    replace_rate: float = 0.0,
    noise_ids: Tensor | int = 0,
) -> tuple[Tensor, Tensor, Tensor | bool]:
    """Draw ``M``, tokens for the random kind, and which kind each place gets.

    Every token has its own draw. A sequence's draws depend on the seed, the step, its tokens without padding, and
    nothing else: two equal sequences in one step get equal draws. In packed batches (``position_ids`` that start again)
    each of the packed sequences counts as one.

    Args:
        batch: ``input_ids`` and ``labels`` (B, T), and ``attention_mask`` and ``position_ids`` (B, T) where there are.
        p: rate, in [0, 1]; 0 draws no place and 1 draws all.
        seed: of all draws.
        step: of the draws; each step has new ones.
        replace_rate: r, share of the hits that get a random token, in [0, 1].
        noise_ids: tokens of the random kind, int64 (n,), or n for the ids below n.

    Returns:
        ``M`` bool (B, T); noise int64 (B, T); ``use_noise``, bool (B, T), or one bool where r is 0 or 1. Time and
        memory O(B T).
    """
    eligible = eligible_tokens(batch)
    place = _places(batch)
    M = _below(_draw(place, seed, step, "hit"), p) & eligible
    noise = batch["input_ids"]
    use_noise: Tensor | bool = replace_rate > 0
    if use_noise:
        count = noise_ids if isinstance(noise_ids, int) else len(noise_ids)
        index = _right(_draw(place, seed, step, "token"), 1) % count
        noise = index if isinstance(noise_ids, int) else noise_ids.to(index.device)[index]
        if replace_rate < 1:
            use_noise = _below(_draw(place, seed, step, "kind"), replace_rate)
    return M, noise, use_noise


def _places(batch: Mapping[str, Any]) -> Tensor:
    """Return int64 (B, T): a number for each place, made of its sequence's tokens and of where in it it is."""
    ids = batch["input_ids"].long()
    mask, position = batch.get("attention_mask"), batch.get("position_ids")
    real = mask.long() if mask is not None and mask.dim() == 2 else torch.ones_like(ids)
    if position is None or position.shape != ids.shape:
        position = real.cumsum(1) - 1
        said = (_mix(ids * STEP + position + 1) * real).sum(1, keepdim=True)
        return _mix(said + position * STEP)
    begins = position[:, 1:] <= position[:, :-1]
    sequence = torch.nn.functional.pad(begins.long().cumsum(1), (1, 0))
    sequence = (sequence + torch.arange(len(ids), device=ids.device)[:, None] * ids.shape[1]).flatten()
    said = (_mix(ids * STEP + position + 1) * real).flatten()
    said = torch.zeros_like(said).index_add_(0, sequence, said)[sequence].view_as(ids)
    return _mix(said + position * STEP)


def _draw(place: Tensor, seed: int, step: int, purpose: str) -> Tensor:
    """Return int64 (B, T), all 64 bits of which are random."""
    return _mix(place ^ (child_seed(seed, "masked thought", purpose, step) * STEP % 2**63))


def _below(draws: Tensor, p: float) -> Tensor:
    return _right(draws, 64 - BITS) < round(p * 2**BITS)


def _mix(z: Tensor) -> Tensor:
    """Return the finaliser of SplitMix64 (Steele et al. 2014) on int64, whose products wrap around."""
    z = (z ^ _right(z, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    z = (z ^ _right(z, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return z ^ _right(z, 31)


def _right(z: Tensor, bits: int) -> Tensor:
    """Shift right as unsigned numbers do."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
