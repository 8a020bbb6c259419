"""How large a model is and how fast this machine is, without loading the one or training on the other."""

from __future__ import annotations

import importlib.util
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.core.errors import MissingModelError
from tunesmith.core.files import cache_dir
from tunesmith.recipe.schema import ModelSpec, TunerSpec

__all__ = [
    "ModelSize",
    "free_disk",
    "free_memory",
    "matmul_speed",
    "model_config",
    "model_size",
    "tokenizer_at_hand",
]

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Share of that speed that a model reaches: for one of 135M weights, on two cores that multiply at
# 183 GFLOP/s, 0.7 in forward passes (460 tokens/s) and 0.35 to 0.6 in LoRA training (120 to 200 tokens/s).
EFFICIENCY = 0.5


@dataclass(frozen=True)
class ModelSize:
    """Sizes of a language model, from its configuration.

    Attributes:
        parameters: weights.
        linear: weights of its linear layers, output head left out.
        trainable: weights that the recipe's tuner trains; None where that cannot be told in advance.
        layers: transformer blocks.
        hidden: width.
        vocabulary: tokens.
        bytes_each: bytes per weight as it will be loaded.
        dtype: as it will be loaded.
    """

    parameters: int
    linear: int
    trainable: int | None
    layers: int
    hidden: int
    vocabulary: int
    bytes_each: int
    dtype: str

    def logits_bytes(self, batch: int, length: int) -> int:
        """Bytes of float32 logits and of their gradient for a batch."""
        return 2 * 4 * batch * length * self.vocabulary

    def activation_bytes(self, batch: int, length: int) -> int:
        """Bytes kept for the backward pass: 34 bytes per token, width and block in a two-byte type.

        Korthikanti et al. 2022, equation 2, without the attention matrix: fused attention does not keep it.
        """
        return self.layers * 34 * batch * length * self.hidden * self.bytes_each // 2

    def training_bytes(self, batch: int, length: int) -> int:
        """Bytes of weights, gradients, Adam's two moments, activations and logits."""
        full = self.trainable == self.parameters
        trained = self.trainable if self.trainable is not None else self.parameters // 100
        each = self.bytes_each if full else 4  # adapters are float32
        state = (3 if full else 4) * trained * each
        return (
            self.parameters * self.bytes_each
            + state
            + self.activation_bytes(batch, length)
            + self.logits_bytes(batch, length)
        )


def model_size(spec: ModelSpec, tuner: TunerSpec | None = None, *, classifier: bool = False) -> ModelSize:
    """Count a model's weights on the meta device: no weight is read or allocated; about a second.

    Args:
        spec: the model.
        tuner: counts what this trains.
        classifier: the model has a head for classes instead of one for tokens.

    Raises:
        MissingModelError: the model, or its configuration on the Hub, cannot be found.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from tunesmith.engine.models import auto_dtype, default_device

    config = model_config(spec)
    kind = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
    try:
        with torch.device("meta"):
            model = kind.from_config(config, trust_remote_code=spec.trust_remote_code)
    except (OSError, ValueError) as error:
        raise _unreadable(spec, error) from error
    text = config.get_text_config()
    head = None if classifier else model.get_output_embeddings()
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    dtype: str = spec.dtype
    if dtype == "auto":
        dtype = "float32" if classifier else auto_dtype(default_device())
    parameters = sum(p.numel() for p in model.parameters())
    return ModelSize(
        parameters=parameters,
        linear=sum(m.weight.numel() for m in linear),
        trainable=_trainable(tuner, parameters, model, linear),
        layers=int(text.num_hidden_layers),
        hidden=int(text.hidden_size),
        vocabulary=0 if classifier else int(text.vocab_size),
        bytes_each=BYTES[dtype],
        dtype=dtype,
    )


def model_config(spec: ModelSpec) -> Any:
    """Return a model's transformers config; no weight is read, and a bundled model is not converted.

    Raises:
        MissingModelError: the model, or its configuration on the Hub, cannot be found.
    """
    from transformers import AutoConfig

    source, extra = _source(spec.id)
    try:
        return AutoConfig.from_pretrained(
            source, revision=spec.revision, trust_remote_code=spec.trust_remote_code, **extra
        )
    except (OSError, ValueError) as error:
        raise _unreadable(spec, error) from error


def _unreadable(spec: ModelSpec, error: Exception) -> MissingModelError:
    return MissingModelError(
        f"The configuration of '{spec.id}' could not be read: {str(error).splitlines()[0]}"
    )


def _trainable(tuner: TunerSpec | None, parameters: int, model: Any, linear: list[Any]) -> int | None:
    if tuner is None:
        return 0
    if tuner.type == "full":
        return parameters
    if tuner.type != "lora":
        return None
    rank = tuner.parameters.get("r", 8)
    targets = tuner.parameters.get("target_modules", "all-linear")
    if isinstance(targets, (list, tuple)):
        names = {id(m): name for name, m in model.named_modules()}
        linear = [m for m in linear if any(names[id(m)].endswith(str(t)) for t in targets)]
    elif targets != "all-linear":
        return None
    return sum(int(rank) * (m.in_features + m.out_features) for m in linear)


def _source(model_id: str) -> tuple[str, dict[str, Any]]:
    """Return what transformers reads the configuration from, without converting a bundled model."""
    from tunesmith.engine.models import ALIASES, resolve_model

    alias = model_id.lower()
    if alias not in ALIASES:
        return resolve_model(model_id), {}
    folder = _converted(alias)
    if folder is not None:
        return str(folder), {}
    package, file, _ = ALIASES[alias]
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations or []) if spec else []:
        if Path(place, file).exists():
            return str(place), {"gguf_file": file}
    return resolve_model(model_id), {}  # raises with what to install


def _converted(alias: str) -> Path | None:
    found = [p for p in cache_dir("models").glob(f"{alias}-*") if (p / "config.json").exists()]
    return found[0] if found else None


def tokenizer_at_hand(model_id: str) -> Any:
    """Return the model's tokenizer if it is on this machine already, else None."""
    from transformers import AutoTokenizer

    from tunesmith.engine.models import ALIASES, resolve_encoder

    alias = model_id.lower()
    source = _converted(alias) if alias in ALIASES else resolve_encoder(model_id)
    if source is None:
        return None
    try:
        return AutoTokenizer.from_pretrained(str(source), local_files_only=True)
    except (OSError, ValueError):
        return None


def matmul_speed(dtype: str = "float32", seconds: float = 0.3) -> float:
    """Return floating-point operations per second of matrix products here, over all threads.

    On a CPU one thread is timed and multiplied: products of a millisecond fit between the time slices of
    other processes, so that a busy machine is not taken for a slow one.

    Args:
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        seconds: how long to try.
    """
    import torch

    from tunesmith.engine.models import default_device

    device = default_device()
    before = torch.get_num_threads()
    size, threads = (4096, 1) if device == "cuda" else (384, before)
    a = torch.ones(size, size, dtype=getattr(torch, dtype), device=device)
    best, end = float("inf"), time.perf_counter() + seconds
    torch.set_num_threads(1)
    try:
        while time.perf_counter() < end:
            begin = time.perf_counter()
            (a @ a)[0, 0].item()  # reading a value waits for the device
            best = min(best, time.perf_counter() - begin)
    finally:
        torch.set_num_threads(before)
    return threads * 2 * size**3 / best


def free_memory() -> int | None:
    """Return the bytes of the GPU's memory where there is one, else of the machine's; None if unknown."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def free_disk(folder: str | os.PathLike[str] = ".") -> int:
    """Return the free bytes of the disk that holds ``folder``."""
    return shutil.disk_usage(folder).free
