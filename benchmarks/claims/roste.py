"""The claim of RoSTE at small scale: tuning under four bits, with rotations everywhere, nowhere, or where they help.

    python benchmarks/claims/roste.py      # again until all parts are done

"Regression": a network y = W2 relu(W1 x) with 64 inputs, 64 units and 8 outputs, weights N(0, 1/64); inputs are
Gaussian, two of them scaled by 30 with their columns of W1 divided by 30. The student starts at W1, and at W2 plus
noise of standard deviation 0.05; W4A4, asymmetric, weights per channel and inputs per row; 128 rows of calibration;
Adam, learning rate 2e-3 decayed linearly, batch 128, 1500 steps on fresh rows. Measured on 4096 rows: the share of the
outputs' variance that is explained, which is negative where a constant would do better. "Language": a Llama of two
blocks (128 wide, four heads, two of keys) learns a random second-order Markov chain over 16 symbols in 600 steps, then
half of the chain's contexts are drawn anew and it is tuned on the new chain for 300 steps (batch 16 of 64 symbols,
AdamW, learning rate 1e-3 decayed linearly), W4A4KV4. Outliers are planted between the two: two channels of each norm in
the blocks are scaled by 30, and the columns of the layers behind divided by 30, which changes no output. Measured on
128 held-out sequences: the loss in nats. All arms of a seed share start, data and calibration.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from _claim import count, difference, save, says, sign, summary
from _parts import stretch
from torch import nn

from tunesmith.core.seeds import child_seed, seed_everything
from tunesmith.engine.silence import quiet
from tunesmith.tuners.roste import RosteConfig, apply_roste, roste_state

SEEDS = {"regression": range(5), "language": range(3)}
FULL, RTN, TURNED = "full precision", "rounded after", "rotated and rounded after"
TUNED = {"STE, no rotation": "none", "rotation everywhere": "all", "RoSTE": "adaptive"}
OURS, SYMBOLS, LENGTH = "RoSTE", 16, 64
ARMS = [FULL, RTN, TURNED, *TUNED]


def decayed(parameters: Any, rate: float, steps: int, kind: Any) -> tuple[Any, Any]:
    """Return an optimiser and its linear schedule to zero."""
    optimiser = kind(parameters, lr=rate)
    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)


def compare(
    start: nn.Module, train: Callable[[nn.Module], None], score: Any, calibration: Any, **bits: Any
) -> dict[str, Any]:
    """Return arm -> measure -> value: before training, after it, and the share of rotated sites."""

    def quantised(model: nn.Module, rotation: str) -> Any:
        return apply_roste(copy.deepcopy(model), RosteConfig(rotation=rotation, **bits), calibration)

    tuned = copy.deepcopy(start)
    train(tuned)
    found = {FULL: {"before": score(start), "after": score(tuned), "rotated": 0.0}}
    for arm, rotation in ((RTN, "none"), (TURNED, "adaptive")):
        model = quantised(tuned, rotation)
        found[arm] = {"after": score(model), "rotated": share(model)}
    for arm, rotation in TUNED.items():
        model = quantised(start, rotation)
        found[arm] = {"before": score(model), "rotated": share(model)}
        train(model)
        found[arm]["after"] = score(model)
    for arm, rotation in ((RTN, "STE, no rotation"), (TURNED, OURS)):
        found[arm]["before"] = found[rotation]["before"]  # the same model
    return found


def share(model: nn.Module) -> float:
    """Share of the sites that are rotated."""
    on = roste_state(model).rotate
    return sum(on.values()) / len(on)


def regression(seed: int) -> dict[str, Any]:
    """One seed of the two layers."""
    draw = torch.Generator().manual_seed(child_seed(seed, "roste") % 2**31)
    scale = torch.ones(64)
    scale[torch.randperm(64, generator=draw)[:2]] = 30.0

    def inputs(rows: int) -> torch.Tensor:
        return torch.randn(rows, 64, generator=draw) * scale

    teacher = nn.Sequential(nn.Linear(64, 64, bias=False), nn.ReLU(), nn.Linear(64, 8, bias=False))
    with torch.no_grad():
        teacher[0].weight.copy_(torch.randn(64, 64, generator=draw) / 8 / scale)
        teacher[2].weight.copy_(torch.randn(8, 64, generator=draw) / 8)
    start = copy.deepcopy(teacher)
    with torch.no_grad():
        start[2].weight += 0.05 * torch.randn(8, 64, generator=draw)
    calibration, held_out = inputs(128), inputs(4096)
    batches = [inputs(128) for _ in range(1500)]
    with torch.no_grad():
        answers, wanted = [teacher(x) for x in batches], teacher(held_out)

    def train(model: nn.Module) -> None:
        optimiser, schedule = decayed(model.parameters(), 2e-3, len(batches), torch.optim.Adam)
        for x, y in zip(batches, answers, strict=True):
            optimiser.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimiser.step()
            schedule.step()

    @torch.no_grad()
    def score(model: nn.Module) -> float:
        return 1 - float(
            (model(held_out) - wanted).square().mean() / (wanted - wanted.mean(0)).square().mean()
        )

    return compare(start, train, score, [calibration], kv_bits=None, target_modules=["0", "2"])


def chain(draw: torch.Generator) -> torch.Tensor:
    """Return a transition table ``(symbols, symbols, symbols)`` of few likely successors."""
    return torch.softmax(2.5 * torch.randn(SYMBOLS, SYMBOLS, SYMBOLS, generator=draw), -1)


def sampled(table: torch.Tensor, rows: int, draw: torch.Generator) -> torch.Tensor:
    """Return sequences ``(rows, LENGTH)`` of the chain."""
    ids = torch.randint(SYMBOLS, (rows, LENGTH), generator=draw)
    for t in range(2, LENGTH):
        ids[:, t] = torch.multinomial(table[ids[:, t - 2], ids[:, t - 1]], 1, generator=draw)[:, 0]
    return ids


def fit(model: Any, batches: list[torch.Tensor], rate: float) -> None:
    """Train on batches of sequences."""
    optimiser, schedule = decayed(model.parameters(), rate, len(batches), torch.optim.AdamW)
    model.train()
    for ids in batches:
        optimiser.zero_grad()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimiser.step()
        schedule.step()
    model.eval()


@torch.no_grad()
def plant(model: Any, draw: torch.Generator, factor: float = 30.0) -> None:
    """Scale two channels of each norm, and the weights that read them back."""
    for block in model.model.layers:
        attention, mlp = block.self_attn, block.mlp
        for norm, readers in (
            (block.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (block.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
        ):
            channels = torch.randperm(len(norm.weight), generator=draw)[:2]
            norm.weight[channels] *= factor
            for layer in readers:
                layer.weight[:, channels] /= factor


def language(seed: int) -> dict[str, Any]:
    """One seed of the language model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    draw = torch.Generator().manual_seed(child_seed(seed, "roste-language") % 2**31)
    old, new = chain(draw), chain(draw)
    kept = torch.rand(SYMBOLS, SYMBOLS, generator=draw) < 0.5
    new[kept] = old[kept]
    shape = LlamaConfig(
        vocab_size=SYMBOLS,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
    )
    start = LlamaForCausalLM(shape)
    fit(start, [sampled(old, 16, draw) for _ in range(600)], 3e-3)
    plant(start, draw)
    batches = [sampled(new, 16, draw) for _ in range(300)]
    held_out = sampled(new, 128, draw)

    @torch.no_grad()
    def score(model: Any) -> float:
        return float(model(input_ids=held_out, labels=held_out).loss)

    calibration = [{"input_ids": ids} for ids in batches[:8]]
    return compare(start, lambda model: fit(model, batches, 1e-3), score, calibration)


