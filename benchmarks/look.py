"""``tunesmith look`` at 100,000 rows: time and memory of the whole, and of its parts.

    python benchmarks/look.py [rows]        (default 100000)

Rows: conversations from reasoning-gym's generators, with 5 % exact copies, 5 % near copies (a few words changed),
1 % cut answers and 0.5 % with an e-mail address. Processor time of one core; the embedding is the word table of MiniLM,
as ``auto`` chooses at this size. What was put in is compared with what was found.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _common import isolated, machine, save, serve_part, versions

FAMILIES = (
    "number_filtering",
    "word_sorting",
    "calendar_arithmetic",
    "letter_counting",
    "number_sequence",
    "spell_backward",
)


def pile(path: str, n: int) -> dict[str, Any]:
    """Write n rows; return how many of each blemish they hold.

    In a process of its own: a child is started inside its parent's memory, whose peak would count as the child's.
    """
    import reasoning_gym

    draw = random.Random(0)
    fresh = []
    each = 1 + n // len(FAMILIES)
    for name in FAMILIES:
        for item in reasoning_gym.create_dataset(name, size=each, seed=0):
            fresh.append((item["question"], f"The answer is {item['answer']}."))
    draw.shuffle(fresh)
    put = {"exact copies": n // 20, "near copies": n // 20, "cut": n // 100, "e-mail": n // 200}
    base = fresh[: n - put["exact copies"] - put["near copies"]]
    rows = list(base)
    rows += [base[draw.randrange(len(base))] for _ in range(put["exact copies"])]
    for _ in range(put["near copies"]):
        question, answer = base[draw.randrange(len(base))]
        rows.append((f"{question} Thanks a lot!", answer))
    head, tail = rows[: len(base)], rows[len(base) :]
    for i in range(put["cut"]):
        head[i] = (head[i][0], head[i][1] + " ```python\nprint(")
    for i in range(put["cut"], put["cut"] + put["e-mail"]):
        head[i] = (head[i][0] + f" Reply to user{i}@company.com.", head[i][1])
    with Path(path).open("w", encoding="utf-8") as stream:
        for question, answer in head + tail:
            stream.write(json.dumps({"prompt": question, "completion": answer}) + "\n")
    return put


def part(path: str) -> dict[str, Any]:
    """Look, with the time at which each step began."""
    from tunesmith.core.events import EventLog
    from tunesmith.look import look

    steps: dict[str, float] = {}

    def hear(event: dict[str, Any]) -> None:
        if event["kind"] == "progress":
            steps.setdefault(str(event["what"]).split(" /")[0], time.process_time())

    begin = time.process_time()
    found = look(path, log=EventLog(listeners=[hear]))
    read = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        page, _ = found.write(Path(folder) / "look.html")
        size = page.stat().st_size
    facts = found.facts
    return {
        "processor_seconds": read - begin,
        "page_seconds": time.process_time() - read,
        "page_kb": round(size / 1000),
        "rows": facts["rows"],
        "characters": facts["lengths"]["characters"]["mean"],
        "exact_copies": facts["copies"]["exact"]["rows"],
        "near_copies": facts["copies"]["near"]["rows"],
        "cut": sum(p["rows"] for p in facts["answers"] if p["problem"].startswith("cut off")),
        "e_mail": sum(p["rows"] for p in facts["secrets"] if p["kind"] == "e-mail address"),
        "languages": {entry["code"]: entry["rows"] for entry in facts["languages"][:3]},
    }


def main() -> None:
    """Write the pile, look at it in a process of its own, and save docs/benchmarks/look.json."""
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pile.jsonl"
        put = isolated(__file__, "pile", path=str(path), n=n)
        del put["peak_gib"]
        run = isolated(__file__, "part", path=str(path), one_core=True)
    result = {
        "title": "A first look at a large pile",
        "summary": (
            f"{run['rows']:,} rows of {run['characters']:.0f} characters: {run['processor_seconds'] / 60:.1f} min of "
            f"one core and {run['peak_gib']:.2f} GiB; of {put['exact copies']:,} exact copies {run['exact_copies']:,} "
            f"were found (more where generators repeat themselves), of {put['cut']:,} cut answers {run['cut']:,}, of "
            f"{put['e-mail']:,} e-mail addresses {run['e_mail']:,}; near copies found: {run['near_copies']:,}."
        ),
        "run": run,
        "put_in": put,
        "command": f"python benchmarks/look.py {n}",
        "machine": machine(),
        "versions": versions("numpy", "scikit-learn", "faiss-cpu", "rensa", "py3langid"),
    }
    save("benchmarks", "look", result)


if __name__ == "__main__" and not serve_part({"part": part, "pile": pile}):
    sys.exit(main())
