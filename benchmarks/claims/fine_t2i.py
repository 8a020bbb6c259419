"""The claim of Fine-T2I at small scale: strict filters are worth the rows that they cost.

    python benchmarks/claims/fine_t2i.py

3,000 images of 24 x 24 pixels, drawn with PIL: one to four circles, squares or triangles in one of six colours, with
a prompt from one of five templates (360 prompts in all). 45 % of the rows show a wrong colour, a wrong count or are
blurred; a further 15 % repeat the prompt of one of the first 20 rows. TextToImageCurator filters them: sharpness at the
threshold that 97 % of 200 clean images pass, then a judge that checks the drawing, exact or with 10 % errors either
way. A two-tower model (a small convolutional network and a bag of words) learns to match image and prompt, 600 steps of
batch 128 from each set, and must name colour, shape and count (72 combinations) of 1,000 clean images. Arms: all rows;
random rows, as many as the noisy judge leaves; both judges; and the pipeline with the noisy judge but without
sharpness, or with at most six rows a prompt.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from _claim import count, difference, over_seeds, save, says, summary
from datasets import Dataset
from PIL import Image, ImageDraw, ImageFilter

from tunesmith.curate import TextToImageCurator
from tunesmith.curate.fine_t2i import Sharpness

SEEDS = range(5)
ROWS, SIDE, STEPS, BATCH = 3000, 24, 600, 128
COLOURS = {
    "red": "#e02020",
    "green": "#20b030",
    "blue": "#2040e0",
    "yellow": "#e0d020",
    "white": "#ffffff",
    "pink": "#f080c0",
}
SHAPES = ("circle", "square", "triangle")
NUMBERS = ("one", "two", "three", "four")
TEMPLATES = (
    "a photo of {n} {c} {s}",
    "please draw {n} {c} {s} for me",
    "there are {n} {s} and they are {c}",
    "{n} {c} {s}, sharp, high quality",
    "{s}, {c}, {n}, simple drawing",
)
COMBINATIONS = [(c, s, n) for c in COLOURS for s in SHAPES for n in range(1, 5)]
WORDS = {
    w: i
    for i, w in enumerate(
        sorted(
            {w for t in TEMPLATES for w in t.replace(",", "").split()}
            | {*COLOURS, *NUMBERS}
            | {f"{s}{e}" for s in SHAPES for e in ("", "s")}
        )
    )
}


def prompt(colour: str, shape: str, n: int, template: int) -> str:
    return TEMPLATES[template].format(n=NUMBERS[n - 1], c=colour, s=shape + "s" * (n > 1))


def draw(colour: str, shape: str, n: int, rng: np.random.Generator) -> Image.Image:
    """Shapes at random places of four quarters, on a dark ground with a little noise."""
    image = Image.new("RGB", (SIDE, SIDE), tuple(int(v) for v in rng.integers(10, 60, 3)))
    pen = ImageDraw.Draw(image)
    for quarter in rng.permutation(4)[:n]:
        r = int(rng.integers(3, 5))
        x, y = (12 * int(q) + 6 + int(rng.integers(-1, 2)) for q in (quarter % 2, quarter // 2))
        box = (x - r, y - r, x + r, y + r)
        if shape == "circle":
            pen.ellipse(box, fill=COLOURS[colour])
        elif shape == "square":
            pen.rectangle(box, fill=COLOURS[colour])
        else:
            pen.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=COLOURS[colour])
    noisy = np.asarray(image, dtype=np.int16) + rng.integers(-8, 9, (SIDE, SIDE, 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def pool(seed: int) -> list[dict[str, Any]]:
    """The spoiled rows; ``truth`` is what the image shows, ``wanted`` what the prompt says."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for i in range(ROWS):
        kind = rng.choice(["clean", "colour", "count", "blur", "repeat"], p=[0.4, 0.15, 0.15, 0.15, 0.15])
        c, s, n = COMBINATIONS[rng.integers(len(COMBINATIONS))]
        template = int(rng.integers(5))
        if kind == "repeat" and i >= 20:
            c, s, n, template = rows[int(rng.integers(20))]["key"]
        shown = (c, s, n)
        if kind == "colour":
            shown = (rng.choice([x for x in COLOURS if x != c]), s, n)
        elif kind == "count":
            shown = (c, s, int(rng.choice([x for x in range(1, 5) if x != n])))
        image = draw(*shown, rng)
        if kind == "blur":
            image = image.filter(ImageFilter.GaussianBlur(2.5))
        rows.append(
            {
                "text": prompt(c, s, n, template),
                "image": image,
                "key": (c, s, n, template),
                "right": shown == (c, s, n),
                "kind": str(kind),
            }
        )
    return rows


