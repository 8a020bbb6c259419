"""Runs a recipe in a process of its own, which may kill itself with SIGKILL when a given event is written."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

# The forkserver imports the heavy libraries once; each run is then a cheap fork of it.
PRELOAD = ["trl", "peft", "transformers", "datasets", "sentence_transformers", "tunesmith.recipe.runner"]


def run_in_process(recipe: Path, output: Path, cache: Path, kill_at: dict[str, Any] | None = None) -> int:
    """Return the exit code: 0, or minus the signal's number."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    process = context.Process(target=_work, args=(recipe, output, cache, kill_at))
    process.start()
    process.join(300)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode


def _work(recipe: Path, output: Path, cache: Path, kill_at: dict[str, Any] | None) -> None:
    os.environ["TUNESMITH_CACHE"] = str(cache)
    import torch

    from tunesmith.recipe import run

    torch.set_num_threads(1)

    def kill(event: dict[str, Any]) -> None:
        if kill_at and all(event.get(key) == value for key, value in kill_at.items()):
            os.kill(os.getpid(), signal.SIGKILL)

    run(recipe, output, listeners=[kill])
