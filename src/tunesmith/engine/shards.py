"""Where the tensors of a saved model lie: one safetensors file, or a folder with one or with shards and an index."""

from __future__ import annotations

from pathlib import Path

from tunesmith.core.errors import DataError
from tunesmith.core.files import read_json

__all__ = ["files_of"]

INDEX = "model.safetensors.index.json"


def files_of(path: Path) -> dict[str, Path]:
    """Return tensor name -> file, in the order of the index or of the files; no tensor is read.

    Raises:
        DataError: there are no safetensors weights, or the index leads out of the folder or to a file that is not
            there.
    """
    from safetensors import safe_open

    if path.is_dir() and (path / INDEX).exists():
        weight_map = read_json(path / INDEX)["weight_map"]
        for name, file in weight_map.items():
            # Only plain names: an index must not reach outside its folder. (Files may be links, as in the
            # Hub's cache, so resolved paths are no test.)
            if Path(file).name != file:
                raise DataError(
                    f"the index places '{name}' in {file!r}, outside the folder.", source=str(path)
                )
            if not (path / file).exists():
                raise DataError(
                    f"the index places '{name}' in {file!r}, which is not there.", source=str(path)
                )
        return {name: path / file for name, file in weight_map.items()}
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if not files or files[0].suffix != ".safetensors" or not files[0].exists():
        raise DataError(
            "no safetensors weights; models saved in other formats are not read.", source=str(path)
        )
    table: dict[str, Path] = {}
    for file in files:
        with safe_open(file, "pt") as handle:
            table.update(dict.fromkeys(handle.keys(), file))
    return table
