"""What stands out of the facts, in sentences with advice, the gravest first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["findings_of"]

Facts = dict[str, Any]
Finding = dict[str, str]

MANY = 0.01  # share of the rows from which copies, broken or odd rows are grave
_KEYS = ("key", "token", "password")


def findings_of(facts: Facts) -> list[Finding]:
    """Return ``level`` (``"grave"`` or ``"note"``), ``title`` and ``advice`` of each finding."""
    found = [finding for part in _PARTS for finding in part(facts)]
    return sorted(found, key=lambda finding: finding["level"] != "grave")


def _finding(grave: bool, title: str, advice: str) -> Finding:
    return {"level": "grave" if grave else "note", "title": title, "advice": advice}


def _rows(n: int, total: int, facts: Facts) -> str:
    noun = "image" if facts["kind"] == "images" else "row"
    share = 100 * n / max(total, 1)
    digits = 0 if share >= 10 else 1 if share >= 0.1 else 2
    return f"{n:,} {noun}{'s' if n != 1 else ''} ({share:.{digits}f} %)"


def _reading(facts: Facts) -> Iterator[Finding]:
    reading = facts["reading"]
    lost = reading["n_read"] - reading["n_kept"]
    if lost:
        worst = max(reading["reasons"].items(), key=lambda item: item[1], default=("", 0))
        yield _finding(
            lost > MANY * reading["n_read"],
            f"Cannot be used: {_rows(lost, reading['n_read'], facts)}",
            f"Most often: {worst[0]}. They are listed below with file and row.",
        )
    if facts["rows"] < 50:
        yield _finding(False, f"Only {facts['rows']} rows", "Shares and clusters of so few say little.")


def _copies(facts: Facts) -> Iterator[Finding]:
    exact = facts.get("copies", {}).get("exact", {}).get("rows", 0)
    near = facts.get("copies", {}).get("near", {}).get("rows", 0)
    n, text = facts["rows"], facts["kind"] == "text"
    if exact:
        advice = (
            "`tunesmith curate DATA --method dedup --out clean.jsonl` keeps the first of each."
            if text
            else ("They weigh more than others, and leak between splits.")
        )
        yield _finding(exact > MANY * n, f"Exact copies of an earlier one: {_rows(exact, n, facts)}", advice)
    if near:
        advice = "`tunesmith curate DATA --method near_dedup --out clean.jsonl` removes them, with a reason for each."
        if not text:
            advice = (
                "Their cosine is 0.99 or more."
                if facts["kind"] == "vectors"
                else ("The same picture in another size or quality.")
            )
        yield _finding(near > MANY * n, f"Near copies of an earlier one: {_rows(near, n, facts)}", advice)


def _overlap(facts: Facts) -> Iterator[Finding]:
    for part in facts.get("overlap", []):
        if part["rows"]:
            yield _finding(
                True,
                f"Rows of {part['source']} are in the data: {part['evaluation_rows_given_away']:,} of "
                f"{part['evaluation_rows']:,}, in {_rows(part['rows'], facts['rows'], facts)}",
                "Scores on that set would be too good. `tunesmith curate DATA --method contamination "
                f"--set against={part['source']} --out clean.jsonl` removes them.",
            )


def _answers(facts: Facts) -> Iterator[Finding]:
    for part in facts.get("answers", []):
        yield _finding(
            part["rows"] > MANY * facts["rows"] and not part["problem"].startswith("perhaps"),
            f"{part['problem'][0].upper()}{part['problem'][1:]}: {_rows(part['rows'], facts['rows'], facts)}",
            "A model learns to stop there."
            if "cut off" in part["problem"]
            else "Nothing can be learned from them.",
        )
    piled = facts.get("lengths", {}).get("longest_rows_share_one_length", 0)
    if piled:
        yield _finding(
            True,
            f"Exactly the largest length: {_rows(piled, facts['rows'], facts)}",
            "They were probably cut at a limit when the data was made.",
        )


def _secrets(facts: Facts) -> Iterator[Finding]:
    for part in facts.get("secrets", []):
        yield _finding(
            any(word in part["kind"] for word in _KEYS) or part["rows"] > MANY * facts["rows"],
            f"Looks like {part['kind']}: {_rows(part['rows'], facts['rows'], facts)}",
            "Revoke it and take it out."
            if any(word in part["kind"] for word in _KEYS)
            else "Check before sharing.",
        )


def _spread(facts: Facts) -> Iterator[Finding]:
    known = [entry for entry in facts.get("languages", []) if entry["code"] != "?"]
    total = sum(entry["rows"] for entry in known)
    others = [entry for entry in known[1:] if entry["rows"] > MANY * total]
    if others:
        names = ", ".join(
            f"{entry['code']} {100 * entry['rows'] / total:.0f} %" for entry in known[: len(others) + 1]
        )
        yield _finding(False, f"Several languages: {names}", "Is that what you want to train on?")
    clusters = facts.get("clusters", [])
    if len(clusters) > 2 and clusters[0]["share"] > 0.5:
        yield _finding(
            False,
            f"One cluster holds {100 * clusters[0]['share']:.0f} % of the rows: {clusters[0]['name']}",
            "A selector that spreads its budget (`kmeans`, `mig`) evens that out.",
        )
    far = facts.get("outliers", {}).get("rows", 0)
    if far:
        yield _finding(
            False, f"Apart from all others: {_rows(far, facts['rows'], facts)}", "Look at them below."
        )


def _columns(facts: Facts) -> Iterator[Finding]:
    columns = facts.get("columns", [])
    for kind, advice in (("empty", "Drop them."), ("constant", "They say nothing; drop them.")):
        names = [column["name"] for column in columns if column["kind"] == kind]
        if names:
            yield _finding(False, f"Columns that are {kind}: {', '.join(names[:8])}", advice)
    holes = [column for column in columns if column["kind"] != "empty" and column["missing"] > 0.2]
    if holes:
        shares = ", ".join(f"{column['name']} {100 * column['missing']:.0f} %" for column in holes[:8])
        yield _finding(True, f"Columns with many missing values: {shares}", "Impute, or leave them out.")
    infinite = [column["name"] for column in columns if column.get("infinite")]
    if infinite:
        yield _finding(True, f"Infinite values in: {', '.join(infinite)}", "Most methods refuse them.")
    constant = facts.get("vectors", {}).get("constant_columns", 0)
    if constant:
        yield _finding(False, f"Constant columns: {constant:,}", "They say nothing.")


_PARTS = (_reading, _copies, _overlap, _answers, _secrets, _columns, _spread)
