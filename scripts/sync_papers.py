"""Copy claim results into the papers' cards and write the table of papers into the README.

    python scripts/sync_papers.py            # write
    python scripts/sync_papers.py --check    # exit code 1 if a card or the table is out of date

A claim is ``docs/claims/SLUG.json`` (written by ``benchmarks/claims/SLUG.py``); its ``verdict`` and
``command`` go into the card. A card whose claim file is gone loses its claim.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- papers:begin -->", "<!-- papers:end -->"


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Write or check cards and table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail if something is out of date"
    )
    check = parser.parse_args(arguments).check
    stale = []
    for path, text in wanted(root).items():
        if path.read_text(encoding="utf-8") == text:
            continue
        stale.append(path.relative_to(root).as_posix())
        if not check:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {stale[-1]}")
    if check and stale:
        print(f"out of date: {', '.join(stale)}; run python scripts/sync_papers.py")
        return 1
    return 0


def wanted(root: Path) -> dict[Path, str]:
    """Return what each card and the README should hold.

    Raises:
        SystemExit: the README has no place for the table, or a claim lacks its verdict or command.
    """
    files: dict[Path, str] = {}
    cards = []
    for path in sorted((root / "src/tunesmith/papers/cards").glob("*.json")):
        card = json.loads(path.read_text(encoding="utf-8"))
        card["claim"] = claim_of(root, card["slug"])
        cards.append(card)
        files[path] = json.dumps(card, indent=2, ensure_ascii=False) + "\n"
    readme = root / "README.md"
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        sys.exit(f"README.md must hold {BEGIN} and {END} once each")
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    cards.sort(key=lambda card: card["position"])
    files[readme] = f"{head}{BEGIN}\n{table(cards)}\n{END}{tail}"
    return files


def claim_of(root: Path, slug: str) -> dict[str, str] | None:
    """Return verdict and command of a paper's claim, or None while there is none."""
    path = root / "docs/claims" / f"{slug}.json"
    if not path.exists():
        return None
    result = json.loads(path.read_text(encoding="utf-8"))
    missing = [key for key in ("verdict", "command") if not result.get(key)]
    if missing:
        sys.exit(f"docs/claims/{slug}.json lacks {' and '.join(missing)}")
    return {key: " ".join(str(result[key]).split()) for key in ("verdict", "command")}


def table(cards: list[dict[str, Any]]) -> str:
    """Return the table in Markdown, working methods first, then in the page's order."""
    count = {
        status: sum(card["status"] == status for card in cards) for status in ("working", "reconstruction")
    }
    done = count["working"] + count["reconstruction"]
    lines = [
        f"{done} of {len(cards)} work today. *Reconstruction*: rebuilt from a description that has neither "
        "formulas nor code.",
        "",
        "| paper | arXiv | in `tunesmith.` | status |",
        "|---|---|---|---|",
    ]
    for card in sorted(cards, key=lambda card: card["status"] == "planned"):
        names = ", ".join(f"`{name}`" for name in card["names"])
        url = f"https://arxiv.org/abs/{card['arxiv']}"
        lines.append(
            f"| {_cell(card['title'])} | [{card['arxiv']}]({url}) | {names} | {_cell(status(card))} |"
        )
    return "\n".join(lines)


def status(card: dict[str, Any]) -> str:
    """Return a card's status with what qualifies it."""
    parts = [f"**{card['status']}**" if card["status"] != "planned" else "planned"]
    if card["reconstruction"] and card["status"] != "reconstruction":
        parts.append("as a reconstruction")
    text = " ".join(parts)
    if card["note"] and not card["reconstruction"]:
        text += f". {card['note']}"
    if card["claim"]:
        text += f"{'' if text.endswith('.') else '.'} Claim at small scale: {first_sentence(card['claim']['verdict'])}"
    return text


def first_sentence(text: str) -> str:
    """Return the first sentence; the whole verdict stands in docs/claims."""
    return text.split(". ")[0].rstrip(".") + "."


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
