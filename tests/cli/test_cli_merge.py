"""``tunesmith merge``: models, adapters, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tunesmith.cli import app


@pytest.fixture
def folders(tuned_folders: list[Path]) -> list[str]:
    return [str(folder) for folder in tuned_folders]


def weights(folder: Any) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(Path(folder) / "model.safetensors")


def call(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["merge", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_models(folders: list[str], tmp_path: Path) -> None:
    base, one, two = folders
    a, b, c = (weights(folder) for folder in folders)
    name = "model.layers.0.mlp.up_proj.weight"
    output = call(one, two, "--out", str(tmp_path / "soup"))
    assert "Largest difference of a logit from the merged model" in output
    assert f"  {one}: " in output
    assert torch.allclose(weights(tmp_path / "soup")[name], (b[name] + c[name]) / 2)
    call(one, two, "--weights", "3,1", "--out", str(tmp_path / "w"))
    assert torch.allclose(weights(tmp_path / "w")[name], 0.75 * b[name] + 0.25 * c[name])
    call(one, two, "--method", "slerp", "--t", "1", "--out", str(tmp_path / "slerp"))
    assert torch.equal(weights(tmp_path / "slerp")[name], c[name])
    call(
        one,
        two,
        "--method",
        "task_arithmetic",
        "--base",
        base,
        "--weights",
        "1,-1",
        "--out",
        str(tmp_path / "t"),
    )
    assert torch.allclose(weights(tmp_path / "t")[name], a[name] + b[name] - c[name], atol=1e-6)


def test_an_adapter(folders: list[str], tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folders[0])
    get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False)).save_pretrained(
        tmp_path / "a"
    )
    output = call(str(tmp_path / "a"), "--out", str(tmp_path / "m"))
    assert "adapter and merged model differ by at most" in output
    assert not torch.equal(
        *(weights(f)["model.layers.0.mlp.up_proj.weight"] for f in (folders[0], tmp_path / "m"))
    )


def test_refusals(folders: list[str], tmp_path: Path) -> None:
    def refused(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["merge", *arguments, "--out", str(tmp_path / "x")])
        assert result.exit_code == 2
        return " ".join(result.stderr.split())

    base, one, two = folders
    assert "'--weights' parameter of merge must be numbers separated by commas" in refused(
        one, two, "--weights", "a,b"
    )
    assert "must be two models with --method slerp" in refused(one, "--method", "slerp")
    assert "must be left out with --method soup" in refused(one, two, "--base", base)
    assert "must be a model with --method task_arithmetic" in refused(one, "--method", "task_arithmetic")
    assert "must be NAME=VALUE" in refused(one, "--method", "ties", "--base", base, "--set", "density")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert "the adapter's base, which its config does not name" in refused(str(tmp_path / "adapter"))
    assert not (tmp_path / "x").exists()


def test_mergekit_by_name(folders: list[str], tmp_path: Path) -> None:
    pytest.importorskip("mergekit")
    base, one, two = folders
    options = ["--weights", "0.5,0.5", "--set", "density=0.5", "--out", str(tmp_path / "m")]
    call(one, two, "--method", "ties", "--base", base, *options)
    assert (tmp_path / "m" / "config.json").exists()
