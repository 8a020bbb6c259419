"""What DualEncoder refuses, word for word; and that reading a checkpoint executes nothing."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tunesmith.audit.backdoor import DualEncoder
from tunesmith.core.errors import DataError, MissingModelError, ParameterError, TunesmithError


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.words = nn.Linear(192, 4), nn.Embedding(9, 4)

    def encode_image(self, x: torch.Tensor) -> torch.Tensor:
        return self.image(x.flatten(1))

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        return self.words(torch.tensor([len(text) % 9 for text in texts]))


GIVEN: dict[str, Any] = {"mean": [0.5] * 3, "std": [0.5] * 3, "image_size": 8}


def refused(message: str, kind: type[TunesmithError] = ParameterError) -> Any:
    return pytest.raises(kind, match=f"^{re.escape(message)}$")


def test_a_module_of_another_kind() -> None:
    with refused(
        "The 'model' parameter of DualEncoder.of must be a CLIP- or SigLIP-type model of transformers, one of "
        "open_clip, or a module with encode_image and encode_text. Got 'Linear' instead."
    ):
        DualEncoder.of(nn.Linear(2, 2))


def test_quantised_weights() -> None:
    message = (
        "The 'model' parameter of DualEncoder must be in floating point, because its weights are tuned: load it in 16 "
        "or 32 bits. Got '{}' instead."
    )
    dynamic = torch.ao.quantization.quantize_dynamic(Pair(), {nn.Linear})
    with refused(message.format("image: Linear")):
        DualEncoder.of(dynamic, **GIVEN)
    packed = Pair()
    packed.image.weight = nn.Parameter(torch.zeros(4, 96, dtype=torch.uint8), requires_grad=False)
    with refused(message.format("image.weight: uint8")):
        DualEncoder.of(packed, **GIVEN)
    marked = Pair()
    marked.quantization_method = "bitsandbytes"
    with refused(message.format("Pair quantised by bitsandbytes")):
        DualEncoder.of(marked, **GIVEN)


def test_adapters() -> None:
    from peft import LoraConfig, inject_adapter_in_model

    model = inject_adapter_in_model(LoraConfig(target_modules=["image"], r=2), Pair())
    with pytest.raises(
        ParameterError, match=r"must be a model without adapters: merge them first \(merge_and_unload\)"
    ):
        DualEncoder.of(model, **GIVEN)


def test_no_weights_at_all() -> None:
    class Empty(Pair):
        def __init__(self) -> None:
            nn.Module.__init__(self)

    with refused(
        "The 'model' parameter of DualEncoder must be a module with parameters. Got 'Empty' instead."
    ):
        DualEncoder.of(Empty(), **GIVEN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"mean": None},
            "The 'mean' parameter of DualEncoder.of must be three numbers, as the Pair has no image_mean of its own. "
            "Got None instead.",
        ),
        (
            {"std": [1.0, 1.0]},
            "The 'std' parameter of DualEncoder must be three numbers. Got [1.0, 1.0] instead.",
        ),
        (
            {"std": [1.0, 0.0, 1.0]},
            "The 'std' parameter of DualEncoder must be three numbers above 0. Got [1.0, 0.0, 1.0] instead.",
        ),
        (
            {"image_size": None},
            "The 'image_size' parameter of DualEncoder.of must be the side of square images in pixels, of the Pair. "
            "Got None instead.",
        ),
        (
            {"image_size": (8, 6)},
            "The 'image_size' parameter of DualEncoder.of must be the side of square images in pixels, of the Pair. "
            "Got (8, 6) instead.",
        ),
    ],
)
def test_what_must_be_told(change: dict[str, Any], message: str) -> None:
    with refused(message):
        DualEncoder.of(Pair(), **GIVEN | change)


def test_transformers_without_tokenizer() -> None:
    from test_dual_encoder import tiny

    with refused(
        "The 'tokenizer' parameter of DualEncoder.of must be the tokenizer of the CLIPModel, or a processor that has "
        "it. Got None instead."
    ):
        DualEncoder.of(tiny("clip"))


def test_images_texts_and_layers() -> None:
    encoder = DualEncoder.of(Pair(), **GIVEN)
    with refused(
        "The 'x' parameter of DualEncoder.encode_image must be images of the shape (B, 3, 8, 8). Got "
        "(2, 3, 9, 8) instead."
    ):
        encoder.encode_image(torch.zeros(2, 3, 9, 8))
    for texts in ([], "a cat"):
        with refused(
            "The 'texts' parameter of DualEncoder.encode_text must be a list of at least one text. "
            f"Got {texts!r} instead."
        ):
            encoder.encode_text(texts)
    message = r"^There is no layer of the model named 'imag'\. Did you mean 'image'\?"
    with pytest.raises(TunesmithError, match=message), encoder.activations(["imag"]):
        pass


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickled_checkpoint_is_not_opened(tmp_path: Path, tiny_tokenizer: Any) -> None:
    from test_dual_encoder import tiny

    mark, folder = tmp_path / "executed", tmp_path / "m"
    encoder = DualEncoder.of(tiny("clip"), tiny_tokenizer)
    encoder.save(folder)
    for name in ("pytorch_model.bin", "model.pkl", "training_args.bin"):
        (folder / name).write_bytes(pickle.dumps(Bomb(mark)))
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "own.Model", "AutoConfig": "own.Config"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n")
    x = torch.zeros(1, 3, 8, 8)
    assert torch.allclose(DualEncoder.load(folder).encode_image(x), encoder.encode_image(x), atol=1e-6)
    (folder / "model.safetensors").unlink()
    with refused(f"{folder}: no safetensors weights; models saved in other formats are not read.", DataError):
        DualEncoder.load(folder)
    assert not mark.exists()
    pickle.loads((folder / "model.pkl").read_bytes())
    assert mark.exists()  # the bomb works


def test_weights_that_lack_something_and_no_tokenizer(tmp_path: Path, tiny_tokenizer: Any) -> None:
    from safetensors.torch import load_file, save_file
    from test_dual_encoder import tiny

    folder = tmp_path / "m"
    DualEncoder.of(tiny("clip"), tiny_tokenizer).save(folder)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with refused(f"{folder}: there is no tokenizer; give one.", DataError):
        DualEncoder.load(folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["visual_projection.weight"], tensors["text_projection.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with refused(
        f"{folder}: the weights lack 2 parameters of CLIPModel, such as text_projection.weight.", DataError
    ):
        DualEncoder.load(folder, tokenizer=tiny_tokenizer)
    with pytest.raises(MissingModelError, match=r"^The model 'no-one/nothing' could not be loaded: "):
        DualEncoder.load("no-one/nothing")
    with pytest.raises(MissingModelError, match=r"^There is no model 'nothing': no such folder"):
        DualEncoder.load("nothing")


def test_weights_of_another_module(tmp_path: Path) -> None:
    encoder = DualEncoder.of(Pair(), **GIVEN)
    encoder.save(tmp_path / "m")
    with refused(
        f"{tmp_path / 'm'}: config.json is missing, so give the module that the weights are of.", DataError
    ):
        DualEncoder.load(tmp_path / "m")

    class Wider(Pair):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(10, 4)

    with pytest.raises(DataError, match="m: the weights do not fit Wider: "):
        DualEncoder.load(tmp_path / "m", Wider(), **GIVEN)
    (tmp_path / "m" / "more.safetensors").write_bytes((tmp_path / "m" / "model.safetensors").read_bytes())
    (tmp_path / "m" / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"image.weight": "model.safetensors", "image.bias": "more.safetensors"}})
    )
    with refused(f"{tmp_path / 'm'}: the state dict of a module lies in one file, not in shards.", DataError):
        DualEncoder.load(tmp_path / "m", Pair(), **GIVEN)
