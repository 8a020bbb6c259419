"""Where cards go, and the cards that a run writes at its end."""

from __future__ import annotations

import os
from pathlib import Path

from tunesmith.core.events import EventLog
from tunesmith.recipe.cards.data import data_card
from tunesmith.recipe.cards.facts import is_run
from tunesmith.recipe.cards.model import model_card
from tunesmith.recipe.cards.readme import holds, write_card
from tunesmith.recipe.schema import Recipe

__all__ = ["card_path", "write_cards"]


def card_path(run_or_model: str | os.PathLike[str], *, data: bool = False) -> Path:
    """Return where a card belongs.

    A model's card is the README of its weights: ``model/weights/README.md`` of a run that exports one, the folder's
    own README for a folder of weights. A run without an export has no folder to give away: ``cards/model.md``. The card
    of the chosen rows is ``cards/data.md``, as a run keeps them as row numbers or in the layout of ``save_to_disk``,
    which the Hub does not show.
    """
    path = Path(run_or_model)
    if data:
        return path / "cards" / "data.md"
    if is_run(path):
        weights = path / "model" / "weights"
        return weights / "README.md" if weights.is_dir() else path / "cards" / "model.md"
    return path / "README.md"


def write_cards(root: Path, recipe: Recipe, log: EventLog) -> None:
    """Write the cards of a run that just finished; what goes wrong is a warning, as the run itself is whole.

    An unchanged run gives the same text, and then no file is touched: an audit that was added by hand stays on the card
    until the model is another.
    """
    wanted = [("data", True)] if recipe.curate or recipe.select or recipe.targets or recipe.train else []
    wanted += [("model", False)] if recipe.train is not None else []
    for name, data in wanted:
        try:
            card, path = data_card(root) if data else model_card(root), card_path(root, data=data)
            if not holds(path, card, name):
                write_card(card, path)
        except Exception as error:  # whatever it is, the run itself is whole
            log.warn(f"The {name} card could not be written: {error}")
