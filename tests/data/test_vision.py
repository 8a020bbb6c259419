"""CATTY tiling: the dossier's numbers, parity with the released code, and the properties of every size."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tunesmith.core.errors import ParameterError
from tunesmith.data.vision import catty_plan, catty_tiles, dynamic_tiles, tile_grids

FILE = Path(__file__).parents[1] / "golden/points.json"
GOLDEN = {case["name"]: case for case in json.loads(FILE.read_text(encoding="utf-8"))["cases"]}


def rows(name: str) -> Any:
    return pytest.mark.parametrize("row", GOLDEN[name]["outputs"]["rows"], ids=lambda r: str(r["size_WH"]))


def grey(case: dict[str, Any]) -> Image.Image:
    rows = case["inputs"]["image_rows"]
    return Image.fromarray(np.array(rows["data"], dtype=np.uint8).reshape(rows["shape"]))


@pytest.mark.parametrize("tiles", [8, 12])
def test_grid_table_matches_the_released_one(tiles: int) -> None:
    want = GOLDEN[f"grid_table_{tiles}"]["outputs"]
    table = tile_grids(tiles)
    assert list(table) == want["ratios"]
    assert [[list(grid) for grid in grids] for grids in table.values()] == want["grids"]
    assert sum(map(len, table.values())) == want["grid_count"]


@rows("catty_geometry")
def test_geometry_matches_the_released_code(row: dict[str, Any]) -> None:
    plan = catty_plan(*row["size_WH"])
    assert list(plan.grid) == row["grid_wh"]
    assert list(plan.resized) == row["resized_WH"]
    assert list(plan.strides) == row["strides_xy"]
    assert [list(box) for box in plan.boxes] == row["tile_boxes_left_top_right_bottom"]
    image = Image.new("L", tuple(row["size_WH"]))
    assert len(catty_tiles(image)) == row["tiles_with_thumbnail"]
    assert len(dynamic_tiles(image)) == row["plain_dhr_tiles_with_thumbnail"]


@pytest.mark.parametrize(
    "row", GOLDEN["catty_other_sizes"]["outputs"]["rows"], ids=lambda r: str(r["size_WH"])
)
def test_geometry_with_other_tiles(row: dict[str, Any]) -> None:
    plan = catty_plan(*row["size_WH"], row["S"], row["max_tiles"])
    assert list(plan.grid) == row["grid_wh"]
    assert [list(box) for box in plan.boxes] == row["tile_boxes_left_top_right_bottom"]


@pytest.mark.parametrize(
    "row", GOLDEN["catty_extreme_ratio"]["outputs"]["rows"], ids=lambda r: str(r["size_WH"])
)
def test_extreme_ratio(row: dict[str, Any]) -> None:
    size = tuple(row["size_WH"])
    assert [list(box) for box in catty_plan(*size).boxes] == row["with_do_resize_boxes"]
    assert len(catty_tiles(Image.new("L", size))) == row["with_do_resize_tiles"]
    if row["without_do_resize"] == "none":
        with pytest.raises(ParameterError) as error:
            catty_plan(*size, extreme="error")
        assert str(error.value) == (
            "The 'width, height' parameter of catty_plan must be no more elongated than 8:1 "
            f"(or extreme='resize'). Got {size!r} instead."
        )
    else:
        assert catty_plan(*size, extreme="error").first_resize is None


@pytest.mark.parametrize("name", ["9x13", "20x11"])
@pytest.mark.parametrize(("kind", "cut"), [("catty", catty_tiles), ("plain_dhr", dynamic_tiles)])
def test_pixels_match_the_released_code(kind: str, cut: Any, name: str) -> None:
    case = GOLDEN[f"{kind}_pixels_{name}"]
    want = case["outputs"]["tiles"]
    tiles = np.stack([np.asarray(tile, dtype=int) for tile in cut(grey(case), tile_size=6)])
    assert list(tiles.shape) == want["shape"]
    assert np.abs(tiles - np.array(want["data"]).reshape(want["shape"])).max() <= case["tolerance"]


def test_worked_examples() -> None:
    plan = catty_plan(672, 1008)
    assert (plan.grid, plan.resized, plan.strides, len(plan.boxes)) == ((2, 3), (672, 1008), (336, 336), 6)
    plan = catty_plan(500, 800)
    assert (plan.grid, plan.resized, plan.strides) == ((1, 2), (336, 537), (0, 201))
    assert [box[1] for box in plan.boxes] == [0, 201]
    assert len(catty_tiles(Image.new("RGB", (100, 100)))) == 2
    assert len(catty_tiles(Image.new("RGB", (100, 100)), thumbnail=False)) == 1


def test_the_thumbnail_comes_last_and_tiles_have_one_size() -> None:
    image = Image.new("RGB", (500, 800), "red")
    image.paste("blue", (0, 400, 500, 800))
    tiles = catty_tiles(image)
    assert [tile.size for tile in tiles] == [(336, 336)] * 3
    assert tiles[0].getpixel((5, 5)) == (255, 0, 0)
    assert tiles[1].getpixel((5, 330)) == (0, 0, 255)
    assert tiles[2].getpixel((5, 5)) == (255, 0, 0)
    assert tiles[2].getpixel((5, 330)) == (0, 0, 255)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 4000), st.integers(1, 4000))
def test_every_size_is_covered_without_stretching(width: int, height: int) -> None:
    plan = catty_plan(width, height)
    width, height = plan.first_resize or (width, height)
    (across, down), (w, h) = plan.grid, plan.resized
    assert len(plan.boxes) == len(set(plan.boxes)) == across * down <= 8
    assert w <= across * 336
    assert h <= down * 336
    exact = (w * height / width - h) if width < height else (h * width / height - w)
    assert -1e-6 <= exact <= 1 + 1e-6  # truncation loses at most a pixel
    assert 0 <= w - max(box[2] for box in plan.boxes) <= max(across - 2, 0)
    assert 0 <= h - max(box[3] for box in plan.boxes) <= max(down - 2, 0)
    assert all(stride >= 168 for stride, count in zip(plan.strides, plan.grid, strict=True) if count > 1)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 5), st.integers(1, 12))
def test_tiny_tiles_never_exceed_the_grid(width: int, height: int, side: int, most: int) -> None:
    plan = catty_plan(width, height, side, most)
    assert len(plan.boxes) == plan.grid[0] * plan.grid[1] <= most
    assert all(box[2] <= plan.resized[0] and box[3] <= plan.resized[1] for box in plan.boxes)


def test_circles_stay_round_under_catty_and_not_under_stretching() -> None:
    """The dossier's experiment (c): second moments of a disc before and after the scaling."""
    from PIL import ImageDraw

    def elongation(image: Image.Image) -> float:
        ys, xs = np.nonzero(np.asarray(image) > 127)
        return math.sqrt(xs.var() / ys.var())

    for width, height in [(500, 800), (900, 610), (300, 301), (640, 480)]:
        image = Image.new("L", (width, height))
        half = min(width, height) // 3
        x, y = width // 2, height // 2
        ImageDraw.Draw(image).ellipse((x - half, y - half, x + half, y + half), fill=255)
        plan = catty_plan(width, height)
        assert elongation(image.resize(plan.resized)) == pytest.approx(1, abs=0.01)
    assert elongation(image.resize((2 * 336, 2 * 336))) < 0.8  # 640 x 480 stretched to a square


