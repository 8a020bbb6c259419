"""The claim of LT-SFT at small scale: which deltas of a domain and of a task can be added.

    python benchmarks/claims/composable_sft.py      # again until all parts are done

scikit-learn's digits. The source domain are the images, the target domain the same kind of images with 20 fixed pixels
inverted. A trunk of three layers is pre-trained by denoising 800 source and 50 target images. A delta of each domain is
learned by denoising its images without labels (lambda 0.1, own decoder, not transferred), a delta of the task with its
classifier on labelled source images over the source's delta; then the source's delta is replaced by the target's.
Accuracy is measured on 497 test images in either domain. Two settings: "wide" (trunk of 256 units, 148,224 weights,
200 steps per phase and domain, 150 and 250 for the task, learning rate 5e-4) and "colliding" (64 units, 12,480 weights,
three times the steps, learning rate 2e-3), where the dense deltas are meant to get into each other's way.
"""

from __future__ import annotations

import itertools
import tempfile
from typing import Any

import torch
from _claim import count, difference, save, says, summary
from _parts import stretch
from sklearn.datasets import load_digits
from torch import nn
from transformers import Trainer, TrainingArguments

from tunesmith.core.seeds import child_seed, seed_everything
from tunesmith.engine.silence import quiet
from tunesmith.trainers.lottery import LotteryTicketMixin

SEEDS = range(5)
SETTINGS = {"wide": (256, 1, 5e-4), "colliding": (64, 3, 2e-3)}  # units, times the steps, learning rate
ARMS: dict[str, dict[str, Any]] = {
    "dense": {"density": 1.0, "method": "random"},
    "random mask, 5 %": {"density": 0.05, "method": "random"},
    "LT-SFT, 5 %": {"density": 0.05},
    "LT-SFT, 10 %": {"density": 0.10},
}
OURS = "LT-SFT, 5 %"
INVERTED = torch.randperm(64, generator=torch.Generator().manual_seed(0))[:20]


