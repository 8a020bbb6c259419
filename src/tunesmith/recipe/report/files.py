"""Read a run directory for the report: a file that is absent or damaged is a fact worth showing."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.events import read_events

__all__ = ["BASE", "ArmRun", "RunFiles"]

BASE = "base"


@dataclass
class ArmRun:
    """One arm under one seed (``seed`` is None for the untuned base model)."""

    arm: str
    seed: int | None
    folder: Path
    files: RunFiles

    @cached_property
    def selection(self) -> dict[str, Any] | None:
        """What was selected and by which method."""
        return self.files.object(self.folder / "select" / "selection.json")

    @cached_property
    def indices(self) -> NDArray[np.int64] | None:
        """Rows of the pool in pick order."""
        array = self.files.array(self.folder / "select" / "indices.npy")
        return None if array is None else array.astype(np.int64).ravel()

    @cached_property
    def scores(self) -> NDArray[np.float64] | None:
        """What the method ranked by, one number per row of the pool; NaN where it gave none."""
        array = self.files.array(self.folder / "select" / "scores.npy")
        return None if array is None else array.astype(np.float64).ravel()

    @cached_property
    def preflight(self) -> dict[str, Any] | None:
        """The check of the rows as they are trained on."""
        found = self.files.object(self.folder / "train" / "preflight.json")
        return found or self.files.object(self.folder / "preflight.json")

    @cached_property
    def train(self) -> dict[str, Any] | None:
        """Cost and losses of the training."""
        return self.files.object(self.folder / "train" / "train.json")

    @cached_property
    def losses(self) -> list[tuple[float, float]]:
        """(step, loss) while training: from ``train.json``, or from the event log while it runs."""
        points = (self.train or {}).get("losses") or [
            [event.get("step"), event.get("loss")]
            for event in self.files.events_of("metric", self.arm, self.seed)
        ]
        pairs = (
            (point.get("step"), point.get("loss")) if isinstance(point, dict) else tuple(point[:2])
            for point in points
        )
        found = {float(s): float(v) for s, v in pairs if _is_number(s) and _is_number(v)}
        return sorted(found.items())

    @cached_property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """Metric -> value, scores per test item, direction; empty before the evaluation."""
        found = self.files.object(self.folder / "evaluate" / "scores.json") or {}
        return {name: entry for name, entry in found.items() if isinstance(entry, dict) and "value" in entry}

    @cached_property
    def predictions(self) -> dict[int, str]:
        """Test item -> what the model answered."""
        rows = self.files.lines(self.folder / "evaluate" / "predictions.jsonl")
        return {
            int(row["index"]): str(row["prediction"])
            for row in rows
            if "index" in row and "prediction" in row
        }


@dataclass
class RunFiles:
    """The files of a run directory, read on first use.

    Args:
        root: the run directory.

    Attributes:
        unreadable: files that are there but could not be read, as (name, reason).
    """

    root: Path
    unreadable: list[tuple[str, str]] = field(default_factory=list)

    def object(self, path: Path) -> dict[str, Any] | None:
        """Return the JSON object of a file, or None when it is absent or not one."""
        value = self._json(path)
        return value if isinstance(value, dict) else None

    def list_of_objects(self, path: Path) -> list[dict[str, Any]] | None:
        """Return the JSON array of objects of a file, or None."""
        value = self._json(path)
        return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else None

    def lines(self, path: Path) -> list[dict[str, Any]]:
        """Return the objects of a JSON Lines file; torn lines are passed over."""
        return list(read_events(path))

    def array(self, path: Path) -> NDArray[Any] | None:
        """Return the array of a ``.npy`` file (never unpickled), or None."""
        try:
            loaded: NDArray[Any] = np.load(path, allow_pickle=False)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError) as error:
            self._note(path, error)
            return None
        return loaded

    def _json(self, path: Path) -> Any:
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self._note(path, error)
            return None

    def _note(self, path: Path, error: Exception) -> None:
        self.unreadable.append((path.relative_to(self.root).as_posix(), str(error)))

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        """The event log in order."""
        return list(read_events(self.root / "events.jsonl"))

    def events_of(self, kind: str, arm: str | None = None, seed: int | None = None) -> list[dict[str, Any]]:
        """Return the events of a kind, optionally of one arm and seed."""
        return [
            event
            for event in self.events
            if event.get("kind") == kind
            and (arm is None or (event.get("arm") == arm and event.get("seed") == seed))
        ]

    @cached_property
    def recipe_text(self) -> str | None:
        """The locked recipe as it stands in the file."""
        try:
            return (self.root / "recipe.lock.yaml").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return None

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The recipe with every default written out; empty when absent or damaged."""
        inner = self.lock.get("recipe")
        return inner if isinstance(inner, dict) else {}

    @cached_property
    def lock(self) -> dict[str, Any]:
        """``recipe``, ``versions`` and ``hashes`` of the lock file; empty when absent or damaged."""
        from ruamel.yaml import YAML
        from ruamel.yaml.error import YAMLError

        try:
            value = YAML(typ="safe", pure=True).load(self.recipe_text or "")
        except YAMLError as error:
            self._note(self.root / "recipe.lock.yaml", error)
            return {}
        return value if isinstance(value, dict) else {}

    @cached_property
    def runs(self) -> list[ArmRun]:
        """Every arm under every seed that has a folder, in the order in which the arms began."""
        found = []
        for folder in sorted((self.root / "arms").glob("*/seed-*")):
            suffix = folder.name.removeprefix("seed-")
            if folder.is_dir() and suffix.lstrip("-").isdigit():
                found.append(ArmRun(folder.parent.name, int(suffix), folder, self))
        begun: dict[Any, int] = {}
        for event in self.events_of("stage"):
            begun.setdefault(event.get("arm"), len(begun))
        last = len(begun)
        return sorted(found, key=lambda run: (begun.get(run.arm, last), run.arm, run.seed))

    @cached_property
    def base(self) -> ArmRun:
        """The untuned model."""
        return ArmRun(BASE, None, self.root / "arms" / BASE, self)

    @cached_property
    def arms(self) -> list[str]:
        """Names of the tuned arms in order."""
        return list(dict.fromkeys(run.arm for run in self.runs))

    def of_arm(self, arm: str) -> list[ArmRun]:
        """Return the seeds of one arm."""
        return [self.base] if arm == BASE else [run for run in self.runs if run.arm == arm]

    def first(self, arm: str) -> ArmRun:
        """Return the arm's first seed: the one whose picks and answers the report shows."""
        return self.of_arm(arm)[0]

    @cached_property
    def compare(self) -> dict[str, Any] | None:
        """The comparison of the arms."""
        return self.object(self.root / "compare.json")

    @cached_property
    def ranking(self) -> dict[str, Any]:
        """What early signals decided; empty without ``compare.early_stop``."""
        return self.object(self.root / "early" / "ranking.json") or {} if self._judges else {}

    @property
    def _judges(self) -> bool:
        spec = self.recipe.get("compare")
        return isinstance(spec, dict) and bool(spec.get("early_stop"))

    @cached_property
    def ended(self) -> dict[str, dict[str, Any]]:
        """Arms that were ended early -> by which they were dominated, and after how many samples."""
        found = self.ranking.get("ended")
        return {str(k): v for k, v in found.items() if isinstance(v, dict)} if isinstance(found, dict) else {}

    @cached_property
    def baseline(self) -> str | None:
        """The arm that others are compared with; None where there is only one."""
        if len(self.arms) < 2:
            return None
        named = (self.compare or {}).get("baseline")
        spec = self.recipe.get("compare")
        named = named or (spec.get("baseline") if isinstance(spec, dict) else None)
        if isinstance(named, str) and named in self.arms:
            return named
        return "random" if "random" in self.arms else None

    @cached_property
    def pool_map(self) -> tuple[NDArray[np.float64], NDArray[np.int64]] | None:
        """Coordinates (n, 2) and cluster (n,) of the pool's rows."""
        for path in (self.root / "map" / "map.npz", self.root / "map.npz"):
            try:
                with np.load(path, allow_pickle=False) as data:
                    return data["xy"].astype(np.float64), data["cluster"].astype(np.int64)
            except FileNotFoundError:
                continue
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                self._note(path, error)
        return None

    def dataset(self, *parts: str) -> Any | None:
        """Return a dataset that ``save_to_disk`` wrote, or None."""
        folder = self.root.joinpath(*parts)
        if not folder.is_dir():
            return None
        from datasets import load_from_disk

        try:
            return load_from_disk(str(folder))
        except (OSError, ValueError) as error:
            self._note(folder, error)
            return None

    @cached_property
    def pool(self) -> Any | None:
        """The rows that selection saw."""
        return self.dataset("curate", "dataset")

    @cached_property
    def test(self) -> Any | None:
        """The rows of the evaluation."""
        return self.dataset("data", "test")

    def stage_status(self, stage: str, arm: str | None = None) -> tuple[str, str]:
        """Return the last status of a stage (``absent`` if it never began) and its error."""
        status, error = "absent", ""
        for event in self.events_of("stage"):
            if event.get("stage") == stage and arm in (None, event.get("arm")):
                status, error = str(event.get("status", "")), str(event.get("error", ""))
        return status, error

    def why_missing(self, stage: str, recipe_key: str | None = None, arm: str | None = None) -> str:
        """Say why the files of a stage are not there."""
        status, error = self.stage_status(stage, arm)
        of = f" of {arm}" if arm else ""
        if status == "failed":
            return f"The stage {stage}{of} failed: {error}"
        if status == "started":
            return f"The stage {stage}{of} began and did not finish: it is still running or was interrupted."
        if recipe_key and self.recipe and not self.recipe.get(recipe_key):
            return f"The recipe has no {recipe_key}."
        if status == "absent":
            return f"The run did not reach the stage {stage}{of}."
        return f"The stage {stage}{of} is {status}, but left no file for this."


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))
