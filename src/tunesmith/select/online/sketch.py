"""A logit matrix in a few numbers: sketches over the vocabulary, then over the tokens."""

from __future__ import annotations

import torch

from tunesmith.core.errors import ParameterError
from tunesmith.core.seeds import child_seed
from tunesmith.numerics import HartleySketch

__all__ = ["LogitSketch", "official_sketch"]


class LogitSketch:
    """``z = vec(G2 L G1^T)`` with G1 over the vocabulary and G2 over the tokens (UDS, step 3).

    Both are Hartley sketches: E||z||^2 = ||L||_F^2 over the draw. Rows are moved to the front and padded with zeros
    to T, so where a batch puts its padding makes no difference. Tokens beyond T are folded back onto T with signs of
    their own, which keeps the expectation (own addition; the authors' code stops there).

    Args:
        dims: (d1, d2), numbers kept of the vocabulary and of the tokens.
        length: T, the transform's length over tokens.
        seed: of signs and frequencies.

    Attributes:
        vocabulary: the sketch G1, drawn when the first logits say how many words there are.
    """

    def __init__(self, dims: tuple[int, int] = (128, 8), length: int = 512, seed: int = 0) -> None:
        self.dims, self.length, self.seed = dims, length, seed
        self.vocabulary: HartleySketch | None = None
        self._time: list[HartleySketch] = []

    def over_vocabulary(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x G1^T``, float32 ``(..., d1)``, of ``(..., V)``.

        Raises:
            ParameterError: V is not that of earlier calls.
        """
        size = x.shape[-1]
        if self.vocabulary is None:
            seed = child_seed(self.seed, "vocabulary")
            self.vocabulary = HartleySketch(size, self.dims[0], seed, device=x.device)
        if len(self.vocabulary.signs) != size:
            raise ParameterError(
                "logits", self, f"of a vocabulary of {len(self.vocabulary.signs)}, as before", size
            )
        return self.vocabulary(x)

    def over_time(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return ``vec(G2 x)``, float32 ``(b, d2 d1)``, of ``(b, N, d1)``; token by frequency, row by row."""
        found = []
        for row, real in zip(x.float(), mask, strict=True):
            row = row[real]
            total = row.new_zeros(self.dims[1], row.shape[1])
            for part, begin in enumerate(range(0, len(row), self.length)):
                some = row[begin : begin + self.length]
                padded = torch.cat([some, some.new_zeros(self.length - len(some), row.shape[1])])
                total += self._over_part(part, row.device)(padded, dim=0)
            found.append(total.flatten())
        return torch.stack(found)

    def __call__(self, logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return z, float32 ``(b, d2 d1)``, of ``(b, N, V)`` logits and their bool mask ``(b, N)``."""
        return self.over_time(self.over_vocabulary(logits), mask)

    def _over_part(self, part: int, device: torch.device) -> HartleySketch:
        """Return G2 for the tokens from ``part * T`` on: the same frequencies, other signs."""
        while len(self._time) <= part:
            seed = child_seed(self.seed, "time", len(self._time))
            sketch = HartleySketch(self.length, self.dims[1], seed, device=device)
            if self._time:
                sketch.frequencies = self._time[0].frequencies
            self._time.append(sketch)
        return self._time[part]


def official_sketch(
    logits: torch.Tensor,
    sign_vocab: torch.Tensor,
    index_vocab: torch.Tensor,
    sign_time: torch.Tensor,
    index_time: torch.Tensor,
) -> torch.Tensor:
    """Return z as the authors' code makes it: the real part of an unnormalised Fourier transform, both times.

    Distances come out about ``sqrt(V T) / 2`` times those of an isometric sketch.

    Args:
        logits: ``(N, V)``, N <= T, with whatever padding the batch has.
        sign_vocab: ``(V,)``, +-1.
        index_vocab: int64 ``(d1,)`` in [0, V).
        sign_time: ``(T,)``, +-1.
        index_time: int64 ``(d2,)`` in [0, T).

    Returns:
        float32 ``(d2, d1)``.

    Raises:
        ParameterError: there are more than T tokens.
    """
    n, v = logits.shape
    t = len(sign_time)
    if n > t:
        raise ParameterError("logits", official_sketch, f"of at most max_length = {t} tokens", n)
    padded = torch.cat([logits.float(), logits.new_zeros(t - n, v, dtype=torch.float32)])
    words = torch.fft.fft(padded * sign_vocab, dim=1).real[:, index_vocab] * (v / len(index_vocab)) ** 0.5
    times = torch.fft.fft(words * sign_time[:, None], dim=0).real[index_time]
    return times * (t / len(index_time)) ** 0.5
