"""Near-duplicate removal at 100,000 and 1,000,000 rows: minutes, memory, and what it finds.

    python benchmarks/near_dedup.py

Texts: 20 to 80 words drawn by Zipf's law; a fifth of the rows copy an earlier original row with up to 5 % of the words
replaced, a tenth copy one with 15 to 30 % replaced. Copies that reach the threshold count as planted duplicates, the
others as decoys.
Vectors: 384 dimensions, in groups of unequal size; a fifth of the rows are an earlier one with noise, at cosines of
0.96 to 1. Each size runs alone in a process, for its own peak memory; the rows lie in a memory-mapped file. At 5,000
rows the result is compared with the greedy rule on all pairs: recall and precision of the dropped rows. For vectors
the same rule on the pairs that FAISS finds (IVF with as many lists and probes) is run beside it, in turns.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from _common import isolated, machine, save, serve_part, timed, versions

THRESHOLD, COSINE = 0.8, 0.95
VOCABULARY, DIMENSIONS = 50_000, 384


def texts(n: int, seed: int = 0) -> Iterator[tuple[str, str]]:
    """Yield text and kind (``new``, ``copy`` or ``decoy``); memory is bounded by keeping the last 5,000 originals."""
    from tunesmith.curate.near import shingles

    rng = np.random.default_rng(seed)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    names = ["".join(letters[rng.integers(0, 26, rng.integers(3, 9))]) for _ in range(VOCABULARY)]
    weights = 1 / np.arange(10, VOCABULARY + 10)
    cumulative = np.cumsum(weights / weights.sum())
    originals: list[list[str]] = []
    for i in range(n):
        draw = rng.random()
        if draw < 0.3 and len(originals) > 10:
            words = list(originals[rng.integers(len(originals))])
            share = rng.uniform(0, 0.05) if draw < 0.2 else rng.uniform(0.15, 0.3)
            source = " ".join(words)
            for place in rng.integers(0, len(words), round(share * len(words))):
                words[place] = names[min(int(np.searchsorted(cumulative, rng.random())), VOCABULARY - 1)]
            one, two = shingles(source, 3), shingles(" ".join(words), 3)
            kind = "copy" if len(one & two) >= THRESHOLD * len(one | two) else "decoy"
        else:
            found = np.searchsorted(cumulative, rng.random(int(rng.integers(20, 81))))
            words, kind = [names[min(j, VOCABULARY - 1)] for j in found], "new"
            if len(originals) < 5000:
                originals.append(words)
            else:
                originals[i % 5000] = words
        yield " ".join(words), kind


def vectors(n: int, seed: int = 0) -> tuple[Any, Any]:
    """Return unit vectors and which rows are planted; made in pieces, float32."""
    fixed = np.random.default_rng(5)
    groups = 500
    sheet = fixed.standard_normal((32, DIMENSIONS)).astype(np.float32) / np.sqrt(32)
    centres = fixed.standard_normal((groups, 32)).astype(np.float32)
    share = fixed.dirichlet(np.full(groups, 0.5))
    x = np.empty((n, DIMENSIONS), dtype=np.float32)
    planted = np.zeros(n, dtype=bool)
    rng = np.random.default_rng(seed)
    piece = min(10_000, n // 5)
    for begin in range(0, n, piece):
        m = min(piece, n - begin)
        part = x[begin : begin + m]
        part[:] = (
            centres[rng.choice(groups, m, p=share)] + rng.standard_normal((m, 32), dtype=np.float32)
        ) @ sheet
        part += 0.5 * rng.standard_normal((m, DIMENSIONS), dtype=np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
        if begin:
            copies = np.flatnonzero(rng.random(m) < 0.2)
            planted[begin + copies] = True
            noise = rng.standard_normal((len(copies), DIMENSIONS), dtype=np.float32) / np.sqrt(DIMENSIONS)
            part[copies] = x[rng.integers(0, begin, len(copies))] + noise * rng.uniform(
                0, 0.28, (len(copies), 1)
            ).astype(np.float32)
            part[copies] /= np.linalg.norm(part[copies], axis=1, keepdims=True)
    return x, planted


def dataset(folder: str, n: int) -> tuple[Any, Any]:
    """Return a memory-mapped dataset of texts, and their kinds."""
    import pyarrow as pa
    from datasets import Dataset

    kinds: list[str] = []
    path = str(Path(folder, "rows.arrow"))
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_stream(sink, pa.schema([("text", pa.string())])) as out:
        part: list[str] = []
        for text, kind in texts(n):
            part.append(text)
            kinds.append(kind)
            if len(part) == 10_000 or len(kinds) == n:
                out.write_batch(pa.record_batch([pa.array(part)], names=["text"]))
                part = []
    return Dataset.from_file(path), np.array(kinds)


def by_words(n: int) -> dict[str, Any]:
    """The whole filter on n texts."""
    from tunesmith.curate import NearDeduplicate

    with tempfile.TemporaryDirectory() as folder:
        rows, kinds = dataset(folder, n)
        method = NearDeduplicate(threshold=THRESHOLD)
        seconds, _ = timed(lambda: method.fit(rows).transform(rows))
        gone = method.duplicate_of_ >= 0
    return {
        "rows": n,
        "minutes": seconds / 60,
        "dropped": int(gone.sum()),
        "planted_found": float(gone[kinds == "copy"].mean()),
        "originals_dropped": int(gone[kinds == "new"].sum()),
    }


def words_exactly(n: int) -> dict[str, Any]:
    """Recall and precision against the greedy rule on all pairs."""
    from tunesmith.curate.near import greedy_minhash, shingles

    rows = [text for text, _ in texts(n)]
    sets = [shingles(text, 3) for text in rows]
    kept: list[int] = []
    wanted = np.zeros(n, dtype=bool)
    for i, own in enumerate(sets):
        for j in kept:
            common = len(own & sets[j])
            if common >= THRESHOLD * (len(own) + len(sets[j]) - common):
                wanted[i] = True
                break
        else:
            kept.append(i)
    found = greedy_minhash(lambda rows_: [rows[i] for i in rows_], n, THRESHOLD)[0] >= 0
    return {"compare": "words", "rows": n, **agreement(found, wanted)}


def agreement(found: Any, wanted: Any) -> dict[str, Any]:
    """Recall and precision of dropped rows."""
    both = int((found & wanted).sum())
    return {
        "dropped": int(found.sum()),
        "dropped_by_all_pairs": int(wanted.sum()),
        "recall": both / max(1, int(wanted.sum())),
        "precision": both / max(1, int(found.sum())),
    }


def by_embedding(n: int) -> dict[str, Any]:
    """The greedy rule on n vectors in sqrt(n) groups, and the recall of what was planted."""
    from tunesmith.curate.near import greedy_cosine

    x, planted = vectors(n)
    groups = round(n**0.5)
    seconds, duplicate_of = timed(lambda: greedy_cosine(x, COSINE, groups=groups, probes=8))
    gone = duplicate_of >= 0
    return {
        "rows": n,
        "minutes": seconds / 60,
        "dropped": int(gone.sum()),
        "planted_found": float(gone[planted].mean()),
        "originals_dropped": int(gone[~planted].sum()),
    }


def vectors_exactly(n: int) -> dict[str, Any]:
    """Recall and precision of the grouped rule against all pairs."""
    from tunesmith.curate.near import greedy_cosine

    x, _ = vectors(n)
    plain = greedy_cosine(x, COSINE) >= 0
    found = greedy_cosine(x, COSINE, groups=round(n**0.5), probes=8) >= 0
    return {"compare": "embedding", "rows": n, **agreement(found, plain)}


def against_faiss(n: int) -> dict[str, Any]:
    """The greedy rule beside the same rule on the pairs that FAISS finds; in turns, the better of two runs each."""
    import faiss

    from tunesmith.curate.near import greedy_cosine

    x, _ = vectors(n)
    lists = round(n**0.5)

    def peer() -> Any:
        flat = faiss.IndexFlatIP(x.shape[1])
        index = faiss.IndexIVFFlat(flat, x.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
        index.train(x)
        index.add(x)
        index.nprobe = 9
        limits, _, neighbours = index.range_search(x, COSINE)
        gone = np.zeros(n, dtype=bool)
        for i in range(n):
            near = neighbours[limits[i] : limits[i + 1]]
            near = near[near < i]
            gone[i] = bool(len(near)) and not gone[near].all()
        return gone

    ours_s, peer_s = np.inf, np.inf
    for _ in range(2):
        seconds, ours = timed(lambda: greedy_cosine(x, COSINE, groups=lists, probes=8) >= 0)
        ours_s = min(ours_s, seconds)
        seconds, theirs = timed(peer)
        peer_s = min(peer_s, seconds)
    return {
        "rows": n,
        "ours_s": ours_s,
        "faiss_s": peer_s,
        "ratio": peer_s / ours_s,
        "dropped_by_ours": int(ours.sum()),
        "dropped_by_faiss": int(theirs.sum()),
    }


def main() -> None:
    """Run everything and save docs/benchmarks/near-dedup.json."""
    sizes = (100_000, 1_000_000)
    words = [isolated(__file__, "by_words", n=n) for n in sizes]
    embedding = [isolated(__file__, "by_embedding", n=n) for n in sizes]
    peer = isolated(__file__, "against_faiss", n=sizes[0])
    exact = [isolated(__file__, part, n=5_000) for part in ("words_exactly", "vectors_exactly")]
    save("benchmarks", "near-dedup", result(words, embedding, peer, exact))


def result(
    words: list[dict[str, Any]],
    embedding: list[dict[str, Any]],
    peer: dict[str, Any],
    exact: list[dict[str, Any]],
) -> dict[str, Any]:
    """Return what is saved."""
    million, vectors_ = words[-1], embedding[-1]
    return {
        "title": "Near-duplicate removal",
        "summary": (
            f"1,000,000 texts by shared word sequences: {million['minutes']:.1f} minutes, "
            f"{million['peak_gib']:.2f} GiB at the peak ({words[0]['peak_gib']:.2f} GiB for 100,000), "
            f"{million['planted_found']:.1%} of the planted copies found. 1,000,000 vectors of 384 dimensions in "
            f"1,000 groups: {vectors_['minutes']:.1f} minutes, {vectors_['peak_gib']:.2f} GiB with the vectors, "
            f"{vectors_['planted_found']:.1%} found. Against the greedy rule on all pairs of 5,000 rows: recall "
            f"{exact[0]['recall']:.1%} and precision {exact[0]['precision']:.1%} by words, "
            f"{exact[1]['recall']:.1%} and {exact[1]['precision']:.1%} by embedding. FAISS (IVF, as many lists and "
            f"probes) with the same rule on the pairs it finds takes {peer['ratio']:.1f} times as long at 100,000."
        ),
        "by_words": words,
        "by_embedding": embedding,
        "against_faiss": [peer],
        "against_all_pairs": exact,
        "targets": {"minutes_at_a_million": 10},
        "command": "python benchmarks/near_dedup.py",
        "machine": machine(),
        "versions": versions("numpy", "rensa", "faiss-cpu"),
    }


PARTS = {
    "by_words": by_words,
    "by_embedding": by_embedding,
    "against_faiss": against_faiss,
    "words_exactly": words_exactly,
    "vectors_exactly": vectors_exactly,
}

if __name__ == "__main__" and not serve_part(PARTS):
    main()
