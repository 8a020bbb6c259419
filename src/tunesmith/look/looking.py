"""``look``: read a pile of data once and say what is in it, before anything is done with it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.core.events import EventLog
from tunesmith.core.files import atomic_open, write_json

__all__ = ["Look", "look"]


@dataclass(frozen=True)
class Look:
    """What was found.

    Attributes:
        facts: everything, as plain values; ``facts["findings"]`` lists what stands out, the gravest first.
        shown: arrays and previews that only the page needs.
    """

    facts: dict[str, Any]
    shown: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def findings(self) -> list[dict[str, str]]:
        """``{"level": "grave" | "note", "title": …, "advice": …}``, the gravest first."""
        return list(self.facts["findings"])

    @staticmethod
    def check_path(path: str | os.PathLike[str]) -> Path:
        """Return the path if a page can be written there by its name, so that this is known before the work.

        Raises:
            ParameterError: it does not end in ``.html``.
        """
        page = Path(path)
        if page.suffix.lower() not in (".html", ".htm"):
            raise ParameterError("path", Look, "a path that ends in .html", str(path))
        return page

    def summary(self) -> str:
        """Return rows and findings as lines."""
        nouns = {"text": "rows of text", "table": "rows of a table"}
        noun = nouns.get(self.facts["kind"], self.facts["kind"])
        lines = [f"{self.facts['rows']:,} {noun}, looked at in {self.facts['seconds']:.0f} s."]
        for finding in self.findings:
            lines += [
                f"{'!' if finding['level'] == 'grave' else '·'} {finding['title']}",
                f"    {finding['advice']}",
            ]
        return "\n".join(lines) if self.findings else f"{lines[0]} Nothing unusual."

    def write(self, path: str | os.PathLike[str]) -> tuple[Path, Path]:
        """Write the page to ``path`` and the facts beside it, as ``.json``; each file whole or not at all.

        Returns:
            Paths of the page and of the facts.
        """
        from tunesmith.look.page import render

        page = self.check_path(path)
        html = render(self)
        with atomic_open(page) as stream:
            stream.write(html)
        write_json(page.with_suffix(".json"), self.facts)
        return page, page.with_suffix(".json")


def look(
    source: Any,
    *,
    against: Any = (),
    encoder: str = "auto",
    kind: str = "auto",
    max_rows: int | None = None,
    seed: int = 0,
    log: EventLog | None = None,
) -> Look:
    """Look at a pile of data: how it reads, lengths, languages, copies, clusters, outliers, broken rows, secrets.

    Nothing is trained and nothing is changed. Texts, image folders, arrays of vectors and tables are told apart by
    themselves. 10^5 texts take minutes on two cores (`benchmarks/look.py`); memory is the embedding and a few
    numbers a row.

    Args:
        source: a file, a folder (of data files or of images), a Hub id, ``demo:NAME``, a ``datasets.Dataset``, a
            data frame, or an array of vectors (n, d).
        against: evaluation files (one or a list) whose rows must not be in the pile; texts only.
        encoder: what texts or images are embedded with for map, clusters and outliers. ``"auto"`` is MiniLM up to
            5,000 texts, its word table alone beyond, and thumbnails for images; or a sentence-transformers model.
        kind: ``"text"``, ``"images"``, ``"vectors"`` or ``"table"`` where ``"auto"`` is wrong.
        max_rows: look at the first so many rows alone.
        seed: of samples, t-SNE and k-means.
        log: receives progress and warnings.

    Returns:
        The facts; ``.write("look.html")`` makes the page.

    Raises:
        DataError: nothing is there, it cannot be read, or ``against`` is given for what is not text.
        ParameterError: ``kind`` or ``max_rows`` is outside its set.
        MissingModelError: the encoder cannot be found.
    """
    from tunesmith import __version__
    from tunesmith.look.findings import findings_of
    from tunesmith.look.material import open_material
    from tunesmith.look.parts import look_at

    log = EventLog() if log is None else log
    begin = time.perf_counter()
    material = open_material(source, kind=kind, max_rows=max_rows, log=log)
    several: Sequence[Any] = against if isinstance(against, (list, tuple)) else [against]
    if several and material.kind != "text":
        raise DataError(
            f"evaluation rows are compared with texts, and these are {material.kind}. Leave 'against' out.",
            source=material.source,
        )
    for line in material.how:
        log.emit("message", message=line)
    parts, shown = look_at(material, against=several, encoder=encoder, seed=seed, log=log)
    facts = {
        "source": material.source,
        "kind": material.kind,
        "rows": len(material),
        "version": __version__,
        "seed": seed,
        **parts,
    }
    facts["findings"] = findings_of(facts)
    facts["seconds"] = round(time.perf_counter() - begin, 2)
    return Look(facts, shown)
