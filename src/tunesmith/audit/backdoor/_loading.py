"""Reading a checkpoint that is not trusted: safetensors and JSON alone, never code or pickles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from tunesmith.core.errors import DataError, MissingModelError
from tunesmith.core.files import read_json

__all__ = ["load_state", "load_transformers"]

_TOKENIZER = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model")
_SETTINGS = ("preprocessor_config.json", "processor_config.json")


def load_state(model: nn.Module, folder: Path) -> None:
    """Read a module's weights from the one safetensors file of a folder.

    Raises:
        DataError: there is none, there are several, or they are those of another module.
    """
    from safetensors.torch import load_model

    from tunesmith.engine.shards import files_of

    names = sorted(set(files_of(folder).values()))
    if len(names) > 1:
        raise DataError("the state dict of a module lies in one file, not in shards.", source=str(folder))
    try:
        load_model(model, names[0], strict=True)
    except RuntimeError as error:
        message = f"the weights do not fit {type(model).__name__}: {error}"
        raise DataError(message, source=str(folder)) from error


def load_transformers(source: str, of: dict[str, Any]) -> tuple[Any, dict[str, Any], dict[str, str]]:
    """Read a transformers model in float32 from a folder or the Hub.

    Args:
        source: folder or Hub id.
        of: arguments of `DualEncoder.of` that are given; what is missing of tokenizer, mean and std is read.

    Returns:
        The model, the arguments of `DualEncoder.of`, and the texts of the image processor's files, by name.
    """
    import transformers

    from tunesmith.engine.models import resolve_model
    from tunesmith.engine.shards import files_of
    from tunesmith.engine.silence import quiet

    root, parts = Path(source), dict(of)
    if root.exists():
        files_of(root)
        if not (root / "config.json").exists():
            message = "config.json is missing, so give the module that the weights are of."
            raise DataError(message, source=source)
    where = resolve_model(source)
    try:
        with quiet():
            # transformers would fill in what is missing at random, and an audit would look at that.
            model, told = transformers.AutoModel.from_pretrained(
                where, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
    except OSError as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MissingModelError(f"The model '{source}' could not be loaded: {reason}") from error
    if missing := sorted(told["missing_keys"]):
        raise DataError(
            f"the weights lack {len(missing)} parameters of {type(model).__name__}, such as {missing[0]}.",
            source=source,
        )
    if parts.get("tokenizer") is None and parts.get("processor") is None:
        # Without its files transformers makes up an empty one of the model's kind.
        if root.exists() and not any((root / name).is_file() for name in _TOKENIZER):
            raise DataError("there is no tokenizer; give one.", source=source)
        parts["tokenizer"] = transformers.AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    # The settings alone are read: the processors' classes need torchvision.
    beside = {
        name: (root / name).read_text(encoding="utf-8") for name in _SETTINGS if (root / name).is_file()
    }
    if parts.get("processor") is None:
        for name in beside:
            settings = read_json(root / name)
            settings = settings.get("image_processor", settings)
            for key in ("mean", "std"):
                if parts.get(key) is None:
                    parts[key] = settings.get(f"image_{key}")
    return model, parts, beside
