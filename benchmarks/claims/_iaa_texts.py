"""Pairs of texts for IAA's claim: of random words, and in English."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

TOPICS = (
    "car automobile|doctor physician|film movie|sea ocean|child kid|stone rock|road highway|ship vessel|gift present|"
    "garbage trash|lawyer attorney|shop store|illness disease|airplane aircraft|forest woodland|money cash|"
    "picture photograph|bicycle bike|sofa couch|teacher instructor|prison jail|coat jacket|cellar basement|"
    "author writer"
)
NAMES = "Anna|Bruno|Clara|David|Elena|Felix|Greta|Hugo|Irene|Jonas|Karla|Luis|Maria|Nora|Oscar|Paula"
CITIES = (
    "Athens|Berlin|Cairo|Delhi|Dublin|Geneva|Havana|Lima|Lisbon|Madrid|Oslo|Paris|Prague|Rome|Tokyo|Vienna"
)
MONTHS = "January|March|May|July|September|November"


class Words:
    """Three of 24 topics and three of 24 styles, each by one of four words."""

    concepts, per, named = 24, 4, 3
    size = 2 + 2 * concepts * per

    def keys(self, n: int, rng: Any) -> Any:
        """Concepts (n, 3), different in a row."""
        return np.stack([rng.choice(self.concepts, self.named, replace=False) for _ in range(n)])

    def text(self, topics: Any, styles: Any, rng: Any) -> dict[str, Any]:
        """One text per row; token 1 begins it."""
        t = 2 + topics * self.per + rng.integers(self.per, size=topics.shape)
        s = 2 + (self.concepts + styles) * self.per + rng.integers(self.per, size=styles.shape)
        ids = np.hstack([np.ones((len(topics), 1), int), rng.permuted(np.hstack([t, s]), axis=1)])
        return {"input_ids": torch.as_tensor(ids), "attention_mask": torch.ones(ids.shape, dtype=torch.long)}

    def same(self, n: int, rng: Any) -> tuple[Any, Any]:
        """Pairs that share topics and styles."""
        topics, styles = self.keys(n, rng), self.keys(n, rng)
        return self.text(topics, styles, rng), self.text(topics, styles, rng)

    def topics(self, n: int, rng: Any) -> tuple[Any, Any]:
        """Pairs that share topics alone."""
        topics = self.keys(n, rng)
        return self.text(topics, self.keys(n, rng), rng), self.text(topics, self.keys(n, rng), rng)


class English:
    """A question about three things, and the paragraph that names them in other words."""

    topics = tuple(tuple(pair.split()) for pair in TOPICS.split("|"))

    def encoder(self) -> Any:
        """The bundled MiniLM, without dropout."""
        from tunesmith.engine.models import load_encoder

        loaded = load_encoder("minilm", device="cpu")
        self.tokenizer = loaded.tokenizer
        return loaded[0].model.eval()

    def sentences(self, n: int, rng: Any) -> tuple[list[str], list[str]]:
        """Questions and paragraphs."""
        questions, paragraphs = [], []
        for _ in range(n):
            chosen = rng.choice(len(self.topics), 3, replace=False)
            side = int(rng.integers(2))
            a, b, c = (self.topics[i][side] for i in chosen)
            x, y, z = (self.topics[i][1 - side] for i in rng.permutation(chosen))
            who, other = rng.choice(NAMES.split("|"), 2, replace=False)
            city, place = rng.choice(CITIES.split("|"), 2, replace=False)
            month, then = rng.choice(MONTHS.split("|"), 2, replace=False)
            questions.append(f"In {month}, {who} from {city} asks about the {a}, the {b} and the {c}.")
            paragraphs.append(f"{place}, {then}. {other} writes of the {x}, the {y} and the {z}.")
        return questions, paragraphs

    def draw(self, n: int, rng: Any) -> tuple[Any, Any]:
        """Pairs as token ids, padded."""
        sides = (self.tokenizer(texts, padding=True, return_tensors="pt") for texts in self.sentences(n, rng))
        left, right = ({k: side[k] for k in ("input_ids", "attention_mask")} for side in sides)
        return left, right


words, english = Words(), English()
