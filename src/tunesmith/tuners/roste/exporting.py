"""Integer weights of a tuned model, with its rotations merged.

What stays to be done when such a model runs: rotate the inputs of sites whose rotation could not be merged, round
activations and cache, and multiply. `RosteExport.model` does it in floating point, bit for bit as the fake-quantised
model did; kernels for four-bit products read codes, scales and zero points.
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tunesmith.core.errors import MissingModelError, ParameterError
from tunesmith.core.files import atomic_dir
from tunesmith.tuners.roste.layers import RotatedQuantLinear
from tunesmith.tuners.roste.quantizer import dequantize, quantize
from tunesmith.tuners.roste.transform import RosteState, install, roste_layers, roste_state

__all__ = ["QuantizedWeight", "RosteExport", "export"]

FILE = "roste.safetensors"


@dataclass
class QuantizedWeight:
    """One matrix ``(out, in)``, rotated and rounded.

    Attributes:
        codes: uint8 (int32 beyond 8 bits; int8 and int16 if symmetric), ``(out, in)``; 0 to ``2^b - 1``, or
            ``-2^(b-1)`` to ``2^(b-1) - 1`` if symmetric.
        scale: float32 ``(out,)``, or ``(out, groups)`` with a ``group_size``.
        zero: int64, as ``scale``, of any size; None if symmetric.
        bits: b.
        bias: rotated bias, or None.
        rotate_input: whether inputs have yet to be rotated.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None
    bits: int
    bias: torch.Tensor | None
    rotate_input: bool

    def dequantize(self) -> torch.Tensor:
        """Return ``(codes - zero) * scale``, float32 ``(out, in)``."""
        return dequantize(self.codes, self.scale, self.zero)


