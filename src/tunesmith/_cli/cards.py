"""The verb ``card``: the model or data card of a run, or of a folder of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["card"]


def card(
    place: Annotated[
        Path, typer.Argument(metavar="RUN_OR_MODEL", help="The directory of a run, or a folder of weights.")
    ],
    data: Annotated[
        bool, typer.Option("--data", help="The card of the rows that the run chose, not of its model.")
    ] = False,
    audit: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="A folder with an audit's report; may be given several times."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write this file; by default where the card belongs.")
    ] = None,
    examples: Annotated[
        int, typer.Option(metavar="N", help="With --data: show the first N rows. A card is public.")
    ] = 0,
) -> None:
    """Write a model or data card in the Hub's format; in a README that is there, only its own part is renewed."""
    from tunesmith.core.errors import ParameterError
    from tunesmith.recipe.cards import card_path, data_card, model_card, write_card

    if data and audit:
        raise ParameterError(
            "--audit", "tunesmith card", "left out with --data: audits look at models", str(audit[0])
        )
    if examples and not data:
        raise ParameterError("--examples", "tunesmith card", "given with --data only", examples)
    made = data_card(place, examples=examples) if data else model_card(place, audits=audit or [])
    print(f"Wrote {write_card(made, out or card_path(place, data=data))}")
