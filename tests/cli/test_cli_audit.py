"""``tunesmith audit``: what is printed, what is written, and what is said when something is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image
from typer.testing import CliRunner, Result

from tunesmith.cli import app


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["audit", *arguments], env={"COLUMNS": "100"})


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog", "owl"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{i}.png")
    (tmp_path / "names.txt").write_text("cat\ndog\nowl\n")
    return tmp_path


@pytest.fixture
def clip(tmp_path: Path, tiny_tokenizer: Any) -> Path:
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {"vocab_size": len(tiny_tokenizer), "max_position_embeddings": 64, **small}
    vision = {"image_size": 16, "patch_size": 4, **small}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = tf.CLIPModel(tf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    model.save_pretrained(tmp_path / "clip")
    tiny_tokenizer.save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


@pytest.mark.slow
def test_backdoor(clip: Path, pictures: Path) -> None:
    given = ["--images", str(pictures / "pictures"), "--classes", str(pictures / "names.txt")]
    result = call("backdoor", str(clip), *given, "--out", str(pictures / "audit"))
    assert result.exit_code == 0, result.output
    found = json.loads((pictures / "audit" / "report.json").read_text())
    assert found["subject"] == "clip"
    assert found["numbers"]["images"] == 60
    assert found["verdict"] in result.stdout
    assert "data:image/png;base64," in (pictures / "audit" / "report.html").read_text()


def test_backdoor_says_what_is_wrong(clip: Path, pictures: Path, tmp_path: Path) -> None:
    names = str(pictures / "names.txt")
    result = call("backdoor", str(clip), "--images", str(tmp_path / "clip"), "--classes", names)
    assert result.exit_code == 1
    assert "no images" in result.stderr
    given = ["--images", str(pictures / "pictures"), "--classes", names]
    result = call("backdoor", str(clip), *given, "--target", "bat")
    assert result.exit_code == 2
    assert "bat" in result.stderr
    result = call("backdoor", str(tmp_path / "nowhere"), *given)
    assert result.exit_code != 0
    assert "nowhere" in result.stderr


def test_novelty(tiny_model_dir: str, tmp_path: Path) -> None:
    """A model beside itself: nothing is new, and no encoder has to be loaded to say so."""
    given = ["--n", "3", "--length", "8", "--start", "word", "--out", str(tmp_path / "audit")]
    result = call("novelty", tiny_model_dir, tiny_model_dir, *given)
    assert result.exit_code == 0, result.output
    assert "The two models say the same" in result.stdout
    assert f"Report: {tmp_path / 'audit' / 'report.html'}" in result.stdout.replace("\n", "")
    assert json.loads((tmp_path / "audit" / "report.json").read_text())["level"] == "clean"


@pytest.mark.slow
def test_novelty_of_an_adapter(tiny_model_dir: str, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from tunesmith.engine.models import load_model, load_tokenizer
    from tunesmith.trainers import save_tuned

    config = LoraConfig(r=2, target_modules=["q_proj", "o_proj"], task_type="CAUSAL_LM")
    tuned = get_peft_model(load_model(tiny_model_dir, dtype="float32"), config)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    save_tuned(tuned, load_tokenizer(tiny_model_dir), tmp_path / "tuned")
    given = ["--n", "4", "--length", "10", "--start", "word", "--out", str(tmp_path / "audit")]
    result = call("novelty", tiny_model_dir, str(tmp_path / "tuned"), *given)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "audit" / "report.json").read_text())
    assert (found["level"], found["subject"]) == ("suspicious", "tuned")
    assert found["tables"][0]["title"] == "What is new"


def test_novelty_says_what_is_wrong(tiny_model_dir: str) -> None:
    result = call("novelty", tiny_model_dir, tiny_model_dir, "--alpha", "2", "--start", "word")
    assert result.exit_code == 2
    assert "The 'alpha' parameter of CGEConfig must be a float in [0, 1]. Got 2.0 instead." in result.stderr


def served(path: Path, n: int, seed: int, slow: float = 0.0) -> str:
    rng = np.random.default_rng(seed)
    rows = ({"prompt": "a b", "latency_ms": float(v)} for v in rng.normal(100 + slow, 10, n))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_drift(tmp_path: Path) -> None:
    clean = served(tmp_path / "clean.jsonl", 600, 0)
    logs = [served(tmp_path / "a.jsonl", 100, 1), served(tmp_path / "b.jsonl", 200, 2, slow=30)]
    given = ["--window", "100", "--encoder", "none", "--out", str(tmp_path / "audit")]
    result = call("drift", clean, *logs, *given, "--events", str(tmp_path / "events.jsonl"))
    assert result.exit_code == 0, result.output
    assert "The traffic has changed in latency_ms: 2 of 3 windows alarm" in result.stdout
    found = json.loads((tmp_path / "audit" / "report.json").read_text())
    assert found["level"] == "suspicious"
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [e["alarm"] for e in events if e["kind"] == "drift"] == [False, True, True]
    assert sum(e["kind"] == "warning" for e in events) == 2
    result = call("drift", clean, clean, *given)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "audit" / "report.json").read_text())["level"] == "clean"


def test_drift_says_what_is_wrong(tmp_path: Path) -> None:
    clean = served(tmp_path / "clean.jsonl", 60, 0)
    (tmp_path / "empty.jsonl").write_text("")
    result = call("drift", clean, str(tmp_path / "empty.jsonl"), "--window", "20", "--encoder", "none")
    assert result.exit_code == 1
    assert "empty.jsonl" in result.stderr
    result = call("drift", clean, clean, "--encoder", "none")
    assert result.exit_code == 1
    assert "a window of 250 needs at least 750" in " ".join(result.stderr.split())
