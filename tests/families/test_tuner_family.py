"""The behaviour that every PEFT tuner shares, over the model families of `_tiny_transformers`. One row per tuner.

PEFT's LoRA is the first row: it shows that the suite asks for nothing that PEFT's own methods do not do.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from _tiny_transformers import KINDS, LANGUAGE_MODELS, build, output_of
from tunesmith.core.errors import ParameterError, TunesmithError


@dataclass(frozen=True)
class Row:
    """What the suite must know of a tuner.

    Attributes:
        name: shown in the test's id.
        config: model kind -> the config, without dropout.
        prefix: what its parameters' names hold.
        merges: it folds into the base.
        unmerged_message: what merging says where it does not fold.
        lora: it converts into a LoRA of that rank exactly; 0 where it does not.
        kinds: model kinds that it takes.
        wraps_quantized: it works on a quantised base (no test here then), instead of refusing it.
        unknown_message: what unknown ``target_modules`` raise; None where the config has no use for them.
    """

    name: str
    config: Callable[[str], Any]
    prefix: str
    merges: bool = True
    unmerged_message: str = ""
    lora: int = 0
    kinds: tuple[str, ...] = KINDS
    wraps_quantized: bool = False
    unknown_message: str | None = "."


def _lora(kind: str) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=2, target_modules=["c_attn"] if kind == "gpt2" else "all-linear")


def _lofit(kind: str) -> Any:
    from tunesmith.tuners import LofitConfig

    return LofitConfig(init_std=0.0)


def _iaa(kind: str) -> Any:
    from tunesmith.tuners import IAAConfig

    return IAAConfig(variant="chain", r_host=2, r_aside=2)


def _iaa_sublayer(kind: str) -> Any:
    from tunesmith.tuners import IAAConfig

    return IAAConfig(variant="sublayer", host="lora", r_host=2, r_aside=2, layer_norm=True)


def _mosa(kind: str) -> Any:
    from tunesmith.tuners import MosaConfig

    return MosaConfig(r=2, num_parts=2)


def _mosa_adaptformer(kind: str) -> Any:
    from tunesmith.tuners import MosaConfig

    return MosaConfig(flavour="adapter", r=2, num_parts=2, scale=1.0)


def _mosa_houlsby(kind: str) -> Any:
    from tunesmith.tuners import MosaConfig

    return MosaConfig(flavour="adapter", style="houlsby", r=2, num_parts=2, share="none")


_MOSA: dict[str, Any] = {
    "prefix": "mosa_",
    "wraps_quantized": True,
    "unknown_message": "'q_porj' matches none",
}
_IAA: dict[str, Any] = {
    "prefix": "iaa_",
    "merges": False,
    "unmerged_message": "beside layers that are not linear",
    "wraps_quantized": True,
    "unknown_message": "'q_porj' matches none",
}
ROWS = [
    Row("lora", _lora, "lora_", lora=2, wraps_quantized=True),
    Row("lofit", _lofit, "lofit_", wraps_quantized=True, unknown_message="'q_porj' matches none"),
    Row("iaa-chain", _iaa, **_IAA),
    Row("iaa-sublayer", _iaa_sublayer, **_IAA),
    Row("mosa", _mosa, lora=2, **_MOSA),
    Row(
        "mosa-adaptformer",
        _mosa_adaptformer,
        merges=False,
        unmerged_message="holds a nonlinearity",
        kinds=("llama", "gpt2", "vit", "clip"),
        **_MOSA,
    ),
    Row(
        "mosa-houlsby",
        _mosa_houlsby,
        merges=False,
        unmerged_message="holds a nonlinearity",
        kinds=("llama-tied", "bert"),
        **_MOSA,
    ),
]
# Of the six kinds the first, with grouped queries, runs in the default tier; the others in the slow tier.
QUICK = ("llama",)


def _cases(kinds: tuple[str, ...]) -> list[Any]:
    return [
        pytest.param(row, kind, id=f"{row.name}-{kind}", marks=[] if kind in QUICK else [pytest.mark.slow])
        for row in ROWS
        for kind in row.kinds
        if kind in kinds
    ]


CASES, LANGUAGE = _cases(KINDS), _cases(LANGUAGE_MODELS)
EACH = [pytest.param(row, id=row.name) for row in ROWS]


def wrap(
    row: Row, kind: str, dtype: torch.dtype = torch.float32, seed: int = 1
) -> tuple[Any, dict[str, Any]]:
    from peft import get_peft_model

    model, inputs = build(kind, dtype)
    torch.manual_seed(seed)
    return get_peft_model(model, row.config(kind)).eval(), inputs


def stir(row: Row, model: Any, adapter: str = "default", seed: int = 2) -> None:
    """Put random numbers into an adapter, as training would: most tuners start at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if row.prefix in name and f".{adapter}" in name:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator).to(parameter))


