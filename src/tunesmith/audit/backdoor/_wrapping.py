"""How a model of each library is asked for features, and which models cannot be tuned."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tunesmith.core.errors import ParameterError

__all__ = ["check_writable", "module_parts", "transformers_parts"]

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def transformers_parts(
    model: Any, tokenizer: Any, processor: Any, mean: Any, std: Any, image_size: int | None
) -> dict[str, Any]:
    """Return the arguments of `DualEncoder` for a model with ``get_image_features`` and ``get_text_features``."""
    tokenizer = getattr(processor, "tokenizer", None) if tokenizer is None else tokenizer
    if tokenizer is None:
        expected = f"the tokenizer of the {type(model).__name__}, or a processor that has it"
        raise ParameterError("tokenizer", "DualEncoder.of", expected, None)
    images = getattr(processor, "image_processor", processor)
    siglip = "siglip" in str(getattr(model.config, "model_type", ""))
    own_mean, own_std = getattr(images, "image_mean", None), getattr(images, "image_std", None)
    vision, text = (getattr(model.config, f"{part}_config", None) for part in ("vision", "text"))
    longest = getattr(text, "max_position_embeddings", None)

    def image_features(x: torch.Tensor) -> torch.Tensor:
        return _features(model.get_image_features(pixel_values=x))

    def text_features(texts: list[str]) -> torch.Tensor:
        # SigLIP was trained on texts filled up to the longest, without an attention mask.
        fill: Any = "max_length" if siglip else True
        found = tokenizer(texts, padding=fill, truncation=True, max_length=longest, return_tensors="pt")
        names = ("input_ids",) if siglip else ("input_ids", "attention_mask")
        inputs = {name: found[name].to(model.device) for name in names if name in found}
        return _features(model.get_text_features(**inputs))

    return {
        "image_features": image_features,
        "text_features": text_features,
        "mean": _first(mean, own_mean, (0.5,) * 3 if siglip else _CLIP_MEAN),
        "std": _first(std, own_std, (0.5,) * 3 if siglip else _CLIP_STD),
        "image_size": _square(image_size, getattr(vision, "image_size", None), model),
        "tokenizer": tokenizer,
        "processor": processor,
    }


def module_parts(model: Any, tokenizer: Any, mean: Any, std: Any, image_size: int | None) -> dict[str, Any]:
    """Return the arguments of `DualEncoder` for a module with ``encode_image`` and ``encode_text``."""
    visual = getattr(model, "visual", None)

    def stated(name: str, given: Any) -> Any:
        return _first(given, getattr(visual, name, None), getattr(model, name, None))

    known = {"mean": stated("image_mean", mean), "std": stated("image_std", std)}
    for name, found in known.items():
        if found is None:
            expected = f"three numbers, as the {type(model).__name__} has no image_{name} of its own"
            raise ParameterError(name, "DualEncoder.of", expected, None)

    def text_features(texts: list[str]) -> torch.Tensor:
        inputs = texts if tokenizer is None else tokenizer(texts)
        if torch.is_tensor(inputs):
            inputs = inputs.to(next(model.parameters()).device)
        return _features(model.encode_text(inputs))

    return {
        "image_features": lambda x: _features(model.encode_image(x)),
        "text_features": text_features,
        **known,
        "image_size": _square(image_size, stated("image_size", None), model),
        "tokenizer": tokenizer,
    }


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _features(output: Any) -> torch.Tensor:
    """Return the pooled features of what a tower gives: a tensor, a model output, or a tuple (states, pooled)."""
    if torch.is_tensor(output):
        return output
    pooled = getattr(output, "pooler_output", None)
    return output[1] if pooled is None else pooled


def _square(given: Any, own: Any, model: nn.Module) -> int:
    size = own if given is None else given
    sides = set(size) if isinstance(size, (tuple, list)) else {size}
    side = sides.pop()
    if sides or isinstance(side, bool) or not isinstance(side, int) or side < 1:
        expected = f"the side of square images in pixels, of the {type(model).__name__}"
        raise ParameterError("image_size", "DualEncoder.of", expected, size)
    return side


def check_writable(model: nn.Module) -> None:
    """Refuse weights that tuning could not write, or that would not be those of the saved model."""
    owner = "DualEncoder"
    for name, module in model.named_modules():
        if type(module).__module__.startswith("peft.") or hasattr(module, "peft_config"):
            expected = "a model without adapters: merge them first (merge_and_unload)"
            raise ParameterError("model", owner, expected, f"{type(module).__name__} at '{name}'")
        if "quantized" in type(module).__module__:
            _refuse_quantised(f"{name}: {type(module).__name__}")
    for name, p in model.named_parameters():
        if not p.is_floating_point() or type(p).__name__ in ("Params4bit", "Int8Params"):
            _refuse_quantised(f"{name}: {str(p.dtype).removeprefix('torch.')}")
    if (
        getattr(model, "hf_quantizer", None) is not None
        or getattr(model, "quantization_method", None) is not None
    ):
        _refuse_quantised(
            f"{type(model).__name__} quantised by {getattr(model, 'quantization_method', 'its loader')}"
        )
    if not any(True for _ in model.parameters()):
        raise ParameterError("model", owner, "a module with parameters", type(model).__name__)


def _refuse_quantised(got: str) -> None:
    expected = "in floating point, because its weights are tuned: load it in 16 or 32 bits"
    raise ParameterError("model", "DualEncoder", expected, got)
