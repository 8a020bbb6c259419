"""DualEncoder over transformers, open_clip's shape and plain modules: the same face, the model's own numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tunesmith.audit.backdoor import DualEncoder

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
TEXTS = ["a photo of a cat", "a photo of a dog that ran to the park"]


def tiny(kind: str) -> Any:
    """A random CLIP or SigLIP for 8 x 8 images."""
    import transformers as tf

    text = {**SMALL, "vocab_size": 400, "max_position_embeddings": 32, "eos_token_id": 2, "pad_token_id": 0}
    vision = {**SMALL, "image_size": 8, "patch_size": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "clip":
            return tf.CLIPModel(tf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12))
        return tf.SiglipModel(
            tf.SiglipConfig(text_config={**text, "projection_size": 16}, vision_config=vision)
        )


def images(n: int = 2, size: int = 8) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


class TokenFirst(nn.Module):
    """A block over (tokens, batch, width), as in older open_clip."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(6, 6), nn.GELU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp(x)


class OpenClipTower(nn.Module):
    image_size, image_mean, image_std = (8, 8), (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 4, 4)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(TokenFirst() for _ in range(2))
        self.proj = nn.Parameter(torch.eye(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(x).flatten(2).permute(2, 0, 1)  # (tokens, batch, width)
        for block in self.transformer.resblocks:
            x = block(x)
        return x.mean(0) @ self.proj


class OpenClip(nn.Module):
    """The shape of an open_clip model: ``visual``, ``encode_image``, ``encode_text`` of token ids."""

    def __init__(self, shared: bool = False) -> None:
        super().__init__()
        self.visual = OpenClipTower()
        self.token_embedding = nn.Embedding(50, 6)
        self.text_projection = self.visual.proj if shared else nn.Parameter(torch.eye(6))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def encode_image(self, x: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        return self.visual(x)

    def encode_text(self, ids: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        return self.token_embedding(ids).mean(1) @ self.text_projection


def letters(texts: list[str]) -> torch.Tensor:
    return torch.tensor([[ord(c) % 50 for c in text.ljust(12)[:12]] for text in texts])


def test_clip_gives_its_own_features(tiny_tokenizer: Any) -> None:
    model = tiny("clip")
    encoder = DualEncoder.of(model, tiny_tokenizer)
    x = images()
    found = encoder.encode_image(x)
    assert torch.equal(found, model.get_image_features(pixel_values=x).pooler_output)
    assert found.shape == (2, 12)
    one_by_one = torch.cat([encoder.encode_text([text]) for text in TEXTS])
    assert torch.allclose(encoder.encode_text(TEXTS), one_by_one, atol=1e-6)  # padding is masked
    assert encoder.image_size == 8
    assert torch.allclose(encoder.mean, torch.tensor([0.48145466, 0.4578275, 0.40821073]))
    assert encoder.image_layers() == [f"vision_model.encoder.layers.{i}" for i in range(3)]
    with encoder.activations() as seen:
        encoder.encode_image(x)
    assert {name: tuple(a.shape) for name, a in seen.items()} == dict.fromkeys(
        encoder.image_layers(), (2, 5, 16)
    )


def test_image_parameters_of_clip_are_the_vision_tower(tiny_tokenizer: Any) -> None:
    model = tiny("clip").requires_grad_(False)
    encoder = DualEncoder.of(model, tiny_tokenizer)
    names = {n for n, _ in model.named_parameters() if n.startswith(("vision_model.", "visual_projection."))}
    assert set(encoder.image_parameters()) == names
    assert not any(p.requires_grad for p in model.parameters())  # as before


def test_siglip_fills_its_texts_up(tiny_tokenizer: Any) -> None:
    model = tiny("siglip")
    encoder = DualEncoder.of(model, tiny_tokenizer)
    ids = tiny_tokenizer(TEXTS, padding="max_length", max_length=32, return_tensors="pt")["input_ids"]
    assert torch.equal(encoder.encode_text(TEXTS), model.get_text_features(input_ids=ids).pooler_output)
    x = images()
    assert torch.equal(encoder.encode_image(x), model.get_image_features(pixel_values=x).pooler_output)
    assert encoder.mean.tolist() == encoder.std.tolist() == [0.5, 0.5, 0.5]
    assert encoder.image_layers() == [f"vision_model.encoder.layers.{i}" for i in range(3)]
    assert all(name.startswith("vision_model.") for name in encoder.image_parameters())


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_saved_model_reads_back(kind: str, tmp_path: Path, tiny_tokenizer: Any) -> None:
    encoder = DualEncoder.of(tiny(kind), tiny_tokenizer)
    encoder.save(tmp_path / "m")
    again = DualEncoder.load(tmp_path / "m")
    assert type(again.model) is type(encoder.model)
    weights = encoder.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in again.model.state_dict().items())
    assert torch.allclose(again.encode_image(images()), encoder.encode_image(images()), atol=1e-6)
    assert torch.allclose(again.encode_text(TEXTS), encoder.encode_text(TEXTS), atol=1e-6)
    assert {p.name for p in (tmp_path / "m").glob("*") if p.suffix in (".bin", ".pt", ".pkl")} == set()


def test_the_settings_of_the_images_come_along(tmp_path: Path, tiny_tokenizer: Any) -> None:
    DualEncoder.of(tiny("clip"), tiny_tokenizer).save(tmp_path / "m")
    text = '{"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.5, 0.25], "size": 8}'
    (tmp_path / "m" / "preprocessor_config.json").write_text(text)
    encoder = DualEncoder.load(tmp_path / "m")
    assert encoder.mean.tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert encoder.std.tolist() == [0.5, 0.5, 0.25]
    encoder.copy().save(tmp_path / "n")
    assert (tmp_path / "n" / "preprocessor_config.json").read_text() == text
    assert DualEncoder.load(tmp_path / "m", mean=[0.0] * 3).mean.tolist() == [0.0] * 3


def test_open_clip_with_tokens_first() -> None:
    encoder = DualEncoder.of(OpenClip(), letters)
    assert (encoder.image_size, encoder.mean.tolist()) == (8, pytest.approx([0.5, 0.4, 0.3]))
    assert encoder.image_layers() == [f"visual.transformer.resblocks.{i}" for i in range(2)]
    for batch in (3, 4):  # four images: as many as tokens
        with encoder.activations() as seen:
            encoder.encode_image(images(batch))
        alone = {}
        with encoder.activations() as one:
            encoder.encode_image(images(batch)[1:2])
            alone.update(one)
        for name, a in seen.items():
            assert a.shape == (batch, 4, 6)
            assert torch.allclose(a[1], alone[name][0], atol=1e-6)
    assert torch.equal(encoder.encode_text(TEXTS), encoder.model.encode_text(letters(TEXTS)))
    assert "visual.proj" in encoder.image_parameters()
    assert "logit_scale" not in encoder.image_parameters()


def test_what_both_towers_use_is_left_to_the_texts() -> None:
    encoder = DualEncoder.of(OpenClip(shared=True), letters)
    assert "visual.proj" not in encoder.image_parameters()
    assert "visual.conv1.weight" in encoder.image_parameters()


class Plain(nn.Module):
    """Stages of blocks beside a stem, or a bare row of convolutions."""

    def __init__(self, stages: bool) -> None:
        super().__init__()

        def stage(width: int, out: int) -> nn.Module:
            return nn.Sequential(
                *(nn.Sequential(nn.Conv2d(c, out, 3, 1, 1), nn.ReLU()) for c in (width, out))
            )

        self.stem = nn.Conv2d(3, 4, 3, 1, 1)
        if stages:
            self.layer1, self.layer2 = stage(4, 4), stage(4, 6)
        else:
            self.body = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, 2, 1))
        self.stages = stages
        self.words = nn.Embedding(9, 6)

    def encode_image(self, x: torch.Tensor) -> Any:
        x = self.stem(x)
        x = self.layer2(self.layer1(x)) if self.stages else self.body(x)
        return x, x.mean((2, 3))  # states and pooled features

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        return self.words(torch.tensor([len(text) % 9 for text in texts]))


def plain(stages: bool = True, **of: Any) -> DualEncoder:
    return DualEncoder.of(Plain(stages), **{"mean": [0.5] * 3, "std": [0.25] * 3, "image_size": 8} | of)


def test_layers_of_plain_modules() -> None:
    assert plain().image_layers() == ["layer1", "layer2"]  # stages, not the blocks within
    assert plain(stages=False).image_layers() == ["stem", "body.0", "body.2"]
    assert plain().encode_image(images()).shape == (2, 6)
    assert plain().encode_text(["a"] * 300).shape == (300, 6)  # more than one chunk


def test_pixels_and_their_range() -> None:
    encoder = plain()
    pixels = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1).expand(2, 3, 8, 8)
    x = encoder.normalise(pixels)
    assert x[0, :, 0, 0].tolist() == [-2.0, 0.0, 2.0]
    assert torch.equal(encoder.denormalise(x), pixels)
    assert encoder.low.flatten().tolist() == [-2.0] * 3
    assert encoder.high.flatten().tolist() == [2.0] * 3
    assert encoder.low.shape == (3, 1, 1)


