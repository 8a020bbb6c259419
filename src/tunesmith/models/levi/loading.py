"""Loading LEVI: the settings and weights in a folder, and a base that lies elsewhere."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel, PreTrainedModel

from tunesmith.core.errors import MissingModelError, ParameterError
from tunesmith.models.levi.config import LeviConfig

__all__ = ["base_from_config", "base_from_origin", "no_draws", "put", "read"]

HUB = ("revision", "token", "cache_dir", "local_files_only")


def base_class(config: LeviConfig) -> Any:
    """Return the base's class, one of transformers' own, AutoModel for any other."""
    found = getattr(transformers, config.base_class or "", None)
    return found if isinstance(found, type) and issubclass(found, PreTrainedModel) else AutoModel


def base_from_config(config: LeviConfig) -> nn.Module:
    """Return a base with random weights."""
    if config.base_config is None:
        raise ParameterError(
            "base",
            "LEVI",
            "a model, since the configuration describes none (a plain module is never saved)",
            None,
        )
    kind = base_class(config)
    base: nn.Module = getattr(kind, "from_config" if kind is AutoModel else "_from_config")(
        config.base_config
    )
    return base


def base_from_origin(config: LeviConfig) -> nn.Module:
    """Return the base from where it was loaded before LEVI was saved without it."""
    origin = config.base_name_or_path
    if not origin or config.base_config is None:
        raise ParameterError("base", "LEVI", "the model that was not saved (save_base=False)", None)
    try:
        base: nn.Module = base_class(config).from_pretrained(origin, dtype=config.base_config.dtype or "auto")
    except OSError as error:
        raise MissingModelError(
            f"LEVI was saved without its base, which is no longer at {origin}. Pass it as base=."
        ) from error
    return base


@contextlib.contextmanager
def no_draws(active: bool) -> Iterator[None]:
    """Skip drawing weights that will be loaded."""
    if not active:
        yield
        return
    from transformers.initialization import no_init_weights

    with no_init_weights():
        yield


def read(folder: Any, kwargs: dict[str, Any]) -> tuple[LeviConfig, dict[str, torch.Tensor]]:
    """Return settings and weights of a folder or a repository on the Hub."""
    hub = {name: kwargs[name] for name in HUB if kwargs.get(name) is not None}
    # Auto classes pass what their callers left empty, and marks of their own.
    others = [
        k
        for k, v in kwargs.items()
        if v and v != "auto" and k not in (*HUB, "config", "adapter_kwargs") and not k.startswith("_")
    ]
    if others:
        raise ParameterError.worded(
            f"The '{others[0]}' parameter of LEVI.from_pretrained must be given to the base: load that with "
            "it and pass it as base=."
        )
    path = Path(folder).expanduser()
    if not path.is_dir():
        from huggingface_hub import snapshot_download

        try:
            path = Path(snapshot_download(str(folder), allow_patterns=["*.json", "*.safetensors"], **hub))
        except Exception as error:  # of several libraries
            raise MissingModelError(f"There is no LEVI model at {folder}: {error}") from error
    config = kwargs.get("config")
    if not isinstance(config, LeviConfig):
        config = LeviConfig.from_pretrained(path)
    files = sorted(path.glob("model*.safetensors"))
    if not files:
        raise MissingModelError(f"The folder {folder} holds no weights: model.safetensors is missing.")
    return config, dict(itertools.chain.from_iterable(load_file(f).items() for f in files))


def put(model: Any, state: dict[str, torch.Tensor], folder: Any) -> None:
    """Put the weights into the model, in the types they have."""
    found = model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    ignored = {*(model._keys_to_ignore_on_save or ()), *(getattr(model, "all_tied_weights_keys", None) or ())}
    missing = [k for k in found.missing_keys if k not in ignored]
    if missing and all(k.startswith("base.pooler.") for k in missing):
        model.base.pooler = None  # as in the base of a model with a task head, which has none
        missing = []
    if missing or found.unexpected_keys:
        raise MissingModelError(
            f"The weights in {folder} are not those of this model: {len(missing)} are missing"
            f"{f' ({missing[0]} …)' if missing else ''}, {len(found.unexpected_keys)} are unknown"
            f"{f' ({found.unexpected_keys[0]} …)' if found.unexpected_keys else ''}."
        )