@dataclass
class RosteExport:
    """A model in integers.

    Attributes:
        weights: layer -> matrix.
        rest: all other parameters and buffers, as they are.
        state: settings, rotations and signs.
        model_config: the transformers configuration; None for other modules.
    """

    weights: dict[str, QuantizedWeight]
    rest: dict[str, torch.Tensor]
    state: RosteState
    model_config: Any = None

    def load_into(self, model: Any) -> Any:
        """Put the rounded weights into a model under `apply_roste`, which then rounds weights no more.

        Args:
            model: transformed with the same rotations; changed in place, for inference.

        Raises:
            ParameterError: its quantised layers are others.
        """
        layers = roste_layers(model)
        if set(layers) != set(self.weights):
            odd = sorted(set(layers) ^ set(self.weights))
            raise ParameterError(
                "model", "RosteExport.load_into", f"the model that was exported; '{odd[0]}' differs", odd
            )
        with torch.no_grad():
            places = model.state_dict(keep_vars=True)
            for name, tensor in self.rest.items():
                places[name].copy_(tensor)
            for name, layer in layers.items():
                _merge(layer, self.weights[name])
        if hasattr(getattr(model, "config", None), "roste"):
            # `load_roste` would rotate these weights once more, and so refuses what is saved of this model.
            model.config.roste = {**model.config.roste, "format": "merged"}
        return model

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``roste.safetensors`` and ``config.json``; codes of up to 4 bits lie two in a byte.

        Raises:
            ParameterError: the module has no transformers configuration.
        """
        from safetensors.torch import save_file

        if self.model_config is None:
            raise ParameterError(
                "model", "RosteExport.save", "a transformers model, whose configuration is saved too", None
            )
        tensors = {f"rest.{name}": tensor.contiguous() for name, tensor in self.rest.items()}
        for name, weight in self.weights.items():
            tensors[f"{name}.codes"] = _pack(weight)
            tensors[f"{name}.scale"] = weight.scale
            for part in ("zero", "bias"):
                if (tensor := getattr(weight, part)) is not None:
                    tensors[f"{name}.{part}"] = tensor.contiguous()
        with atomic_dir(folder) as partial:
            save_file(tensors, str(partial / FILE), {"format": "pt"})
            self.model_config.save_pretrained(partial)

    @staticmethod
    def model(folder: str | os.PathLike[str]) -> Any:
        """Load what `save` wrote as a model in evaluation mode.

        Raises:
            MissingModelError: the folder holds no export.
        """
        import transformers
        from safetensors.torch import load_file

        from tunesmith.tuners.roste.folding import folded_blocks
        from tunesmith.tuners.roste.saving import state_from_json
        from tunesmith.tuners.roste.sites import Rotations

        path = Path(folder)
        if not (path / FILE).exists():
            raise MissingModelError(
                f"The folder {folder} holds no exported model: {FILE} is missing. Give a folder that RosteExport.save "
                "wrote."
            )
        config = transformers.AutoConfig.from_pretrained(path)
        state = state_from_json(config.roste, str(path / "config.json"))
        model = getattr(transformers, config.architectures[0])._from_config(config, dtype=config.dtype)
        blocks = folded_blocks(model) if state.config.layout == "folded" else []
        turns = Rotations(state.config.seed, state.config.block_fallback, state.signs)
        install(model, state, turns, blocks)
        tensors = load_file(str(path / FILE))
        rest = {k.removeprefix("rest."): v for k, v in tensors.items() if k.startswith("rest.")}
        weights = {name: _unpack(name, layer, tensors) for name, layer in roste_layers(model).items()}
        return RosteExport(weights, rest, state, config).load_into(model).eval()


@torch.no_grad()
def export(model: Any) -> RosteExport:
    """Merge rotations into the weights and round these to integers; the model stays as it is.

    Args:
        model: from `apply_roste`, tuned or not.

    Returns:
        The export; its `dequantize` equals the weights that the model computes with, to the bit. Time O(log d) a
        weight, memory a byte per weight.

    Raises:
        ParameterError: the model was not transformed, or its weights are not quantised.
    """
    state = roste_state(model)
    bits = state.config.weight_bits
    if bits is None:
        raise ParameterError("weight_bits", export, "an int in [2, 16] to export integers", None)
    weights, covered = {}, set()
    for name, layer in roste_layers(model).items():
        rotated, bias = layer.rotated()
        codes, scale, zero = quantize(rotated, layer.weight_quantizer)
        weights[name] = QuantizedWeight(
            codes.to(_code_type(bits, zero is None)).contiguous(),
            scale.contiguous(),
            None if zero is None else zero.to(torch.int64),
            bits,
            None if bias is None else bias.to(layer.bias.dtype),
            layer.rotate_input and layer.rotation is not None,
        )
        covered |= {id(layer.weight), id(layer.bias)}
    rest = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in covered:  # each once: a tied head is its embeddings
            covered.add(id(tensor))
            rest[name] = tensor.detach().clone()
    config = copy.deepcopy(getattr(model, "config", None))
    if config is not None:  # as save_pretrained notes them
        config.architectures, config.dtype = [type(model).__name__], getattr(model, "dtype", None)
    return RosteExport(weights, rest, state, config)


def _code_type(bits: int, signed: bool) -> torch.dtype:
    if bits <= 8:
        return torch.int8 if signed else torch.uint8
    return torch.int16 if signed else torch.int32


def _merge(layer: RotatedQuantLinear, weight: QuantizedWeight) -> None:
    value = weight.dequantize().to(layer.weight)
    layer.weight = torch.nn.Parameter(
        value.T.contiguous() if layer.transposed else value, requires_grad=False
    )
    if weight.bias is not None:
        layer.bias = torch.nn.Parameter(weight.bias.to(layer.bias), requires_grad=False)
    layer.merged, layer.rotation_out = True, None
    layer.forget()


def _pack(weight: QuantizedWeight) -> torch.Tensor:
    """Two codes a byte, the even one in the low half; an odd width is filled up."""
    if weight.bits > 4:
        return weight.codes
    codes = (weight.codes.to(torch.int16) + (8 if weight.zero is None else 0)).to(torch.uint8)
    if codes.shape[1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1))
    return codes[:, ::2] | (codes[:, 1::2] << 4)


def _unpack(name: str, layer: Any, tensors: dict[str, torch.Tensor]) -> QuantizedWeight:
    bits, zero = layer.weight_quantizer.bits, tensors.get(f"{name}.zero")
    codes = tensors[f"{name}.codes"]
    if bits <= 4:
        codes = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(1)[:, : layer.in_features]
        codes = codes if zero is not None else (codes.to(torch.int16) - 8).to(torch.int8)
    turned = layer.rotate_input and layer.rotation is not None
    return QuantizedWeight(codes, tensors[f"{name}.scale"], zero, bits, tensors.get(f"{name}.bias"), turned)
