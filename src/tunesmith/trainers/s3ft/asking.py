"""Candidates of many rows: generated longest prompt first, kept, and judged at once, so that trouble shows early."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from tunesmith.core.errors import DataError
from tunesmith.core.events import EventLog
from tunesmith.core.seeds import child_seed
from tunesmith.engine.chats import Failure
from tunesmith.trainers.s3ft.choosing import refusal
from tunesmith.trainers.s3ft.generators import Generator
from tunesmith.trainers.s3ft.journal import Journal, key_of
from tunesmith.trainers.s3ft.prompts import Prompt
from tunesmith.trainers.s3ft.verdicts import Bench

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["MISSING", "RIGHT", "WRONG", "Asking", "Candidates"]

RIGHT, WRONG, MISSING = "right", "wrong", "no reply"


@dataclass
class Candidates:
    """A candidate per row.

    Attributes:
        texts: n texts, ``None`` where nothing was generated.
        verdicts: n of ``"right"``, ``"wrong"``, why it was refused, or ``None`` where nothing was asked.
    """

    texts: list[str | None]
    verdicts: list[str | None]

    @classmethod
    def none(cls, n: int) -> Self:
        """Return n rows without a candidate."""
        return cls([None] * n, [None] * n)

    def right(self) -> list[bool]:
        """Return which rows have a candidate that was accepted."""
        return [verdict == RIGHT for verdict in self.verdicts]

    def not_right(self) -> list[int]:
        """Return the other rows."""
        return [i for i, verdict in enumerate(self.verdicts) if verdict != RIGHT]


@dataclass
class Asking:
    """What is needed to fill `Candidates`; see `selective_self_targets`."""

    dataset: Dataset
    pairs: Sequence[tuple[Prompt, str]]
    generator: Generator
    bench: Bench
    journal: Journal
    temperature: float
    max_new_tokens: int
    chunk: int
    random_state: int
    log: EventLog

    def fill(
        self,
        into: Candidates,
        kind: str,
        rows: Sequence[int],
        prompts: Sequence[Prompt],
        *,
        attempt: int = 0,
        leaks: Sequence[str] = (),
    ) -> None:
        """Generate and judge a candidate for some rows.

        Args:
            into: changed in place.
            kind: what they are called in progress.
            rows: b rows.
            prompts: what is asked for each of them.
            attempt: how-manieth candidate of these rows, for its seed.
            leaks: phrases that it must not have.

        Raises:
            DataError: see `selective_self_targets`.
        """
        drawn = self.temperature > 0
        seeds = [
            child_seed(self.random_state, "s3ft", kind, attempt, key_of(prompt)) if drawn else 0
            for prompt in prompts
        ]
        how = (self.generator.name, self.temperature, self.max_new_tokens)
        keys = [key_of(*how, prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        progress = self.log.progress(f"{kind}s", len(rows))
        for part in _by_length(prompts, self.chunk):
            failed = self._generate(part, prompts, seeds, keys)
            fit = []
            for j in part:
                i = rows[j]
                if keys[j] in failed:
                    into.texts[i], into.verdicts[i] = None, f"{MISSING}: {failed[keys[j]]}"
                    continue
                text, cut_short = self.journal.replies[keys[j]]
                into.texts[i], into.verdicts[i] = text, refusal(text, cut_short, leaks)
                if into.verdicts[i] is None:
                    fit.append(i)
            candidates = [str(into.texts[i]) for i in fit]
            verdicts = self.bench.judge(self.dataset, fit, self.pairs, candidates, self.journal)
            for i, right in zip(fit, verdicts, strict=True):
                into.verdicts[i] = RIGHT if right else WRONG
            progress.advance(len(part))

    def _generate(
        self, part: list[int], prompts: Sequence[Prompt], seeds: Sequence[int], keys: Sequence[str]
    ) -> dict[str, str]:
        """Ask for the replies that are not kept yet, keep them, and return key -> why there is none."""
        new: dict[str, int] = {}
        for j in part:
            if keys[j] not in self.journal.replies:
                new.setdefault(keys[j], j)
        if not new:
            return {}
        try:
            answers = self.generator(
                [prompts[j] for j in new.values()],
                temperature=self.temperature,
                max_new_tokens=self.max_new_tokens,
                seeds=[seeds[j] for j in new.values()],
            )
        except DataError as error:
            raise DataError(f"{error} {self.journal.told()}") from error
        failed = {}
        for key, answer in zip(new, answers, strict=True):
            if isinstance(answer, Failure):  # not kept: the next build asks for it again
                failed[key] = answer.reason
            else:
                self.journal.reply(key, *answer)
        self.journal.write()
        return failed


def _by_length(prompts: Sequence[Prompt], chunk: int) -> Iterator[list[int]]:
    """Yield places of prompts, the longest first: batches are of like length, and a lack of memory shows at once."""
    sizes = [len(p) if isinstance(p, str) else len(json.dumps(p, default=str)) for p in prompts]
    order = sorted(range(len(prompts)), key=lambda j: (-sizes[j], j))
    for begin in range(0, len(order), chunk):
        yield order[begin : begin + chunk]
