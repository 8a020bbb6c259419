"""Write tuned models, read them back, and compare, so that what was learned is what is on disk.

Adapters have been saved without their trained embeddings, and models with their weights tied the wrong way,
while everything looked right (huggingface/peft issues 3585 and 2777). So after each save everything that was
trained is blanked, the file is read into it, and the logits of one fixed batch are compared with those
before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tunesmith.core.errors import MissingModelError, TrainingError
from tunesmith.core.files import atomic_dir, read_json
from tunesmith.engine.logits import fixed_batch, logits_of
from tunesmith.engine.models import load_classifier, load_model
from tunesmith.engine.silence import quiet
from tunesmith.tuners.roste import is_roste_folder, load_roste

__all__ = ["load_tuned", "save_tuned"]

TOLERANCE = 1e-5
"""Greatest difference of logits after a save, relative to the largest logit: the same weights lie elsewhere
in memory, so a matrix product may round differently, and nothing more."""


def save_tuned(model: Any, tokenizer: Any, folder: str | Path) -> None:
    """Write an adapter (with its config) or a whole model, with the tokenizer, and verify it.

    The folder appears only when the comparison held. Memory: a second copy of what was trained.

    Args:
        model: a ``PeftModel`` or a transformers model.
        tokenizer: the tokenizer to write beside it.
        folder: replaced if it exists.

    Raises:
        TrainingError: the model read back gives other logits than the one in memory.
    """
    batch = fixed_batch(model)
    before = logits_of(model, batch)
    with atomic_dir(folder) as partial, quiet(python_warnings=True):
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        if hasattr(model, "peft_config"):
            with _blanked(model):
                _read_adapter(model, partial)
                after = logits_of(model, batch)
        else:
            after = logits_of(_read_whole(model, partial), batch)
        worst = float((before - after).abs().max())
        if not worst <= TOLERANCE * max(1.0, float(before.abs().max())):
            raise TrainingError(
                f"The saved model is not the trained one: read back from {folder}, its logits differ by "
                f"{worst:.3g}. Some trained weights are not in the file; with adapters, name trained modules "
                "in modules_to_save."
            )


def load_tuned(folder: str | Path, base: str | Callable[[], Any], dtype: str = "auto") -> Any:
    """Load what `save_tuned` wrote.

    Args:
        folder: a folder of `save_tuned`.
        base: for an adapter, the id of the base model or a function that returns it; not used for whole
            models.
        dtype: of the base model when ``base`` is an id; a whole model keeps the type it was saved in.

    Returns:
        The model in evaluation mode: a ``PeftModel``, or the whole model.

    Raises:
        MissingModelError: the folder holds neither, or an adapter of a method that is not installed here.
    """
    path = Path(folder)
    if (path / "adapter_config.json").exists():
        from peft import PeftModel

        from tunesmith.tuners import register

        _refuse_unknown(path, register())
        model = load_model(base, dtype=dtype) if isinstance(base, str) else base()
        with quiet(python_warnings=True):  # PEFT asks for an attribute that transformers has renamed
            return PeftModel.from_pretrained(model, str(path)).eval()
    if is_roste_folder(path):
        return load_roste(path)
    if not (path / "config.json").exists():
        raise MissingModelError(
            f"The folder {folder} holds neither an adapter (adapter_config.json) nor a model (config.json). "
            "Give a folder that save_tuned wrote."
        )
    return _whole(path, read_json(path / "config.json").get("dtype") or dtype)


def _refuse_unknown(folder: Path, ours: list[str]) -> None:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kind = read_json(folder / "adapter_config.json").get("peft_type")
    if kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise MissingModelError(
            f"The adapter in {folder} is of the method {kind!r}, which neither the installed PEFT nor tunesmith "
            f"({', '.join(ours)}) knows. Install the version that wrote it, or import the package that brings it."
        )


@contextmanager
def _blanked(model: Any) -> Iterator[None]:
    """Zero what was trained, and put it back at the end."""
    from peft import get_peft_model_state_dict

    inside = {tensor.data_ptr() for tensor in get_peft_model_state_dict(model).values()}
    trained = [p for p in model.parameters() if p.requires_grad or p.data_ptr() in inside]
    kept = [p.detach().clone() for p in trained]
    with torch.no_grad():
        for parameter in trained:
            parameter.zero_()
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(trained, kept, strict=True):
                parameter.copy_(value)


def _read_adapter(model: Any, folder: Path) -> None:
    from peft import load_peft_weights, set_peft_model_state_dict

    set_peft_model_state_dict(model, load_peft_weights(str(folder), device=str(model.device)))


def _read_whole(model: Any, folder: Path) -> Any:
    if is_roste_folder(folder):
        return load_roste(folder).to(model.device)
    return _whole(folder, _name(model.dtype)).to(model.device)


def _whole(folder: Path, dtype: str) -> Any:
    """Load a folder as what it holds: LEVI, another classifier, or a language model."""
    config = read_json(folder / "config.json")
    if config.get("model_type") == "levi":
        from tunesmith.models import LEVI

        return LEVI.from_pretrained(folder).eval()
    kinds = config.get("architectures") or [""]
    if kinds[0].endswith("ForSequenceClassification"):
        return load_classifier(str(folder), dtype=dtype)[0]
    return load_model(str(folder), dtype=dtype)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
