"""Hard pairs made by mixing features: steps 2 to 4 of Core-tuning (arXiv 2102.06605)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import normalize

from tunesmith.core.errors import DataError, ParameterError

__all__ = [
    "VARIANTS",
    "HardPairs",
    "check_labels",
    "check_pair_settings",
    "exact",
    "hard_pair_mixup",
    "one_hot",
]

VARIANTS = ("paper", "official")


class HardPairs(NamedTuple):
    """What `hard_pair_mixup` makes of B features.

    Attributes:
        features: (3B, d), in the order z, z⁻, z⁺.
        labels: soft labels of these rows, (3B, C), float32; each row sums to 1.
        hp: hardest positive of each row, (B,) int64; the row itself where it is alone in its class.
        hn: hardest negative, (B,) int64; the row itself in a batch of one class.
        n: the partner of another class in z⁻, (B,) int64; the row itself in a batch of one class.
        lambda_neg: share of the partner in z⁻, (B,), in [clip, 1].
        lambda_pos: share of the hardest positive in z⁺, (B,), in [0, 1].
        mixed: False in a batch of one class, where z⁻ and z⁺ are z.
    """

    features: torch.Tensor
    labels: torch.Tensor
    hp: torch.Tensor
    hn: torch.Tensor
    n: torch.Tensor
    lambda_neg: torch.Tensor
    lambda_pos: torch.Tensor
    mixed: bool


def hard_pair_mixup(
    features: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int | None = None,
    *,
    alpha: float = 1.0,
    clip: float = 0.8,
    detach_originals: bool = False,
    strict: bool = False,
    variant: str = "paper",
    generator: torch.Generator | None = None,
    partner: torch.Tensor | None = None,
    lambda_neg: torch.Tensor | None = None,
    lambda_pos: torch.Tensor | None = None,
) -> HardPairs:
    """Return the features z with a hard negative z⁻ and a hard positive z⁺ for each, and their soft labels.

    hp(i) is the row of i's class least similar to it by cosine, hn(i) the most similar row of another class, and n(i)
    a random row of another class. With lambda_i ~ Beta(alpha, alpha), drawn anew in each line, and the latter raised
    to ``clip`` where it is less::

        z⁺_i = lambda_i z_hp(i) + (1 - lambda_i) z_hn(i)
        z⁻_i = lambda_i z_n(i) + (1 - lambda_i) z_i

    and the one-hot labels are mixed alike. The choice of rows has no gradient; the mixed features have.
    Core-tuning (Zhang et al. 2021, arXiv 2102.06605), steps 2 to 4. Time O(B² d), memory O(B² + B d).

    Args:
        features: z, (B, d), B of at least 2; before the last linear layer, not normalised.
        labels: y, (B,) integers in [0, C).
        num_classes: C; the largest label and 1 by default.
        alpha: of the Beta distribution, above 0; 1 is uniform, small ones give nearly pure rows.
        clip: least share of the partner in z⁻, in [0, 1].
        detach_originals: the first B rows of the result carry no gradient, as in the authors' code.
        strict: refuse a batch of one class, which has no negatives; else its rows are repeated unmixed.
        variant: ``"official"`` chooses rows as the authors' code does: masked entries take part as similarities of 0,
            a hardest positive at index 0 is replaced by the row itself, and the partner is a random permutation,
            whatever its class.
        generator: of the draws, on the CPU; torch's global one by default.
        partner: n, (B,); drawn by default.
        lambda_neg: before the clip, (B,); drawn by default.
        lambda_pos: (B,); drawn by default.

    Raises:
        ParameterError: a parameter outside its set, or features and labels of other shapes or types.
        DataError: a label outside [0, C); one class only, where ``strict``.
    """
    owner = "hard_pair_mixup"
    check_pair_settings(owner, alpha, clip, variant)
    C = check_labels(features, labels, num_classes, owner)
    B, device = len(labels), features.device
    y = labels.to(device=device, dtype=torch.int64)
    mixed = several_classes(y, strict)
    z = features
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        unit = normalize(exact(z), dim=1)
        s = unit @ unit.T
        hp, hn = _official_rows(s, y) if variant == "official" else _hardest(s, y)
        if partner is None:
            partner = (
                torch.randperm(B, generator=generator) if variant == "official" else _others(y, generator)
            )
        n = partner.to(device=device, dtype=torch.int64)
        raw = _beta(alpha, B, generator) if lambda_neg is None else lambda_neg
        towards = raw.clamp(min=clip).to(device=device, dtype=torch.float32)
        raw = _beta(alpha, B, generator) if lambda_pos is None else lambda_pos
        positive = raw.to(device=device, dtype=torch.float32)
    Y = one_hot(y, C)
    if mixed:
        z_neg, Y_neg = _mix(z, z[n], towards), _mix_labels(Y, Y[n], towards, y == y[n])
        z_pos, Y_pos = _mix(z[hn], z[hp], positive), _mix_labels(Y[hn], Y[hp], positive, y[hn] == y[hp])
    else:
        z_neg, Y_neg, z_pos, Y_pos = z, Y, z, Y
    stacked = torch.cat([z.detach() if detach_originals else z, z_neg, z_pos])
    return HardPairs(stacked, torch.cat([Y, Y_neg, Y_pos]), hp, hn, n, towards, positive, mixed)


def check_pair_settings(owner: Any, alpha: float, clip: float, variant: str) -> None:
    """Look at parameters of `hard_pair_mixup`.

    Raises:
        ParameterError: one is outside its set.
    """
    if not 0 < alpha < math.inf:
        raise ParameterError("alpha", owner, "a float above 0", alpha)
    if not 0 <= clip <= 1:
        raise ParameterError("clip", owner, "a float in [0, 1]", clip)
    if variant not in VARIANTS:
        raise ParameterError("variant", owner, "'paper' or 'official'", variant)


def one_hot(y: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return Y, (B, C) float32, of labels (B,)."""
    Y = torch.zeros(len(y), num_classes, device=y.device)
    return Y.scatter_(1, y[:, None], 1.0)


