"""A script run by one process, and by two under torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

TESTS = Path(__file__).parent


def run_alone_and_in_two(script: Path, arguments: Callable[[str, int], list[str]]) -> None:
    """Run ``script`` twice, with ``arguments("one", 8)`` in one process and ``arguments("two", 4)`` in two of them.

    Args:
        script: a Python file; it may import this folder's helpers and our package.
        arguments: name of the run, rows per process -> command-line arguments.
    """
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent / "src")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    for name, command, rows in (("one", [sys.executable], 8), ("two", launch, 4)):
        command = [*command, str(script), *arguments(name, rows)]
        subprocess.run(command, env=environment, check=True, timeout=400)
