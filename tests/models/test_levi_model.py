"""LEVI around transformers and plain modules: what runs, what is trained, what is saved."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import linear
from transformers import AutoModelForSequenceClassification

from tunesmith.models import LEVI, LeviConfig
from tunesmith.models.levi import LEVIOutput
from tunesmith.models.levi.core import pool

Build = Callable[..., tuple[Any, dict[str, torch.Tensor]]]
LABELS = torch.tensor([0, 2])


def settings(**given: Any) -> LeviConfig:
    return LeviConfig(**{"num_labels": 3, "adapter_width": 6, **given})


def scatter(module: nn.Module) -> None:
    """Draw all trained weights: heads start at zero, which hides mistakes."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter) * 0.3


class Plain(nn.Module):
    """Rows of 5 through two blocks, with everything in it that a frozen base must hold still."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5))
        self.two = nn.Sequential(nn.Linear(8, 4), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(x))


class Convolutional(nn.Module):
    """Maps of growing depth, returned as transformers does."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.Conv2d(4, 7, 3)])

    def forward(self, pixel_values: torch.Tensor) -> dict[str, Any]:
        states = [pixel_values]
        for layer in self.layers:
            states.append(layer(states[-1]).relu())
        return {"hidden_states": tuple(states)}


def plain(**given: Any) -> tuple[LEVI, dict[str, torch.Tensor]]:
    inputs = {"inputs": torch.randn(6, 5, generator=torch.Generator().manual_seed(0))}
    return LEVI(settings(blocks=["one", "two"], **given), Plain(), example=inputs), inputs


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2", "vit"])
def test_it_wraps_saves_and_loads(kind: str, tiny_transformer: Build, tmp_path: Path) -> None:
    base, inputs = tiny_transformer(kind)
    model = LEVI(settings(pooling="last" if kind == "gpt2" else "mean"), base)
    scatter(model)
    assert model.config.layers == [1, 2]
    assert model.config.view == ("image" if kind == "vit" else "text")
    out = model.eval()(**inputs, labels=LABELS)
    assert isinstance(out, LEVIOutput)
    assert out.layer_logits.shape == (2, 2, 3)
    assert torch.equal(out.logits, out.layer_logits.mean(0))
    states = base.base_model(**inputs, output_hidden_states=True).hidden_states
    h = model.view(**inputs)
    for head, H, o in zip(model.heads.layers, states[1:], out.layer_logits, strict=True):
        z = pool(H, model.config.pooling, inputs.get("attention_mask"))
        assert torch.allclose(head(z, h), o, atol=1e-5), "inference is the stated combination"
    model.save_pretrained(tmp_path)
    assert [p.name for p in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    again = LEVI.from_pretrained(tmp_path)
    assert torch.equal(again(**inputs).logits, out.logits)
    assert not again.training
    assert not any(p.requires_grad for p in again.base.parameters())
    if kind == "vit":
        auto = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        assert torch.equal(auto(**inputs).logits, out.logits)


@pytest.mark.parametrize(
    ("kind", "layers", "widths"),
    [("t5", [1, 2], [16, 16]), ("resnet", [1, 2], [8, 12]), ("swin", [1, 2], [16, 16])],
)
def test_bases_that_count_layers_their_own_way(
    kind: str, layers: list[int], widths: list[int], tmp_path: Path
) -> None:
    import transformers as tf

    inputs = {"pixel_values": torch.randn(2, 3, 32, 32)}
    if kind == "t5":
        inputs = {"input_ids": torch.randint(99, (2, 7)), "attention_mask": torch.ones(2, 7)}
        sizes = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4}
        base = tf.T5EncoderModel(tf.T5Config(vocab_size=99, **sizes))
    elif kind == "resnet":
        sizes = {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "basic"}
        base = tf.ResNetForImageClassification(tf.ResNetConfig(**sizes))
    else:
        sizes = {"patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
        base = tf.SwinModel(tf.SwinConfig(image_size=32, **sizes))
    model = LEVI(settings(), base, example=inputs)
    scatter(model)
    assert (model.config.layers, model.config.feature_sizes) == (layers, widths)
    model.save_pretrained(tmp_path)
    assert torch.equal(LEVI.from_pretrained(tmp_path)(**inputs).logits, model.eval()(**inputs).logits)


def test_a_16_bit_base_keeps_its_type_and_the_rest_stays_float32(
    tiny_transformer: Build, tmp_path: Path
) -> None:
    base, inputs = tiny_transformer("llama", torch.bfloat16)
    model = LEVI(settings(), base)
    scatter(model)
    out = model.eval()(**inputs, labels=LABELS)
    assert out.logits.dtype == torch.float32
    out.loss.backward()
    model.save_pretrained(tmp_path)
    again = LEVI.from_pretrained(tmp_path)
    assert {p.dtype for p in again.base.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in (*again.view.parameters(), *again.heads.parameters())} == {torch.float32}
    assert torch.equal(again(**inputs).logits, out.logits)
    assert model.to(torch.bfloat16)(**inputs).logits.dtype == torch.bfloat16


def test_a_frozen_base_has_no_gradient_and_keeps_every_bit() -> None:
    model, inputs = plain()
    before = copy.deepcopy(model.base.state_dict())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        model.train()
        assert not any(module.training for module in model.base.modules())
        model(**inputs, labels=torch.tensor([0, 1, 2, 0, 1, 2])).loss.backward()
        optimizer.step()
    assert all(p.grad is None for p in model.base.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.base.state_dict().items())
    assert model.frozen


def test_a_tuned_base_is_trained() -> None:
    model, inputs = plain(freeze_base=False)
    scatter(model.heads)
    model.train()
    assert model.base.one[1].training
    model(**inputs, labels=torch.zeros(6, dtype=torch.long)).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.base.one[0].parameters())


