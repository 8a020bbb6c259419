"""The whole audit: texts of what is new, in groups with names, and a report of them (arXiv 2410.14765)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.audit._report import Report, Table
from tunesmith.audit.novelty.exploring import CGEConfig, Generation, NoveltyExplorer
from tunesmith.core.events import EventLog
from tunesmith.core.seeds import child_seed
from tunesmith.data.groups import central_rows, group_names, telling_words

__all__ = ["audit_novelty"]

SAME = 0.02
"""Mean nats per token below which the two models say the same."""
MOST_GROUPS = 6
SHOWN = 3


def audit_novelty(
    finetuned: Any,
    base: Any,
    tokenizer: Any,
    *,
    n: int = 40,
    mode: str = "iterative",
    alpha: float = 0.1,
    gamma: float = 1.0,
    length: int = 64,
    texts_per_step: int = 4,
    learning_rate: float = 5e-5,
    start: str | None = None,
    seed: int = 0,
    encoder: str = "minilm",
    base_tokenizer: Any = None,
    subject: str = "model",
    log: EventLog | None = None,
) -> Report:
    """Show what fine-tuning added to a model, in groups with names.

    The texts may be rows of the training set word by word; treat the report as confidential as the data. Groups are
    those of k-means over embeddings of the texts, their number that of the best silhouette.

    Args:
        finetuned: the tuned model, or a ``PeftModel``.
        base: the model before tuning; None for the one under the adapter.
        tokenizer: of both.
        n: texts to generate.
        mode: see `CGEConfig` for this and the next.
        alpha: plausibility.
        gamma: weight of the contrast.
        length: tokens per text.
        texts_per_step: texts learned together.
        learning_rate: of what learns.
        start: text that each generation begins with.
        seed: of the draws and the groups.
        encoder: sentence encoder that groups the texts.
        base_tokenizer: the base's own, compared where it is given.
        subject: the model's name in the report.
        log: receives ``progress``.

    Returns:
        A report of level ``"clean"`` where the models do not differ, else ``"suspicious"``: whether what is new was
        meant to be is for you to say.

    Raises:
        ParameterError: see `NoveltyExplorer`.
    """
    from tunesmith.engine.models import load_encoder

    config = CGEConfig(mode, alpha, gamma, length, texts_per_step, learning_rate, start=start, seed=seed)
    explorer = NoveltyExplorer(finetuned, base, tokenizer, config, base_tokenizer=base_tokenizer, log=log)
    found = explorer.explore(n)
    per_token = np.array([text.score / max(1, len(text.token_ids) - 1) for text in found])
    numbers = {
        "texts": len(found),
        "nats per token, mean": float(per_token.mean()),
        "nats per token, highest": float(per_token.max()),
        "mean share of repeated tokens": float(np.mean([text.repetition for text in found])),
    }
    notes = [
        "Generated texts may repeat training rows word by word: treat this page as confidential as the data.",
        f"{config.mode} exploration, alpha {config.alpha:g}, gamma {config.gamma:g}, {config.length} tokens a text. A "
        "rarer opening than alpha times the commonest is never begun with: a lower alpha looks further.",
    ]
    if per_token.max() < SAME:
        verdict = f"The two models say the same: no text is likelier by more than {SAME} nats per token."
        return Report("novelty", subject, "clean", verdict, numbers, notes=notes)
    X = load_encoder(encoder).encode(
        [text.text for text in found], normalize_embeddings=True, show_progress_bar=False
    )
    labels = _groups(np.asarray(X, dtype=np.float64), config.seed)
    texts = np.array([text.text for text in found], dtype=object)
    words = telling_words(lambda rows: list(texts[rows]), labels)
    names = group_names(words)
    order = sorted(names, key=lambda group: -per_token[labels == group].mean())
    tables = [
        Table(
            "What is new",
            ["group", "texts", "nats per token"],
            [[names[g], int((labels == g).sum()), float(per_token[labels == g].mean())] for g in order],
            "Named by the words that tell a group from the others; the higher the nats, the more the tuned model alone "
            "says it.",
        )
    ]
    typical = central_rows(X, labels, SHOWN)
    for group in order:
        rows = [[_line(found[i]), float(per_token[i])] for i in typical[group]]
        tables.append(Table(names[group], ["text", "nats per token"], rows))
    verdict = (
        f"The tuned model has {len(order)} kind{'s' if len(order) > 1 else ''} of text that the model before it finds "
        f"unlikely, above all: {names[order[0]]}."
    )
    return Report("novelty", subject, "suspicious", verdict, numbers, tables, notes=notes)


def _groups(X: NDArray[np.float64], seed: int) -> NDArray[np.int64]:
    """Return k-means labels for the k of the best silhouette; one group where there are too few texts for more."""
    from sklearn.metrics import silhouette_score

    from tunesmith.cluster import KMeans

    best, labels = -1.0, np.zeros(len(X), dtype=np.int64)
    distinct = len(np.unique(X, axis=0))
    for k in range(2, min(MOST_GROUPS, distinct - 1) + 1):
        tried = KMeans(n_clusters=k, n_init=4, random_state=child_seed(seed, "groups", k)).fit(X).labels_
        if len(np.unique(tried)) == k and (score := float(silhouette_score(X, tried))) > best:
            best, labels = score, tried
    return labels


def _line(text: Generation) -> str:
    return " ".join(text.text.split()) or "(white space alone)"
