"""Merge an adapter into its base, and prove that the result, in memory and on disk, is the same model.

The sum is formed in float32, whatever type the base has: added to a bfloat16 weight directly, an update below
    one part
in 256 of it rounds to nothing. Three models are compared on one batch: the adapter model, the merged one, and
the one read back from disk (huggingface/peft issue 2777: weights retied on reload made gibberish of a sound
merge).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tunesmith.core.errors import ParameterError, TrainingError
from tunesmith.core.files import atomic_dir
from tunesmith.engine.logits import logits_of
from tunesmith.engine.models import load_model

__all__ = ["MergeReport", "merge_adapter"]

TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
"""Greatest difference of logits by the type on disk, relative to the largest logit. bfloat16 keeps 8 bits of
each weight, an error of up to 0.4 % that adds up over the layers; it is that of the base model's own file."""


@dataclass(frozen=True)
class MergeReport:
    """How far three models are apart, as the greatest absolute difference of logits on one batch.

    Attributes:
        adapter_vs_merged: adapter model against merged model, both in float32.
        merged_vs_reloaded: merged model in float32 against the one read back in the type on disk.
        largest_logit: greatest absolute logit of the adapter model, the scale of both.
        dtype: type of the weights on disk.
        untied: whether output and input embeddings, shared in the base, had to be kept apart.
    """

    adapter_vs_merged: float
    merged_vs_reloaded: float
    largest_logit: float
    dtype: str
    untied: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values for JSON."""
        return asdict(self)


def merge_adapter(
    model: Any, folder: str | Path, batch: Sequence[Sequence[int]], *, tokenizer: Any = None
) -> MergeReport:
    """Merge a ``PeftModel`` into its base and write the whole model.

    The folder appears only when the comparisons held. ``model`` is used up: its weights are float32
    afterwards and its adapter is gone. Memory: the model in float32, and a second copy while it is read back.

    Args:
        model: a ``PeftModel`` whose method can be merged.
        folder: replaced if it exists.
        batch: rows of token ids, all of one length, to compare on.
        tokenizer: written beside the model.

    Returns:
        The differences that were measured.

    Raises:
        ParameterError: ``model`` has no adapter, its method cannot be merged, or its base is quantised.
        TrainingError: merged or reloaded logits are further apart than float32 1e-4, float16 1e-2 or bfloat16
            5e-2 of the largest logit.
    """
    if not hasattr(model, "merge_and_unload"):
        what = getattr(model, "peft_type", type(model).__name__)
        raise ParameterError(
            "model", merge_adapter, "a PeftModel whose method can be merged into weights", str(what)
        )
    if getattr(model.get_base_model(), "is_quantized", False):
        raise ParameterError(
            "model",
            merge_adapter,
            "on an unquantised base, since a quantised one rounds the update away: load the base in 16 or "
            "32 bits "
            "and the adapter onto it",
            str(getattr(model.config, "quantization_config", "a quantised model")),
        )
    ids = torch.tensor([list(row) for row in batch], device=model.device)
    dtype = model.get_base_model().dtype
    name = str(dtype).removeprefix("torch.")
    model = model.float().eval()
    before = logits_of(model, ids)
    was_tied = bool(model.config.get_text_config().tie_word_embeddings)
    _untie_if_touched(model)
    merged = model.merge_and_unload(safe_merge=True)
    _record_tying(merged)
    untied = was_tied and not merged.config.get_text_config().tie_word_embeddings
    after = logits_of(merged, ids)
    scale = float(before.abs().max())
    apart = float((before - after).abs().max())
    if not apart <= TOLERANCE["float32"] * max(1.0, scale):
        raise TrainingError(
            f"The merged model is not the adapter model: their logits differ by {apart:.3g} (largest logit "
            f"{scale:.3g}). Nothing was written; keep the adapter, or use a method that merges exactly."
        )
    with atomic_dir(folder) as partial:
        merged.to(dtype).save_pretrained(partial)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        reloaded = logits_of(load_model(str(partial), dtype=name, device=str(ids.device)), ids)
        read = float((after - reloaded).abs().max())
        if not read <= TOLERANCE[name] * max(1.0, scale):
            raise TrainingError(
                f"The merged model changed on its way to disk: read back as {name}, its logits differ by "
                f"{read:.3g} "
                f"(largest logit {scale:.3g}). Nothing was written; merge from a float32 base."
            )
    return MergeReport(apart, read, scale, name, untied)


def _untie_if_touched(model: Any) -> None:
    """Give the output layer a copy of the shared weight if an adapter sits on either side of it.

    Merged into the shared tensor, the update of one would change the other too.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    base = model.get_base_model()
    layers = [base.get_input_embeddings(), base.get_output_embeddings()]
    if any(isinstance(layer, BaseTunerLayer) for layer in layers):
        inner, outer = (x.base_layer if isinstance(x, BaseTunerLayer) else x for x in layers)
        if outer is not None and outer.weight is inner.weight:
            outer.weight = torch.nn.Parameter(outer.weight.detach().clone(), requires_grad=False)


def _record_tying(merged: Any) -> None:
    """Make the config say that embeddings are apart where they are, or a reload would tie them again.

    PEFT does so for trained copies of whole modules, not for adapters on them.
    """
    outer = merged.get_output_embeddings()
    if outer is not None and not torch.equal(outer.weight, merged.get_input_embeddings().weight):
        merged.config.get_text_config().tie_word_embeddings = False
        merged.config.tie_word_embeddings = False