def test_lora_trains_beside_the_rest_and_is_saved(tiny_transformer: Build, tmp_path: Path) -> None:
    base, inputs = tiny_transformer("bert", torch.bfloat16)
    lora = {"r": 2, "target_modules": ["query"]}
    model = LEVI(settings(lora=lora), base)
    scatter(model)
    model.train()
    model(**inputs, labels=LABELS).loss.backward()
    trained = {name for name, p in model.base.named_parameters() if p.grad is not None}
    assert len(trained) == 4
    assert all("lora_" in name for name in trained)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    model.save_pretrained(tmp_path)
    again = LEVI.from_pretrained(tmp_path)
    assert torch.equal(again(**inputs).logits, model.eval()(**inputs).logits)
    assert sum(p.requires_grad for p in again.base.parameters()) == 4
    assert again.config.lora == lora
    model = LEVI(settings(lora=lora, save_base=False), tiny_transformer("bert")[0])
    scatter(model)
    model.save_pretrained(tmp_path / "part")
    again = LEVI.from_pretrained(tmp_path / "part", base=tiny_transformer("bert")[0])
    assert torch.equal(again(**inputs).logits, model.eval()(**inputs).logits)


def test_a_base_that_has_lora_already(tiny_transformer: Build, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base, inputs = tiny_transformer("llama")
    tuned = get_peft_model(base, LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "v_proj"]))
    model = LEVI(settings(lora=True), tuned)
    scatter(model)
    assert model.config.lora == {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj"]}
    assert sum(p.requires_grad for p in model.base.parameters()) == 8
    model.save_pretrained(tmp_path)
    assert torch.equal(LEVI.from_pretrained(tmp_path)(**inputs).logits, model.eval()(**inputs).logits)


def test_peft_around_it(tiny_transformer: Build) -> None:
    from peft import LoraConfig, get_peft_model

    base, inputs = tiny_transformer("bert")
    model = LEVI(settings(), base)
    scatter(model)
    expected = model.eval()(**inputs).logits
    tuned = get_peft_model(
        model,
        LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"], modules_to_save=["view", "heads"]),
    )
    assert torch.equal(tuned(**inputs).logits, expected)
    tuned.train()
    tuned(**inputs, labels=LABELS).loss.backward()
    trained = [name for name, p in tuned.named_parameters() if p.requires_grad]
    assert all(tuned.get_parameter(name).grad is not None for name in trained)
    assert {part for name in trained for part in ("lora_B", "view", "heads") if part in name} == {
        "lora_B",
        "view",
        "heads",
    }


def test_a_checkpoint_without_its_base(tiny_transformer: Build, tmp_path: Path) -> None:
    base, inputs = tiny_transformer("vit")
    base.vit.save_pretrained(tmp_path / "base")
    base = type(base.vit).from_pretrained(tmp_path / "base")
    model = LEVI(settings(save_base=False), base)
    scatter(model)
    expected = model.eval()(**inputs).logits
    model.save_pretrained(tmp_path / "levi")
    whole, part = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("base", "levi"))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert part < 4 * trained + 4000
    assert whole > part
    assert torch.equal(LEVI.from_pretrained(tmp_path / "levi")(**inputs).logits, expected)
    (tmp_path / "base").rename(tmp_path / "moved")
    moved = type(base).from_pretrained(tmp_path / "moved")
    assert torch.equal(LEVI.from_pretrained(tmp_path / "levi", base=moved)(**inputs).logits, expected)


