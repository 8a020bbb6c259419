"""What DR-Tune does to a bank of pre-trained features before the head learns from it, and the loss (arXiv 2308.12058).

Pure functions in the paper's symbols. A bank holds K features, one per row; ``P`` are those of the pre-trained
encoder (v^p), ``D`` those of the trained one (v^d) for the same inputs, ``labels`` their classes, ``phi`` the rows of
the head's weight matrix. Nothing here keeps gradients but `dr_tune_loss`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy, normalize

from tunesmith.core.errors import ParameterError

__all__ = [
    "calibrate",
    "confidence_weights",
    "dr_tune_loss",
    "procrustes_rotation",
    "rotate_bank",
    "translate_classes",
]

METHODS = ("auto", "full", "thin")
CALIBRATIONS = ("both", "rotation", "translation", "none")
LOSS_SCALES = ("mean", "eq14")


@torch.no_grad()
def procrustes_rotation(P: torch.Tensor, D: torch.Tensor, method: str = "auto") -> torch.Tensor:
    """Return the rotation ``R`` that takes the centred bank P closest to the centred bank D (Eq. 7).

    ``R = argmin sum_k ||R (P_k - mean P) - (D_k - mean D)||^2`` over proper rotations, ``R R^T = I`` and det R = 1 (the
    paper's constraint would allow reflections, the authors' code does not). Where K <= d the banks do not determine R
    outside their span: "thin" then moves the rest as little as an orthogonal matrix can, "full" somehow.

    Args:
        P: bank of the pre-trained encoder, (K, d), float32 or float64.
        D: bank of the trained encoder, (K, d), same rows.
        method: "full": SVD of the d x d matrix, O(K d^2 + d^3) time. "thin": QR of both banks and SVDs of K x K
            matrices, O(d^2 K + K^3), for K < d. "auto": the one with less to do.

    Returns:
        (d, d); rows of a bank are rotated by ``P @ R.T``. Memory O(d^2).

    Raises:
        ParameterError: "thin" for a bank that has as many rows as columns.
    """
    P, D = P - P.mean(0), D - D.mean(0)
    if not _thin(P, method, "procrustes_rotation"):
        U, _, Vt = torch.linalg.svd(P.T @ D)
        if torch.linalg.slogdet(Vt.T @ U.T).sign < 0:
            Vt[-1] = -Vt[-1]  # the direction that matters least, so the best proper rotation
        return Vt.T @ U.T
    # S = P^T D = A core B^T with orthonormal A, B (d, K); R takes the r directions that S determines from A U to B V.
    A, upper_p = torch.linalg.qr(P.T)
    B, upper_d = torch.linalg.qr(D.T)
    U, sigma, Vt = torch.linalg.svd(upper_p @ upper_d.T)
    r = int(
        (sigma > sigma[0] * len(P) * torch.finfo(P.dtype).eps).sum()
    )  # at most K - 1: the banks are centred
    A, B, spare = A @ U[:, :r], B @ Vt[:r].T, B @ Vt[-1]
    # Principal vectors of the two spans: a_i . b_j = cos theta_i where i = j, else 0.
    Y, cosines, Zt = torch.linalg.svd(A.T @ B)
    A, B, inner = A @ Y, B @ Zt.T, Zt @ Y
    # The direct rotation of span A onto span B turns each plane (a_i, b_i) by theta_i and leaves the rest where it is.
    total = A + B
    R = torch.eye(P.shape[1], dtype=P.dtype, device=P.device)
    R -= (total / (1 + cosines)) @ total.T
    R += 2 * B @ A.T
    negative = torch.linalg.slogdet(inner).sign < 0
    inner.diagonal().sub_(1)
    R += (B @ inner) @ (B.T @ R)  # then within span B
    return R - 2 * torch.outer(spare, spare @ R) if negative else R


@torch.no_grad()
def rotate_bank(P: torch.Tensor, D: torch.Tensor, method: str = "auto") -> torch.Tensor:
    """Return ``R (P_k - mean P) + mean D`` per row, with R of `procrustes_rotation` (step 3a).

    The thin way never builds R: with ``P^T = A X`` and ``D^T = B Y`` (QR) and ``X Y^T = U Sigma V^T``, the rotated bank
    is ``X^T U V^T B^T``. It is exact for K < d, where R itself is not unique but its action on the bank is.

    Args:
        P: bank of the pre-trained encoder, (K, d), float32 or float64.
        D: bank of the trained encoder, (K, d).
        method: "full", "thin" or "auto", as above.

    Returns:
        (K, d). Time O(K d^2 + d^3) full, O(d K^2 + K^3) thin; memory O(d^2) and O(K d).

    Raises:
        ParameterError: "thin" for a bank that has as many rows as columns.
    """
    mean = D.mean(0)
    if not _thin(P, method, "rotate_bank"):
        return (P - P.mean(0)) @ procrustes_rotation(P, D, "full").T + mean
    upper_p = torch.linalg.qr((P - P.mean(0)).T, mode="r").R
    B, upper_d = torch.linalg.qr((D - mean).T)
    U, _, Vt = torch.linalg.svd(upper_p @ upper_d.T)
    return (upper_p.T @ U @ Vt) @ B.T + mean


def _thin(P: torch.Tensor, method: str, owner: str) -> bool:
    rows, width = P.shape
    if method not in METHODS:
        raise ParameterError("method", owner, "'auto', 'full' or 'thin'", method)
    if method == "thin" and rows >= width:
        raise ParameterError(
            "method", owner, f"'full' or 'auto' for a bank of {rows} rows and {width} columns", method
        )
    return rows < width if method == "auto" else method == "thin"


@torch.no_grad()
def confidence_weights(D: torch.Tensor, labels: torch.Tensor, phi: torch.Tensor) -> torch.Tensor:
    """Return ``alpha_k = exp(phi_y . v_k) / sum over the entries j of class y_k of exp(phi_y . v_j)`` (Eq. 10).

    A softmax within each class, so an entry that its class scores low weighs less.

    Args:
        D: bank of the trained encoder, (K, d).
        labels: classes, int64 (K,), in [0, C).
        phi: prototypes, (C, d): the head's weight. The authors' code scales them, and D, to unit length.

    Returns:
        (K,), sums to 1 over each class that has entries; 1 for a lone entry. O(K d) time.
    """
    scores = (D * phi[labels]).sum(1)
    top = scores.new_full((len(phi),), -torch.inf).scatter_reduce(0, labels, scores, "amax")
    weights = (scores - top[labels]).exp()
    return weights / weights.new_zeros(len(phi)).index_add(0, labels, weights)[labels]


@torch.no_grad()
def translate_classes(
    P: torch.Tensor, D: torch.Tensor, labels: torch.Tensor, phi: torch.Tensor
) -> torch.Tensor:
    """Return the bank P with each class moved onto the weighted centre of D's (Eqs. 8-12).

    ``vhat_k = P_k + delta_y`` with ``delta_c = sum_k alpha_k D_k - mean of P`` over the entries of class c. A class
    with one entry becomes its feature in D; a class without entries does nothing.

    Args:
        P: bank of the pre-trained encoder, rotated or not, (K, d).
        D: bank of the trained encoder, (K, d).
        labels: classes, int64 (K,), in [0, C).
        phi: prototypes, (C, d).

    Returns:
        (K, d). O(K d + C d) time and memory.
    """
    alpha = confidence_weights(D, labels, phi)
    n = torch.bincount(labels, minlength=len(phi)).clamp(min=1)
    delta = P.new_zeros(phi.shape).index_add(0, labels, alpha[:, None] * D - P / n[labels, None])
    return P + delta[labels]


@torch.no_grad()
def calibrate(
    P: torch.Tensor,
    D: torch.Tensor,
    labels: torch.Tensor,
    phi: torch.Tensor,
    scale: torch.Tensor | float = 1.0,
    *,
    rotate: bool = True,
    translate: bool = True,
    normalize_rows: bool = True,
    R: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the calibrated bank (step 3), with the scaling of the authors' code or the paper's equations as they are.

    Args:
        P: bank of the pre-trained encoder, (K, d), float32 or float64.
        D: bank of the trained encoder, (K, d).
        labels: classes, int64 (K,), in [0, C).
        phi: prototypes, (C, d).
        scale: length of the returned rows: the mean norm of the batch's features. For ``normalize_rows`` only.
        rotate: rotate P onto D first. Where the SVD does not converge the bank stays as it is, with a warning.
        translate: move the classes.
        normalize_rows: rows of both banks and prototypes to unit length first, and the result to length ``scale``: what
            the authors' code adds. False: Eqs. 7-12 on raw features.
        R: a rotation (d, d) to use instead of the best one for these banks.

    Returns:
        (K, d), without gradient.
    """
    if normalize_rows:
        P, D, phi = normalize(P), normalize(D), normalize(phi)
    if rotate and len(P):
        try:
            P = rotate_bank(P, D) if R is None else (P - P.mean(0)) @ R.T + D.mean(0)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            # the identity is a rotation too, and the next attempt has other features
            warnings.warn("The SVD for the rotation did not converge: the bank is not rotated.", stacklevel=2)
    if translate:
        P = translate_classes(P, D, labels, phi)
    return normalize(P) * scale if normalize_rows else P


