"""A folder of clean images, and a file of class names, for an audit from the command line or a recipe."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from tunesmith.core.errors import DataError, ParameterError

__all__ = ["read_classes", "read_images"]

ENDINGS = frozenset([".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"])


def read_classes(file: str | os.PathLike[str]) -> list[str]:
    """Return the class names of a text file, one per line; empty lines are left out.

    Raises:
        DataError: there is no such file, or it has fewer than two names or one of them twice.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise DataError("there is no such file of class names.", source=str(file))
    names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(names) < 2:
        raise DataError(
            f"an audit tells classes apart and needs two at least; found {len(names)}.", source=str(file)
        )
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise DataError(f"the class '{twice}' is there twice.", source=str(file))
    return names


def read_images(
    folder: str | os.PathLike[str], image_size: int, classes: list[str], *, limit: int | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Read images, scaled to the model's size, and their classes where subfolders are named after these.

    The shorter side is scaled to ``image_size`` (bicubic) and the middle is cut out, as CLIP-type models are evaluated.
    Files are read in the order of their names; with a limit, as many from each folder as it allows.

    Args:
        folder: images, or subfolders of images.
        image_size: pixels of a side.
        classes: class names.
        limit: most images.

    Returns:
        Pixels (N, 3, H, W) in [0, 1], float32, and labels (N,) or None where a subfolder is no class.

    Raises:
        DataError: no images, or a file that cannot be read as one.
        ParameterError: ``limit`` below 1.
    """
    from PIL import Image

    from tunesmith.engine.image_text import open_image

    if limit is not None and limit < 1:
        raise ParameterError("limit", read_images, "an int of at least 1 or None", limit)
    root = Path(folder).expanduser()
    paths = (
        sorted(p for p in root.rglob("*") if p.suffix.lower() in ENDINGS and p.is_file())
        if root.is_dir()
        else []
    )
    if not paths:
        raise DataError(f"no images ({', '.join(sorted(ENDINGS))}) in this folder.", source=str(folder))
    if limit is not None:
        turn = {path: i for group in _by_folder(paths) for i, path in enumerate(group)}
        paths = sorted(sorted(paths, key=lambda path: (turn[path], path))[:limit])
    pixels = np.empty((len(paths), 3, image_size, image_size), dtype=np.float32)
    for i, path in enumerate(paths):
        image = open_image(path)
        scale = image_size / min(image.size)
        size = [max(image_size, round(side * scale)) for side in image.size]
        image = image.resize(tuple(size), Image.Resampling.BICUBIC)
        left, top = (size[0] - image_size) // 2, (size[1] - image_size) // 2
        image = image.crop((left, top, left + image_size, top + image_size))
        pixels[i] = np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 255
    number = {name: i for i, name in enumerate(classes)}
    parents = [path.parent.name for path in paths]
    known = all(name in number for name in parents)
    return torch.from_numpy(pixels), torch.tensor([number[name] for name in parents]) if known else None


def _by_folder(paths: list[Path]) -> list[list[Path]]:
    groups: dict[Path, list[Path]] = {}
    for path in paths:
        groups.setdefault(path.parent, []).append(path)
    return list(groups.values())
