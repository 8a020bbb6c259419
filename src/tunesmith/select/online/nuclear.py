"""Nuclear norms of many matrices with few rows and very many columns."""

from __future__ import annotations

import torch

__all__ = ["nuclear_norm", "nuclear_norms", "sum_of_roots"]


def nuclear_norms(matrices: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return the sum of singular values of each matrix, by the eigenvalues of its Gram matrix in float64.

    ``||L||_* = sum_j sqrt(lambda_j(L L^T))``. Squaring halves the digits, so the Gram matrix is formed in float64
    (float32 was off by 2.6e-3 on a 256 x 4,000 matrix of rank 5), and eigenvalues below ``N eps`` times the largest,
    which are rounding, count as zero: each would add up to ``sqrt(eps)`` times the largest singular value.

    Args:
        matrices: ``(b, N, V)`` in any float type; N <= V is what this is for.
        mask: bool ``(b, N)``; rows that are false count as zero.

    Returns:
        float32 ``(b,)``. Time O(b N^2 (V + N)), memory one matrix in float64.
    """
    found = []
    for i, matrix in enumerate(matrices):
        rows = matrix if mask is None else matrix[mask[i]]
        found.append(nuclear_norm(rows.double()))
    if not found:
        return torch.zeros(0, device=matrices.device)
    return torch.stack(found).float()


def nuclear_norm(matrix: torch.Tensor) -> torch.Tensor:
    """Return the nuclear norm of one float64 matrix, by the Gram matrix of its shorter side."""
    short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    return sum_of_roots(short @ short.T)


def sum_of_roots(gram: torch.Tensor) -> torch.Tensor:
    """Return the sum of the square roots of a Gram matrix's eigenvalues, float64; NaN where it is not finite."""
    n = len(gram)
    if n == 0:
        return gram.new_zeros(())
    if not bool(torch.isfinite(gram).all()):
        return gram.new_full((), torch.nan)
    eigenvalues = torch.linalg.eigvalsh(gram)
    floor = (n * torch.finfo(torch.float64).eps * eigenvalues[-1]).clamp(min=0)
    return torch.where(eigenvalues > floor, eigenvalues, 0).sqrt().sum()
