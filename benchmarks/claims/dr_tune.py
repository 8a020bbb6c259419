"""The claim of DR-Tune on digits: a head that also fits calibrated pre-trained features, with the control of its rate.

    python benchmarks/claims/dr_tune.py        (some minutes; run again until done)

An MLP (64-256-256-64) pre-trained by SimCLR on 1000 images without labels is fine-tuned on 3 or 10 labelled ones per
class; the test is on the 797 others. Split, pre-training and labels are new for each of 10 seeds. SGD with Nesterov
momentum 0.9, cosine to 0, no decay, no augmentation, batches of 30 and 50; rate 0.05 for 300 epochs, and 0.02 for 100
epochs, too few. Banks hold all labelled images (K = 30 and 100), filled before training; rotation every 10 steps.
DR-Tune's head learns at (1 + K/B) times the encoder's rate, and its loss is divided by 1 + K/B. Controls: "CE, raised
head rate" has the same two rates; "CE, rates of DR-Tune" has the encoder's divided by 1 + K/B and the head's as it was,
which is what both changes make of a step. "Equation 14" is DR-Tune with the loss not divided. Figures: test accuracy of
the last epoch, no choice by test data.

Drift: the encoder and head that plain fine-tuning ended with, on 10 labelled images per class. The features of these
images are turned by a random rotation, and are calibrated back: cross-entropy of the head. "Pre-trained" is the same
for the features that the pre-trained encoder gives.
"""

from __future__ import annotations

from typing import Any

import torch
from _claim import count, difference, save, says, summary
from _parts import stretch
from _simclr_digits import D, Loss, Split, Tuned, fine_tune, plain, pretrain, split
from torch import nn
from torch.nn.functional import cross_entropy

from tunesmith.trainers.dr_tune import DRTuneRegularizer, calibrate, dr_tune_loss, head_lr_factor

SEEDS = range(10)
TRAINING = {"too short": {"lr": 0.02, "epochs": 100}, "": {"lr": 0.05, "epochs": 300}}
LABELS = {3: 30, 10: 50}
"""Images per class, and the batch."""
CONTROLS = ("CE", "CE, raised head rate", "CE, rates of DR-Tune")
ARMS: dict[str, tuple[dict[str, Any], str]] = {
    "DR, no calibration": ({"calibration": "none"}, "mean"),
    "DR-Tune": ({}, "mean"),
    "DR-Tune, rotation only": ({"calibration": "rotation"}, "mean"),
    "DR-Tune, translation only": ({"calibration": "translation"}, "mean"),
    "DR-Tune, rotation at every step": ({"rotate_every": 1}, "mean"),
    "DR-Tune, equation 14": ({}, "eq14"),
}
"""Settings of the banks, and the scale of the loss."""


def dr_loss(
    encoder: nn.Module, x: torch.Tensor, y: torch.Tensor, settings: dict[str, Any], scale: str
) -> Loss:
    """Return the loss of one training, with banks of its own."""
    with torch.no_grad():
        pre = encoder(x)
    regularizer = DRTuneRegularizer(D, min(200, len(x)), **settings)
    regularizer.warm_up([(pre, y)])

    def loss(z: Any, y: Any, head: Any, generator: Any, rows: Any) -> torch.Tensor:
        bank, labels = regularizer(z, pre[rows], y, head)
        return dr_tune_loss(z, y, bank, labels, head, loss_scale=scale)

    return loss


def run(seed: int) -> dict[str, dict[str, float]]:
    """Setting -> arm -> accuracy; "drift" -> what the head's cross-entropy is."""
    torch.set_num_threads(1)
    data = split(seed)
    encoder = pretrain(data.pool, seed)
    found: dict[str, dict[str, float]] = {}
    for per_class in LABELS:
        for training, given in TRAINING.items():
            tuned = arms(encoder, data, per_class, seed, **given)
            setting = f"{per_class} per class{', ' * bool(training)}{training}"
            found[setting] = {name: one.accuracy for name, one in tuned.items()}
    found["drift"] = drift(encoder, tuned["CE"], data, seed)
    return found


