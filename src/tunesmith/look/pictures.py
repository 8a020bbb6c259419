"""Image folders: sizes, copies, and small previews for the page."""

from __future__ import annotations

import base64
import io
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.events import EventLog
from tunesmith.core.files import hash_file

__all__ = ["ImageFacts", "image_vectors", "preview", "read_images", "thumbnails"]

_SIDE = 16
_PREVIEW = 96  # pixels of the longer side


@dataclass
class ImageFacts:
    """What reading the images found; arrays have one entry per image.

    Attributes:
        width, height: pixels.
        modes: ``RGB``, ``L`` … -> images.
        copy_of: the earlier image with the same bytes, or -1.
        folders: name of the folder each image lies in: often its class.
    """

    width: NDArray[np.int64]
    height: NDArray[np.int64]
    copy_of: NDArray[np.int64]
    modes: Counter[str] = field(default_factory=Counter)
    folders: Counter[str] = field(default_factory=Counter)


def read_images(paths: list[Path], log: EventLog) -> ImageFacts:
    """Open each image once for its size, and hash its bytes."""
    from PIL import Image

    n = len(paths)
    facts = ImageFacts(np.zeros(n, np.int64), np.zeros(n, np.int64), np.full(n, -1, np.int64))
    seen: dict[str, int] = {}
    for i, path in enumerate(paths):
        with Image.open(path) as image:
            facts.width[i], facts.height[i] = image.size
            facts.modes[image.mode] += 1
        facts.folders[path.parent.name] += 1
        first = seen.setdefault(hash_file(path), i)
        facts.copy_of[i] = -1 if first == i else first
        if i % 100 == 99 or i == n - 1:
            log.emit("progress", what="looking at the images", done=i + 1, total=n)
    return facts


def thumbnails(paths: list[Path], log: EventLog) -> NDArray[np.float32]:
    """Return a 16 × 16 RGB thumbnail of each image, float32 (n, 768) in [0, 1]."""
    from PIL import Image

    out = np.zeros((len(paths), 3 * _SIDE * _SIDE), dtype=np.float32)
    for i, path in enumerate(paths):
        with Image.open(path) as image:
            small = image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX)
        out[i] = np.asarray(small, dtype=np.float32).ravel() / 255
        if i % 100 == 99 or i == len(paths) - 1:
            log.emit("progress", what="making thumbnails", done=i + 1, total=len(paths))
    return out


def image_vectors(paths: list[Path], encoder: str, log: EventLog, batch: int = 32) -> NDArray[np.float32]:
    """Encode images by a sentence-transformers model that takes them (a CLIP model, for example).

    Returns:
        float32 (n, d) of length 1.

    Raises:
        DataError: the encoder does not take images.
    """
    from PIL import Image

    from tunesmith.core.errors import DataError, shorten
    from tunesmith.engine.models import load_encoder

    model = load_encoder(encoder)
    parts = []
    for begin in range(0, len(paths), batch):
        images = []
        for path in paths[begin : begin + batch]:
            with Image.open(path) as image:
                images.append(image.convert("RGB"))
        try:
            parts.append(np.asarray(model.encode(images, show_progress_bar=False), dtype=np.float32))
        except (TypeError, ValueError, AttributeError) as error:
            raise DataError(f"the encoder {encoder} does not take images: {shorten(str(error))}") from error
        log.emit("progress", what=f"embedding with {encoder}", done=begin + len(images), total=len(paths))
    vectors = np.concatenate(parts)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def preview(path: Path) -> str:
    """Return a small JPEG of the image as a data URI."""
    from PIL import Image

    stream = io.BytesIO()
    with Image.open(path) as image:
        small: Any = image.convert("RGB")
        small.thumbnail((_PREVIEW, _PREVIEW))
        small.save(stream, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