def test_a_plain_module_with_named_blocks(tmp_path: Path) -> None:
    model, inputs = plain()
    scatter(model)
    assert (model.config.view, model.config.view_inputs, model.config.feature_sizes) == ("vector", 5, [8, 4])
    expected = model.eval()(inputs["inputs"]).logits
    assert not any(module._forward_hooks for module in model.modules()), "no hook is left behind"
    model.save_pretrained(tmp_path)
    again = LEVI.from_pretrained(tmp_path, base=Plain())
    assert torch.equal(again(**inputs).logits, expected)


def test_layer_0_is_what_enters_the_first_block() -> None:
    model, inputs = plain(layers=[0, 2])
    assert torch.equal(model.compute_layer_features(**inputs)[:, :5], inputs["inputs"])


def test_maps_of_a_convolutional_module_and_a_view_of_ones_own(tmp_path: Path) -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(3, 9)

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return self.out(pixel_values.mean((2, 3)))

    inputs = {"pixel_values": torch.randn(2, 3, 8, 8)}
    model = LEVI(settings(), Convolutional(), Mean(), example=inputs)
    scatter(model)
    assert (model.config.feature_sizes, model.config.view, model.config.view_size) == ([4, 7], "custom", 9)
    states = model.base(**inputs)["hidden_states"]
    expected = torch.cat([H.mean((2, 3)) for H in states[1:]], 1)
    assert torch.allclose(model.compute_layer_features(**inputs), expected)
    model.save_pretrained(tmp_path)
    again = LEVI.from_pretrained(tmp_path, base=Convolutional(), view=Mean())
    assert torch.equal(again(**inputs).logits, model.eval()(**inputs).logits)


def test_a_zeroed_view_and_one_linear_layer_are_a_linear_probe() -> None:
    model, inputs = plain(layers=[2], adapter_width=0, norm=False, ablate="view")
    scatter(model)
    up = model.heads.layers[0].up
    z = model.base(inputs["inputs"])
    assert torch.allclose(model(**inputs).logits, linear(z, up.weight[:, :4], up.bias), atol=1e-6)


def test_a_zeroed_base_is_the_small_model_with_n_heads() -> None:
    model, inputs = plain(ablate="base")
    scatter(model)
    expected = model(**inputs).logits
    scatter(model.base.requires_grad_(True))
    assert torch.equal(model(**inputs).logits, expected)


def test_the_order_of_layers_does_not_matter() -> None:
    model, inputs = plain(layers=[0, 1, 2])
    scatter(model)
    other = LEVI(settings(blocks=["one", "two"], layers=[2, 0, 1]), model.base, example=inputs)
    other.view = model.view
    for i, j in enumerate((2, 0, 1)):
        other.heads.layers[i] = model.heads.layers[j]
    assert torch.allclose(other(**inputs).logits, model(**inputs).logits, atol=1e-6)


def test_the_views_gradient_is_the_mean_of_the_heads_gradients() -> None:
    model, inputs = plain(layers="all")
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    weight = model.view.linears[0].weight

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(loss, weight)[0]

    assert not gradient(model(**inputs, labels=y).loss).any(), "heads start at zero"
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model(**inputs, labels=y).loss.backward()
    optimizer.step()
    each = [
        gradient(nn.functional.cross_entropy(model(**inputs).layer_logits[i], y))
        for i in range(len(model.heads.layers))
    ]
    assert all(g.any() for g in each)
    assert torch.allclose(gradient(model(**inputs, labels=y).loss), torch.stack(each).mean(0), atol=1e-7)


def test_view_dropout_acts_in_training_alone() -> None:
    model, inputs = plain(view_dropout=0.4)
    scatter(model)
    model.train()
    assert not torch.equal(model(**inputs).logits, model(**inputs).logits)
    model.eval()
    assert torch.equal(model(**inputs).logits, model(**inputs).logits)


def test_regression_and_several_labels() -> None:
    model, inputs = plain(num_labels=1)
    y = torch.arange(6.0)
    assert model(**inputs, labels=y).loss.item() == pytest.approx(float(y.square().mean()))
    model, inputs = plain(num_labels=2, problem_type="multi_label_classification", aggregate="probs")
    assert model(**inputs, labels=torch.ones(6, 2)).loss.item() == pytest.approx(0.6931472)
