"""CATTY: cut an image of any shape into square tiles without stretching it.

A vision encoder takes squares of one size. Plain dynamic high resolution stretches the image to a grid of
such squares; CATTY (consistent aspect ratio, "POINTS", arXiv 2409.04828, section 3.1) scales it in proportion
and lets neighbouring tiles overlap instead. The order of steps and the one-sided choice of the grid follow
the released code, which the text leaves open; the printed Eq. 1 is the inverse of the scale that is needed.

Deviations: an image more elongated than the longest grid is first squashed to that ratio, as the text says
(the released code refuses it unless told to; ``extreme="error"`` does that). EXIF rotation is applied and
transparency is laid on white before anything else.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral
from typing import Any

from tunesmith.core.errors import ParameterError

__all__ = ["TilePlan", "catty_plan", "catty_tiles", "dynamic_tiles", "tile_grids"]

Size = tuple[int, int]
Box = tuple[int, int, int, int]

# Modes that Pillow turns into RGB without losing what the image shows; 16-bit and float images it would clip.
_TO_RGB = ("1", "P", "CMYK", "YCbCr", "LAB", "HSV", "RGBX")
_WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")


@dataclass(frozen=True)
class TilePlan:
    """How an image is cut; sizes are (width, height) in pixels.

    Attributes:
        grid: tiles across and down.
        first_resize: size after squashing a too elongated image, or ``None``.
        resized: size from which the tiles are cut.
        strides: distance between neighbouring tiles, 0 where there is only one.
        boxes: (left, top, right, bottom) of each tile, top row first, each row from the left.
    """

    grid: Size
    first_resize: Size | None
    resized: Size
    strides: Size
    boxes: tuple[Box, ...]


@lru_cache(maxsize=32)
def tile_grids(max_tiles: int = 8) -> dict[float, tuple[Size, ...]]:
    """Return the grids (across, down) of at most ``max_tiles`` tiles by their ratio across / down.

    Grids are met by area, then by width; 8 tiles give 20 grids of 17 ratios.
    """
    table: dict[float, list[Size]] = {}
    for area in range(1, max_tiles + 1):
        for across in range(1, area + 1):
            if area % across == 0:
                down = area // across
                table.setdefault(across / down, []).append((across, down))
    return {ratio: tuple(grids) for ratio, grids in table.items()}


def catty_plan(
    width: int, height: int, tile_size: int = 336, max_tiles: int = 8, *, extreme: str = "resize"
) -> TilePlan:
    """Return how CATTY cuts an image of ``width`` x ``height`` pixels.

    Among the grids that are at least as elongated as the image, in its direction, the ratio closest to the
    image's is taken, and of that ratio's grids the one whose area is closest to the image's in tiles. The
    image is scaled so that its short side fills the grid; its long side then never exceeds it, so tiles
    overlap.

    Args:
        width: of the image, at least 1.
        height: of the image, at least 1.
        tile_size: side S of a tile in pixels; 224 to 448 in use.
        max_tiles: most tiles, without the thumbnail; 4 to 12 in use.
        extreme: what to do with an image more elongated than ``max_tiles`` to 1: ``"resize"`` it to that
            ratio, which distorts, or ``"error"``.

    Raises:
        ParameterError: a number is not a positive int, or the image is too elongated and ``extreme="error"``.
    """
    _check(catty_plan, width=width, height=height, tile_size=tile_size, max_tiles=max_tiles)
    _check_extreme(catty_plan, extreme)
    first: Size | None = None
    if width > max_tiles * height or height > max_tiles * width:
        if extreme == "error":
            expected = f"no more elongated than {max_tiles}:1 (or extreme='resize')"
            raise ParameterError("width, height", catty_plan, expected, (width, height))
        wide = width > height
        first = (max_tiles * height, height) if wide else (width, max_tiles * width)
        width, height = first
    across, down = grid = _grid(width, height, tile_size, max_tiles)
    if width < height:
        resized = (across * tile_size, int(height / width * (across * tile_size)))
    else:
        resized = (int(width / height * (down * tile_size)), down * tile_size)
    strides = (_stride(resized[0], tile_size, across), _stride(resized[1], tile_size, down))
    return TilePlan(grid, first, resized, strides, _boxes(grid, strides, tile_size))


def catty_tiles(
    image: Any, tile_size: int = 336, max_tiles: int = 8, *, thumbnail: bool = True, extreme: str = "resize"
) -> list[Any]:
    """Cut an image into square tiles of one size without distorting it.

    Args:
        image: a ``PIL.Image.Image``; greyscale stays greyscale, everything else becomes RGB.
        tile_size: side of a tile in pixels.
        max_tiles: most tiles, without the thumbnail.
        thumbnail: append the whole (scaled) image squashed into one tile.
        extreme: as in `catty_plan`.

    Returns:
        ``PIL.Image.Image`` tiles, top row first, each row from the left, then the thumbnail; at most
        ``max_tiles`` + 1. Time and memory are linear in the pixels.

    Raises:
        ParameterError: a parameter is out of range, or the image has a mode that 8-bit tiles cannot hold.
    """
    image = _plain(image, catty_tiles)
    plan = catty_plan(image.width, image.height, tile_size, max_tiles, extreme=extreme)
    if plan.first_resize is not None:
        image = _resize(image, plan.first_resize)
    image = _resize(image, plan.resized)
    tiles = [image.crop(box) for box in plan.boxes]
    return [*tiles, _resize(image, (tile_size, tile_size))] if thumbnail else tiles


def dynamic_tiles(
    image: Any, tile_size: int = 336, max_tiles: int = 8, *, thumbnail: bool = True
) -> list[Any]:
    """Cut an image by plain dynamic high resolution, CATTY's counterpart: the image is stretched to the grid.

    The grid is that of the closest ratio on either side, tiles do not overlap, and the thumbnail is made from
    the original image. For comparison, and for models trained that way.

    Args:
        image: a ``PIL.Image.Image``.
        tile_size: side of a tile in pixels.
        max_tiles: most tiles, without the thumbnail.
        thumbnail: append the original image squashed into one tile.

    Raises:
        ParameterError: a parameter is out of range, or the image has a mode that 8-bit tiles cannot hold.
    """
    image = _plain(image, dynamic_tiles)
    _check(dynamic_tiles, tile_size=tile_size, max_tiles=max_tiles)
    grid = _grid(image.width, image.height, tile_size, max_tiles, one_sided=False)
    whole = _resize(image, (grid[0] * tile_size, grid[1] * tile_size))
    tiles = [whole.crop(box) for box in _boxes(grid, (tile_size, tile_size), tile_size)]
    return [*tiles, _resize(image, (tile_size, tile_size))] if thumbnail else tiles


def _grid(width: int, height: int, tile_size: int, max_tiles: int, one_sided: bool = True) -> Size:
    """Return the grid of the closest ratio, then of the closest area; the first in table order on ties."""
    ratio, table = width / height, tile_grids(max_tiles)
    ratios = list(table)
    if one_sided and ratio < 1:
        ratios = [r for r in ratios if r <= ratio]
    elif one_sided and ratio > 1:
        ratios = [r for r in ratios if r >= ratio]
    best = min(ratios, key=lambda r: abs(r - ratio))
    tiles = (width / tile_size) * (height / tile_size)
    return min(table[best], key=lambda grid: abs(grid[0] * grid[1] - tiles))


def _stride(length: int, tile_size: int, count: int) -> int:
    return (length - tile_size) // (count - 1) if count > 1 else 0


def _boxes(grid: Size, strides: Size, tile_size: int) -> tuple[Box, ...]:
    corners = [(x * strides[0], y * strides[1]) for y in range(grid[1]) for x in range(grid[0])]
    return tuple((left, top, left + tile_size, top + tile_size) for left, top in corners)


def _resize(image: Any, size: Size) -> Any:
    from PIL import Image

    return image.resize(size, Image.Resampling.BILINEAR)


def _plain(image: Any, owner: Any) -> Any:
    """Turn the image upright as its EXIF says, lay transparency on white, and return it as L or RGB."""
    from PIL import Image, ImageOps

    if not isinstance(image, Image.Image) or 0 in image.size:
        raise ParameterError("image", owner, "a PIL image with at least one pixel", image)
    image = ImageOps.exif_transpose(image)
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, image).convert("RGB")
    if image.mode in ("L", "RGB"):
        return image
    if image.mode not in _TO_RGB:
        raise ParameterError("image", owner, "an 8-bit image; scale its values to 0..255 first", image.mode)
    return image.convert("RGB")


def _check(owner: Any, **sizes: int) -> None:
    for name, value in sizes.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise ParameterError(name, owner, "an int >= 1", value)


def _check_extreme(owner: Any, extreme: str) -> None:
    if extreme not in ("resize", "error"):
        raise ParameterError("extreme", owner, "'resize' or 'error'", extreme)