def run(job: str) -> dict[str, Any]:
    """One seed of one setting."""
    setting, seed = job.split()
    seed_everything(int(seed))
    return {"regression": regression, "language": language}[setting](int(seed))


def in_nats(row: dict[str, Any]) -> str:
    """Say what an interval over negative losses shows."""
    low, mid, high = (-row[key] for key in ("high", "delta", "low"))
    return f"{row['arm']} is {sign(row)} {row['baseline']} (loss {mid:+.3f} nats, {low:+.3f} to {high:+.3f})"


def main() -> None:
    """Run all parts and write docs/claims/roste.json."""
    with quiet(python_warnings=True):
        done = stretch("roste", [f"{name} {seed}" for name, seeds in SEEDS.items() for seed in seeds], run)

    def of(setting: str, measure: str, factor: float = 1.0) -> dict[str, list[float]]:
        return {a: [factor * done[f"{setting} {s}"][a][measure] for s in SEEDS[setting]] for a in ARMS}

    others = [arm for arm in ARMS if arm not in (OURS, FULL)]
    signs = {"regression": 1.0, "language": -1.0}  # a loss is better when it is smaller
    intervals = {s: [difference(of(s, "after", f), OURS, arm) for arm in others] for s, f in signs.items()}
    everything = [row for rows in intervals.values() for row in rows]
    mean = {
        (s, m): {arm: sum(v) / len(v) for arm, v in of(s, m).items()}
        for s in SEEDS
        for m in ("before", "after", "rotated")
    }
    means = {
        s: ", ".join(
            f"{arm} {mean[s, 'after'][arm]:.3f} (before {mean[s, 'before'][arm]:.3f})" for arm in ARMS
        )
        for s in SEEDS
    }
    verdict = (
        f"{count(everything)}. Regression, explained variance after training: {means['regression']}. "
        f"{'; '.join(map(says, intervals['regression']))}. Sites that were rotated: "
        f"{mean['regression', 'rotated'][OURS]:.0%}. Language, loss after training: {means['language']}. "
        f"{'; '.join(map(in_nats, intervals['language']))}. Sites that were rotated: "
        f"{mean['language', 'rotated'][OURS]:.0%}."
    )
    save(
        "roste",
        {
            "title": "RoSTE: tuning under four bits, with rotations where they help",
            "claim": "Tuning straight through the rounding beats rounding afterwards, and rotating where that lowers "
            "the quantisation error beats rotating nowhere and everywhere.",
            "verdict": verdict,
            "holds": all(row["low"] > 0 for row in everything),
            "setting": " ".join((__doc__ or "").split("\n\n")[2].split()),
            "seeds": {name: list(seeds) for name, seeds in SEEDS.items()},
            "arms": summary(of("regression", "after")),
            **{f"{m}, {s}": summary(of(s, m)) for s in SEEDS for m in ("before", "after", "rotated")},
            "intervals": [{"setting": name, **row} for name, rows in intervals.items() for row in rows],
            "command": "python benchmarks/claims/roste.py",
        },
    )


if __name__ == "__main__":
    main()