def test_rotation_and_transparency_are_resolved_first() -> None:
    image = Image.new("RGB", (500, 800), "red")
    exif = image.getexif()
    exif[0x0112] = 6  # rotate by a quarter
    image.info["exif"] = exif.tobytes()
    assert len(catty_tiles(image)) == 3
    turned = Image.open(_saved(image, exif))
    assert len(catty_tiles(turned)) == len(catty_tiles(Image.new("RGB", (800, 500))))
    assert catty_tiles(turned, thumbnail=False)[0].size == (336, 336)
    clear = Image.new("RGBA", (400, 400), (255, 0, 0, 0))
    assert catty_tiles(clear)[0].getpixel((3, 3)) == (255, 255, 255)
    assert catty_tiles(Image.new("LA", (400, 400), (0, 0)))[0].getpixel((3, 3)) == (255, 255, 255)
    assert catty_tiles(Image.new("CMYK", (400, 400)))[0].mode == "RGB"
    assert catty_tiles(Image.new("L", (400, 400)))[0].mode == "L"


def _saved(image: Image.Image, exif: Any) -> Any:
    import io

    stream = io.BytesIO()
    image.save(stream, "JPEG", exif=exif)
    stream.seek(0)
    return stream


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: catty_plan(0, 10),
            "The 'width' parameter of catty_plan must be an int >= 1. Got 0 instead.",
        ),
        (
            lambda: catty_tiles(Image.new("L", (4, 4)), tile_size=0),
            "The 'tile_size' parameter of catty_plan must be an int >= 1. Got 0 instead.",
        ),
        (
            lambda: dynamic_tiles(Image.new("L", (4, 4)), max_tiles=0),
            "The 'max_tiles' parameter of dynamic_tiles must be an int >= 1. Got 0 instead.",
        ),
        (
            lambda: catty_plan(4, 4, extreme="crop"),
            "The 'extreme' parameter of catty_plan must be 'resize' or 'error'. Got 'crop' instead.",
        ),
        (
            lambda: catty_tiles("photo.png"),
            "The 'image' parameter of catty_tiles must be a PIL image with at least one pixel. "
            "Got 'photo.png' instead.",
        ),
        (
            lambda: catty_tiles(Image.new("I;16", (4, 4))),
            "The 'image' parameter of catty_tiles must be an 8-bit image; scale its values to 0..255 first. "
            "Got 'I;16' instead.",
        ),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(ParameterError) as error:
        call()
    assert str(error.value) == message
