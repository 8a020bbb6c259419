"""The claim of UDS at small scale: half-heard batches, chosen by logits, against chance and against the largest loss.

    python benchmarks/claims/uds.py

A two-layer decoder from scratch (width 64, vocabulary 40) learns to reverse a list of 3 to 14 numbers. Of 2,400
training rows half are near-duplicates of 20 templates (one number changed), a tenth have a degenerate answer (one token
repeated), the rest are varied. Batches of 8, 2 kept, 300 steps, AdamW at 3e-3; alpha 6.6 on the isometric sketch,
memory 256. Tested on 200 varied rows that were not trained on. Every arm starts from the same weights and sees the same
batches; only which rows are kept differs, so all but the full batch have an equal backward cost.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _claim import count, difference, over_seeds, save, sign, summary
from torch.nn.functional import cross_entropy

from tunesmith.select.online import Candidates, MaxLossPolicy, RandomPolicy, UDSPolicy

SEEDS = range(5)
ROWS, BATCH, KEPT, STEPS, LENGTH = 2400, 8, 2, 300, 32
PAD, BEGIN, TURN, END, FIRST = 0, 1, 2, 3, 4
VARIED, COPY, DEGENERATE = 0, 1, 2
Row = tuple[list[int], int, int]  # ids, where the answer begins, kind


def encode(numbers: list[int], answer: list[int], kind: int) -> Row:
    """Put a question and an answer together."""
    return [BEGIN, *numbers, TURN, *answer, END], len(numbers) + 2, kind


def data(seed: int) -> tuple[list[Row], list[Row]]:
    """Training and test rows."""
    rng = np.random.default_rng([seed, 7])

    def numbers() -> list[int]:
        return rng.integers(FIRST, 40, rng.integers(3, 15)).tolist()

    templates = [numbers() for _ in range(20)]
    rows = []
    for i in range(ROWS):
        if i % 10 < 5:
            some = list(templates[rng.integers(20)])
            some[rng.integers(len(some))] = int(rng.integers(FIRST, 40))
            rows.append(encode(some, some[::-1], COPY))
        elif i % 10 == 5:
            some = numbers()
            rows.append(encode(some, [int(rng.integers(FIRST, 40))] * len(some), DEGENERATE))
        else:
            some = numbers()
            rows.append(encode(some, some[::-1], VARIED))
    tests = [encode(some, some[::-1], VARIED) for some in (numbers() for _ in range(200))]
    return [rows[i] for i in rng.permutation(ROWS)], tests


def tensors(rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, mask and labels, padded on the right."""
    ids = torch.full((len(rows), LENGTH), PAD)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100)
    for i, (row, begin, _) in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
        labels[i, begin : len(row)] = torch.tensor(row[begin:])
    return ids, mask, labels


def model(seed: int) -> Any:
    """A decoder with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=LENGTH, pad_token_id=PAD, bos_token_id=BEGIN, eos_token_id=END,
        )
    )  # fmt: skip


def row_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean loss of each row's answer."""
    nll = cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], ignore_index=-100, reduction="none")
    return nll.sum(1) / (labels[:, 1:] != -100).sum(1)


def arms(seed: int) -> dict[str, Any]:
    """The policies; None trains on whole batches."""
    common: dict[str, Any] = {
        "buffer_size": 256,
        "proj_dims": (32, 8),
        "max_length": LENGTH,
        "random_state": seed,
    }
    return {
        "all rows": None,
        "random": RandomPolicy(random_state=seed),
        "max loss": MaxLossPolicy(),
        "nuclear norm only": UDSPolicy(alpha=0, **common),
        "memory only": UDSPolicy(alpha=1e6, **common),
        "UDS": UDSPolicy(alpha=6.6, **common),
        "nuclear norm over root of tokens": UDSPolicy(alpha=0, normalise="sqrt_tokens", **common),
    }


