"""Small CLIP-type models of scikit-learn's digits, clean and with each backdoor, for the claims of InverTune.

Images are the digits, upsampled bilinearly to 3 x 16 x 16 and split per seed into 1000 for training, 150 for inversion,
150 for tuning and 497 for the test, all disjoint. Captions are four templates filled with the class word. Image towers:
a ResNet with four stages (8, 16, 32, 64 channels) and a ViT with four blocks (4 x 4 patches, width 48); text tower: a
bag of words. Both are trained together by CLIP's loss, rows of one class being positives of each other.

A poisoned model is the clean one of its seed, fine-tuned on the training rows of which 5 % carry the trigger and the
target's captions; BadEncoder trains the image tower alone. The target is drawn per seed. Models are kept in the user's
cache as safetensors, under a hash of everything that makes them: see `clean` and `poisoned`.

python benchmarks/claims/_clip_bench.py [seed ...]  prints accuracy, attack success and processor time of each model.
"""

from __future__ import annotations

import inspect
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from tunesmith.audit.backdoor import DualEncoder
from tunesmith.audit.backdoor.attacks import (
    SIG,
    Attack,
    BadCLIP,
    BadEncoder,
    BadNet,
    Blended,
    WaNet,
    contrastive_loss,
    fine_tune,
)
from tunesmith.core.files import atomic_open, cache_dir, hash_text
from tunesmith.core.seeds import child_seed

CLASSES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEMPLATES = [
    "a photo of a {}",
    "a picture of the digit {}",
    "the handwritten digit {}",
    "{} in white on black",
]
SIZE, D = 16, 48
SHARE = 0.05
TOWERS = ("resnet", "vit")


@dataclass(frozen=True)
class Split:
    """Images in [0, 1], (n, 3, 16, 16) float32, and their digits, (n,) int64."""

    train: torch.Tensor
    train_y: torch.Tensor
    inversion: torch.Tensor
    inversion_y: torch.Tensor
    tuning: torch.Tensor
    tuning_y: torch.Tensor
    test: torch.Tensor
    test_y: torch.Tensor


def split(seed: int) -> Split:
    """Return the four disjoint parts of the digits of one seed."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(seed))
    x = torch.tensor(data.images / 16, dtype=torch.float32)[order, None]
    x = (
        functional.interpolate(x, (SIZE, SIZE), mode="bilinear", antialias=True)
        .expand(-1, 3, -1, -1)
        .contiguous()
    )
    y = torch.tensor(data.target, dtype=torch.int64)[order]
    parts = zip(x.split([1000, 150, 150, 497]), y.split([1000, 150, 150, 497]), strict=True)
    return Split(*(tensor for part in parts for tensor in part))


def target_of(seed: int) -> int:
    """Return the target class of a seed's attacks."""
    return child_seed(seed, "target") % len(CLASSES)


def captions(labels: torch.Tensor, seed: int) -> list[str]:
    """Return one caption per label, from a template that is drawn."""
    drawn = torch.randint(
        len(TEMPLATES), (len(labels),), generator=torch.Generator().manual_seed(child_seed(seed, "captions"))
    )
    return [
        TEMPLATES[t].replace("{}", CLASSES[y]) for t, y in zip(drawn.tolist(), labels.tolist(), strict=True)
    ]


class Block(nn.Module):
    """A residual block of two 3 x 3 convolutions."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.short = (
            nn.Conv2d(width, out, 1, stride, bias=False) if (width, stride) != (out, 1) else nn.Identity()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        return functional.relu(out + self.short(x))


class ResNet(nn.Module):
    """Four stages of one residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.layer1, self.layer2 = Block(8, 8, 1), Block(8, 16, 2)
        self.layer3, self.layer4 = Block(16, 32, 2), Block(32, 64, 2)
        self.head = nn.Linear(64, D)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.stem(x)))))
        return self.head(x.mean((2, 3)))


