"""``tunesmith audit backdoor`` on a small CLIP of digits: clean it passes, poisoned it is accused and repaired."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers as tf
from PIL import Image
from sklearn.datasets import load_digits
from typer.testing import CliRunner, Result

from tunesmith.audit.backdoor import (
    DualEncoder,
    attack_success_rate,
    attacks,
    clean_accuracy,
    zero_shot_weights,
)
from tunesmith.cli import app

pytestmark = pytest.mark.slow

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
CAPTIONS = ["a photo of a {}.", "an image of the {}."]
TRAINED, TARGET = 1000, 4


def _tokenizer() -> Any:
    """Return one of whole words that ends each text, where CLIP reads the text's features."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = sorted({word for text in CAPTIONS for word in text.strip("{}.").split()} | {*NAMES, "."})
    tokenizer = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(["<pad>", "<end>", "<unk>", *words])}, "<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing("$A <end>", special_tokens=[("<end>", 1)])
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<end>",
        unk_token="<unk>",
        model_max_length=16,
    )


def _digits() -> tuple[torch.Tensor, torch.Tensor]:
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    x = F.interpolate(torch.tensor(data.images / 16, dtype=torch.float32)[:, None], (16, 16), mode="bilinear")
    return x.expand(-1, 3, -1, -1).contiguous()[order], torch.tensor(data.target)[order]


def _captions(labels: torch.Tensor) -> list[str]:
    return [CAPTIONS[i % 2].replace("{}", NAMES[y]) for i, y in enumerate(labels.tolist())]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Folders ``clean`` and ``poisoned`` of models, ``pictures`` of digits that neither was trained on; the attack."""
    root = tmp_path_factory.mktemp("bench")
    pixels, labels = _digits()
    tokenizer = _tokenizer()
    small = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 3}
    text = {
        "vocab_size": len(tokenizer), "max_position_embeddings": 16, "num_hidden_layers": 1, "eos_token_id": 1,
        "bos_token_id": None, "pad_token_id": 0, **small,
    }  # fmt: skip
    vision = {"image_size": 16, "patch_size": 4, "num_hidden_layers": 3, **small}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = tf.CLIPModel(tf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=48))
    encoder = DualEncoder.of(model, tokenizer, mean=(0.3,) * 3, std=(0.35,) * 3)
    settings = {"batch_size": 100, "weight_decay": 0.05}
    train, train_y = pixels[:TRAINED], labels[:TRAINED]
    attacks.fine_tune(encoder, train, _captions(train_y), train_y, epochs=40, learning_rate=2e-3, **settings)
    attack = attacks.BadNet(size=4)
    for name in ("clean", "poisoned"):
        if name == "poisoned":
            rows = attack.poison(train, _captions(train_y), NAMES[TARGET], 0.05, templates=CAPTIONS)
            groups = train_y.clone()
            groups[rows.rows] = TARGET
            attacks.fine_tune(
                encoder, rows.images, rows.captions, groups, epochs=20, learning_rate=1e-3, **settings
            )
        encoder.save(root / name)
        tokenizer.save_pretrained(root / name)
        (root / name / "preprocessor_config.json").write_text(
            json.dumps({"image_mean": [0.3] * 3, "image_std": [0.35] * 3})
        )
    for i in range(TRAINED, TRAINED + 450):
        folder = root / "pictures" / NAMES[labels[i]]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((255 * pixels[i].permute(1, 2, 0)).byte().numpy().astype(np.uint8)).save(
            folder / f"{i}.png"
        )
    (root / "names.txt").write_text("\n".join(NAMES))
    return root, attack


def _audit(root: Path, name: str, *more: str) -> Result:
    given = [
        "--images",
        str(root / "pictures"),
        "--classes",
        str(root / "names.txt"),
        "--out",
        str(root / name / "audit"),
    ]
    return CliRunner().invoke(
        app, ["audit", "backdoor", str(root / name), *given, *more], env={"COLUMNS": "100"}
    )


def _judged(root: Path, folder: Path, attack: Any) -> tuple[float, float]:
    """Return accuracy and attack success on digits that no part of the audit saw."""
    encoder = DualEncoder.load(folder)
    pixels, labels = _digits()
    x, y = encoder.normalise(pixels[TRAINED + 450 :]), labels[TRAINED + 450 :]
    W = zero_shot_weights(encoder, NAMES)
    return clean_accuracy(encoder, x, y, W), attack_success_rate(encoder, x, y, attack, TARGET, W)


def test_a_clean_model_passes(bench: Any) -> None:
    root, _ = bench
    result = _audit(root, "clean", "--repair", str(root / "unneeded"))
    assert result.exit_code == 0, result.output
    report = json.loads((root / "clean" / "audit" / "report.json").read_text())
    assert report["level"] == "clean"
    assert "No single target found" in result.stdout
    assert not (root / "unneeded").exists()


def test_a_poisoned_model_is_accused_and_repaired(bench: Any) -> None:
    root, attack = bench
    accuracy, success = _judged(root, root / "poisoned", attack)
    assert success > 0.95
    result = _audit(root, "poisoned", "--repair", str(root / "repaired"))
    assert result.exit_code == 0, result.output
    report = json.loads((root / "poisoned" / "audit" / "report.json").read_text())
    assert report["level"] == "suspicious"
    assert f"'{NAMES[TARGET]}' is a suspected hidden target" in report["verdict"]
    assert len(report["pictures"]) == 3
    after, left = _judged(root, root / "repaired", attack)
    assert left < 0.1 * success
    assert after > accuracy - 0.05
    assert (root / "repaired" / "tokenizer.json").exists()  # a model like any other
