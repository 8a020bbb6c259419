"""The two banks of DR-Tune, without any framework: features in, calibrated features out (arXiv 2308.12058)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import normalize

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.trainers.dr_tune.calibration import CALIBRATIONS, calibrate, procrustes_rotation

__all__ = ["DRTuneRegularizer", "check_bank", "prototypes"]


def check_bank(owner: Any, bank_size: int, rotate_every: int, calibration: str) -> None:
    """Refuse settings that make no bank.

    Raises:
        ParameterError: a size or interval that is no int, or too small; an unknown calibration.
    """
    for name, value, least in (("bank_size", bank_size, 0), ("rotate_every", rotate_every, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ParameterError(name, owner, f"an int of at least {least}", value)
    if calibration not in CALIBRATIONS:
        raise ParameterError(
            "calibration", owner, f"one of {', '.join(map(repr, CALIBRATIONS))}", calibration
        )


def prototypes(head: Any, dim: int, owner: Any = "DRTuneRegularizer") -> torch.Tensor:
    """Return the weight (C, dim) of a linear head, the class prototypes phi; with the deltas of PEFT's adapters.

    Raises:
        ParameterError: the head is not one linear layer, or takes features of another width.
    """
    phi = head if isinstance(head, torch.Tensor) else getattr(head, "weight", None)
    if phi is None and isinstance(head, nn.Module):  # a linear layer behind dropout
        linears = [m for m in head.modules() if isinstance(m, nn.Linear)]
        phi = linears[0].weight if len(linears) == 1 else None
    if not isinstance(phi, torch.Tensor) or phi.dim() != 2 or phi.shape[1] != dim:
        got = tuple(phi.shape) if isinstance(phi, torch.Tensor) else type(head).__name__
        raise ParameterError("head", owner, f"a linear layer, or its weight, of shape (classes, {dim})", got)
    phi = phi.detach()
    if hasattr(head, "get_delta_weight") and not head.disable_adapters and not head.merged:
        with torch.no_grad():
            phi = phi + sum(head.get_delta_weight(name) for name in head.active_adapters)
    return phi


class DRTuneRegularizer(nn.Module):
    """Banks of features of the pre-trained and of the trained encoder, from which a head learns that keeps to both.

    Each call returns the pre-trained bank, rotated and shifted onto the trained one, and then stores the batch. The
    features returned carry no gradient, so only the head is regularised and the encoder stays free. DR-Tune, steps 1-3
    and 7 (Zhou, Chen and Huang, ICCV 2023, arXiv 2308.12058)::

        regularizer = DRTuneRegularizer(dim, bank_size=2048)
        regularizer.warm_up((frozen(x), y) for x, y in loader)
        ...
        z = encoder(x)
        bank, bank_labels = regularizer(z, frozen(x), y, head)
        loss = dr_tune_loss(z, y, bank, bank_labels, head)

    The scaling of the authors' code is the default: it is what the published results use. Banks are buffers, part of
    ``state_dict``. The same calls give the same results; nothing is drawn.

    Args:
        dim: width d of the features.
        bank_size: K, entries of each bank; 0 switches the regulariser off. At most the size of the data set makes
            sense; 2048 in the paper, whose results are flat from 64 up.
        rotate_every: calls from one rotation to the next; 10 in the authors' code.
        reuse_rotation: apply the last rotation in the calls between. False, as the authors' code: there the bank is
            shifted class by class, but not rotated.
        calibration: "both", "rotation", "translation" or "none".
        normalize: unit rows and prototypes, and a result of the batch's mean norm, as the authors' code. False: the
            paper's Eqs. 7-12 on raw features.

    Memory: 2 K d float32 (34 MB at K = d = 2048), and d^2 more to reuse rotations. Time per call: O(K d), and for a
    rotation O(K d^2 + d^3), or O(d K^2 + K^3) where K < d.

    Raises:
        ParameterError: a setting outside its range.
    """

    bank_p: torch.Tensor
    bank_d: torch.Tensor
    bank_labels: torch.Tensor
    R: torch.Tensor
    position: torch.Tensor

    def __init__(
        self,
        dim: int,
        bank_size: int = 2048,
        *,
        rotate_every: int = 10,
        reuse_rotation: bool = False,
        calibration: str = "both",
        normalize: bool = True,
    ) -> None:
        super().__init__()
        if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
            raise ParameterError("dim", self, "an int of at least 1", dim)
        check_bank(self, bank_size, rotate_every, calibration)
        self.dim, self.bank_size = dim, bank_size
        self.rotate_every, self.reuse_rotation = rotate_every, reuse_rotation
        self.calibration, self.normalize = calibration, normalize
        self.register_buffer("bank_p", torch.zeros(bank_size, dim))
        self.register_buffer("bank_d", torch.zeros(bank_size, dim))
        self.register_buffer("bank_labels", torch.zeros(bank_size, dtype=torch.int64))
        self.register_buffer("position", torch.zeros(3, dtype=torch.int64))  # write pointer, rows held, calls
        if reuse_rotation:
            self.register_buffer("R", torch.eye(dim))

    def extra_repr(self) -> str:
        """Return the settings, for ``repr``."""
        return f"dim={self.dim}, bank_size={self.bank_size}, calibration={self.calibration!r}"

    @property
    def held(self) -> int:
        """Rows in each bank so far, at most K."""
        return int(self.position[1])

    @torch.no_grad()
    def enqueue(self, features_down: torch.Tensor, features_pre: torch.Tensor, labels: torch.Tensor) -> None:
        """Store a batch in place of the oldest entries; of one larger than the banks, its last K rows.

        Args:
            features_down: of the trained encoder, (B, d).
            features_pre: of the frozen one, (B, d), for the same rows.
            labels: classes, (B,), an integer type.

        Raises:
            ParameterError: features that are no tensor (B, d).
            DataError: labels that are no class ids.
        """
        self._checked(features_down, features_pre, labels, None)
        rows = min(len(labels), self.bank_size)
        if not rows:
            return
        pointer, held, _ = self.position.tolist()
        slots = (pointer + torch.arange(rows, device=self.bank_p.device)) % self.bank_size
        for bank, new in (
            (self.bank_p, features_pre),
            (self.bank_d, features_down),
            (self.bank_labels, labels),
        ):
            bank[slots] = new[-rows:].to(bank)
        self.position[0] = (pointer + rows) % self.bank_size
        self.position[1] = min(held + rows, self.bank_size)

    def warm_up(self, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> int:
        """Fill the banks before training: both get the pre-trained features, which are the trained ones at the start.

        Args:
            batches: ``(features_pre, labels)``; taken until the banks are full. Fewer rows than K are enough to begin.

        Returns:
            Rows in each bank.
        """
        if self.held < self.bank_size:
            for features, labels in batches:
                missing = self.bank_size - self.held  # the same rows however they are cut into batches
                self.enqueue(features[:missing], features[:missing], labels[:missing])
                if self.held == self.bank_size:
                    break
            else:
                warnings.warn(
                    f"The warm-up ended with {self.held:,} rows in banks of {self.bank_size:,}; the rest fills in "
                    "training.",
                    stacklevel=2,
                )
        return self.held

    def forward(
        self, features_down: torch.Tensor, features_pre: torch.Tensor, labels: torch.Tensor, head: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the calibrated bank; then, in training mode, store the batch, which is so never in its own bank.

        Args:
            features_down: z^d, of the trained encoder, (B, d).
            features_pre: z^p, of the frozen one, (B, d).
            labels: y, classes, (B,), an integer type.
            head: the linear layer from features to logits, or its weight (C, d).

        Returns:
            Features ``(rows held, d)`` in the type of ``features_down``, without gradient, and their classes, int64.

        Raises:
            ParameterError: features that are no tensor (B, d), a head that is not linear.
            DataError: labels that are no class ids of the head.
        """
        phi = prototypes(head, self.dim, self)
        self._checked(features_down, features_pre, labels, len(phi))
        with torch.no_grad(), torch.autocast(features_down.device.type, enabled=False):
            bank, bank_labels = self._calibrated(features_down, phi)
            if self.training:
                self.enqueue(features_down, features_pre, labels)
                self.position[2] += 1
        return bank.to(features_down.dtype), bank_labels

    def _calibrated(self, z: torch.Tensor, phi: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        held, calls = self.position[1:].tolist()
        kind = torch.promote_types(self.bank_p.dtype, torch.float32)  # no SVD in half precision
        P, D = (
            self.bank_p[:held].to(kind, copy=True),
            self.bank_d[:held].to(kind),
        )  # the next batch overwrites
        labels = self.bank_labels[:held].clone()
        turn = self.calibration in ("both", "rotation") and held > 0
        due = calls % self.rotate_every == 0
        if turn and due and self.reuse_rotation:
            pair = (normalize(P), normalize(D)) if self.normalize else (P, D)
            self.R.copy_(procrustes_rotation(*pair))
        bank = calibrate(
            P,
            D,
            labels,
            phi.to(P),
            z.to(P.dtype).norm(dim=1).mean(),
            rotate=turn and (due or self.reuse_rotation),
            translate=self.calibration in ("both", "translation"),
            normalize_rows=self.normalize,
            R=self.R.to(kind) if self.reuse_rotation else None,
        )
        return bank, labels

    def _checked(self, down: Any, pre: Any, labels: Any, classes: int | None) -> None:
        ids = (
            isinstance(labels, torch.Tensor) and not labels.is_floating_point() and labels.dtype != torch.bool
        )
        if not ids or labels.dim() != 1:
            got = type(labels).__name__
            if isinstance(labels, torch.Tensor):
                got = f"{str(labels.dtype).removeprefix('torch.')} of shape {tuple(labels.shape)}"
            raise DataError(
                "DR-Tune keeps one class for each bank entry: labels must be class ids, integers of shape (B,). "
                f"Got {got}; soft or mixed labels and regression do not work."
            )
        for name, features in (("features_down", down), ("features_pre", pre)):
            expected = (len(labels), self.dim)
            if not isinstance(features, torch.Tensor) or tuple(features.shape) != expected:
                shape = (
                    tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
                )
                raise ParameterError(name, self, f"a tensor of pooled features, {expected}", shape)
        wrong = labels < 0 if classes is None else (labels < 0) | (labels >= classes)
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            most = "" if classes is None else f" to {classes - 1}"
            raise DataError(f"label {int(labels[row])} is not a class of the head, 0{most}", row=row)