class ViTBlock(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, w = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, w)
        x = x + self.out(mixed)
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Four blocks over 4 x 4 patches, class token."""

    def __init__(self, width: int = 48, patch: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.first = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.places = nn.Parameter(0.02 * torch.randn(1, (SIZE // patch) ** 2 + 1, width))
        self.blocks = nn.ModuleList(ViTBlock(width, 3) for _ in range(4))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, D)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(len(x), -1, -1), x], 1) + self.places
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))


class Words(nn.Module):
    """A bag of words."""

    def __init__(self) -> None:
        super().__init__()
        words = sorted({word for t in TEMPLATES for word in t.split() if word != "{}"} | set(CLASSES))
        self.number = {word: i + 1 for i, word in enumerate(words)}
        self.table, self.head = nn.EmbeddingBag(len(words) + 1, D, mode="mean"), nn.Linear(D, D)

    def forward(self, texts: list[str]) -> torch.Tensor:
        rows = [[self.number.get(word, 0) for word in text.split()] for text in texts]
        offsets = torch.tensor([0, *map(len, rows)][:-1]).cumsum(0)
        return self.head(self.table(torch.tensor([i for row in rows for i in row]), offsets))


class DigitsCLIP(nn.Module):
    """Image tower, text tower, logit scale."""

    image_size, image_mean, image_std = SIZE, (0.3, 0.3, 0.3), (0.35, 0.35, 0.35)

    def __init__(self, tower: str) -> None:
        super().__init__()
        self.visual: nn.Module = ResNet() if tower == "resnet" else ViT()
        self.text = Words()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def encode_image(self, x: torch.Tensor) -> torch.Tensor:
        return self.visual(x)

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        return self.text(texts)


def augment(x: torch.Tensor, draws: torch.Generator) -> torch.Tensor:
    """Return images moved by up to a pixel of the original digits, with another brightness and a little noise."""
    n = len(x)
    padded = functional.pad(x, (2, 2, 2, 2))
    places = padded.unfold(2, SIZE, 1).unfold(3, SIZE, 1)  # (B, 3, 5, 5, 16, 16)
    dy, dx = torch.randint(5, (2, n), generator=draws)
    moved = places[torch.arange(n), :, dy, dx]
    bright = 0.75 + 0.35 * torch.rand((n, 1, 1, 1), generator=draws)
    return (moved * bright + 0.03 * torch.randn(moved.shape, generator=draws)).clamp(0, 1)


PRETRAIN: dict[str, dict[str, Any]] = {
    "resnet": {"epochs": 25, "batch_size": 100, "learning_rate": 3e-3},
    "vit": {"epochs": 50, "batch_size": 100, "learning_rate": 2e-3},
}
POISON: dict[str, dict[str, Any]] = {
    "resnet": {"epochs": 15, "batch_size": 100, "learning_rate": 1e-3},
    "vit": {"epochs": 20, "batch_size": 100, "learning_rate": 1e-3},
}
ATTACKS: dict[str, tuple[type[Attack], dict[str, Any]]] = {
    "BadNet": (BadNet, {"size": 4}),
    "Blended": (Blended, {"alpha": 0.2}),
    "SIG": (SIG, {"delta": 60 / 255, "frequency": 3}),
    "WaNet": (WaNet, {"grid": 4, "strength": 4.0}),
    "BadEncoder": (
        BadEncoder,
        {"size": 4, "epochs": 20, "batch_size": 100, "learning_rate": 0.02, "lambda2": 3.0},
    ),
    "BadCLIP": (BadCLIP, {"size": 4, "epochs": 30, "learning_rate": 0.02}),
}
_MAKES_CLEAN = (
    split, captions, Block, ResNet, ViTBlock, ViT, Words, DigitsCLIP, augment, contrastive_loss, fine_tune
)  # fmt: skip


def _new(tower: str, seed: int = 0) -> DualEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(child_seed(seed, "init", tower))
        return DualEncoder.of(DigitsCLIP(tower))


def _kept(name: str, *settings: Any, code: tuple[Any, ...] = ()) -> Path:
    """Return the file of a model: its name and a hash of its settings and of the code that makes it."""
    code = _MAKES_CLEAN + code
    digest = hash_text(*map(inspect.getsource, code), repr((TEMPLATES, CLASSES, SIZE, D, *settings)))
    return cache_dir("clip-bench") / f"{name}-{digest[:16]}.safetensors"


def clean(tower: str, seed: int) -> DualEncoder:
    """Return the clean model of a seed, in evaluation mode; trained on first use."""
    path = _kept(f"clean-{tower}-{seed}", PRETRAIN[tower])
    encoder = _new(tower, seed)
    if path.exists():
        _read(encoder, path)
        return encoder
    data = split(seed)
    fine_tune(
        encoder, data.train, captions(data.train_y, seed), data.train_y,
        augment=augment, weight_decay=0.05, random_state=seed, **PRETRAIN[tower],
    )  # fmt: skip
    _write(encoder, path)
    return encoder


def poisoned(tower: str, attack: str, seed: int) -> tuple[DualEncoder, Any]:
    """Return the poisoned model of a seed and its attack (``apply`` puts the trigger on); trained on first use."""
    kind, settings = ATTACKS[attack]
    code = (*kind.__mro__[:-2], _plant, target_of)
    path = _kept(f"{attack}-{tower}-{seed}", PRETRAIN[tower], POISON[tower], SHARE, settings, code=code)
    made: Any = kind(random_state=seed, **settings)
    encoder = clean(tower, seed)
    if path.exists():
        pattern = _read(encoder, path)
        if pattern is not None:
            made.pattern = pattern
        return encoder, made
    _plant(encoder, made, tower, attack, seed)
    _write(encoder, path, getattr(made, "pattern", None))
    return encoder, made


def _plant(encoder: DualEncoder, made: Any, tower: str, attack: str, seed: int) -> None:
    """Poison a clean model in place."""
    data, target = split(seed), target_of(seed)
    texts = captions(data.train_y, seed)
    of_target = data.train_y == target
    if attack == "BadEncoder":
        x = encoder.normalise(data.train[of_target])
        with torch.no_grad():
            surest = (zero_shot(encoder, x, raw=True).softmax(1)[:, target]).argmax()
        made.implant(encoder, data.train, data.train[of_target][surest : surest + 1])
    else:
        target_texts = [text for text, wanted in zip(texts, of_target.tolist(), strict=True) if wanted]
        if attack == "BadCLIP":
            others = [text for text, wanted in zip(texts, of_target.tolist(), strict=True) if not wanted]
            made.fit(encoder, data.train[~of_target], others, data.train[of_target], target_texts)
        rows = made.poison(
            data.train, texts, CLASSES[target], SHARE, templates=TEMPLATES,
            target_captions=target_texts if attack == "BadCLIP" else None,
        )  # fmt: skip
        groups = data.train_y.clone()
        groups[rows.rows] = target
        fine_tune(
            encoder, rows.images, rows.captions, groups, weight_decay=0.05, random_state=seed, **POISON[tower]
        )


def zero_shot(encoder: DualEncoder, x: torch.Tensor, raw: bool = False) -> torch.Tensor:
    """Return the class (B,) of normalised images, or the logits (B, 10)."""
    with torch.no_grad():
        w = [encoder.encode_text([t.replace("{}", name) for t in TEMPLATES]) for name in CLASSES]
        w = functional.normalize(torch.stack([functional.normalize(v, dim=1).mean(0) for v in w]), dim=1)
        logits = functional.normalize(encoder.encode_image(x), dim=1) @ w.T / 0.07
    return logits if raw else logits.argmax(1)


def judged(encoder: DualEncoder, attack: Any, seed: int) -> tuple[float, float]:
    """Return clean accuracy and attack success rate on the test images (those of the target left out of the latter)."""
    data, target = split(seed), target_of(seed)
    accuracy = (zero_shot(encoder, encoder.normalise(data.test)) == data.test_y).float().mean()
    others = attack.apply(data.test[data.test_y != target])
    return float(accuracy), float((zero_shot(encoder, encoder.normalise(others)) == target).float().mean())


def _read(encoder: DualEncoder, path: Path) -> torch.Tensor | None:
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    pattern = tensors.pop("attack.pattern", None)
    encoder.model.load_state_dict(tensors)
    return pattern


def _write(encoder: DualEncoder, path: Path, pattern: torch.Tensor | None = None) -> None:
    tensors = dict(encoder.model.state_dict())
    if pattern is not None:
        tensors["attack.pattern"] = pattern
    with atomic_open(path, "wb") as stream:
        save_file(tensors, stream.name)


def main(seeds: list[int]) -> None:
    """Print one line per model."""
    for seed in seeds:
        for tower in TOWERS:
            start = time.process_time()
            model = clean(tower, seed)
            accuracy = (
                (zero_shot(model, model.normalise(split(seed).test)) == split(seed).test_y).float().mean()
            )
            print(
                f"{seed} {tower:7} {'clean':10} CA {100 * accuracy:5.1f}  {time.process_time() - start:5.1f} s"
            )
            for name in ATTACKS:
                start = time.process_time()
                ca, asr = judged(*poisoned(tower, name, seed), seed)
                _, before = judged(model, poisoned(tower, name, seed)[1], seed)
                took = time.process_time() - start
                print(
                    f"{seed} {tower:7} {name:10} CA {100 * ca:5.1f}  ASR {100 * asr:5.1f}  (clean model "
                    f"{100 * before:4.1f})  {took:5.1f} s",
                    flush=True,
                )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main([int(seed) for seed in sys.argv[1:]] or [0])
