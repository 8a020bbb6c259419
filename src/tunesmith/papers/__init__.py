"""The catalogue of the forty-one papers: one card each, with its public names, its status and its claim."""

from tunesmith.papers.catalogue import BASELINES, Card, Claim, get, of_method, search
from tunesmith.papers.catalogue import all_cards as list

__all__ = ["BASELINES", "Card", "Claim", "get", "list", "of_method", "search"]
