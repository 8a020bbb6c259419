"""Ending dominated arms of a comparison early: which arms may be judged by one another, and what the judgement was.

With ``compare.early_stop`` every arm is trained to a window first (`tunesmith.recipe.pilot`), the arms that differ only
in how they step are ranked by their early signals (`tunesmith.trainers.rank_runs`), and an arm that is dominated under
every seed is neither trained on nor evaluated. The arm that others are compared with always goes on.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import ConfigError
from tunesmith.core.files import hash_json, read_json, write_json

if TYPE_CHECKING:
    from tunesmith.core.events import EventLog
    from tunesmith.recipe.loading import Arm
    from tunesmith.recipe.schema import Recipe

__all__ = [
    "DEFAULT_WINDOW",
    "build_verdict",
    "check_early_stop",
    "comparable_arms",
    "ended_arms",
    "window_of",
]

DEFAULT_WINDOW = 0.1
"""Share of a run's samples that the window covers."""

# What may differ between arms whose losses and gradient norms are put side by side.
STEPPING = frozenset(
    """
    learning_rate batch_size accumulate schedule warmup epochs save_every weight_decay adam_beta1 adam_beta2
    adam_epsilon max_grad_norm lr_scheduler_kwargs gradient_checkpointing gradient_checkpointing_kwargs
    """.split()  # noqa: SIM905
)
AFTERWARDS = (
    "name",
    "evaluate",
    "audit",
    "export",
    "compare",
    "preflight",
)  # blocks that training does not depend on


def window_of(recipe: Recipe) -> float | None:
    """Return the share of the samples after which arms are judged; None where they are not."""
    early = False if recipe.compare is None else recipe.compare.early_stop
    if early is False:
        return None
    return DEFAULT_WINDOW if early is True else float(early)


def comparable_arms(arms: list[Arm]) -> list[list[Arm]]:
    """Return the groups of at least two arms with the same model, rows and loss, which differ only in how they step."""
    groups: dict[str, list[Arm]] = {}
    for arm in arms:
        train = arm.recipe.train
        if train is None or train.type != "sft" or arm.recipe.tuner.type == "lt_sft":  # two trainings in one
            continue
        if "max_steps" in train.parameters:  # then neither epochs nor samples say how long a run is
            continue
        same = {k: v for k, v in arm.recipe.model_dump().items() if k not in AFTERWARDS}
        same["train"] = {k: v for k, v in same["train"].items() if k not in STEPPING}
        groups.setdefault(hash_json(same), []).append(arm)
    return [group for group in groups.values() if len(group) > 1]


def check_early_stop(recipe: Recipe, arms: list[Arm]) -> None:
    """Refuse a recipe in which no arm could ever be ended.

    Raises:
        ConfigError: no two arms differ only in how they step.
    """
    if window_of(recipe) is not None and not comparable_arms(arms):
        raise ConfigError(
            "compare.early_stop judges arms of train.type 'sft' that differ only in how they step "
            "(train.learning_rate, train.batch_size, train.accumulate, …), and no two arms here do: losses on other "
            "rows or of another model say nothing about one another. Leave it out."
        )


def build_verdict(folder: Path, runs: dict[str, dict[str, list[Path]]], baseline: str) -> dict[str, Any]:
    """Rank the arms of each group under each seed, and write ``ranking.json``.

    Args:
        folder: of the stage.
        runs: name of a group -> arm -> the folder of its pilot under each seed.
        baseline: the arm that others are compared with.
    """
    from tunesmith.trainers.recipe_guide import rank_runs

    rows: list[dict[str, Any]] = []
    ended: dict[str, dict[str, Any]] = {}
    spared = []
    for group in runs.values():
        seeds = len(next(iter(group.values())))
        dominators: dict[str, list[set[str]]] = {arm: [] for arm in group}
        samples = read_json(next(iter(group.values()))[0] / "window.json")["samples"]
        for i in range(seeds):
            seed = next(iter(group.values()))[i].parent.name.removeprefix("seed-")
            ranking = rank_runs({arm: paths[i] / "signals.jsonl" for arm, paths in group.items()}, samples)
            for run in ranking.runs:
                dominators[run.run].append(set(run.dominated_by))
                rows.append(
                    {
                        "arm": run.run, "seed": int(seed), "status": run.status, "log_grad_norm": run.g, "loss": run.l,
                        "rank": run.rank, "dominated_by": list(run.dominated_by), "steps": run.n_records,
                    }
                )  # fmt: skip
        for arm, found in dominators.items():
            if not all(found):
                continue
            if arm == baseline:
                spared.append(arm)
            else:
                ended[arm] = {"dominated_by": sorted(set.union(*found)), "samples": samples}
    write_json(folder / "ranking.json", {"runs": rows, "ended": ended, "spared": spared})
    return {"ended": sorted(ended), "arms": sum(map(len, runs.values()))}


def ended_arms(folder: Path, root: Path, log: EventLog) -> dict[str, Any]:
    """Return what was decided, say it in the log, and remove the checkpoints of the arms that end.

    Args:
        folder: of the stage.
        root: the run directory.
        log: receives a message per arm.
    """
    verdict = read_json(folder / "ranking.json")
    ended: dict[str, Any] = verdict["ended"]
    for arm, why in ended.items():
        for path in (root / "arms" / arm).glob("seed-*/early/checkpoints"):
            shutil.rmtree(path, ignore_errors=True)
        log.emit("message", message=f"The arm {arm} ends here: {describe(why)}.")
    for arm in verdict["spared"]:
        log.emit(
            "message", message=f"The arm {arm} is dominated, but others are compared with it: it goes on."
        )
    return ended


def describe(why: dict[str, Any]) -> str:
    """Put the end of an arm into words."""
    others = " and ".join(why["dominated_by"])
    return f"after {why['samples']:,.0f} samples it is dominated by {others} under every seed"
