"""Text of a card from a template: what comes from data cannot end a table, a code block or one of our marks."""

from __future__ import annotations

import html
import re
from typing import Any

from tunesmith.core.wording import clip, number
from tunesmith.recipe.cards.origins import names_only

__all__ = ["rendered"]

LONGEST = 2_000  # characters of one cell or sentence


def rendered(template: str, **values: Any) -> str:
    """Return a template of this package with its values filled in."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tunesmith.recipe.cards", "templates"),
        autoescape=False,  # Markdown: the filters below do it
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"cell": _cell, "said": _said, "text": _text, "fenced": _fenced, "count": _count}
    return environment.get_template(template).render(**values)


def _text(value: Any) -> str:
    """Return one line without markup, local paths and what looks like a key."""
    flat = " ".join(clip(names_only(value), LONGEST).split())
    flat = html.escape(flat, quote=False)
    return re.sub(r"([\[\]`*_])", r"\\\1", flat)


def _said(value: Any) -> str:
    """Return one of our own sentences, in which code is marked as code."""
    return re.sub(r"([\[\]])", r"\\\1", html.escape(" ".join(names_only(value).split()), quote=False))


def _cell(value: Any) -> str:
    return _text(value).replace("|", "\\|")


def _count(value: Any) -> str:
    return number(value) if isinstance(value, (int, float)) else ""


def _fenced(text: str, language: str) -> str:
    """Return a code block whose fence is longer than any in the text; a mark of ours in it is broken up."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip().replace('<!--', '<! --')}\n{fence}"
