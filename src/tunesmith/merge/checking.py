"""The comparison before a merge is kept: parts, merged and reloaded model on one fixed batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunesmith.core.errors import TrainingError
from tunesmith.core.files import read_json

__all__ = ["Checker", "MergeCheck"]

TOLERANCE = 1e-5


@dataclass(frozen=True)
class MergeCheck:
    """Greatest absolute differences of logits on one batch.

    Attributes:
        parts_vs_merged: each model that went in against the merged one, in the order given.
        merged_vs_reloaded: the merged tensors put into a part in memory, against the folder read back.
        largest_logit: greatest absolute logit of the merged model, the scale of all.
    """

    parts_vs_merged: list[float]
    merged_vs_reloaded: float
    largest_logit: float

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values for JSON."""
        return asdict(self)


class Checker:
    """Compare when the files are there and not yet under their name; ``result`` holds the figures.

    Only folders of causal language models are run; ``result`` stays None for others, whose tensors alone are known.
    """

    def __init__(self, models: Sequence[Any]) -> None:
        self.models = [Path(model) for model in models]
        self.result: MergeCheck | None = None

    def __call__(self, folder: Path) -> None:
        """Check the merged model in ``folder``.

        Raises:
            TrainingError: it reads back as another model, or its logits are not finite.
        """
        if not all(_is_language_model(path) for path in [*self.models, folder]):
            return
        from tunesmith.engine.logits import fixed_batch, logits_of
        from tunesmith.engine.models import load_model
        from tunesmith.engine.shards import files_of

        dtype = str(read_json(folder / "config.json").get("dtype") or "float32")
        parts = []
        for path in self.models:
            model = load_model(str(path), dtype=dtype)
            batch = fixed_batch(model)
            parts.append(logits_of(model, batch).cpu())
        _put(model, folder, files_of(folder))
        merged = logits_of(model, batch).cpu()
        reloaded = logits_of(load_model(str(folder), dtype=dtype), batch).cpu()
        scale = float(merged.abs().max())
        apart = float((merged - reloaded).abs().max())
        if not apart <= TOLERANCE * max(1.0, scale):
            raise TrainingError(
                f"The merged model changed on its way to disk: read back, its logits differ by {apart:.3g} (largest "
                f"logit {scale:.3g}). Nothing was written."
            )
        self.result = MergeCheck([float((part - merged).abs().max()) for part in parts], apart, scale)


def _is_language_model(path: Path) -> bool:
    if not (path / "config.json").is_file():
        return False
    return any(
        "CausalLM" in name or "LMHead" in name
        for name in read_json(path / "config.json")["architectures"] or []
    )


def _put(model: Any, folder: Path, table: dict[str, Path]) -> None:
    """Copy the tensors of the files into a model in memory, past everything that ``from_pretrained`` does."""
    import torch
    from safetensors import safe_open

    state = model.state_dict()
    with torch.no_grad():
        for file in dict.fromkeys(table.values()):
            with safe_open(file, "pt") as handle:
                for name in handle.keys():  # noqa: SIM118  (a safetensors file is no mapping)
                    if name in state:
                        state[name].copy_(handle.get_tensor(name))
