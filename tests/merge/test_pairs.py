"""SLERP, task arithmetic and mergekit: hand-worked numbers, laws, files that are checked, refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from _tiny_transformers import build
from tunesmith.core.errors import DataError, ParameterError, TrainingError, TunesmithError
from tunesmith.merge import merge_with_mergekit, slerp, slerp_tensors, soup, task_arithmetic


def vector(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float32)


def test_slerp_by_hand() -> None:
    """fts-obp-absa, "What must hold" 8."""
    a, b = vector(1, 0), vector(0, 2)
    assert slerp_tensors(a, b, 0.5).tolist() == pytest.approx([0.70711, 1.41421], abs=1e-5)
    assert torch.equal(slerp_tensors(a, b, 0), a)
    assert torch.equal(slerp_tensors(a, b, 1), b)
    assert torch.allclose(slerp_tensors(a, a, 0.3), a, rtol=1e-7)
    third = slerp_tensors(vector(1, 0), vector(0, 1), 1 / 3)
    assert third.tolist() == pytest.approx([math.cos(math.pi / 6), math.sin(math.pi / 6)], abs=1e-6)


def test_slerp_of_nearly_collinear_tensors_is_their_average() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(50, 40, generator=generator)
    a, b = (base * (1 + 0.01 * torch.randn(50, 40, generator=generator)) for _ in range(2))
    cosine = float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))
    assert 0.9995 < cosine < 1
    assert torch.equal(slerp_tensors(a, b, 0.5), 0.5 * a + 0.5 * b)
    assert not torch.equal(slerp_tensors(a, b, 0.5, collinear=1.0), 0.5 * a + 0.5 * b)


@pytest.mark.parametrize("other", [[0.0, 0.0], [3.0, -4.0], [-1.0, 0.0]])
def test_zero_and_opposite_tensors_give_numbers(other: list[float]) -> None:
    assert torch.isfinite(slerp_tensors(vector(1, 0), torch.tensor(other), 0.5)).all()
    assert torch.isfinite(slerp_tensors(torch.zeros(2), torch.zeros(2), 0.5)).all()


def test_the_arc_keeps_lengths_where_the_line_does_not() -> None:
    a, b = torch.nn.functional.normalize(torch.randn(2, 64, generator=torch.Generator().manual_seed(1)))
    assert float(slerp_tensors(a, b, 0.4).norm()) == pytest.approx(1, abs=1e-6)
    assert float((0.6 * a + 0.4 * b).norm()) < 0.9


def test_t_may_depend_on_the_tensor() -> None:
    a, b = {"x.w": vector(1, 0), "y.w": vector(1, 0)}, {"x.w": vector(0, 2), "y.w": vector(0, 2)}
    merged = slerp(a, b, lambda name: 0.0 if name.startswith("x") else 1.0).state_dict
    assert merged["x.w"].tolist() == [1, 0]
    assert merged["y.w"].tolist() == [0, 2]


def test_task_arithmetic_by_hand() -> None:
    base, one, two = ({"w": vector(*v)} for v in ((1, 2, 3), (1.5, 2, 3), (0.8, 2, 4)))
    both = task_arithmetic(base, [one, two]).state_dict["w"]
    assert both.tolist() == pytest.approx([1.3, 2.0, 4.0])  # composable-sft, "What must hold" 5
    assert torch.allclose(task_arithmetic(base, [two, one]).state_dict["w"], both)
    assert torch.equal(task_arithmetic(base, [one]).state_dict["w"], one["w"])
    away = task_arithmetic(base, [one], -1.0).state_dict["w"]
    assert away.tolist() == pytest.approx([0.5, 2, 3])
    half = task_arithmetic(base, [one, two], [0.5, 0.5]).state_dict["w"]
    assert torch.allclose(half, soup([one, two]).state_dict["w"])


def test_tied_weights_and_whole_numbers() -> None:
    a, b = build("llama-tied")[0], build("llama-tied")[0]
    with torch.no_grad():
        for parameter in b.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    into = build("llama-tied")[0]
    merged = slerp(a, b, 0.5, into=into).state_dict
    assert merged["lm_head.weight"] is merged["model.embed_tokens.weight"]
    assert into.lm_head.weight is into.model.embed_tokens.weight
    w = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(into.state_dict()[w], slerp_tensors(a.state_dict()[w], b.state_dict()[w], 0.5))
    with pytest.raises(DataError, match="the integer tensor 'n' differs"):
        slerp({"n": torch.tensor([1])}, {"n": torch.tensor([2])})


def test_folders_are_merged_checked_and_only_then_there(tuned_folders: list[Path], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    merged = slerp(tuned_folders[1], tuned_folders[2], 0.5, output=tmp_path / "m")
    assert merged.check is not None
    assert merged.check.merged_vs_reloaded <= 1e-5 * max(1, merged.check.largest_logit)
    assert all(apart > 0.01 for apart in merged.check.parts_vs_merged)
    a, b, got = (
        AutoModelForCausalLM.from_pretrained(p).state_dict() for p in (*tuned_folders[1:], tmp_path / "m")
    )
    assert all(torch.equal(got[n], slerp_tensors(a[n], b[n], 0.5)) for n in got)
    same = task_arithmetic(tuned_folders[0], [tuned_folders[1]], output=tmp_path / "n")
    assert same.check is not None
    assert same.check.parts_vs_merged[1] <= 1e-5 * same.check.largest_logit < same.check.parts_vs_merged[0]
    averaged = soup([tuned_folders[1], tuned_folders[2]], output=tmp_path / "s")
    assert averaged.check is not None
    assert len(averaged.check.parts_vs_merged) == 2


def test_a_folder_that_reads_back_as_another_model_is_not_left(
    tuned_folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tunesmith.engine.models as models

    load = models.load_model

    def wrong(path: str, **kwargs: Any) -> Any:
        model = load(path, **kwargs)
        if path not in map(str, tuned_folders):
            model.lm_head.weight.data.mul_(2)
        return model

    monkeypatch.setattr(models, "load_model", wrong)
    with pytest.raises(TrainingError, match="The merged model changed on its way to disk"):
        slerp(tuned_folders[1], tuned_folders[2], 0.5, output=tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_mergekit_is_called(tuned_folders: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("mergekit")
    base, one, two = ({"w": vector(*v)} for v in ((1, 2, 3), (1.5, 2, 3), (0.8, 2, 4)))
    got = merge_with_mergekit(
        [one, two], "task_arithmetic", base=base, parameters={"weight": 1.0}
    ).state_dict["w"]
    assert got.tolist() == pytest.approx([1.3, 2.0, 4.0])
    arc = merge_with_mergekit([{"w": vector(0, 2)}], "slerp", base={"w": vector(1, 0)}, parameters={"t": 0.5})
    assert arc.state_dict["w"].tolist() == pytest.approx([0.70711, 1.41421], abs=1e-5)
    written = merge_with_mergekit(
        tuned_folders[1:],
        "ties",
        base=tuned_folders[0],
        parameters={"weight": 0.5, "density": 0.5},
        output=tmp_path / "t",
    )
    assert written.check is not None
    assert len(written.check.parts_vs_merged) == 3
    with pytest.raises(
        ParameterError, match="The 'method' parameter of merge_with_mergekit must be one of mergekit's"
    ):
        merge_with_mergekit([one], "tise")
    with pytest.raises(TunesmithError, match="mergekit's method 'ties' refuses the merge at 'w'"):
        merge_with_mergekit([one, two], "ties", parameters={"density": 0.5})


def test_without_mergekit_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "mergekit.merge_methods", None)
    with pytest.raises(
        TunesmithError, match=r"needs mergekit. Install it with: pip install 'tunesmith\[merge\]'"
    ):
        merge_with_mergekit([{"w": vector(1)}], "ties")


def test_bad_parameters() -> None:
    one = {"w": vector(1, 2)}
    with pytest.raises(ParameterError, match="The 't' parameter of slerp must be a float in"):
        slerp(one, one, 1.5)
    with pytest.raises(ParameterError, match="The 'collinear' parameter of slerp"):
        slerp(one, one, collinear=2)
    with pytest.raises(ParameterError, match="The 'output' parameter of slerp must be None unless"):
        slerp(one, one, output="x")
    with pytest.raises(ParameterError, match="The 'models' parameter of slerp must be a list of modules"):
        slerp(one, 3)
    with pytest.raises(DataError, match="'w' has shape"):
        slerp(one, {"w": vector(1)})
    with pytest.raises(ParameterError, match="The 'models' parameter of task_arithmetic must be a list"):
        task_arithmetic(one, [])
    with pytest.raises(ParameterError, match="The 'weights' parameter of task_arithmetic must be a finite"):
        task_arithmetic(one, [one], [1, 2])
