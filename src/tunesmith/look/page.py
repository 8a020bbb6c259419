"""The page of a look: one HTML file that loads nothing from anywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunesmith.core.pages import html_environment
from tunesmith.core.wording import clip, duration, number, percent
from tunesmith.look import figures

if TYPE_CHECKING:
    from tunesmith.look.looking import Look

__all__ = ["page_environment", "render"]


def render(look: Look) -> str:
    """Return the page."""
    facts, shown = look.facts, look.shown
    found = shown.get("structure")
    names = {cluster["id"]: cluster["name"] for cluster in facts.get("clusters", [])}
    figure = length_figure = None
    if found is not None:
        figure = figures.cluster_map(found.xy, found.cluster, names, found.outliers, facts["seed"])
    if "lengths" in shown:
        length_figure = figures.lengths(shown["lengths"], "characters")
    return str(
        page_environment()
        .get_template("look.html.j2")
        .render(
            facts=facts,
            took=duration(facts["seconds"]),
            noun={"images": "images"}.get(facts["kind"], "rows"),
            map=figure,
            length_figure=length_figure,
            previews=shown.get("previews", {}),
        )
    )


def page_environment() -> Any:
    """Return the jinja environment of the pages of the verbs ``look`` and ``cluster``."""
    environment = html_environment("tunesmith.look")
    environment.filters |= {
        "percent": percent,
        "number": number,
        "clip": clip,
        "place": _place,
        "cells": _quantile_cells,
    }
    return environment


def _place(row: dict[str, Any]) -> str:
    """Name a row as error messages do."""
    source = row.get("source")
    return f"{source}, row {row['row']}" if source else f"row {row['row']}"


def _quantile_cells(values: dict[str, float]) -> list[str]:
    return [number(float(values[name])) for name in ("min", "q1", "median", "q3", "p95", "max", "mean")]