def check_labels(features: torch.Tensor, labels: torch.Tensor, num_classes: int | None, owner: Any) -> int:
    """Return C after a look at shapes, types and values.

    Raises:
        ParameterError: features are no (B, d) with B of at least 2, or labels no (B,) integers.
        DataError: a label outside [0, C).
    """
    if features.dim() != 2 or len(features) < 2 or not features.is_floating_point():
        raise ParameterError(
            "features", owner, "a float tensor (B, d) with B of at least 2", _described(features)
        )
    if (
        labels.shape != features.shape[:1]
        or labels.is_floating_point()
        or labels.is_complex()
        or labels.dtype == torch.bool
    ):
        raise ParameterError(
            "labels",
            owner,
            f"one integer class for each of the {len(features)} rows; float or multi-label targets are no classes",
            _described(labels),
        )
    low, high = (int(v) for v in torch.aminmax(labels))
    C = high + 1 if num_classes is None else num_classes
    if low < 0 or high >= C:
        wrong = low if low < 0 else high
        row = int((labels == wrong).nonzero()[0])
        raise DataError(f"label {wrong} is outside the {C} classes of the head, 0 to {C - 1}.", row=row)
    return C


def several_classes(labels: torch.Tensor, strict: bool) -> bool:
    """Return whether there are two classes among labels (B,).

    Raises:
        DataError: there are not, where ``strict``.
    """
    if bool((labels != labels[0]).any()):
        return True
    if strict:
        raise DataError(
            f"All {len(labels)} rows of the batch are of class {int(labels[0])}, so there are no negatives to mix "
            "with. Use larger or class-balanced batches, or strict=False."
        )
    return False


def _described(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def exact(x: torch.Tensor) -> torch.Tensor:
    """Half precision to float32; others as they are."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _hardest(s: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return hp and hn, (B,) each, from similarities (B, B)."""
    same = y[:, None] == y[None]
    own = torch.arange(len(y), device=y.device)
    others = same.clone().fill_diagonal_(False)
    hp = torch.where(others.any(1), s.masked_fill(~others, math.inf).argmin(1), own)
    hn = torch.where(same.all(1), own, s.masked_fill(same, -math.inf).argmax(1))
    return hp, hn


def _official_rows(s: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return hp and hn as the authors' code has them: with 0 for what is masked, index 0 meaning none."""
    same = y[:, None] == y[None]
    others = same.clone().fill_diagonal_(False)
    hp, hn = (s * others).argmin(1), (s * ~same).argmax(1)
    return torch.where(hp == 0, torch.arange(len(y), device=y.device), hp), hn


def _others(y: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """Return for each row one of another class, all equally likely; the row itself if there is none."""
    y = y.cpu()
    B = len(y)
    order = y.argsort(
        stable=True
    )  # rows of one class stand together, so those of the others are one run, cyclically
    size = torch.bincount(y)
    size, end = size[y], size.cumsum(0)[y]
    ahead = (torch.rand(B, generator=generator, dtype=torch.float64) * (B - size)).long()
    return torch.where(size == B, torch.arange(B), order[(end + ahead) % B])


def _beta(alpha: float, n: int, generator: torch.Generator | None) -> torch.Tensor:
    """Return draws of Beta(alpha, alpha), (n,) float64; torch's own take no generator."""
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.from_numpy(np.random.default_rng(seed).beta(alpha, alpha, n))


def _mix(a: torch.Tensor, b: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Return (1 - share) a + share b, row by row; a share of 1 is b exactly, and gives a no gradient."""
    w = share[:, None]
    return torch.lerp(exact(a), exact(b), w.to(exact(a).dtype)).to(a.dtype)


def _mix_labels(a: torch.Tensor, b: torch.Tensor, share: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """Return the mixed labels; those of two rows of one class are one-hot to the last bit."""
    w = share[:, None]
    return torch.where(same[:, None], a, (1 - w) * a + w * b)
