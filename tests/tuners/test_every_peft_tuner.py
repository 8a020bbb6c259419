"""Every tuner of the installed PEFT, and ours, trains two steps under our trainer; a new one is tried unasked."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from _small_tuners import SMALL
from tunesmith import tuners

pytestmark = pytest.mark.slow

# Tuners that cannot be trained on token ids and labels alone: the reason, and what the attempt raises.
CANNOT: dict[str, tuple[str, str]] = {
    "multitask_prompt_tuning": ("each batch must say which task its rows belong to", "task_ids"),
    "poly": ("each batch must say which task its rows belong to", "task_ids"),
    "xlora": ("it mixes LoRA adapters that have been trained before", "use_cache|adapters"),
}
# Its tokens' new rows are in the output layer too where weights are tied, and TRL trains no adapter there.
UNTIED = {"trainable_tokens"}


def test_reasons_are_given_for_tuners_that_are_here() -> None:
    assert set(CANNOT) | set(SMALL) | UNTIED <= set(tuners.tuner_names())
    assert {"iaa", "lofit"} <= set(tuners.tuner_names())


@pytest.mark.parametrize("name", tuners.tuner_names())
def test_it_trains_two_steps(name: str, tiny_model_dir: str, tiny_tokenizer: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from tunesmith.engine.models import load_model
    from tunesmith.trainers import train_sft

    model = load_model(tiny_model_dir, dtype="float32")
    if name in UNTIED:
        model.config.tie_word_embeddings = False
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(model.config)
    # Two rows, twice: the loss of the second step is another one if and only if the first has moved something.
    two = [{"input_ids": list(range(3, 14)), "labels": [-100] * 4 + list(range(7, 14))}] * 2

    def train() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return train_sft(
                model,
                tiny_tokenizer,
                Dataset.from_list(two),
                output_dir=tmp_path,
                tuner={"type": name, **SMALL.get(name, {})},
                epochs=2,
                batch_size=2,
                warmup=0.0,
                learning_rate=1e-2,
            )

    if name in CANNOT:
        reason, message = CANNOT[name]
        with pytest.raises(Exception, match=message):
            train()
        pytest.skip(reason)
    result = train()
    assert result.steps == 2
    first, second = (loss for _, loss, _ in result.losses)
    assert math.isfinite(first)
    assert math.isfinite(second)
    assert first != second
