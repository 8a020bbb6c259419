"""WebDataset shards in the layout of the released set: tar files of image, prompt and facts."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import ParameterError
from tunesmith.core.files import atomic_open
from tunesmith.curate.near._vectors import as_image

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["write_shards"]


def write_shards(
    dataset: Dataset,
    folder: str | os.PathLike[str],
    *,
    rows_per_shard: int = 1000,
    image: str = "image",
    quality: int = 95,
) -> list[Path]:
    """Write ``train-NNNNNN.tar`` files of ``.jpg``, ``.txt`` and ``.json`` into a folder a kind of row.

    Rows with ``version`` and ``shape`` go to ``synthetic_<version>_prompt_<shape>_resolution``, all others to
    ``curated``. The JSON holds every column but the image, and for rows with a ``concept`` the texts of all its
    versions. Equal rows give equal files. Time and memory: one row at a time.

    Args:
        dataset: rows with a text and an image.
        folder: created if absent.
        rows_per_shard: most rows a file.
        image: the column of images.
        quality: of the JPEG files.

    Returns:
        The files, in order.

    Raises:
        ParameterError: ``rows_per_shard`` is below 1.
        DataError: an image cannot be read; names the row.
    """
    if isinstance(rows_per_shard, bool) or not isinstance(rows_per_shard, int) or rows_per_shard < 1:
        raise ParameterError("rows_per_shard", write_shards, "an int >= 1", rows_per_shard)
    places: dict[str, list[int]] = {}
    versions: dict[str, dict[str, str]] = {}
    plain = dataset.remove_columns([image])
    for i, row in enumerate(plain):
        made = row.get("version") and row.get("shape")
        name = f"synthetic_{row['version']}_prompt_{row['shape']}_resolution" if made else "curated"
        places.setdefault(name, []).append(i)
        if row.get("concept") and row.get("version"):
            versions.setdefault(row["concept"], {})[row["version"]] = row["text"]
    written = []
    for name, rows in sorted(places.items()):
        for start in range(0, len(rows), rows_per_shard):
            path = Path(folder, name, f"train-{start // rows_per_shard:06d}.tar")
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_open(path, "wb") as stream, tarfile.open(fileobj=stream, mode="w") as archive:
                for i in rows[start : start + rows_per_shard]:
                    facts = dict(plain[i])
                    facts |= {"prompts": versions.get(facts.get("concept") or "", {})}
                    picture = io.BytesIO()
                    as_image(dataset[i][image], i).convert("RGB").save(picture, "JPEG", quality=quality)
                    _add(archive, f"{i:09d}.jpg", picture.getvalue())
                    _add(archive, f"{i:09d}.txt", str(facts["text"]).encode())
                    _add(archive, f"{i:09d}.json", json.dumps(facts, ensure_ascii=False).encode())
            written.append(path)
    return written


def _add(archive: Any, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))
