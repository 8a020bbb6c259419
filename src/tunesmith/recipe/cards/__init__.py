"""Model and data cards in the Hub's format, made from the files of a run or from a model's folder and its audits."""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

if TYPE_CHECKING:
    from tunesmith.recipe.cards.data import data_card
    from tunesmith.recipe.cards.model import model_card
    from tunesmith.recipe.cards.placing import card_path, write_cards
    from tunesmith.recipe.cards.readme import write_card

__all__ = ["card_path", "data_card", "model_card", "write_card", "write_cards"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "card_path": "placing",
        "data_card": "data",
        "model_card": "model",
        "write_card": "readme",
        "write_cards": "placing",
    },
)