def run(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return output_of(model(**inputs))


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return float((a - b).abs().max()) <= tolerance * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize(("row", "kind"), CASES)
def test_it_starts_as_the_base_model_and_can_be_disabled(row: Row, kind: str) -> None:
    base, inputs = build(kind)
    before = run(base, inputs)
    model, _ = wrap(row, kind)
    assert torch.equal(run(model, inputs), before)
    stir(row, model)
    assert not close(run(model, inputs), before, 1e-4)
    with model.disable_adapter():
        assert torch.equal(run(model, inputs), before)
    assert not close(run(model, inputs), before, 1e-4)


@pytest.mark.parametrize(("row", "kind"), CASES)
def test_only_the_adapter_moves(row: Row, kind: str) -> None:
    model, inputs = wrap(row, kind)
    stir(row, model)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all(row.prefix in name for name in trained)
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1
    )
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # its noise exceeds what few numbers change in 8 steps
    before = float(run(model.eval(), inputs).float().square().mean())
    model.train()
    for _ in range(8):
        optimizer.zero_grad(set_to_none=True)
        loss = output_of(model(**inputs)).float().square().mean()
        loss.backward()
        optimizer.step()
    assert float(run(model.eval(), inputs).float().square().mean()) < before
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)


@pytest.mark.parametrize(("row", "kind"), CASES)
def test_two_adapters_do_not_touch_one_another(row: Row, kind: str) -> None:
    model, inputs = wrap(row, kind)
    base = run(model, inputs)
    stir(row, model)
    first = run(model, inputs)
    model.add_adapter("other", row.config(kind))
    assert torch.equal(run(model, inputs), first)
    model.set_adapter("other")
    assert torch.equal(run(model, inputs), base)
    stir(row, model, "other", seed=3)
    second = run(model, inputs)
    assert not close(second, first, 1e-4)
    model.set_adapter("default")
    assert torch.equal(run(model, inputs), first)
    model.delete_adapter("other")
    assert torch.equal(run(model, inputs), first)
    assert not any(".other" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize(("row", "kind"), CASES)
def test_saved_and_loaded_it_is_equal_to_the_bit(row: Row, kind: str, tmp_path: Path) -> None:
    from peft import PeftModel

    model, inputs = wrap(row, kind)
    stir(row, model)
    expected = run(model, inputs)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file()
    again = PeftModel.from_pretrained(build(kind)[0], str(tmp_path)).eval()
    assert torch.equal(run(again, inputs), expected)
    again.load_adapter(str(tmp_path), adapter_name="other")
    again.set_adapter("other")
    assert torch.equal(run(again, inputs), expected)
    trainable = PeftModel.from_pretrained(build(kind)[0], str(tmp_path), is_trainable=True)
    assert [n for n, p in trainable.named_parameters() if p.requires_grad] == [
        n for n, p in model.named_parameters() if p.requires_grad
    ]


@pytest.mark.parametrize(("row", "kind"), CASES)
def test_merged_it_is_the_same_model(row: Row, kind: str) -> None:
    model, inputs = wrap(row, kind)
    base = run(model, inputs)
    stir(row, model)
    if not row.merges:
        with pytest.raises((TunesmithError, NotImplementedError), match=row.unmerged_message):
            copy.deepcopy(model).merge_and_unload()
        with pytest.raises((TunesmithError, NotImplementedError), match=row.unmerged_message):
            model.merge_adapter()
        return
    expected = run(model, inputs)
    model.merge_adapter()
    assert close(run(model, inputs), expected)
    model.unmerge_adapter()
    assert close(run(model, inputs), expected)
    with model.disable_adapter():
        assert close(run(model, inputs), base)
    merged = model.merge_and_unload(safe_merge=True)
    assert close(run(merged, inputs), expected)
    assert not any(row.prefix in name for name, _ in merged.named_parameters())


@pytest.mark.parametrize(("row", "kind"), LANGUAGE)
def test_merged_written_and_read_it_is_the_same_model(row: Row, kind: str, tmp_path: Path) -> None:
    from tunesmith.merge import merge_adapter

    if not row.merges:
        pytest.skip("does not fold into the base")
    model, _ = wrap(row, kind)
    stir(row, model)
    report = merge_adapter(model, tmp_path / "merged", [[5, 6, 7, 8], [9, 8, 7, 6]])
    scale = max(1.0, report.largest_logit)
    assert report.adapter_vs_merged <= 1e-5 * scale
    assert report.merged_vs_reloaded <= 1e-5 * scale
    assert report.largest_logit > 0.01


@pytest.mark.parametrize(("row", "kind"), CASES)
def test_gradient_checkpointing_changes_nothing(row: Row, kind: str) -> None:
    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        model, inputs = wrap(row, kind)
        stir(row, model)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        torch.manual_seed(5)
        output_of(model(**inputs)).float().square().mean().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain
    assert plain.keys() == checkpointed.keys()
    assert all(close(checkpointed[name], plain[name], 1e-6) for name in plain)


@pytest.mark.parametrize(("row", "kind"), CASES)
def test_a_bfloat16_base_has_float32_adapters(row: Row, kind: str) -> None:
    model, inputs = wrap(row, kind, torch.bfloat16)
    stir(row, model)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.dtype == torch.float32 for p in trained)
    output = output_of(model(**inputs))
    assert output.dtype == torch.bfloat16
    output.float().square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in trained if p.grad is not None)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)


