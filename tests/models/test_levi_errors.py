"""What LEVI refuses, word for word."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tunesmith.core.errors import DataError, MissingModelError, ParameterError
from tunesmith.models import LEVI, LeviConfig

Build = Callable[..., tuple[Any, dict[str, torch.Tensor]]]
X = {"inputs": torch.ones(2, 5)}


class Blocks(nn.Module):
    """Two blocks; the second returns whatever it is given."""

    def __init__(self, returned: Any = None) -> None:
        super().__init__()
        self.one = nn.Linear(5, 4)
        self.two = Returns(returned)

    def forward(self, x: torch.Tensor) -> Any:
        return self.two(self.one(x))


class Returns(nn.Module):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: torch.Tensor) -> Any:
        return self.value(x) if callable(self.value) else self.value


def message(make: Callable[[], Any], kind: type[Exception] = ParameterError) -> str:
    with pytest.raises(kind) as error:
        make()
    return str(error.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"pooling": "max"},
            "'pooling' parameter of LeviConfig must be 'mean' or 'cls' or 'last'. Got 'max'",
        ),
        ({"loss": "sum"}, "'loss' parameter of LeviConfig must be 'per_head' or 'joint'. Got 'sum'"),
        ({"aggregate": "max"}, "'aggregate' parameter of LeviConfig must be 'logits' or 'probs'. Got 'max'"),
        ({"ablate": "all"}, "'ablate' parameter of LeviConfig must be None or 'view' or 'base'. Got 'all'"),
        (
            {"adapter_width": None},
            "'adapter_width' parameter of LeviConfig must be an int of at least 0. Got None",
        ),
        ({"view_size": 0}, "'view_size' parameter of LeviConfig must be an int of at least 1. Got 0"),
        ({"view_dropout": 1.0}, "'view_dropout' parameter of LeviConfig must be a float in [0, 1). Got 1.0"),
        (
            {"lora": 8},
            "'lora' parameter of LeviConfig must be a dict of LoraConfig's fields, True or None. Got 8",
        ),
        (
            {"lora": {}, "freeze_base": False},
            "'lora' parameter of LeviConfig must be None where freeze_base is False. Got {}",
        ),
        (
            {"save_base": False, "freeze_base": False},
            "'save_base' parameter of LeviConfig must be True where freeze_base is False. Got False",
        ),
        (
            {"aggregate": "probs", "num_labels": 1},
            "'aggregate' parameter of LeviConfig must be 'logits' for regression. Got 'probs'",
        ),
    ],
)
def test_settings(given: dict[str, Any], said: str) -> None:
    assert message(lambda: LeviConfig(**given)) == f"The {said} instead."


@pytest.mark.parametrize("layers", [[3], [-1], [1, 1], [], [1.0], [True], "first", 2])
def test_layers_outside_the_base_or_twice(layers: Any, tiny_transformer: Build) -> None:
    base, _ = tiny_transformer("bert")
    assert message(lambda: LEVI(LeviConfig(layers=layers), base)) == (
        f"The 'layers' parameter of LEVI must be 'all' or a list of distinct ints in [0, 2]. Got {layers!r} instead."
    )


@pytest.mark.parametrize(
    ("returned", "said"),
    [(lambda x: (x, x), "a tuple of 2"), (None, "nothing"), (3, "an int"), (lambda x: [x], "a list of 1")],
)
def test_a_block_that_returns_no_tensor(returned: Any, said: str) -> None:
    config = LeviConfig(blocks=["one", "two"])
    assert message(lambda: LEVI(config, Blocks(returned), example=X)) == (
        "The 'blocks' parameter of LEVI must be names of modules that return one tensor each. 'two' returned "
        f"{said} instead."
    )


@pytest.mark.parametrize(
    ("returned", "said"), [(None, "nothing"), (lambda x: (x, x), "a tuple of 2"), (lambda x: x, "a Tensor")]
)
def test_a_base_without_hidden_states(returned: Any, said: str) -> None:
    assert message(lambda: LEVI(LeviConfig(), Blocks(returned), example=X)) == (
        "The 'base' parameter of LEVI must be a model that returns hidden_states, a tuple of tensors, or 'blocks' must "
        f"name the modules whose outputs are its layers. Blocks returned {said} instead."
    )


def test_a_block_that_is_not_there() -> None:
    assert message(lambda: LEVI(LeviConfig(blocks=["three"]), Blocks(nn.ReLU()), example=X)) == (
        "The 'blocks' parameter of LEVI must be names of modules of Blocks. Got 'three' instead."
    )


def plain(**given: Any) -> LEVI:
    config = LeviConfig(blocks=["one", "two"], **given.pop("settings", {}))
    return LEVI(config, Blocks(nn.ReLU()), **{"example": X, **given})


@pytest.mark.parametrize(
    ("returned", "said"),
    [(lambda x: x[:, None], "(2, 1, 5)"), (lambda x: (x,), "'tuple'"), (lambda x: x[0], "(5,)")],
)
def test_a_view_that_returns_no_matrix(returned: Any, said: str) -> None:
    assert message(lambda: plain(view=Returns(returned))) == (
        f"The 'view' parameter of LEVI must be a module that returns a tensor (B, m). Got {said} instead."
    )


def test_sizes_that_do_not_fit() -> None:
    view = Returns(lambda x: x)
    assert message(lambda: plain(view=view, settings={"view_size": 7})(**X)) == (
        "The 'view_size' parameter of LEVI must be 5, what the view returns. Got 7 instead."
    )
    assert message(lambda: plain(settings={"feature_sizes": [4, 9]})) == (
        "The 'feature_sizes' parameter of LEVI must be the widths of layers [1, 2]. Got [4, 9] instead."
    )
    assert message(lambda: plain()(**X, layer_features=torch.zeros(2, 9))) == (
        "The 'layer_features' parameter of LEVI must be of width 8. Got (2, 9) instead."
    )
    model = plain()
    model.base.one = nn.Linear(5, 6)
    assert message(lambda: model(**X)) == (
        "The 'feature_sizes' parameter of LEVI must be the widths of layers [1, 2]. Got '4, not 6' instead."
    )


def test_an_input_that_the_view_reads_must_be_there(tiny_transformer: Build) -> None:
    base, _ = tiny_transformer("bert")
    model = LEVI(LeviConfig(), base)
    assert message(lambda: model(inputs_embeds=torch.randn(2, 3, 32))) == (
        "The 'input_ids' parameter of LEVI must be given, since the view reads it. Got None instead."
    )


def test_what_cannot_be_found_out_must_be_given() -> None:
    said = "The '{}' parameter of LEVI must be {}. Got None instead."
    assert message(lambda: plain(example=None)) == said.format(
        "example", "one batch of inputs, to find this base's widths"
    )
    assert message(lambda: LEVI(LeviConfig(), Blocks())) == said.format(
        "example", "one batch of inputs, to find how many layers this base has"
    )
    sizes = {"feature_sizes": [4, 4]}
    assert message(lambda: plain(example=None, view=nn.Linear(5, 3), settings=sizes)) == said.format(
        "view_size", "m, the width of what your view returns"
    )
    assert message(lambda: plain(example=None, settings=sizes)) == said.format(
        "view", "a module that returns (B, m), for this base"
    )
    assert message(lambda: plain(example=None, settings={**sizes, "view": "vector"})) == said.format(
        "view_inputs", "numbers per row, which this base does not tell"
    )
    assert message(lambda: LEVI(LeviConfig())) == said.format(
        "base", "a model, since the configuration describes none (a plain module is never saved)"
    )


def test_adapters_in_a_frozen_base_must_be_declared(tiny_transformer: Build) -> None:
    from peft import IA3Config, LoraConfig, get_peft_model

    base, _ = tiny_transformer("bert")
    tuned = get_peft_model(base, LoraConfig(target_modules=["query"]))
    assert message(lambda: LEVI(LeviConfig(), tuned)) == (
        "The 'lora' parameter of LEVI must be True where the base has adapters, unless they are merged first. Got None "
        "instead."
    )
    other, _ = tiny_transformer("bert")
    other = get_peft_model(other, IA3Config(target_modules=["query"], feedforward_modules=[]))
    assert message(lambda: LEVI(LeviConfig(lora=True), other)) == (
        "The 'lora' parameter of LEVI must be True for a base with one LoRA adapter. Got ['IA3'] instead."
    )
    assert message(lambda: LEVI(LeviConfig(lora=True), tiny_transformer("bert")[0])) == (
        "The 'lora' parameter of LEVI must be True for a base with one LoRA adapter. Got 'none' instead."
    )


def test_bases_that_do_not_fit(tiny_transformer: Build) -> None:
    base, _ = tiny_transformer("llama")
    assert message(lambda: LEVI(LeviConfig(pooling="cls"), base)) == (
        "The 'pooling' parameter of LEVI must be 'mean' or 'last' over a causal model. Got 'cls' instead."
    )
    base.config.is_encoder_decoder = True
    assert message(lambda: LEVI(LeviConfig(), base)) == (
        "The 'base' parameter of LEVI must be an encoder or a decoder, such as T5EncoderModel. Got 'LlamaForCausalLM' "
        "instead."
    )


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0, 2], "a label is 2, outside the head's 2 classes, 0 to 1 (-100: no label). Set num_labels."),
        ([-1, 0], "a label is -1, outside the head's 2 classes, 0 to 1 (-100: no label). Set num_labels."),
        ([0.0, 1.0], "labels must be 2 ints, one per row, not torch.float32 (2,)."),
        ([0, 1, 0], "labels must be 2 ints, one per row, not torch.int64 (3,)."),
    ],
)
def test_labels_outside_the_head(labels: Any, said: str) -> None:
    assert message(lambda: plain()(**X, labels=torch.tensor(labels)), DataError) == said


def test_targets_of_another_shape() -> None:
    model = plain(settings={"num_labels": 1})
    assert message(lambda: model(**X, labels=torch.zeros(2, 3)), DataError) == (
        "labels must be (2, 1) numbers, not (2, 3)."
    )


def test_folders_that_cannot_be_loaded(tmp_path: Path, tiny_transformer: Build) -> None:
    model = plain()
    model.save_pretrained(tmp_path)
    assert message(lambda: LEVI.from_pretrained(tmp_path, load_in_4bit=True)) == (
        "The 'load_in_4bit' parameter of LEVI.from_pretrained must be given to the base: load that with it and pass it "
        "as base=."
    )
    assert message(lambda: LEVI.from_pretrained(tmp_path)).startswith(
        "The 'base' parameter of LEVI must be a model, "
    )
    other = Blocks(nn.Sequential(nn.Linear(4, 4)))
    assert message(lambda: LEVI.from_pretrained(tmp_path, base=other), MissingModelError) == (
        f"The weights in {tmp_path} are not those of this model: 2 are missing (base.two.value.0.weight …), 0 are "
        "unknown."
    )
    (tmp_path / "model.safetensors").unlink()
    assert message(lambda: LEVI.from_pretrained(tmp_path), MissingModelError) == (
        f"The folder {tmp_path} holds no weights: model.safetensors is missing."
    )
    base, _ = tiny_transformer("bert")
    LEVI(LeviConfig(save_base=False), base).save_pretrained(tmp_path / "part")
    assert message(lambda: LEVI.from_pretrained(tmp_path / "part")) == (
        "The 'base' parameter of LEVI must be the model that was not saved (save_base=False). Got None instead."
    )
    gone = LEVI(LeviConfig(save_base=False, base_name_or_path=str(tmp_path / "gone")), base)
    gone.save_pretrained(tmp_path / "part")
    assert message(lambda: LEVI.from_pretrained(tmp_path / "part"), MissingModelError) == (
        f"LEVI was saved without its base, which is no longer at {tmp_path / 'gone'}. Pass it as base=."
    )
    nowhere = message(lambda: LEVI.from_pretrained("nobody/nothing"), MissingModelError)
    assert nowhere.startswith("There is no LEVI model at nobody/nothing: ")
