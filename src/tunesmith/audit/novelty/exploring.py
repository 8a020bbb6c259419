"""Generate what is new: static, or learning what was found (arXiv 2410.14765)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import log_softmax

from tunesmith.audit.novelty.core import check_contrast, contrasted
from tunesmith.audit.novelty.pair import Pair, same_tokens
from tunesmith.core.errors import ParameterError
from tunesmith.core.events import EventLog
from tunesmith.core.seeds import child_seed

__all__ = ["CGEConfig", "Generation", "NoveltyExplorer"]

MODES = ("static", "iterative")


@dataclass(frozen=True)
class CGEConfig:
    """Settings of contrastive generative exploration.

    Attributes:
        mode: ``"iterative"`` teaches the earlier model each text, so that the next ones show something else, or
            ``"static"``.
        alpha: plausibility, in [0, 1]; lower finds rarer openings and is less fluent. The paper's runs use 0.1.
        gamma: weight of the contrast, at least 0; 0 samples from the tuned model.
        length: tokens per text, the start among them.
        texts_per_step: texts generated together and learned together.
        learning_rate: of the earlier model's AdamW, at least 0.
        lora_r: rank of the adapter that learns where both models share weights.
        start: text that each generation begins with; None: the tokenizer's begin-of-sequence token.
        seed: of the draws.

    Raises:
        ParameterError: a value outside its set.
    """

    mode: str = "iterative"
    alpha: float = 0.1
    gamma: float = 1.0
    length: int = 64
    texts_per_step: int = 4
    learning_rate: float = 5e-5
    lora_r: int = 8
    start: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ParameterError("mode", self, "'static' or 'iterative'", self.mode)
        check_contrast(self.alpha, self.gamma, self)
        for name, least in (("length", 2), ("texts_per_step", 1), ("lora_r", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ParameterError(name, self, f"an int of at least {least}", value)
        if not 0 <= self.learning_rate < float("inf"):
            raise ParameterError("learning_rate", self, "a float of at least 0", self.learning_rate)


@dataclass(frozen=True)
class Generation:
    """A text that shows what is new.

    Attributes:
        text: without the start.
        token_ids: with the start.
        score: ``s(x) = log p(x; tuned) - log p(x; before)``, summed over the tokens after the start, nats; the second
            model is the one that it was generated against.
        step: number of updates that this had had.
        repetition: share of its tokens that repeat the four before them, in [0, 1]: near 1 in a loop.
    """

    text: str
    token_ids: list[int] = field(repr=False)
    score: float = 0.0
    step: int = 0
    repetition: float = 0.0


class NoveltyExplorer:
    """Shows what fine-tuning added to a model, without its data.

    Texts may repeat rows of the training set word by word: treat them as confidential as the data. Time: two passes
    per token, with keys and values of both kept (an adapter of the LoRA kind and its base read one batch of twice as
    many rows together), and one training step per ``texts_per_step`` texts if iterative.
    Memory: both models, or one with an adapter; iterative: one copy of the base and two moments per weight, or of an
    adapter's.

    Args:
        finetuned: the tuned causal language model; a ``PeftModel`` needs no base.
        base: the model before tuning; None for the one under the adapter. It is never changed.
        tokenizer: of both.
        config: the settings.
        base_tokenizer: where the base came with one of its own: compared.
        log: receives ``progress``.

    Raises:
        ParameterError: another vocabulary or tokenizer, no base, or no token to start with.
    """

    def __init__(
        self,
        finetuned: Any,
        base: Any,
        tokenizer: Any,
        config: CGEConfig | None = None,
        *,
        base_tokenizer: Any = None,
        log: EventLog | None = None,
    ) -> None:
        self.config = config or CGEConfig()
        same_tokens(tokenizer, base_tokenizer, self)
        self.finetuned, self.base, self.tokenizer = finetuned, base, tokenizer
        self.log = log or EventLog()
        Pair(finetuned, base, owner=self).close()  # says at once what does not fit
        self._start()

    def _start(self) -> list[int]:
        if self.config.start is not None:
            ids = list(self.tokenizer(self.config.start, add_special_tokens=False)["input_ids"])
            if self.tokenizer.bos_token_id is not None:
                ids = [self.tokenizer.bos_token_id, *ids]
        else:
            bos = self.tokenizer.bos_token_id
            ids = [] if bos is None else [bos]
        if not ids:
            raise ParameterError(
                "start", CGEConfig, "a text: this tokenizer has no begin-of-sequence token", self.config.start
            )
        if len(ids) >= self.config.length:
            raise ParameterError(
                "length", CGEConfig, f"more than the {len(ids)} tokens of the start", self.config.length
            )
        return ids

    def explore(self, n: int = 40) -> list[Generation]:
        """Return n texts in the order of their generation.

        Raises:
            ParameterError: ``n`` below 1.
        """
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ParameterError("n", "NoveltyExplorer.explore", "an int of at least 1", n)
        config = self.config
        pair = Pair(
            self.finetuned,
            self.base,
            iterative=config.mode == "iterative",
            learning_rate=config.learning_rate,
            lora_r=config.lora_r,
            owner=self,
        )
        found: list[Generation] = []
        progress = self.log.progress("texts", n)
        try:
            for step in range(-(-n // config.texts_per_step)):
                count = min(config.texts_per_step, n - len(found))
                ids, scores = self._generate(pair, count, step)
                if scores is None:
                    ours, theirs = pair.log_likelihoods(ids)
                    scores = (ours - theirs)[:, len(self._start()) - 1 :].sum(-1)
                found += [
                    self._record(row, float(s), step) for row, s in zip(ids.tolist(), scores, strict=True)
                ]
                if config.mode == "iterative" and config.learning_rate > 0 and len(found) < n:
                    pair.learn(ids)
                progress.advance(count)
        finally:
            pair.close()
        loops = sum(text.repetition > 0.5 for text in found)
        if loops > n / 4:
            warnings.warn(
                f"{loops} of {n} texts repeat themselves: a shorter length or a higher alpha keeps them from it.",
                stacklevel=2,
            )
        return found

    def _generate(self, pair: Pair, count: int, step: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return ids (count, length), drawn from a generator of the step's own, and their scores s(x), (count,).

        Where gamma is 0 the earlier model is not asked, and there are no scores yet.
        """
        config = self.config
        device = pair.finetuned.device
        start = self._start()
        ids = torch.tensor([start] * count, device=device)
        generator = torch.Generator().manual_seed(child_seed(config.seed, "explore", step))
        # A text has its whole length, so that scores compare: nothing ends it.
        marks = {self.tokenizer.eos_token_id, self.tokenizer.pad_token_id}
        ends = [i for i in marks if i is not None]
        new, caches, both = ids, None, config.gamma > 0
        total = torch.zeros(count, device=device)
        while ids.shape[1] < config.length:
            ours, theirs, caches = pair.step(new, caches, both=both)
            log_ft = log_softmax(ours.float(), dim=-1)
            log_pt = None if theirs is None else log_softmax(theirs.float(), dim=-1)
            scores = contrasted(log_ft, log_pt, alpha=config.alpha, gamma=config.gamma, banned=ends)
            new = torch.multinomial(scores.softmax(-1).cpu(), 1, generator=generator).to(device)
            if log_pt is not None:
                total += (log_ft.gather(-1, new) - log_pt.gather(-1, new))[:, 0]
            ids = torch.cat([ids, new], dim=1)
        return ids, total if both else None

    def _record(self, ids: list[int], score: float, step: int) -> Generation:
        start = len(self._start())
        text = self.tokenizer.decode(ids[start:], skip_special_tokens=True)
        windows = [tuple(ids[i : i + 4]) for i in range(start, len(ids) - 3)]
        repeated = 1 - len(set(windows)) / len(windows) if windows else 0.0
        return Generation(text, ids, score, step, repeated)
