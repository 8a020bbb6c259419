"""Cards of papers: facts as the daily papers page gave them, a summary in our own words, names and status.

A card is one JSON file in ``cards/``. Listing and searching read only these files, a few milliseconds in all.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module, resources
from importlib.metadata import entry_points
from typing import Any, Literal

from tunesmith import methods
from tunesmith.core.errors import UnknownNameError
from tunesmith.core.registry import GROUP

__all__ = ["BASELINES", "STATUSES", "Card", "Claim", "all_cards", "get", "of_method", "public_name", "search"]

Status = Literal["planned", "working", "reconstruction"]
STATUSES: tuple[Status, ...] = ("planned", "working", "reconstruction")

# Registered methods that stand for no paper, with what they are.
BASELINES = {
    "select.random": "the baseline of every comparison",
    "online.random": "the baseline of every online policy",
    "online.max_loss": "the rows of highest loss, a common heuristic",
    "curate.dedup": "exact duplicates",
    "curate.near_dedup": "near-duplicates, by a kept library",
    "curate.contamination": "overlap with evaluation sets, by n-grams and embeddings",
    "cluster.kmeans": "the baseline of the clusterers",
    "targets.gold": "the answers as they are",
    "train.classify": "classifiers by transformers, with any objective",
    "train.sft": "supervised fine-tuning by TRL",
    "evaluate.accuracy": "plain metric",
    "evaluate.exact_match": "plain metric",
    "evaluate.task_score": "plain metric",
    "evaluate.perplexity": "plain metric",
}

_WEIGHTS = {"slug": 6, "names": 6, "title": 4, "family": 3, "arxiv": 3, "summary": 1}


@dataclass(frozen=True)
class Claim:
    """What became of the paper's claim at small scale.

    Attributes:
        verdict: in words, also where the claim does not hold.
        command: what prints it.
    """

    verdict: str
    command: str


@dataclass(frozen=True)
class Card:
    """One paper.

    Attributes:
        slug: the method's short name, also that of its recipe, docs page and claim.
        title: of the paper.
        arxiv: arXiv id.
        authors: how many the page counted; None where it showed no number.
        organisation: as the page showed it.
        date: first submission, ``YYYY-MM-DD``; None where the page showed none.
        position: on the page, from 1.
        family: the package that holds the method.
        names: public names below ``tunesmith.``.
        status: ``"planned"`` (nothing to run yet), ``"working"``, or ``"reconstruction"`` (works, but rebuilt
            from a description without formulas or code).
        reconstruction: whether the method is, or will be, such a reconstruction.
        note: what a reader should know beside the status.
        summary: two or three sentences.
        claim: the small-scale result, when there is one.
    """

    slug: str
    title: str
    arxiv: str
    authors: int | None
    organisation: str | None
    date: str | None
    position: int
    family: str
    names: tuple[str, ...]
    status: Status
    reconstruction: bool
    note: str | None
    summary: str
    claim: Claim | None

    @property
    def url(self) -> str:
        """Address of the abstract."""
        return f"https://arxiv.org/abs/{self.arxiv}"

    @property
    def year(self) -> str:
        """Year of the first submission, from the date or else from the arXiv id."""
        return self.date[:4] if self.date else f"20{self.arxiv[:2]}"


def all_cards(status: str | None = None, family: str | None = None) -> list[Card]:
    """Return the cards in the page's order.

    Args:
        status: only cards of this status.
        family: only cards of this family.

    Raises:
        UnknownNameError: there is no such status or family.
    """
    cards = list(_cards().values())
    families = sorted({card.family for card in cards})
    if status is not None and status not in STATUSES:
        raise UnknownNameError("status", status, STATUSES)
    if family is not None and family not in families:
        raise UnknownNameError("family", family, families)
    return [c for c in cards if status in (None, c.status) and family in (None, c.family)]


def get(name: str) -> Card:
    """Return a card by slug or arXiv id.

    Raises:
        UnknownNameError: there is no such card; lists the nearest and all slugs.
    """
    cards = _cards()
    if name in cards:
        return cards[name]
    wanted = re.sub(r"^(https?://arxiv\.org/abs/|arxiv:)|v\d+$", "", name.strip().lower())
    for card in cards.values():
        if wanted == card.arxiv:
            return card
    raise UnknownNameError("paper", name, cards)


def search(text: str) -> list[Card]:
    """Return the cards in which every word of ``text`` begins some word, best first.

    A hit in slug, names or title counts more than one in the summary; ties keep the page's order.

    Args:
        text: words, in any order and case; an empty text finds nothing.
    """
    words = _words(text)
    found = []
    for card in _cards().values():
        scores = [_score(card, word) for word in words]
        if scores and all(scores):
            found.append((-sum(scores), card.position, card))
    return [card for *_, card in sorted(found, key=lambda item: item[:2])]


def of_method(name: str) -> Card | None:
    """Return the card of a registered method (``"select.mig"``), or None for a baseline or a plug-in.

    Raises:
        UnknownNameError: nothing is registered under that name.
    """
    public = public_name(name).removeprefix("tunesmith.")
    return next((card for card in _cards().values() if public in card.names), None)


def public_name(method: str) -> str:
    """Return what to import for a registered method: ``"select.mig"`` is ``"tunesmith.select.MIGSelector"``.

    Raises:
        UnknownNameError: nothing is registered under that name.
    """
    if method not in methods.names():
        raise UnknownNameError("method", method, methods.names())
    module, _, attribute = next(iter(entry_points(group=GROUP, name=method))).value.partition(":")
    if module.startswith("tunesmith."):
        # The shortest package on the way that exports it: select.MIGSelector, select.online.UDSPolicy.
        parts = module.split(".")
        packages = (".".join(parts[:end]) for end in range(2, len(parts)))
        module = next((p for p in packages if attribute in import_module(p).__all__), module)
    return f"{module}.{attribute}"


@lru_cache(maxsize=1)
def _cards() -> dict[str, Card]:
    folder = resources.files("tunesmith.papers") / "cards"
    cards = [
        _card(json.loads(file.read_text(encoding="utf-8")))
        for file in folder.iterdir()
        if file.name.endswith(".json")
    ]
    return {card.slug: card for card in sorted(cards, key=lambda card: card.position)}


def _card(values: dict[str, Any]) -> Card:
    claim = values.pop("claim")
    return Card(**{**values, "names": tuple(values["names"])}, claim=Claim(**claim) if claim else None)


def _score(card: Card, word: str) -> int:
    best = 0
    for field, weight in _WEIGHTS.items():
        value = getattr(card, field)
        text = " ".join(value) if isinstance(value, tuple) else value
        apart = re.sub(
            r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", text
        )  # MIGSelector: mig, selector
        parts = {*_words(text), *_words(apart)}
        if any(part.startswith(word) for part in parts):
            best = max(best, weight * (2 if word in parts else 1))
    return best


def _words(text: str) -> list[str]:
    return re.findall(r"\d+\.\d+|\w+", text.lower())
