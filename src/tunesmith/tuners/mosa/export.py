"""A MoSA adapter of the LoRA flavour as a stock LoRA adapter of the same rank, without an approximation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict

from tunesmith.core.errors import ParameterError
from tunesmith.core.files import atomic_open
from tunesmith.tuners.mosa.config import MosaConfig
from tunesmith.tuners.mosa.layer import MosaLayer

__all__ = ["mosa_to_lora"]


@torch.no_grad()
def mosa_to_lora(
    model: Any, adapter_name: str = "default", path: str | Path | None = None
) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    """Return the merged adapter as LoRA's config and tensors, which need neither tunesmith nor a decomposition.

    The merged projections are LoRA's A and B as they are, ``scale`` is ``lora_alpha / r``, and ``modules_to_save`` come
    along. ``peft.convert_to_lora`` decomposes the product of both instead, at any rank.

    Args:
        model: a PEFT model with a MoSA adapter of ``flavour="lora"``.
        adapter_name: which.
        path: folder to write the checkpoint into; ``PeftModel.from_pretrained`` reads it.

    Raises:
        ParameterError: the model has no such adapter, or it is a bottleneck, which no LoRA equals.
    """
    config = getattr(model, "peft_config", {}).get(adapter_name)
    if not isinstance(config, MosaConfig):
        raise ParameterError(
            "adapter_name", mosa_to_lora, "the name of a MoSA adapter of the model", adapter_name
        )
    if config.flavour != "lora":
        raise ParameterError(
            "flavour",
            mosa_to_lora,
            "'lora': a bottleneck holds a nonlinearity; merged_adapter() gives the plain adapter",
            config.flavour,
        )
    tensors = {
        name: value.detach().clone()
        for name, value in get_peft_model_state_dict(model, adapter_name=adapter_name).items()
        if ".mosa_" not in name
    }
    names, transposed = set(), False
    for name, layer in model.named_modules():
        if isinstance(layer, MosaLayer) and adapter_name in layer.mosa_branch:
            W = layer.mosa_branch[adapter_name].tensors(None)  # type: ignore[operator, union-attr]
            tensors[f"{name}.lora_A.weight"] = W["down"].detach().clone()
            tensors[f"{name}.lora_B.weight"] = W["up"].detach().clone()
            names.add(layer.name)
            transposed = type(layer.get_base_layer()).__name__ == "Conv1D"
    narrowed = config.layers_to_transform is not None or config.exclude_modules
    made = LoraConfig(
        r=config.r,
        lora_alpha=config.factor * config.r,  # type: ignore[arg-type]
        target_modules=names if narrowed else config.target_modules,
        modules_to_save=config.modules_to_save,
        fan_in_fan_out=transposed,
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        inference_mode=True,
    )
    if path is not None:
        from safetensors.torch import save

        Path(path).mkdir(parents=True, exist_ok=True)
        with atomic_open(Path(path) / "adapter_model.safetensors", "wb") as stream:
            stream.write(save({name: value.contiguous() for name, value in tensors.items()}))
        made.save_pretrained(str(path))
    return made, tensors
