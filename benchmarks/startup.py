"""How fast the command line answers: medians of ``tunesmith --help`` and ``import tunesmith``.

    python benchmarks/startup.py [repeats]        (default 20)

Each is a process of its own, beside ``python -c pass``, which is what Python itself takes. The targets are
0.3 s and 0.1 s.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

from _common import machine, save, versions

HELP = "import sys; sys.argv = ['tunesmith', '--help']; from tunesmith.cli import main; main()"
COMMANDS = {
    "python -c pass": "pass",
    "import tunesmith": "import tunesmith",
    "import typer": "import typer",
    "tunesmith --help": HELP,
    "tunesmith papers list": HELP.replace("'--help'", "'papers', 'list'"),
}
TARGETS = {"import tunesmith": 0.1, "tunesmith --help": 0.3}


def median_seconds(code: str, repeats: int) -> tuple[float, float]:
    """Return median and least wall time of ``python -c code``, after one run that fills the caches."""
    times = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:]), min(times[1:])


def main() -> None:
    """Measure, print and save."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    rows = []
    for name, code in COMMANDS.items():
        median, least = median_seconds(code, repeats)
        rows.append({"command": name, "median_s": median, "least_s": least, "target_s": TARGETS.get(name)})
        target = f"   target {TARGETS[name]} s" if name in TARGETS else ""
        print(f"{name:24} median {median:.3f} s   least {least:.3f} s{target}")
    met = all(row["median_s"] <= row["target_s"] for row in rows if row["target_s"])
    save(
        "benchmarks",
        "startup",
        {
            "title": "Start of the command line",
            "verdict": "both targets are met" if met else "a target is missed",
            "command": "python benchmarks/startup.py",
            "medians": rows,
            "repeats": repeats,
            "load average": round(os.getloadavg()[0], 1),
            "machine": machine(),
            "environment": versions("typer"),
        },
    )


if __name__ == "__main__":
    main()
