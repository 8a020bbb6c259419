"""What a run depends on outside its directory, by content."""

from __future__ import annotations

from pathlib import Path

from tunesmith.core.files import hash_file, hash_json, hash_text, hash_tree
from tunesmith.recipe.schema import Recipe

__all__ = ["source_hashes"]


def source_hashes(recipe: Recipe) -> dict[str, str]:
    """Hash everything outside the run directory that its stages depend on."""
    from tunesmith.engine.models import model_fingerprint

    hashes = {}
    for name in ("train", "validation", "test"):
        source = getattr(recipe.data, name)
        if source is not None:
            path = Path(source).expanduser()
            hashes[name] = (
                hash_tree(path) if path.is_dir() else hash_file(path) if path.is_file() else hash_text(source)
            )
    if recipe.model is not None:
        hashes["model"] = hash_json(
            [model_fingerprint(recipe.model.id, recipe.model.revision), recipe.model.trust_remote_code]
        )
    scorer = recipe.features.scorer or (recipe.model.id if recipe.model else None)
    if scorer is not None:
        hashes["scorer"] = model_fingerprint(scorer)
    return hashes
