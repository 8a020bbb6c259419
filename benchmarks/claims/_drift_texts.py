"""Texts of the drift claim: requests of real users, and two topics that come in later, with their embeddings."""

from __future__ import annotations

import json

import numpy as np
import reasoning_gym
from _parts import RUNS
from numpy.typing import NDArray

from tunesmith.core.files import hash_text
from tunesmith.data.demo.items import package_folder
from tunesmith.data.features.embedding import encode_texts

MOST = 600  # of a topic: a stream takes at most 500
USERS = ("live_simple", "live_multiple", "live_irrelevance", "live_relevance")
AUTHORS = ("simple_python", "multiple", "parallel", "parallel_multiple", "irrelevance")


def bfcl(parts: tuple[str, ...]) -> list[str]:
    """Return the different first questions of some parts of the Berkeley Function Calling Leaderboard v4."""
    folder = package_folder("bfcl_eval", "bfcl-eval") / "data"
    texts = []
    for part in parts:
        for line in (folder / f"BFCL_v4_{part}.json").read_text(encoding="utf-8").splitlines():
            turns = json.loads(line)["question"][0]
            texts += [turns[-1]["content"]] if turns else []
    return list(dict.fromkeys(texts))


def texts() -> dict[str, list[str]]:
    """Return kind of traffic -> different texts."""
    problems = reasoning_gym.create_dataset("gsm_symbolic", seed=0, size=MOST)
    users = bfcl(USERS)
    known = set(users)
    return {
        "users": users,
        "word problems": list(dict.fromkeys(entry["question"] for entry in problems)),
        "authors' requests": [text for text in bfcl(AUTHORS) if text not in known][:MOST],
    }


def embedded() -> dict[str, tuple[NDArray[np.float32], NDArray[np.float64]]]:
    """Return kind of traffic -> (n, 384) unit vectors by MiniLM and (n,) lengths in characters; vectors are kept."""
    found = {}
    for kind, rows in texts().items():
        path = RUNS / f"drift-{hash_text(*rows)[:16]}.npy"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, encode_texts(rows))
        found[kind] = (np.load(path), np.array([len(text) for text in rows], dtype=float))
    return found


if __name__ == "__main__":
    for name, (X, lengths) in embedded().items():
        print(name, X.shape, round(lengths.mean()))
