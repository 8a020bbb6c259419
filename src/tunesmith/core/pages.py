"""What all our HTML pages share: one style, nothing loaded from anywhere."""

from __future__ import annotations

from typing import Any

__all__ = ["html_environment"]


def html_environment(package: str) -> Any:
    """Return the jinja environment of our pages: templates of ``package``, autoescape, the global ``style``.

    The filter ``svg`` lets our own figures pass unescaped; every text in them was escaped by matplotlib.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader(name, "templates") for name in (package, "tunesmith.core")]
        ),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["svg"] = Markup
    environment.globals["style"] = Markup(environment.loader.get_source(environment, "style.css")[0])  # type: ignore[union-attr]
    return environment