def train(policy: Any, rows: list[Row], tests: list[Row], seed: int) -> dict[str, float]:
    """One arm."""
    net = model(seed)
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3)
    kinds: list[int] = []
    correlations: list[float] = []
    for step in range(STEPS):
        batch = rows[step * BATCH : (step + 1) * BATCH]
        ids, mask, labels = tensors(batch)
        kept = torch.arange(BATCH)
        if policy is not None:
            with torch.no_grad():
                logits = net(input_ids=ids, attention_mask=mask).logits
            seen = Candidates(mask.bool(), logits=logits, losses=row_losses(logits, labels), labels=labels)
            measures = policy.measure(seen)
            kept = policy.choose(KEPT, BATCH, measures)
            if "intra" in measures:
                correlations.append(float(np.corrcoef(measures["intra"], mask.sum(1))[0, 1]))
        out = net(input_ids=ids[kept], attention_mask=mask[kept]).logits
        wanted = labels[kept]
        loss = cross_entropy(out[:, :-1].flatten(0, 1), wanted[:, 1:].flatten(), ignore_index=-100)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        kinds += [batch[i][2] for i in kept.tolist()]
    ids, mask, labels = tensors(tests)
    with torch.no_grad():
        held_out = float(row_losses(net(input_ids=ids, attention_mask=mask).logits, labels).mean())
    found = {
        "minus held-out loss": -held_out,
        "share of near-duplicates": kinds.count(COPY) / len(kinds),
        "share of degenerate": kinds.count(DEGENERATE) / len(kinds),
    }
    return {**found, "correlation with length": float(np.mean(correlations))} if correlations else found


def run(seed: int) -> dict[str, dict[str, float]]:
    """All arms of a seed."""
    torch.set_num_threads(1)
    rows, tests = data(seed)
    return {name: train(policy, rows, tests, seed) for name, policy in arms(seed).items()}


def says(interval: dict[str, Any]) -> str:
    """One clause, in nats."""
    low, mid, high = (interval[key] for key in ("low", "delta", "high"))  # of minus the loss
    relation = f"{interval['arm']} is {sign(interval)} {interval['baseline']}"
    return f"{relation} (held-out loss {-mid:+.2f} nats, {-high:+.2f} to {-low:+.2f})"


def main() -> None:
    """Run the seeds, each kept as it is done, and write docs/claims/uds.json."""
    store = Path(sys.argv[1]) if len(sys.argv) > 1 else None

    def kept(seed: int) -> dict[str, dict[str, float]]:
        path = None if store is None else store / f"seed-{seed}.json"
        if path is not None and path.exists():
            return dict(json.loads(path.read_text()))
        found = run(seed)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found))
        return found

    found = over_seeds(kept, SEEDS)
    loss = found["minus held-out loss"]
    intervals = [
        difference(loss, "UDS", other) for other in ("random", "max loss", "nuclear norm only", "memory only")
    ]
    copies, junk = (
        {arm: float(np.mean(v)) for arm, v in found[f"share of {what}"].items()}
        for what in ("near-duplicates", "degenerate")
    )
    save(
        "uds",
        {
            "title": "UDS on a reversal task",
            "claim": "At an equal number of rows back-propagated, rows chosen by nuclear norm and distance to a memory "
            "give a lower held-out loss than random rows or those of largest loss, and fewer near-duplicates and "
            "degenerate rows among them.",
            "verdict": f"{count(intervals)}. "
            + "; ".join(says(interval) for interval in intervals)
            + f". Near-duplicates among the kept: UDS {copies['UDS']:.0%}, random {copies['random']:.0%}, max loss "
            f"{copies['max loss']:.0%}. Degenerate rows: UDS {junk['UDS']:.0%}, random {junk['random']:.0%}, max loss "
            f"{junk['max loss']:.0%}, nuclear norm only {junk['nuclear norm only']:.0%}. Correlation of the nuclear "
            f"norm with the length of a row: {np.mean(found['correlation with length']['UDS']):.2f}.",
            "holds": all(interval["low"] > 0 for interval in intervals),
            "setting": " ".join((__doc__ or "").split("\n\n")[2].split()),
            "seeds": list(SEEDS),
            "arms": summary(loss),
            "share_of_near_duplicates": summary(found["share of near-duplicates"]),
            "share_of_degenerate_rows": summary(found["share of degenerate"]),
            "correlation_of_nuclear_norm_with_length": summary(found["correlation with length"]),
            "intervals": intervals,
            "command": "python benchmarks/claims/uds.py",
        },
    )


if __name__ == "__main__":
    main()
