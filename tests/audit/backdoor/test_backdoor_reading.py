"""Images and class names for an audit from the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tunesmith.audit.backdoor.reading import read_classes, read_images
from tunesmith.core.errors import DataError, ParameterError


def write(path: Path, colour: int, size: tuple[int, int] = (12, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), colour, dtype=np.uint8)).save(path)


def test_names_are_lines(tmp_path):
    (tmp_path / "names.txt").write_text("cat\n\n dog \n")
    assert read_classes(tmp_path / "names.txt") == ["cat", "dog"]
    with pytest.raises(DataError, match=r"nowhere\.txt: there is no such file of class names"):
        read_classes(tmp_path / "nowhere.txt")
    (tmp_path / "one.txt").write_text("cat\n")
    with pytest.raises(
        DataError, match=r"one\.txt: an audit tells classes apart and needs two at least; found 1"
    ):
        read_classes(tmp_path / "one.txt")
    (tmp_path / "twice.txt").write_text("cat\ndog\ncat\n")
    with pytest.raises(DataError, match=r"twice\.txt: the class 'cat' is there twice"):
        read_classes(tmp_path / "twice.txt")


def test_images_are_scaled_and_cut_and_folders_are_classes(tmp_path):
    for i, name in enumerate(["dog", "dog", "cat"]):
        write(tmp_path / name / f"{i}.png", 51 * i)
    (tmp_path / "dog" / "notes.txt").write_text("no image")
    pixels, labels = read_images(tmp_path, 4, ["cat", "dog"])
    assert pixels.shape == (3, 3, 4, 4)
    assert labels is not None
    assert labels.tolist() == [0, 1, 1]
    assert torch.allclose(pixels[:, 0, 0, 0], torch.tensor([0.4, 0.0, 0.2]), atol=1e-6)
    assert read_images(tmp_path, 4, ["cat", "bird"])[1] is None
    wide = np.zeros((8, 24, 3), dtype=np.uint8)
    wide[:, 8:16] = 255  # the middle third, which is what the cut keeps
    (tmp_path / "wide").mkdir()
    Image.fromarray(wide).save(tmp_path / "wide" / "w.png")
    middle = read_images(tmp_path / "wide", 8, ["a", "b"])[0]
    assert middle.min() == 1.0


def test_a_limit_takes_as_many_from_each_folder(tmp_path):
    for name, n in (("a", 5), ("b", 2)):
        for i in range(n):
            write(tmp_path / name / f"{i}.png", 10 * i)
    labels = read_images(tmp_path, 4, ["a", "b"], limit=4)[1]
    assert labels is not None
    assert labels.tolist() == [0, 0, 1, 1]
    with pytest.raises(
        ParameterError, match="The 'limit' parameter of read_images must be an int of at least 1 or None"
    ):
        read_images(tmp_path, 4, ["a", "b"], limit=0)


def test_folders_without_images(tmp_path):
    with pytest.raises(DataError, match=r"no images \(\.bmp, .*\) in this folder"):
        read_images(tmp_path, 4, ["a", "b"])
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="an image cannot be read"):
        read_images(tmp_path, 4, ["a", "b"])