def dr_tune_loss(
    z: torch.Tensor,
    y: torch.Tensor,
    bank: torch.Tensor,
    bank_labels: torch.Tensor,
    head: Callable[[torch.Tensor], torch.Tensor],
    weight: float | None = None,
    loss_scale: str = "mean",
) -> torch.Tensor:
    """Return ``L_CE + lambda R_DR`` (Eq. 14), or that over ``1 + lambda`` (the authors' code).

    ``L_CE`` is the mean cross-entropy of the batch, ``R_DR`` that of the calibrated bank (Eq. 13), whose gradient
    reaches the head alone. With lambda = K / B the second form is the mean over all B + K rows.

    Args:
        z: features of the batch, (B, d), with gradient.
        y: classes, int64 (B,).
        bank: calibrated bank, (K, d); K = 0 gives the plain loss.
        bank_labels: classes, int64 (K,).
        head: (rows, d) -> logits (rows, C).
        weight: lambda; K / B by default.
        loss_scale: "mean" divides by 1 + lambda, "eq14" does not.

    Returns:
        A scalar, nats. One call of the head on B + K rows.

    Raises:
        ParameterError: an unknown ``loss_scale``.
    """
    if loss_scale not in LOSS_SCALES:
        raise ParameterError("loss_scale", "dr_tune_loss", "'mean' or 'eq14'", loss_scale)
    if weight is None:
        weight = len(bank) / len(z)
    if weight == 0:
        bank, bank_labels = bank[:0], bank_labels[:0]
    return combine(*loss_terms(z, y, bank, bank_labels, head), weight, loss_scale)


def loss_terms(
    z: torch.Tensor,
    y: torch.Tensor,
    bank: torch.Tensor,
    bank_labels: torch.Tensor,
    head: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return ``L_CE`` (Eq. 6) and ``R_DR`` (Eq. 13), None for an empty bank; arguments as above."""
    if not len(bank):
        return cross_entropy(head(z), y), None
    logits = head(torch.cat([z, bank.detach().to(z.dtype)]))
    return cross_entropy(logits[: len(z)], y), cross_entropy(logits[len(z) :], bank_labels)


def combine(
    L_CE: torch.Tensor, R_DR: torch.Tensor | None, weight: float, loss_scale: str = "mean"
) -> torch.Tensor:
    """Return ``L_CE + lambda R_DR``, over ``1 + lambda`` where ``loss_scale`` is "mean"; L_CE alone without a bank."""
    if R_DR is None or weight == 0:
        return L_CE
    loss = L_CE + weight * R_DR
    return loss / (1 + weight) if loss_scale == "mean" else loss