@pytest.mark.parametrize("row", EACH)
def test_one_seed_gives_one_adapter(row: Row) -> None:
    kind = row.kinds[0]
    one, other = (wrap(row, kind, seed=7)[0].state_dict() for _ in range(2))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("row", "kind"), CASES)
def test_it_converts_to_lora_where_it_says_so(row: Row, kind: str) -> None:
    from peft import convert_to_lora, get_peft_model, set_peft_model_state_dict

    if not row.lora:
        pytest.skip("its change is no low-rank change of weights")
    model, inputs = wrap(row, kind)
    stir(row, model)
    config, tensors = convert_to_lora(model, rank=row.lora, progressbar=False)
    lora = get_peft_model(build(kind)[0], config).eval()
    set_peft_model_state_dict(lora, tensors)
    assert close(run(lora, inputs), run(model, inputs), 1e-4)


@pytest.mark.parametrize("row", EACH)
def test_target_modules_that_match_nothing_are_refused(row: Row) -> None:
    from peft import get_peft_model

    if row.unknown_message is None:
        pytest.skip("takes no target modules")
    config = row.config(row.kinds[0])
    config.target_modules = {"q_porj"}
    with pytest.raises((TunesmithError, ValueError), match=row.unknown_message):
        get_peft_model(build(row.kinds[0])[0], config)


@pytest.mark.parametrize("row", EACH)
def test_a_quantised_base_is_refused_with_the_reason(row: Row) -> None:
    from peft import get_peft_model

    from tunesmith.tuners._base import is_linear

    if row.wraps_quantized:
        pytest.skip("works on quantised bases")
    model, _ = build(row.kinds[0])
    for module in model.modules():
        if is_linear(module):
            module.weight = torch.nn.Parameter(torch.zeros_like(module.weight, dtype=torch.int8), False)
    with pytest.raises(ParameterError, match="in floating point, because"):
        get_peft_model(model, row.config(row.kinds[0]))


@pytest.mark.parametrize("row", EACH)
def test_our_trainer_trains_saves_and_reads_it(
    row: Row, tiny_model_dir: str, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    from datasets import Dataset

    from tunesmith.engine.models import load_model
    from tunesmith.trainers import load_tuned, save_tuned, train_sft

    rows = [
        {"input_ids": list(range(3, 12 + i)), "labels": [-100] * 4 + list(range(7, 12 + i))} for i in range(4)
    ]
    result = train_sft(
        load_model(tiny_model_dir, dtype="float32"),
        tiny_tokenizer,
        Dataset.from_list(rows),
        output_dir=tmp_path / "run",
        tuner=row.config("llama"),
        epochs=2,
        batch_size=2,
        learning_rate=1e-2,
    )
    assert result.steps == 4
    inputs = {"input_ids": torch.tensor([[3, 4, 5, 6, 7]])}
    expected = run(result.model, inputs)
    save_tuned(result.model, tiny_tokenizer, tmp_path / "adapter")
    again = load_tuned(tmp_path / "adapter", lambda: load_model(tiny_model_dir, dtype="float32"))
    assert torch.equal(run(again, inputs), expected)