def test_gradients_reach_pixels_and_hooks_leave() -> None:
    encoder = plain()
    x = images().requires_grad_(True)
    with encoder.activations(["layer2", "stem"]) as seen:
        assert seen == {}
        encoder.encode_image(x)
        assert list(seen) == ["stem", "layer2"]
        (grad,) = torch.autograd.grad(seen["layer2"].square().sum(), x)
    assert grad.abs().sum() > 0
    assert not any(module._forward_hooks for module in encoder.model.modules())


def test_a_copy_is_apart_and_frozen() -> None:
    encoder = plain()
    before = encoder.encode_image(images())
    twin = encoder.copy()
    with torch.no_grad():
        encoder.model.stem.weight.zero_()
    assert torch.equal(twin.encode_image(images()), before)
    assert not any(p.requires_grad for p in twin.model.parameters())
    assert all(p.requires_grad for p in encoder.model.parameters())
    assert list(twin.image_parameters()) == list(encoder.image_parameters())


def test_a_plain_module_reads_back(tmp_path: Path) -> None:
    encoder = plain()
    encoder.save(tmp_path / "m")
    assert [p.name for p in (tmp_path / "m").iterdir()] == ["model.safetensors"]
    again = DualEncoder.load(tmp_path / "m", Plain(True), mean=encoder.mean, std=encoder.std, image_size=8)
    assert torch.equal(again.encode_image(images()), encoder.encode_image(images()))


def test_half_precision_is_cast_and_told() -> None:
    model = Plain(True).to(torch.bfloat16).train()
    with pytest.warns(UserWarning, match=r"^Plain holds weights in bfloat16; they are cast to float32"):
        encoder = DualEncoder.of(model, mean=[0.5] * 3, std=[0.5] * 3, image_size=8)
    assert encoder.model is model
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.training


def test_a_deep_copy_uses_its_own_weights() -> None:
    import copy

    from _colours import untrained

    encoder = untrained()
    x = images(2)
    twin = copy.deepcopy(encoder)
    before = encoder.encode_image(x)
    with torch.no_grad():
        for parameter in twin.model.parameters():
            parameter.mul_(0.5)
    assert torch.equal(encoder.encode_image(x), before)
    assert not torch.allclose(twin.encode_image(x), before)
    assert all(parameter.requires_grad for parameter in twin.model.parameters())
    assert not any(parameter.requires_grad for parameter in encoder.copy().model.parameters())
