"""Write docs/benchmarks/index.md and docs/claims/index.md from the JSON files beside them.

    python scripts/gen_results.py            # write
    python scripts/gen_results.py --check    # exit code 1 if a page is not what the JSON files say

A result file is a JSON object. Known keys come first: ``title``, ``summary``, ``claim``, ``verdict``,
``command``; a list of objects becomes a table, an object a table of two columns, and so do the plain values
together. No figure on these pages is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

INTROS = {
    "benchmarks": (
        "Benchmarks",
        "Each figure was printed by a script in `benchmarks/`, against the named peer in the same run on the "
        "same machine; ratios travel between machines, seconds do not. `make bench` runs all of them again. "
        "A target that was missed stands here with its reason.",
        "No benchmark has been run yet.",
    ),
    "claims": (
        "Claims",
        "What each paper claims, tried at small scale by a script in `benchmarks/claims/`: several seeds, a "
        "natural baseline, an interval. `make claims` runs all of them again. A claim that does not hold at "
        "this scale is shown like any other.",
        "No claim has been tried yet.",
    ),
}
HEAD_KEYS = ("title", "name", "summary", "claim", "verdict", "holds", "command", "machine", "environment")


def main() -> int:
    """Write or check both pages; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is out of date")
    check = parser.parse_args().check
    stale = []
    for kind in INTROS:
        page = ROOT / "docs" / kind / "index.md"
        text = render(kind, page.parent)
        if page.exists() and page.read_text(encoding="utf-8") == text:
            continue
        stale.append(page)
        if not check:
            page.parent.mkdir(parents=True, exist_ok=True)
            page.write_text(text, encoding="utf-8")
            print(f"wrote {page.relative_to(ROOT)}")
    if check and stale:
        names = ", ".join(str(page.relative_to(ROOT)) for page in stale)
        print(f"out of date: {names}; run python scripts/gen_results.py")
        return 1
    return 0


def render(kind: str, folder: Path) -> str:
    """Return the page of ``kind`` for the JSON files of ``folder``."""
    title, intro, empty = INTROS[kind]
    parts = [f"# {title}", intro]
    files = sorted(folder.glob("*.json"))
    for file in files:
        parts += list(_section(file.stem, json.loads(file.read_text(encoding="utf-8"))))
    if not files:
        parts.append(empty)
    return "\n\n".join(parts) + "\n"


def _section(slug: str, result: dict[str, Any]) -> Iterator[str]:
    yield f"## {result.get('title') or result.get('name') or slug}"
    if result.get("title"):
        for key in ("name", "claim"):
            if result.get(key):
                yield f"{_label(key)}: {_inline(result[key])}"
    elif result.get("claim"):
        yield f"Claim: {_inline(result['claim'])}"
    if result.get("summary"):
        yield _inline(result["summary"])
    for key in ("verdict", "holds"):
        if key in result:
            yield f"**{_label(key)}:** {_cell(result[key])}"
    if result.get("command"):
        yield f"Printed by `{result['command']}`."
    rest = {key: value for key, value in result.items() if key not in HEAD_KEYS}
    for key, value in rest.items():
        if _is_rows(value):
            yield f"**{_label(key)}**"
            yield _table(value)
        elif isinstance(value, dict) and value:
            yield f"**{_label(key)}**"
            yield _pairs(value)
    facts = {key: value for key, value in rest.items() if not _is_rows(value) and not isinstance(value, dict)}
    for key in ("machine", "environment"):
        if result.get(key):
            facts[key] = result[key]
    if facts:
        yield _pairs(facts)


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _table(rows: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [
        "| " + " | ".join(_label(column) for column in columns) + " |",
        "|" + "|".join("---" for _ in columns) + "|",
    ]
    lines += ["| " + " | ".join(_cell(row.get(column)) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def _pairs(values: dict[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {_label(k)} | {_cell(v)} |" for k, v in values.items())])


def _label(key: str) -> str:
    text = str(key).replace("_", " ").replace("|", "\\|")
    return text[:1].upper() + text[1:]


def _inline(value: Any) -> str:
    return " ".join(str(value).split())


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, dict):
        return "; ".join(f"{_label(k).lower()} {_cell(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(_cell(v) for v in value)
    return _inline(value).replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
