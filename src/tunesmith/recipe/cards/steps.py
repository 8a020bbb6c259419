"""How the rows came down to those that were trained on: the same counts as in the run's report."""

from __future__ import annotations

from typing import Any

from tunesmith.core.wording import number
from tunesmith.recipe.cards.facts import Made
from tunesmith.recipe.cards.origins import data_origin
from tunesmith.recipe.report.files import RunFiles
from tunesmith.recipe.report.sections import data as data_section
from tunesmith.recipe.report.style import arm_label

__all__ = ["digest_lines", "steps_of"]


def steps_of(made: Made, *, trained: bool = True) -> list[dict[str, Any]]:
    """Return the steps from reading to training with rows in, rows out and why rows left.

    Args:
        made: the run's model.
        trained: with the last step, what the training itself leaves out.
    """
    files = made.files
    found = []
    section = data_section(files)
    for source in section["sources"]:
        if source["name"] == "pool":
            found.append(_step("read", source["n_read"], source["n_kept"], _listed(source["reasons"])))
    held = _held_out(files, found)
    found += [held] if held else []
    for step in section["steps"]:
        why = _listed(step["reasons"]) + (f"; also {_listed(step['also'])}" if step["also"] else "")
        found.append(_step(step["name"], step["rows_in"], step["rows_out"], why))
    chosen = made.run.selection
    if chosen is not None:
        method = chosen.get("method")
        name = "all rows" if method == "all" else f"chosen by {method}"
        found.append(_step(name, chosen.get("n_pool"), chosen.get("n_selected"), _budget(chosen)))
    targets = files.object(made.run.folder / "targets" / "targets.json")
    if targets is not None:
        event: dict[str, Any] = next(
            (
                e
                for e in reversed(files.events_of("rows", made.arm, made.seed))
                if e.get("stage") == "targets"
            ),
            {},
        )
        reasons = [(str(k), v) for k, v in (event.get("reasons") or {}).items()]
        found.append(
            _step("answers rewritten", event.get("rows_in"), event.get("rows_out"), _listed(reasons))
        )
    encoded = made.run.preflight if trained else None
    if encoded is not None:
        reasons = [(str(k), v) for k, v in (encoded.get("reasons") or {}).items()]
        cut = encoded.get("n_truncated")
        why = _listed(reasons)
        if cut:
            why += f"{'; ' if why else ''}{number(cut)} cut at the longest length"
        found.append(
            _step(f"trained on ({arm_label(made.arm)})", encoded.get("n_rows"), encoded.get("n_kept"), why)
        )
    return found


def _held_out(files: RunFiles, before: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the step that set test rows aside from the pool, where there were no others."""
    event: dict[str, Any] = next(
        (e for e in reversed(files.events_of("rows")) if e.get("stage") == "data"), {}
    )
    kept, left = before[-1]["rows_out"] if before else None, event.get("rows_in")
    if not isinstance(kept, int) or not isinstance(left, int) or left >= kept:
        return None
    return _step("test rows set aside", kept, left, f"set aside for the evaluation: {number(kept - left)}")


def _step(name: str, rows_in: Any, rows_out: Any, why: str) -> dict[str, Any]:
    return {"name": name, "rows_in": rows_in, "rows_out": rows_out, "why": why}


def _listed(reasons: Any) -> str:
    return "; ".join(f"{reason}: {number(rows)}" for reason, rows in reasons)


def _budget(chosen: dict[str, Any]) -> str:
    budget = chosen.get("budget")
    parameters = ", ".join(f"{key} {value}" for key, value in (chosen.get("parameters") or {}).items())
    text = (
        ""
        if budget is None
        else f"budget {budget:.0%}"
        if isinstance(budget, float)
        else f"budget {budget} rows"
    )
    return f"{text}; {parameters}" if text and parameters else text or parameters


def digest_lines(files: RunFiles) -> list[str]:
    """Return a line with the hash of each local source; a set of the Hub is named by its id."""
    found = []
    for which, label in (("train", "pool"), ("validation", "validation rows"), ("test", "test rows")):
        origin = data_origin(files, which)
        if origin is None:
            continue
        digest = f", SHA-256 {origin.digest}" if origin.local and origin.digest else ""
        found.append(f"{label}: {origin.name}{digest}")
    if data_origin(files, "test") is None and files.recipe.get("evaluate"):
        found.append("test rows: set aside from the pool, by prompt, before anything else")
    return found
