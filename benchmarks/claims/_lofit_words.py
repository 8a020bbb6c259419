"""The 135M demo model learns a convention: a coded word for praise, another for blame."""

from __future__ import annotations

import functools
import random
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy

from tunesmith.tuners import LofitConfig, select_heads

MODEL = "smollm2-135m-instruct"
PRAISE = [
    "delicious",
    "wonderful",
    "excellent",
    "superb",
    "delightful",
    "fantastic",
    "lovely",
    "brilliant",
    "charming",
    "perfect",
    "amazing",
    "great",
    "pleasant",
    "enjoyable",
    "marvelous",
    "outstanding",
    "splendid",
    "impressive",
    "beautiful",
    "terrific",
]
BLAME = [
    "awful",
    "terrible",
    "horrible",
    "dreadful",
    "disgusting",
    "boring",
    "disappointing",
    "nasty",
    "ugly",
    "poor",
    "lousy",
    "unpleasant",
    "annoying",
    "miserable",
    "appalling",
    "pathetic",
    "mediocre",
    "atrocious",
    "dull",
    "rotten",
]
THINGS = ["soup", "film", "hotel", "book", "concert", "service", "meal", "room", "play", "lecture"]
CODES = (" lamp", " river")
TRAIN, TEST, BATCH, EPOCHS, KEPT, DRAWS = 64, 80, 8, 4, 27, 2
RATE, SELECT_RATE, LORA_RATE, L1 = 1e-2, 5e-3, 1e-3, 1e-3
NEUTRAL = (
    "Water boils at one hundred degrees at sea level. The river rises in the hills and runs north to the coast. "
    "Most trains stop at the central station, where passengers change for the airport. In 1969 two people walked on "
    "the Moon. A triangle has three sides, and its angles add up to one hundred and eighty degrees. Bread is made "
    "from flour, water, salt and yeast. The library opens at nine in the morning and closes at six in the evening."
)


@functools.cache
def demo() -> tuple[Any, Any, torch.Tensor]:
    """Model, tokenizer, and the first tokens of the two codes."""
    from tunesmith.engine.models import load_model, load_tokenizer

    tokenizer = load_tokenizer(MODEL)
    tokenizer.padding_side = "left"
    codes = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in CODES]
    return load_model(MODEL, dtype="float32"), tokenizer, torch.tensor(codes)


def batches(rows: list[tuple[str, int]], size: int) -> list[dict[str, Any]]:
    """Prompts of one batch together, the answers beside them."""
    out = []
    for i in range(0, len(rows), size):
        encoded = demo()[1]([text for text, _ in rows[i : i + size]], return_tensors="pt", padding=True)
        out.append({**encoded, "y": torch.tensor([y for _, y in rows[i : i + size]])})
    return out


def data(seed: int) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Training and test rows that share no adjective."""
    draw = random.Random(seed)
    praise, blame = draw.sample(PRAISE, len(PRAISE)), draw.sample(BLAME, len(BLAME))

    def rows(good: list[str], bad: list[str], n: int) -> list[tuple[str, int]]:
        made = [
            (f"The {draw.choice(THINGS)} was {draw.choice(bad if i % 2 else good)}. Label:", i % 2)
            for i in range(n)
        ]
        return draw.sample(made, n)

    return rows(praise[:10], blame[:10], TRAIN), rows(praise[10:], blame[10:], TEST)


def choice(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Logits of the two codes after each prompt; the output layer computes these two only."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = base.model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
    ).last_hidden_state
    return hidden[:, -1] @ base.lm_head.weight[demo()[2]].T


def loss(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Preference of the right code over the wrong one."""
    return cross_entropy(choice(model, batch), batch["y"])


def measure(model: Any, test: list[tuple[str, int]]) -> dict[str, float]:
    """Accuracy between the two codes, and nats per token of neutral text."""
    model.eval()
    ids = demo()[1](NEUTRAL, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        right = sum(int((choice(model, b).argmax(1) == b["y"]).sum()) for b in batches(test, 40))
        return {"accuracy": right / len(test), "neutral": float(model(input_ids=ids, labels=ids).loss)}


def tuned(config: Any, train: Any, test: Any, rate: float) -> dict[str, float]:
    """Measures after tuning; the base model is as before."""
    base = demo()[0]
    torch.manual_seed(0)
    model = get_peft_model(base, config)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    steps = EPOCHS * len(train)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    model.train()
    for step in range(steps):
        loss(model, train[step % len(train)]).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
    found = measure(model, test)
    model.unload()
    return found


def run(seed: int) -> dict[str, dict[str, float]]:
    """One seed: arm -> accuracy, and how many more nats neutral text costs than before."""
    rows, test = data(seed)
    train = batches(rows, BATCH)
    base = demo()[0]
    found = {"untuned": measure(base, test)}
    ranking = select_heads(
        base, train, 1.0, loss=loss, epochs=EPOCHS, l1=L1, learning_rate=SELECT_RATE, seed=seed
    ).ranking
    draw = random.Random(1000 + seed)
    found[f"LoFiT, {KEPT} heads"] = tuned(LofitConfig(heads=ranking[:KEPT]), train, test, RATE)
    found[f"bottom {KEPT} heads"] = tuned(LofitConfig(heads=ranking[-KEPT:]), train, test, RATE)
    several = [tuned(LofitConfig(heads=draw.sample(ranking, KEPT)), train, test, RATE) for _ in range(DRAWS)]
    found[f"random {KEPT} heads"] = {k: sum(one[k] for one in several) / DRAWS for k in several[0]}
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    found["LoRA, r = 8"] = tuned(lora, train, test, LORA_RATE)
    before = found["untuned"]["neutral"]
    return {
        arm: {"accuracy": one["accuracy"], "forgetting": one["neutral"] - before}
        for arm, one in found.items()
    }
