"""The page and the picture of the verb ``cluster``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tunesmith import __version__
from tunesmith.core.files import atomic_open
from tunesmith.data.groups import central_rows, group_names
from tunesmith.look import figures
from tunesmith.look.page import page_environment
from tunesmith.look.rows import group_words, place_of, previews_of

if TYPE_CHECKING:
    from tunesmith.look.material import Material

__all__ = ["standalone", "write_clusters"]


def write_clusters(
    out: Path,
    material: Material,
    X: Any,
    labels: NDArray[np.int64],
    *,
    method: str,
    parameters: dict[str, Any],
    encoder: str,
    seed: int,
    named: dict[int, str] | None = None,
) -> dict[str, Any]:
    """Write ``map.svg`` and ``clusters.html`` into ``out``; return the facts for ``clusters.json``.

    Args:
        out: an existing folder.
        material: the rows.
        X: (n, d) what was clustered.
        labels: (n,); negative for rows in no cluster.
        method: registered name without its family.
        parameters: what it was given.
        encoder: what made ``X``, in words.
        seed: of the map.
        named: groups that have a name already; the others are named by their words.
    """
    from tunesmith.recipe.report.maps import pool_map

    xy, _ = pool_map(X, seed)
    words = group_words(material, labels)
    names = group_names(words) | (named or {})
    central = central_rows(X, labels, 6 if material.kind == "images" else 4)
    place = place_of(material)
    clusters = [
        {
            "id": group,
            "name": names[group],
            "rows": int((labels == group).sum()),
            "share": float((labels == group).mean()),
            "words": words[group],
            "examples": [place(int(i)) for i in central[group]],
        }
        for group in names
    ]
    facts = {
        "source": material.source,
        "kind": material.kind,
        "rows": len(labels),
        "method": method,
        "parameters": {
            key: str(value) if hasattr(value, "shape") else value for key, value in parameters.items()
        },
        "encoder": encoder,
        "seed": seed,
        "version": __version__,
        "without_a_cluster": int((labels < 0).sum()),
        "clusters": clusters,
    }
    svg = figures.cluster_map(xy, labels, names, np.zeros(0, dtype=np.int64), seed)
    environment = page_environment()
    html = environment.get_template("clusters.html.j2").render(
        facts=facts,
        map=svg,
        noun="images" if material.kind == "images" else "rows",
        previews=previews_of(material, [int(i) for rows in central.values() for i in rows]),
    )
    with atomic_open(out / "clusters.html") as stream:
        stream.write(html)
    with atomic_open(out / "map.svg") as stream:
        stream.write(standalone(svg, str(environment.globals["style"])))
    return facts


def standalone(svg: str, style: str) -> str:
    """Return an inline figure as a file of its own: the light theme's colours in place of the CSS variables."""
    light = dict(re.findall(r"--([\w-]+): (#[0-9a-f]+)", style.split("@media")[0]))
    svg = re.sub(r"var\(--([\w-]+)\)", lambda m: light.get(m.group(1), "#000000"), svg)
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    size = f' width="{box.group(1)}" height="{box.group(2)}"' if box else ""
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"{size}'
    opening += ' font-family="DejaVu Sans, Arial, sans-serif" style="background:#ffffff"'
    return '<?xml version="1.0" encoding="utf-8"?>\n' + svg.replace("<svg", opening, 1) + "\n"