class Net(nn.Module):
    """A trunk with a decoder and a classifier; the labels say which is used."""

    def __init__(self, units: int) -> None:
        super().__init__()
        sizes = (64, units, units, units)
        layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
        self.trunk = nn.Sequential(*layers)
        self.decoder = nn.Linear(units, 64)
        self.classifier = nn.Linear(units, 10)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Return the loss: denoising without labels, classification with them."""
        if labels is None:
            hidden = self.trunk(x + 0.3 * torch.randn_like(x))
            return {"loss": nn.functional.mse_loss(self.decoder(hidden), x)}
        logits = self.classifier(self.trunk(x))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Lottery(LotteryTicketMixin, Trainer):
    """The trainer under test."""


def domain(x: torch.Tensor, target: bool) -> torch.Tensor:
    """Return images in a domain."""
    if target:
        x = x.clone()
        x[:, INVERTED] = 1 - x[:, INVERTED]
    return x


def learn(
    net: Net,
    head: str,
    rows: list[dict[str, Any]],
    arm: dict[str, Any],
    steps: tuple[int, int],
    rate: float,
    seed: int,
) -> Any:
    """Learn a delta; the net is left with it applied. The other head is frozen."""
    for name, p in net.named_parameters():
        p.requires_grad_(name.startswith(("trunk", head)))
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder,
            learning_rate=rate,
            per_device_train_batch_size=64,
            lr_scheduler_type="linear",
            logging_strategy="no",
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            report_to="none",
            seed=child_seed(seed, head) % 2**16,
        )
        penalty = 0.1 if head == "decoder" else 0.0
        lottery = {
            **arm,
            "maskable": ["trunk"],
            "dense_steps": steps[0],
            "sparse_steps": steps[1],
            "l1_dense": penalty,
            "l1_sparse": penalty,
        }
        trainer = Lottery(net, args, train_dataset=rows, lottery=lottery)
        trainer.train()
    assert trainer.sparse_delta is not None
    return trainer.sparse_delta


@torch.no_grad()
def accuracy(net: Net, x: torch.Tensor, y: torch.Tensor) -> float:
    """Share of images that are told right."""
    return float((net.classifier(net.trunk(x)).argmax(1) == y).float().mean())


def pretrained(units: int, x: torch.Tensor, rows: torch.Tensor, few: torch.Tensor) -> Net:
    """Return a net that has denoised source images and a few target images."""
    net = Net(units)
    images = torch.cat([x[rows], domain(x[few], True)])
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(500):
        optimizer.zero_grad()
        net(images[torch.randint(len(images), (64,))])["loss"].backward()
        optimizer.step()
    return net


def run(setting: str, seed: int) -> dict[str, Any]:
    """One seed of one setting: arm -> measure -> value."""
    units, times, rate = SETTINGS[setting]
    seed_everything(seed)
    data, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(data, dtype=torch.float32) / 16, torch.tensor(labels)
    order = torch.randperm(len(x))
    source, target, test = order[:800], order[800:1300], order[1300:]
    net = pretrained(units, x, source, target[:50])
    start = {name: t.clone() for name, t in net.state_dict().items()}
    tasks = [{"x": x[i], "labels": y[i]} for i in source]
    sources = [{"x": x[i]} for i in source]
    targets = [{"x": domain(x[i : i + 1], True)[0]} for i in target]
    found: dict[str, Any] = {}
    for arm, options in ARMS.items():
        net.load_state_dict(start)
        steps = (200 * times, 200 * times)
        phi_target = learn(net, "decoder", targets, options, steps, rate, seed)
        phi_target.revert(net)
        phi_source = learn(net, "decoder", sources, options, steps, rate, seed)
        phi_source.revert(net)
        phi_source.apply(net, with_abs=False)
        phi_task = learn(net, "classifier", tasks, options, (150 * times, 250 * times), rate, seed)
        seen = {"source": accuracy(net, x[test], y[test])}
        without = accuracy(net, domain(x[test], True), y[test])
        phi_source.revert(net)
        phi_target.apply(net, with_abs=False)
        seen["target"] = accuracy(net, domain(x[test], True), y[test])
        flat = [torch.cat([d.dense(n).reshape(-1) for n in d.diffs]) for d in (phi_task, phi_target)]
        seen["overlap"] = phi_task.overlap(phi_target) / flat[0].numel()
        seen["cosine"] = float(nn.functional.cosine_similarity(*flat, dim=0))
        found[arm] = seen
        if arm == OURS:
            found["no target delta"] = {**seen, "target": without, "overlap": 0.0, "cosine": 0.0}
        phi_target.revert(net)
        phi_task.revert(net)
    return found


def main() -> None:
    """Run all parts and write docs/claims/composable-sft.json."""
    jobs = [f"{setting} {seed}" for setting in SETTINGS for seed in SEEDS]
    with quiet(python_warnings=True):
        done = stretch("composable-sft", jobs, lambda job: run(job.split()[0], int(job.split()[1])))
    values = {
        (setting, measure): {
            arm: [done[f"{setting} {seed}"][arm][measure] for seed in SEEDS]
            for arm in [*ARMS, "no target delta"]
        }
        for setting in SETTINGS
        for measure in ("target", "source", "overlap", "cosine")
    }
    pairs = [(OURS, other) for other in ("random mask, 5 %", "dense", "no target delta")]
    intervals = {s: [difference(values[s, "target"], *pair) for pair in pairs] for s in SETTINGS}
    parts = []
    for setting in SETTINGS:
        mean = {
            m: {arm: sum(v) / len(v) for arm, v in values[setting, m].items()}
            for m in ("source", "overlap", "cosine")
        }
        parts.append(
            f"{setting.capitalize()}: {'; '.join(says(row) for row in intervals[setting])}. Task and target delta "
            f"share {mean['overlap'][OURS]:.1%} of all entries ({mean['overlap']['dense']:.0%} when dense), cosine of "
            f"the dense deltas {mean['cosine']['dense']:+.2f}. Source accuracy {mean['source'][OURS]:.3f}, dense "
            f"{mean['source']['dense']:.3f}."
        )
    everything = [row for rows in intervals.values() for row in rows]
    save(
        "composable-sft",
        {
            "title": "LT-SFT: adding deltas on digits",
            "claim": "Sparse deltas whose entries are chosen by how much they move compose better than dense deltas "
            "and than sparse deltas at random entries, the more so the more the dense ones collide.",
            "verdict": f"{count(everything)}. " + " ".join(parts),
            "holds": all(row["low"] > 0 for row in everything),
            "setting": " ".join((__doc__ or "").split("\n\n")[2].split()),
            "seeds": list(SEEDS),
            "arms": summary(values["wide", "target"]),
            **{f"{m} accuracy, {s}": summary(values[s, m]) for s in SETTINGS for m in ("target", "source")},
            **{f"{m}, {s}": summary(values[s, m]) for s in SETTINGS for m in ("overlap", "cosine")},
            "intervals": [{"setting": name, **row} for name, rows in intervals.items() for row in rows],
            "command": "python benchmarks/claims/composable_sft.py",
        },
    )


if __name__ == "__main__":
    main()