def clean(seed: int, count: int) -> tuple[list[Image.Image], list[tuple[str, str, int]]]:
    rng = np.random.default_rng([seed, 7])
    truth = [COMBINATIONS[rng.integers(len(COMBINATIONS))] for _ in range(count)]
    return [draw(*t, rng) for t in truth], truth


def curate(
    rows: list[dict[str, Any]], seed: int, *, errors: float, sharp: bool = True
) -> tuple[list[int], Any]:
    """Run the pipeline; returns the rows kept, and the funnel."""
    import io

    def png(image: Image.Image) -> bytes:
        out = io.BytesIO()
        image.save(out, "PNG")
        return out.getvalue()

    threshold = float(np.quantile(Sharpness()(clean(10_000 + seed, 200)[0]), 0.03))
    wrong = np.random.default_rng([seed, 3]).random(len(rows)) < errors
    verdict = {row["image"].tobytes(): bool(row["right"] != wrong[i]) for i, row in enumerate(rows)}
    dataset = Dataset.from_dict({"text": [r["text"] for r in rows], "image": [png(r["image"]) for r in rows]})
    method = TextToImageCurator(
        min_words=1,
        dedup_threshold=None,  # prompts must repeat here: there are only 360
        aesthetic="sharpness" if sharp else None,
        aesthetic_threshold=threshold,
        alignment=lambda texts, images: [verdict[image.tobytes()] for image in images],
    )
    method.fit(dataset).transform(dataset)
    gone = {i for i, _ in method.report_.dropped}
    return [i for i in range(len(rows)) if i not in gone], method.funnel_


def capped(rows: list[dict[str, Any]], kept: list[int], most: int = 6) -> list[int]:
    seen: dict[str, int] = {}
    out = []
    for i in kept:
        seen[rows[i]["text"]] = seen.get(rows[i]["text"], 0) + 1
        if seen[rows[i]["text"]] <= most:
            out.append(i)
    return out


def pixels(images: list[Image.Image]) -> Any:
    import torch

    return torch.from_numpy(
        np.stack([np.asarray(i, dtype=np.float32) for i in images]).transpose(0, 3, 1, 2) / 255 - 0.4
    )


def bags(texts: list[str]) -> Any:
    import torch

    x = torch.zeros(len(texts), len(WORDS))
    for i, text in enumerate(texts):
        for word in text.replace(",", "").split():
            x[i, WORDS[word]] = 1
    return x


def train(rows: list[dict[str, Any]], kept: list[int], seed: int) -> dict[str, float]:
    """Train two towers on some rows with a contrastive loss (equal prompts are all positives); test on clean images."""
    import torch
    from torch import nn
    from torch.nn.functional import log_softmax, normalize

    torch.set_num_threads(1)  # the network is small: two threads wait for one another
    torch.manual_seed(seed)
    eyes = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1152, 64),
    )
    words = nn.Sequential(nn.Linear(len(WORDS), 64), nn.ReLU(), nn.Linear(64, 64))
    scale = nn.Parameter(torch.tensor(2.5))
    optimiser = torch.optim.Adam([*eyes.parameters(), *words.parameters(), scale], lr=2e-3)
    x, t = pixels([rows[i]["image"] for i in kept]), bags([rows[i]["text"] for i in kept])
    name: dict[str, int] = {}
    ids = torch.tensor([name.setdefault(rows[i]["text"], len(name)) for i in kept])
    draws = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(STEPS):
        b = torch.randint(len(kept), (BATCH,), generator=draws)
        logits = scale.exp() * normalize(eyes(x[b]), dim=1) @ normalize(words(t[b]), dim=1).T
        same = (ids[b][:, None] == ids[b][None]).float()
        target = same / same.sum(1, keepdim=True)
        loss = (
            -(
                (target * log_softmax(logits, 1)).sum(1).mean()
                + (target * log_softmax(logits.T, 1)).sum(1).mean()
            )
            / 2
        )
        # The least value that soft targets permit is taken off, so that sets with more repeats compare.
        loss_now = loss + (target * target.clamp_min(1e-9).log()).sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss_now.detach()))
    images, truth = clean(20_000 + seed, 1000)
    with torch.inference_mode():
        seen = normalize(eyes(pixels(images)), dim=1)
        said = normalize(
            words(bags([prompt(*c, template) for c in COMBINATIONS for template in range(5)])), dim=1
        )
        best = (seen @ said.T).reshape(len(images), len(COMBINATIONS), 5).mean(2).argmax(1)
    right = np.mean([COMBINATIONS[int(i)] == t for i, t in zip(best, truth, strict=True)])
    bad = np.mean([not rows[i]["right"] or rows[i]["kind"] == "blur" for i in kept])
    return {
        "accuracy": float(right),
        "loss": float(np.mean(losses[-50:])),
        "rows": len(kept),
        "bad_share": float(bad),
    }


