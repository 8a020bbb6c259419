"""What the benchmarks share: measuring in a process of its own, and saving results beside the docs."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunesmith.core.files import write_json

DOCS = Path(__file__).resolve().parent.parent / "docs"


def isolated(script: str, part: str, *, one_core: bool = False, **arguments: Any) -> dict[str, Any]:
    """Run ``python script --part part '{"json": arguments}'`` and return the JSON object on its last line.

    A process of its own gives a peak memory that is its own, and leaves no cache of the part before. With
    ``one_core`` every library in it works with one thread.
    """
    command = [sys.executable, script, "--part", part, json.dumps(arguments)]
    # Threads that wait sleep: on a machine that is not idle, spinning slows OpenMP libraries, the peers too,
    # many times over.
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    if one_core:
        environment |= {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def serve_part(parts: dict[str, Callable[..., dict[str, Any]]]) -> bool:
    """Run the part named on the command line, if one is, and print its result with the peak memory."""
    if len(sys.argv) < 4 or sys.argv[1] != "--part":
        return False
    import resource

    result = parts[sys.argv[2]](**json.loads(sys.argv[3]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({**result, "peak_gib": peak / 2**20}))
    return True


def timed(
    function: Callable[[], Any], repeats: int = 1, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, Any]:
    """Return the least time of some runs, in seconds of ``clock``, and the last result."""
    best = float("inf")
    for _ in range(repeats):
        begin = clock()
        result = function()
        best = min(best, clock() - begin)
    return best, result


def machine() -> str:
    """Describe processor and threads, without names of hosts."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            model = next(line.split(":", 1)[1].strip() for line in stream if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{model}, {os.cpu_count()} cores"


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python and of some packages."""
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version(), **found}


def save(folder: str, name: str, result: dict[str, Any]) -> None:
    """Write ``docs/<folder>/<name>.json`` and print the result."""
    write_json(DOCS / folder / f"{name}.json", result)
    print(json.dumps(result, indent=2, ensure_ascii=False))