def arms(
    encoder: nn.Module, data: Split, per_class: int, seed: int, lr: float, epochs: int
) -> dict[str, Tuned]:
    """Fine-tune every arm."""
    x, y = data.labelled(per_class)
    batch = LABELS[per_class]
    factor = head_lr_factor(min(200, len(x)), batch)

    def tune(loss: Loss, body_lr: float, head_lr: float) -> Tuned:
        return fine_tune(
            encoder, x, y, data, loss, seed=seed, lr=body_lr, head_lr=head_lr, epochs=epochs, batch=batch
        )

    rates = {CONTROLS[0]: (lr, lr), CONTROLS[1]: (lr, lr * factor), CONTROLS[2]: (lr / factor, lr)}
    tuned = {name: tune(plain, *two) for name, two in rates.items()}
    for name, (settings, scale) in ARMS.items():
        tuned[name] = tune(dr_loss(encoder, x, y, settings, scale), lr, lr * factor)
    return tuned


def drift(encoder: nn.Module, tuned: Tuned, data: Split, seed: int) -> dict[str, float]:
    """Return the cross-entropy of a tuned head on features that drifted, before and after calibration."""
    x, y = data.labelled(10)
    phi: Any = tuned.head.weight.detach()
    with torch.no_grad():
        now, pre = tuned.encoder(x), encoder(x)
    scale = now.norm(dim=1).mean()
    turn = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(seed))).Q
    turn[0] *= torch.linalg.det(turn).sign()
    banks = {"tuned features": now}
    for name, P in (("turned", now @ turn.T), ("pre-trained", pre)):
        banks[name] = P * scale / P.norm(dim=1).mean()
        banks[f"{name}, rotated"] = calibrate(P, now, y, phi, scale, translate=False)
        banks[f"{name}, translated"] = calibrate(P, now, y, phi, scale, rotate=False)
        banks[f"{name}, both"] = calibrate(P, now, y, phi, scale)
    return {name: float(cross_entropy(bank @ phi.T, y)) for name, bank in banks.items()}


def main() -> None:
    """Run what is missing and write docs/claims/dr-tune.json."""
    runs = list(stretch("dr-tune", [str(s) for s in SEEDS], lambda s: run(int(s))).values())
    drifted = [one.pop("drift") for one in runs]
    drifts = {name: [one[name] for one in drifted] for name in drifted[0]}
    intervals, tables = [], {}
    for setting in sorted(runs[0], key=lambda name: ("short" in name, len(name))):
        values = {arm: [one[setting][arm] for one in runs] for arm in runs[0][setting]}
        tables[setting] = summary(values)
        for other in (*CONTROLS, "DR, no calibration"):
            intervals.append({"setting": setting, **difference(values, "DR-Tune", other)})
        for other in CONTROLS:
            intervals.append({"setting": setting, **difference(values, "DR, no calibration", other)})
        intervals.append({"setting": setting, **difference(values, "DR-Tune, equation 14", CONTROLS[1])})
    pairs = {
        other: [row for row in intervals if (row["arm"], row["baseline"]) == ("DR-Tune", other)]
        for other in CONTROLS[:2]
    }
    shown = [
        row
        for row in intervals
        if row["baseline"] in ("CE, raised head rate", "DR, no calibration") and "14" not in row["arm"]
    ]
    clauses = "; ".join(f"{row['setting']}: {says(row)}" for row in shown)
    first, *others = tables
    save(
        "dr-tune",
        {
            "title": "DR-Tune on digits",
            "claim": "A head that must also fit calibrated features of the pre-trained encoder beats plain tuning.",
            "verdict": "Against plain fine-tuning whose head has the same raised rate: "
            f"{count(pairs['CE, raised head rate']).lower()}. Without that rate: "
            f"{count(pairs['CE']).lower()}. {clauses}.",
            "holds": all(row["low"] > 0 for rows in pairs.values() for row in rows),
            "setting": " ".join(" ".join((__doc__ or "").split("\n\n")[2:]).split()),
            "seeds": list(SEEDS),
            "arms": tables[first],
            **{f"arms, {setting}": tables[setting] for setting in others},
            "drift": summary(drifts),
            "intervals": intervals,
            "command": "python benchmarks/claims/dr_tune.py",
        },
    )


if __name__ == "__main__":
    main()
