"""What a fake-quantised model is saved with, and how it is read back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from tunesmith.core.errors import DataError, MissingModelError
from tunesmith.core.files import read_json
from tunesmith.tuners.roste.config import RosteConfig
from tunesmith.tuners.roste.search import RotationChoice

__all__ = ["is_roste_folder", "load_roste", "state_from_json", "state_to_json"]

ENTRY, FORMAT = "roste", 1


def state_to_json(state: Any) -> dict[str, Any]:
    """Return a `RosteState` as JSON: signs as hexadecimal digits, the first sign in the highest bit."""
    return {
        "format": FORMAT,
        "config": state.config.to_dict(),
        "rotate": state.rotate,
        "errors": {site: [c.identity, c.hadamard] for site, c in state.choices.items()},
        "signs": {str(width): _packed(signs) for width, signs in state.signs.items()},
    }


def state_from_json(values: dict[str, Any], source: str) -> Any:
    """Return the `RosteState` that `state_to_json` wrote.

    Raises:
        DataError: the entry is damaged or of a later version.
    """
    from tunesmith.tuners.roste.transform import RosteState

    found = values.get("format") if isinstance(values, dict) else None
    if found != FORMAT:
        raise DataError(
            f"the entry 'roste' has format {found!r}, and this version reads format {FORMAT}.",
            source=source,
        )
    try:
        rotate = {site: bool(on) for site, on in values["rotate"].items()}
        choices = {s: RotationChoice(one, other, rotate[s]) for s, (one, other) in values["errors"].items()}
        signs = {int(width): _unpacked(text, int(width)) for width, text in values["signs"].items()}
        return RosteState(RosteConfig.from_dict(values["config"]), rotate, choices, signs)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"the entry 'roste' cannot be read: {error}", source=source) from error


def is_roste_folder(folder: str | os.PathLike[str]) -> bool:
    """Say whether ``folder`` holds a model that `apply_roste` had transformed."""
    path = Path(folder, "config.json")
    return path.exists() and ENTRY in read_json(path)


def load_roste(folder: str | os.PathLike[str], **options: Any) -> Any:
    """Load what ``save_pretrained`` (or a trainer's checkpoint) wrote of a transformed model.

    Weights come from the safetensors files; settings, choices and sign vectors from the entry ``roste`` of
    ``config.json``. Outputs are equal to the bit to those before saving, and training can go on. Without this
    function, ``from_pretrained`` reads the same folder as a model in full precision.

    Args:
        folder: the folder.
        **options: for transformers' ``from_pretrained``, for example ``dtype`` or ``attn_implementation``; the type
            is the saved one by default.

    Returns:
        The model in evaluation mode.

    Raises:
        MissingModelError: the folder holds no such model.
        DataError: the entry is damaged.
    """
    import transformers

    from tunesmith.tuners.roste.folding import folded_blocks
    from tunesmith.tuners.roste.sites import Rotations
    from tunesmith.tuners.roste.transform import install

    path = Path(folder)
    if not is_roste_folder(path):
        raise MissingModelError(
            f"The folder {folder} holds no model under RoSTE: config.json is missing or has no entry '{ENTRY}'. Give a "
            "folder that save_pretrained wrote after apply_roste."
        )
    values = read_json(path / "config.json")
    state = state_from_json(values[ENTRY], str(path / "config.json"))
    kind = getattr(transformers, values["architectures"][0])
    model = kind.from_pretrained(path, **{"dtype": "auto", **options}).eval()
    blocks = folded_blocks(model) if state.config.layout == "folded" else []
    turns = Rotations(state.config.seed, state.config.block_fallback, state.signs)
    try:
        install(model, state, turns, blocks)
    except KeyError as error:
        raise DataError(
            f"the entry '{ENTRY}' has no choice for the site {error}.", source=str(path / "config.json")
        ) from error
    return model


def _packed(signs: torch.Tensor) -> str:
    bits = "".join("1" if sign > 0 else "0" for sign in signs.tolist())
    return f"{int(bits, 2):0{(len(bits) + 3) // 4}x}"


def _unpacked(text: str, width: int) -> torch.Tensor:
    bits = f"{int(text, 16):0{width}b}"
    if len(bits) != width:
        raise ValueError(f"{len(bits)} signs for width {width}")
    return torch.tensor([1.0 if bit == "1" else -1.0 for bit in bits])
