"""Classifiers: a base model with a new head, and the classes that one names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunesmith.core.seeds import child_seed

__all__ = ["load_classifier_for", "predict_classes"]


def load_classifier_for(
    model_id: str,
    classes: Sequence[str],
    *,
    seed: int = 0,
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """Load an encoder or a language model with a new head for these classes.

    Args:
        model_id: ``"minilm"``, another bundled alias, a folder, or a Hub id.
        classes: their names, in the order of the outputs.
        seed: of the head's weights.
        dtype: ``"auto"`` is float32: the head's first steps are too small for 16 bits.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: let the model's repository run its own Python code.

    Raises:
        MissingModelError: the model cannot be found or reached.
    """
    import torch

    from tunesmith.engine.models import load_classifier

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(child_seed(seed, "head"))
        model, tokenizer = load_classifier(
            model_id,
            classes=list(classes),
            dtype="float32" if dtype == "auto" else dtype,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
    if model.config.get_text_config().pad_token_id is None:
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return model


def predict_classes(
    model: Any, tokenizer: Any, texts: Sequence[str], *, max_length: int = 512, batch_size: int = 64
) -> list[str]:
    """Return the class that the model names for each text.

    Args:
        model: a classifier whose ``config.id2label`` names its outputs.
        tokenizer: its tokenizer.
        texts: n texts; sorted by length for the passes.
        max_length: longest text in tokens.
        batch_size: texts per pass.
    """
    import torch

    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    names = {int(i): str(name) for i, name in model.config.id2label.items()}
    found = [""] * len(texts)
    model.eval()
    for begin in range(0, len(order), batch_size):
        picks = order[begin : begin + batch_size]
        batch = tokenizer(
            [texts[i] for i in picks],
            truncation=True,
            max_length=max_length,
            padding=True,
            return_tensors="pt",
        ).to(model.device)
        with torch.inference_mode():
            numbers = model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            ).logits.argmax(-1)
        for i, k in zip(picks, numbers.tolist(), strict=True):
            found[i] = names[k]
    return found
