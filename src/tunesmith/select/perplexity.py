"""Keep what an off-the-shelf model finds likely: the perplexity filter of "POINTS" (arXiv 2409.04828, 3.2).

``Perplexity(s) = exp(-(1/N) sum_i log P(w_i | image, instruction, w_<i))`` (eq. 3) over the answer's tokens;
items are sorted and the lowest 20 % kept. Any model may score: `tunesmith.data.Pool` computes the
perplexities of text under a causal language model, and a callable brings those of images with text.

Deviations: the middle and the high band and the limits are additions (the authors observe that the highest
band is not plainly worse, it carries rare knowledge); perplexities are compared as given, where the released
code rounds probabilities to bfloat16 first.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.select._base import Indices, Selector, resolve_budget

__all__ = ["PerplexitySelector", "perplexity"]

BANDS = ("low", "mid", "high")


def perplexity(nll: ArrayLike, tokens: ArrayLike) -> NDArray[np.float64]:
    """Return ``exp(nll / tokens)`` of each item.

    Args:
        nll: ``(n,)`` summed negative log-likelihood of the answer's tokens in nats.
        tokens: ``(n,)`` how many there are.

    Returns:
        float64 ``(n,)``, at least 1 for a proper model; NaN for an item without tokens, infinite where a
        token has probability 0.
    """
    total, count = np.asarray(nll, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.exp(np.where(count > 0, total / count, np.nan))


class PerplexitySelector(Selector):
    """Keep the items of lowest (or middle, or highest) perplexity.

    It prefers short, generic and repetitive text and drops rare knowledge on purpose: deduplicate first, set
    ``min_tokens``, and compare only items of one language, one prompt and one tokenizer.

    Args:
        band: ``"low"``, the paper's; ``"mid"``, ranks closest to the median; ``"high"``.
        min_perplexity: items below are left out; ``None`` keeps them.
        max_perplexity: items above are left out; ``None`` keeps them.
        min_tokens: items with fewer tokens (feature ``length``) are left out; 0 asks for no lengths.
        scorer: callable ``X -> (n,)`` perplexities, used where `fit` is given none: rows with images, or
            whatever a model of yours reads. NaN marks an item that failed.

    Attributes:
        scores_: float64 ``(n,)`` perplexity, NaN where it failed.
        valid_: indices that may be chosen, in ascending perplexity, ties by index.
        report_: counts ``rows``, ``failed``, ``too_short``, ``outside_limits``, ``valid``.

    `select` gives the best first, so a larger budget extends a smaller one's answer; shares are of the valid
    items. O(n log n).

    References:
        Liu et al. 2024, arXiv 2409.04828, Sec. 3.2, Eq. 3.

    Example:
        >>> from tunesmith.select import PerplexitySelector
        >>> selector = PerplexitySelector().fit(perplexity=[7.0, 3.0, float("inf"), 5.0])
        >>> selector.select(2).tolist()
        [1, 3]
    """

    requires: ClassVar[tuple[str, ...]] = ("perplexity",)

    def __init__(
        self,
        *,
        band: str = "low",
        min_perplexity: float | None = None,
        max_perplexity: float | None = None,
        min_tokens: int = 0,
        scorer: Callable[[Any], ArrayLike] | None = None,
    ) -> None:
        self.band = band
        self.min_perplexity = min_perplexity
        self.max_perplexity = max_perplexity
        self.min_tokens = min_tokens
        self.scorer = scorer

    def required_features(self) -> tuple[str, ...]:
        """``perplexity`` unless a scorer brings it, and ``length`` with ``min_tokens``."""
        names = () if self.scorer is not None else ("perplexity",)
        return (*names, "length") if self.min_tokens else names

    def fit(
        self,
        X: Any = None,
        y: Any = None,
        *,
        perplexity: ArrayLike | None = None,
        length: ArrayLike | None = None,
        **features: Any,
    ) -> Self:
        """Take or compute the perplexities.

        Args:
            X: the items for ``scorer``; otherwise ignored.
            y: ignored.
            perplexity: ``(n,)`` > 0; NaN for items that failed. Infinity sorts last.
            length: ``(n,)`` tokens per item, needed with ``min_tokens``.
            **features: ignored.

        Raises:
            ParameterError: a parameter outside its range, or no perplexities and no scorer.
            DataError: lengths that differ, a perplexity <= 0, or no item that may be chosen.
        """
        self._check()
        if perplexity is None:
            if self.scorer is None:
                raise ParameterError("perplexity", self, "given, unless there is a scorer", perplexity)
            perplexity = np.asarray(self.scorer(X))
            if X is not None and perplexity.shape != (len(X),):
                raise DataError(
                    f"the scorer returned shape {perplexity.shape} for {len(X)} items; one perplexity "
                    f"each is needed."
                )
        ppl = np.asarray(perplexity, dtype=np.float64)
        if ppl.ndim != 1 or not len(ppl):
            raise DataError(f"perplexities must be one number per item; got shape {ppl.shape}.")
        if (ppl <= 0).any():
            raise DataError(
                "a perplexity is > 0.", row=int(np.argmax(ppl <= 0)), content=float(ppl[ppl <= 0][0])
            )
        failed = np.isnan(ppl)
        short = np.zeros(len(ppl), dtype=np.bool_)
        if self.min_tokens:
            tokens = np.asarray(length)
            if tokens.shape != ppl.shape:
                raise DataError(
                    f"min_tokens needs the feature 'length', one number per item; got shape {tokens.shape}."
                )
            short = ~failed & (tokens < self.min_tokens)
        low = -np.inf if self.min_perplexity is None else self.min_perplexity
        high = np.inf if self.max_perplexity is None else self.max_perplexity
        outside = ~failed & ~short & ((ppl < low) | (ppl > high))
        valid = np.flatnonzero(~(failed | short | outside))
        self.report_ = {
            "rows": len(ppl),
            "failed": int(failed.sum()),
            "too_short": int(short.sum()),
            "outside_limits": int(outside.sum()),
            "valid": len(valid),
        }
        if not len(valid):
            counts = ", ".join(f"{name} {count}" for name, count in self.report_.items())
            raise DataError(f"no item may be chosen ({counts}).")
        if failed.any():
            warnings.warn(
                f"{failed.sum()} of {len(ppl)} items have no perplexity and are never chosen.", stacklevel=2
            )
        self.scores_ = ppl
        self.valid_ = valid[np.argsort(ppl[valid], kind="stable")]
        self.n_rows_ = len(ppl)
        return self

    def select(self, budget: int | float) -> Indices:
        """Choose items.

        Args:
            budget: items (int), or share (float in (0, 1]) of the valid ones, rounded as in every selector.

        Returns:
            int64 indices, best first.

        Raises:
            NotFittedError: `fit` was not called.
            ParameterError: the budget is outside its range or above the valid items.
        """
        check_is_fitted(self, "n_rows_")
        return super().select(resolve_budget(budget, len(self.valid_), self))

    def keep(self, ratio: float) -> Indices:
        """Choose a share as the paper's code does: ``int(M * ratio)`` of the M valid items, ``int(100 * 0.29)
        = 28``.

        Raises:
            NotFittedError: `fit` was not called.
            ParameterError: the ratio is outside (0, 1], or keeps less than one item.
        """
        check_is_fitted(self, "n_rows_")
        m = len(self.valid_)
        if isinstance(ratio, bool) or not isinstance(ratio, Real) or not 0 < ratio <= 1 or int(m * ratio) < 1:
            expected = f"a float in (0, 1] that keeps at least one of the {m} valid items"
            raise ParameterError("ratio", self, expected, ratio)
        return super().select(int(m * ratio))

    def _pick(self, count: int) -> Indices:
        if self.band == "low":
            return self.valid_[:count]
        infinite = np.isinf(self.scores_[self.valid_])
        finite, last = self.valid_[~infinite], self.valid_[infinite]
        if self.band == "high":
            order = finite[np.lexsort((finite, -self.scores_[finite]))]
        else:
            middle = np.abs(2 * np.arange(len(finite)) - (len(finite) - 1))  # twice the distance in rank
            order = finite[np.argsort(middle, kind="stable")]
        return np.concatenate([order, last])[:count]

    def _check(self) -> None:
        if self.band not in BANDS:
            raise ParameterError("band", self, "one of " + ", ".join(map(repr, BANDS)), self.band)
        if (
            isinstance(self.min_tokens, bool)
            or not isinstance(self.min_tokens, Integral)
            or self.min_tokens < 0
        ):
            raise ParameterError("min_tokens", self, "an int >= 0", self.min_tokens)
        for name in ("min_perplexity", "max_perplexity"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, Real) and value > 0):
                raise ParameterError(name, self, "a number > 0 or None", value)
        if self.scorer is not None and not callable(self.scorer):
            raise ParameterError("scorer", self, "a callable or None", self.scorer)
