"""UDS: utility-diversity sampling. Zou, Mao, Qu, Wang and Ji 2025, arXiv 2510.16882.

Utility of a row is the nuclear norm of its logits, ``s_intra = ||L||_*`` (with ``||L||_F <= ||L||_* <= sqrt(rank)
||L||_F``, Lemma 3.1): large where logits are large and where tokens' predictions differ. Diversity is the mean distance
of the row's sketch to the sketches of the rows kept lately. The K largest ``s_intra + alpha s_inter`` are kept.

Where this departs from the authors' code, unless ``variant="official"``: padding takes no part, and rows are moved to
the front before the sketch; the sketch is an isometry in expectation (theirs multiplies distances by about
``sqrt(V T) / 2``, 4,400 for a vocabulary of 152,064 and 512 tokens, which alpha must undo); frequencies are drawn
once each; rows longer than T are folded instead of failing.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.core.seeds import child_seed
from tunesmith.select.online._base import Candidates, OnlinePolicy
from tunesmith.select.online.memory import SketchMemory
from tunesmith.select.online.nuclear import nuclear_norms
from tunesmith.select.online.sketch import LogitSketch, official_sketch

__all__ = ["UDSPolicy"]

ALPHA, LEGACY_ALPHA = 6.6, 1.5e-3  # the script's 1.5e-3 acts like 6.6 on an isometric sketch


class UDSPolicy(OnlinePolicy):
    """Keep the rows with large, varied logits that are far from what was kept lately.

    Args:
        alpha: weight of diversity; to be tuned per model and data so that both terms vary alike. By default 6.6, on
            the official scale 1.5e-3, which are the same for Qwen-2.5.
        buffer_size: M, sketches of kept rows that are remembered, 256 to 4,096.
        proj_dims: (d1, d2), numbers kept of the vocabulary and of the tokens.
        max_length: T, tokens over which the sketch transforms; longer rows are folded.
        normalise: ``"none"`` (the paper) or ``"sqrt_tokens"``: divide the nuclear norm by the root of the number of
            tokens, since it grows with length.
        tokens: ``"all"`` (the paper) or ``"answer"``: only positions that predict a trained token.
        center: take each token's mean logit off, to which the softmax is blind and the nuclear norm is not.
        batch_weight: weight, within s_inter, of the mean distance to the other candidates of the batch; 0 is the
            paper's default. Without it a batch may keep two copies of one row.
        legacy_scale: multiply sketches by ``sqrt(V T) / 2``, so that an alpha of the official scale can be used.
        variant: ``"paper"`` or ``"official"``: the authors' sketch (real part, unnormalised, frequencies drawn with
            replacement), all positions with the padding, and at most T tokens. Their scoring in training mode is not
            reproduced: with dropout it would move the random state of the training.
        random_state: seed of the sketch.

    Attributes:
        memory_: the `SketchMemory`.
        scores_: of the last decision, float32 ``(B,)``.

    Time per row of N tokens: O(N V log V + N^2 V) from logits; O(N d^2 + N^2 d) from states of width d where the
    output layer is frozen; O(M d1 d2) for the distances. Memory M d1 d2 floats (4 MB by default).

    Raises:
        ParameterError: a parameter is outside its set.

    Example:
        >>> import torch
        >>> from tunesmith.select.online import Candidates, UDSPolicy
        >>> policy = UDSPolicy(proj_dims=(4, 2), max_length=8)
        >>> logits = torch.diag_embed(torch.tensor([[3.0, 4.0], [5.0, 0.0], [6.0, 6.0]]))
        >>> measures = policy.measure(Candidates(torch.ones(3, 2, dtype=torch.bool), logits=logits))
        >>> measures["intra"].tolist(), policy.choose(1, 3, measures).tolist()
        ([7.0, 5.0, 12.0], [2])
    """

    needs: ClassVar[str | None] = "logits"

    def __init__(
        self,
        *,
        alpha: float | None = None,
        buffer_size: int = 1024,
        proj_dims: tuple[int, int] = (128, 8),
        max_length: int = 512,
        normalise: str = "none",
        tokens: str = "all",
        center: bool = False,
        batch_weight: float = 0.0,
        legacy_scale: bool = False,
        variant: str = "paper",
        random_state: int = 0,
    ) -> None:
        for name, value, valid in (
            ("normalise", normalise, ("none", "sqrt_tokens")),
            ("tokens", tokens, ("all", "answer")),
            ("variant", variant, ("paper", "official")),
        ):
            if value not in valid:
                raise ParameterError(name, self, " or ".join(map(repr, valid)), value)
        for name, number in (("alpha", alpha), ("batch_weight", batch_weight)):
            if number is not None and not (isinstance(number, int | float) and 0 <= number < float("inf")):
                raise ParameterError(name, self, "a float >= 0", number)
        dims = tuple(proj_dims) if isinstance(proj_dims, tuple | list) else ()
        if len(dims) != 2 or not all(isinstance(d, int) and d >= 1 for d in dims):
            raise ParameterError("proj_dims", self, "two ints >= 1", proj_dims)
        for name, number in (("buffer_size", buffer_size), ("max_length", max_length)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ParameterError(name, self, "an int >= 1", number)
        if variant == "official" and (tokens != "all" or center):
            raise ParameterError("variant", self, "'paper' with tokens='answer' or center=True", variant)
        legacy = legacy_scale or variant == "official"
        self.alpha = alpha if alpha is not None else LEGACY_ALPHA if legacy else ALPHA
        self.buffer_size, self.proj_dims, self.max_length = buffer_size, (dims[0], dims[1]), max_length
        self.normalise, self.tokens, self.center = normalise, tokens, center
        self.batch_weight, self.legacy_scale, self.variant = batch_weight, legacy_scale, variant
        self.random_state = random_state
        self.memory_ = SketchMemory(buffer_size)
        self.sketch_ = LogitSketch(self.proj_dims, max_length, random_state)
        self._official: tuple[torch.Tensor, ...] | None = None

    @property
    def takes_states(self) -> bool:
        """Whether `measure` can do with states and a frozen output layer in place of logits."""
        return self.variant == "paper"

    def measure(self, rows: Candidates) -> dict[str, torch.Tensor]:
        """Return ``intra`` ``(b,)``, ``sketch`` ``(b, d2 d1)``, and ``loss`` where it is known.

        Raises:
            DataError: no logits are given, as by models that fuse them into the loss.
        """
        mask = self._mask(rows)
        if rows.states is not None and rows.layer is not None:
            intra = rows.layer.nuclear_norms(rows.states, mask)
            words, size = rows.layer.sketched(rows.states, self.sketch_), rows.layer.size
            sketches = self.sketch_.over_time(words, mask)
        elif rows.logits is None:
            raise DataError(f"{type(self).__name__} needs logits, and the model returned none.")
        else:
            logits, size = rows.logits, rows.logits.shape[-1]
            if self.center:
                logits = logits.float() - logits.float().mean(-1, keepdim=True)
            intra = nuclear_norms(logits, mask)
            sketches = self._official_sketches(logits) if self._is_official else self.sketch_(logits, mask)
        if self.legacy_scale and not self._is_official:
            sketches = sketches * ((size * self.max_length) ** 0.5 / 2)
        if self.normalise == "sqrt_tokens":
            intra = intra / mask.sum(1).clamp(min=1).sqrt()
        found = {"intra": intra, "sketch": sketches}
        return found if rows.losses is None else {**found, "loss": rows.losses}

    def score(self, count: int, measures: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return ``s_intra + alpha s_inter``; leaves s_inter in the measures as ``inter``."""
        sketches = measures["sketch"]
        inter = self.memory_.mean_distance(sketches)
        if self.batch_weight and count > 1:
            apart = torch.cdist(sketches, sketches, compute_mode="donot_use_mm_for_euclid_dist")
            inter = inter + self.batch_weight * apart.sum(1) / (count - 1)
        measures["inter"] = inter
        return measures["intra"] + self.alpha * inter

    def keep(self, indices: torch.Tensor, measures: dict[str, torch.Tensor]) -> None:
        """Push the sketches of the kept rows, the best first."""
        self.memory_.push(measures["sketch"][indices])

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the memory, its pointer and the counts; signs and frequencies follow from the seed."""
        return {
            **super().state_dict(),
            "memory": self.memory_.rows.cpu(),
            "pointer": torch.tensor(self.memory_.pointer),
        }

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from a state.

        Raises:
            ParameterError: the state's memory is larger than this policy's.
        """
        super().load_state_dict(state)
        if len(state["memory"]) > self.buffer_size:
            raise ParameterError(
                "buffer_size", self, f"at least the state's {len(state['memory'])}", self.buffer_size
            )
        self.memory_.rows, self.memory_.pointer = state["memory"].clone(), int(state["pointer"])

    def reset(self) -> None:
        """Forget what was kept."""
        super().reset()
        self.memory_.clear()

    @property
    def _is_official(self) -> bool:
        return self.variant == "official"

    def _mask(self, rows: Candidates) -> torch.Tensor:
        if self._is_official:
            return torch.ones_like(rows.mask)
        if self.tokens == "all":
            return rows.mask
        if rows.labels is None:
            raise DataError("tokens='answer' needs labels, and the batch has none.")
        answer = torch.zeros_like(rows.mask)
        answer[:, :-1] = rows.labels[:, 1:] != -100
        return answer

    def _official_sketches(self, logits: torch.Tensor) -> torch.Tensor:
        if self._official is None:
            draw = torch.Generator().manual_seed(child_seed(self.random_state, "official"))
            parts: list[Any] = []
            for size, k in zip((logits.shape[-1], self.max_length), self.proj_dims, strict=True):
                parts.append(torch.randint(0, 2, (size,), generator=draw).mul(2).sub(1).float())
                parts.append(torch.randint(0, size, (k,), generator=draw))
            self._official = tuple(part.to(logits.device) for part in parts)
        return torch.stack([official_sketch(row, *self._official).flatten() for row in logits])