FUNNELS: list[dict[str, Any]] = []


def run(seed: int) -> dict[str, dict[str, float]]:
    """One seed: all arms on one pool."""
    rows = pool(seed)
    noisy, funnel = curate(rows, seed, errors=0.1)
    exact, exact_funnel = curate(rows, seed, errors=0.0)
    if seed == SEEDS[0]:
        FUNNELS.extend({"judge": "noisy", **row} for row in funnel.table())
        FUNNELS.extend({"judge": "exact", **row} for row in exact_funnel.table())
    some = np.sort(np.random.default_rng([seed, 5]).permutation(ROWS)[: len(noisy)]).tolist()
    arms = {
        "all rows": list(range(ROWS)),
        "random rows": some,
        "curated": noisy,
        "curated, exact judge": exact,
        "curated, no sharpness": curate(rows, seed, errors=0.1, sharp=False)[0],
        "curated, at most 6 rows a prompt": capped(rows, noisy),
    }
    return {arm: train(rows, kept, seed) for arm, kept in arms.items()}


def main() -> None:
    """Run all seeds and write docs/claims/fine-t2i.json."""
    warnings.simplefilter("ignore")
    found = over_seeds(run, SEEDS)
    accuracy = found["accuracy"]
    intervals = [
        difference(accuracy, "curated", "random rows"),
        difference(accuracy, "curated", "all rows"),
        difference(accuracy, "curated, exact judge", "all rows"),
        difference(accuracy, "curated", "curated, no sharpness"),
        difference(accuracy, "curated, exact judge", "curated"),
        difference(accuracy, "curated", "curated, at most 6 rows a prompt"),
    ]
    main_two = intervals[:2]
    loss = {arm: float(np.mean(v)) for arm, v in found["loss"].items()}
    mean = {arm: float(np.mean(v)) for arm, v in accuracy.items()}
    lowest = min(loss, key=loss.__getitem__)
    save(
        "fine-t2i",
        {
            "title": "Fine-T2I on drawn shapes",
            "claim": "A small set that passed strict filters trains a better text-image model than as many random "
            "rows, and a better one than all rows, bad ones included, at equal steps; the training loss does not tell "
            "which set is best.",
            "verdict": f"{count(main_two)} of a noisy judge with random and with all rows. "
            + "; ".join(says(interval) for interval in intervals)
            + f". The lowest training loss belongs to '{lowest}', whose accuracy ({mean[lowest]:.3f}) ranks "
            f"{1 + sum(v > mean[lowest] for v in mean.values())} of {len(mean)}.",
            "holds": all(interval["low"] > 0 for interval in main_two),
            "setting": " ".join((__doc__ or "").split("\n\n")[2].split()),
            "seeds": list(SEEDS),
            "arms": summary(accuracy),
            "training_loss": summary(found["loss"]),
            "rows_kept": summary(found["rows"]),
            "share_of_bad_rows": summary(found["bad_share"]),
            "funnel_of_the_first_seed": FUNNELS,
            "intervals": intervals,
            "command": "python benchmarks/claims/fine_t2i.py",
        },
    )


if __name__ == "__main__":
    main()
