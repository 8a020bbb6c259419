"""IAA inside real models: checkpointing, threads, copies, captured states, other libraries' ways of running blocks."""

from __future__ import annotations

import copy
import functools
import io
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from tunesmith.tuners import IAAConfig

WIRED = ("layer", "sublayer", "chain")
Tiny = Callable[..., tuple[Any, dict[str, Any]]]


def wrapped(
    tiny: Tiny, kind: str, variant: str, host: str = "adapter", **more: Any
) -> tuple[Any, dict[str, Any]]:
    """A model whose IAA is drawn at random, so that every branch shows in the output."""
    model, inputs = tiny(kind)
    torch.manual_seed(0)
    more = {"r_host": 3, "r_aside": 4, "init_weights": False, "init_scale": 0.2, **more}
    return get_peft_model(model, IAAConfig(variant=variant, host=host, **more)).eval(), inputs


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "vit", "clip"])
@pytest.mark.parametrize("variant", WIRED)
def test_both_kinds_of_gradient_checkpointing_change_nothing(
    tiny_transformer: Tiny, output_of: Any, kind: str, variant: str
) -> None:
    def gradients(reentrant: bool | None) -> dict[str, Any]:
        model, inputs = wrapped(tiny_transformer, kind, variant, "lora" if kind == "bert" else "adapter")
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if reentrant is not None:
            model.get_base_model().gradient_checkpointing_enable({"use_reentrant": reentrant})
        # Two passes before the backward one, as query and document of a bi-encoder.
        other = {k: v.flip(0) for k, v in inputs.items()}
        loss = output_of(model(**inputs)).square().sum() + (3 * output_of(model(**other))).sum()
        loss.backward()
        return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}

    plain = gradients(None)
    assert all(g is not None and g.any() for g in plain.values())
    for reentrant in (False, True):
        for name, gradient in gradients(reentrant).items():
            torch.testing.assert_close(gradient, plain[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("variant", WIRED)
def test_captured_hidden_states_hold_the_asides(tiny_transformer: Tiny, variant: str) -> None:
    model, inputs = wrapped(tiny_transformer, "bert", variant)
    seen = []
    for block in model.base_model.model.bert.encoder.layer:
        block.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    states = model(**inputs, output_hidden_states=True).hidden_states
    assert len(states) == 3
    assert torch.equal(states[1], seen[0][1])
    assert torch.equal(states[1], seen[1][0])
    assert torch.equal(states[2], seen[1][1])
    with model.disable_adapter():
        assert not torch.equal(model(**inputs, output_hidden_states=True).hidden_states[1], states[1])


@pytest.mark.parametrize("variant", WIRED)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_token_by_token_gives_what_the_whole_text_gives(
    tiny_transformer: Tiny, output_of: Any, kind: str, variant: str
) -> None:
    model, inputs = wrapped(tiny_transformer, kind, variant)
    ids = inputs["input_ids"]
    whole = output_of(model(input_ids=ids))
    cache, steps = None, []
    for t in range(ids.shape[1]):
        result = model(input_ids=ids[:, t : t + 1], past_key_values=cache, use_cache=True)
        cache = result.past_key_values
        steps.append(result.logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", WIRED)
def test_copies_and_pickles_are_whole_and_of_their_own(
    tiny_transformer: Tiny, output_of: Any, variant: str
) -> None:
    model, inputs = wrapped(tiny_transformer, "llama", variant)
    expected = output_of(model(**inputs))
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert torch.equal(output_of(other(**inputs)), expected)
        for name, p in other.named_parameters():
            if ".iaa_up" in name:
                p.data.zero_()
        assert not torch.equal(output_of(other(**inputs)), expected)
        assert torch.equal(output_of(model(**inputs)), expected)
        other.unload()
    assert torch.equal(output_of(model(**inputs)), expected)


def test_a_pass_that_failed_leaves_nothing_behind(tiny_transformer: Tiny, output_of: Any) -> None:
    model, inputs = wrapped(tiny_transformer, "llama", "chain")
    expected = output_of(model(**inputs))
    last = model.base_model.model.model.layers[1].mlp

    def fail(*_: Any) -> None:
        raise RuntimeError("on purpose")

    handle = last.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        model(**{k: v[:1] for k, v in inputs.items()})
    handle.remove()
    assert torch.equal(output_of(model(**inputs)), expected)


@pytest.mark.parametrize("variant", ["chain", "sublayer"])
def test_threads_do_not_share_a_pass(tiny_transformer: Tiny, output_of: Any, variant: str) -> None:
    model, inputs = wrapped(tiny_transformer, "bert", variant)
    batches = [{k: v[:, : 3 + i] for k, v in inputs.items()} for i in range(4)]
    expected = [output_of(model(**batch)).detach() for batch in batches]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(10):
            # Not to the bit: in another thread a product may be split, and rounded, otherwise.
            if not torch.allclose(output_of(model(**batches[i])), expected[i], rtol=1e-5, atol=1e-6):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["chain", "sublayer"])
def test_a_compiled_model_is_the_same_at_each_call(
    tiny_transformer: Tiny, output_of: Any, variant: str
) -> None:
    model, inputs = wrapped(tiny_transformer, "bert", variant)
    other = {k: v.flip(0) for k, v in inputs.items()}
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for batch in (inputs, other, inputs):
        torch.testing.assert_close(output_of(compiled(**batch)), output_of(model(**batch)))


def test_several_adapters_of_several_wirings_add_up(tiny_transformer: Tiny, output_of: Any) -> None:
    model, inputs = wrapped(tiny_transformer, "llama", "chain", "none")
    outputs = {"default": output_of(model(**inputs))}
    for variant in ("layer", "sublayer", "none"):
        more = {"init_weights": False, "init_scale": 0.2, "r_host": 3, "r_aside": 4}
        model.add_adapter(variant, IAAConfig(variant=variant, **more))
        assert torch.equal(output_of(model(**inputs)), outputs["default"])
        model.set_adapter(variant)
        outputs[variant] = output_of(model(**inputs))
        model.set_adapter("default")
    assert len({float(o.sum()) for o in outputs.values()}) == 4
    model.base_model.set_adapter(["default", "layer"])
    both = output_of(model(**inputs))
    assert all(not torch.equal(both, o) for o in outputs.values())
    status = {s.name: s.available_adapters for s in model.get_layer_status()}
    assert status["model.model.layers.0.iaa"] == ["default", "layer", "sublayer"]
    for variant in ("layer", "none", "sublayer"):
        model.delete_adapter(variant)
    assert torch.equal(output_of(model(**inputs)), outputs["default"])


def test_blocks_and_hosts_can_be_chosen(tiny_transformer: Tiny) -> None:
    def places(kind: str, **more: Any) -> set[str]:
        model, _ = wrapped(
            tiny_transformer, kind, more.pop("variant", "layer"), more.pop("host", "adapter"), **more
        )
        names = [n for n, _ in model.named_parameters() if ".iaa_" in n]
        return {n.split(".iaa.")[0].removeprefix("base_model.model.") for n in names}

    assert places("llama", layers_to_transform=[1]) == {"model.layers.1", "model.layers.1.mlp.down_proj"}
    assert places("llama", layers_to_transform=0, target_modules=["o_proj", "down_proj"]) == {
        "model.layers.0", "model.layers.0.self_attn.o_proj", "model.layers.0.mlp.down_proj"
    }  # fmt: skip
    assert places("llama", exclude_modules=["layers.1"], target_modules=r".*o_proj") == {
        "model.layers.0", "model.layers.0.self_attn.o_proj"
    }  # fmt: skip
    assert places("gpt2", host="lora", target_modules="all-linear", layers_to_transform=[0]) == {
        "transformer.h.0", *(f"transformer.h.0.{m}" for m in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"))
    }  # fmt: skip
    assert places("clip", host="none", layers_to_transform=[1]) == {
        "text_model.encoder.layers.1", "vision_model.encoder.layers.1"
    }  # fmt: skip
    assert places("bert", variant="sublayer", layers_to_transform=[0]) == {
        f"bert.encoder.layer.0{m}" for m in ("", ".attention.output.dense", ".output.dense")
    }


def test_a_pass_lets_its_tensors_go(tiny_transformer: Tiny) -> None:
    model, inputs = wrapped(tiny_transformer, "llama", "chain", layers_to_transform=[0])
    model.add_adapter("other", IAAConfig())
    blocks = model.base_model.model.model.layers
    assert blocks[0].iaa.stream is blocks[1].iaa.stream
    assert blocks[0].iaa.stream.blocks == {0, 1}
    model(**inputs)
    assert blocks[0].iaa.stream.now().c == {}


def test_transformers_own_methods_add_save_and_load_it(
    tiny_transformer: Tiny, output_of: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    # transformers may ask for a PEFT that is newer than the newest; what it does with it is what is tested.
    monkeypatch.setattr("transformers.integrations.peft.check_peft_version", lambda **_: None)
    model, inputs = tiny_transformer("bert")
    base = output_of(model(**inputs))
    model.add_adapter(IAAConfig(variant="chain", r_host=3, r_aside=4, init_weights=False))
    expected = output_of(model(**inputs))
    assert not torch.equal(expected, base)
    model.save_pretrained(tmp_path)
    again, _ = tiny_transformer("bert")
    again.load_adapter(str(tmp_path))
    assert torch.equal(output_of(again(**inputs)), expected)
    again.disable_adapters()
    assert torch.equal(output_of(again(**inputs)), base)


def test_a_second_adapter_built_on_no_device_is_loaded(
    tiny_transformer: Tiny, output_of: Any, tmp_path: Path
) -> None:
    targets = {"target_modules": ["o_proj", "down_proj"], "exclude_modules": ["layers.0.self_attn.o_proj"]}
    model, inputs = wrapped(tiny_transformer, "llama", "chain", layer_norm=True, **targets)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_transformer("llama")[0], str(tmp_path), low_cpu_mem_usage=True)
    assert torch.equal(output_of(again.eval()(**inputs)), output_of(model(**inputs)))


class EightBit(nn.Linear):
    """A quantiser's layer: integers and a scale, no floating-point weight."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False)
        self.scale = layer.weight.detach().abs().max() / 127
        self.weight = nn.Parameter(
            (layer.weight.detach() / self.scale).round().to(torch.int8), requires_grad=False
        )

    def forward(self, x: Any) -> Any:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale)


@pytest.mark.parametrize("host", ["adapter", "lora"])
def test_a_quantised_base_is_read_and_never_written(
    tiny_transformer: Tiny, output_of: Any, host: str
) -> None:
    model, inputs = tiny_transformer("llama")
    for block in model.model.layers:
        block.mlp.down_proj = EightBit(block.mlp.down_proj)
        block.self_attn.o_proj = EightBit(block.self_attn.o_proj)
    base = output_of(model(**inputs))
    model = get_peft_model(model, IAAConfig(variant="chain", host=host, r_host=3, r_aside=4))
    assert torch.equal(output_of(model(**inputs)), base)
    output_of(model(**inputs)).square().sum().backward()
    ups = [p for n, p in model.named_parameters() if ".iaa_up" in n]
    assert all(p.dtype == torch.float32 and p.grad.any() for p in ups if p.dim() == 2)


@pytest.mark.parametrize("variant", WIRED)
def test_accelerates_hooks_on_blocks_do_not_pass_the_asides_by(
    tiny_transformer: Tiny, output_of: Any, variant: str
) -> None:
    from accelerate.hooks import ModelHook, add_hook_to_module

    expected = output_of(wrapped(tiny_transformer, "llama", variant)[0](**tiny_transformer("llama")[1]))
    model, inputs = tiny_transformer("llama")
    base = output_of(model(**inputs))
    for block in model.model.layers:
        add_hook_to_module(block, ModelHook())
    torch.manual_seed(0)
    config = IAAConfig(variant=variant, r_host=3, r_aside=4, init_weights=False, init_scale=0.2)
    model = get_peft_model(model, config).eval()
    assert torch.equal(output_of(model(**inputs)), expected)
    assert torch.equal(output_of(model.unload()(**inputs)), base)


def test_a_bfloat16_chain_keeps_its_state_in_float32(tiny_transformer: Tiny) -> None:
    model, inputs = tiny_transformer("llama", torch.bfloat16)
    model = get_peft_model(model, IAAConfig(variant="chain", r_host=3, r_aside=4)).eval()
    block = model.base_model.model.model.layers[1]
    seen: list[Any] = []
    block.register_forward_pre_hook(lambda _, args: seen.extend(a.dtype for a in args[:2]))
    assert model(**inputs).logits.dtype == torch.bfloat16
    assert seen == [torch.bfloat16, torch.float32]
    assert all(p.dtype == torch.float32 for n, p in model.named_parameters() if ".iaa_" in n)


class Tuples(nn.Module):
    """A block of an older style: keyword input, a tuple out; no checkpointing of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.out = nn.Linear(6, 9), nn.Linear(9, 6)

    def forward(self, hidden_states: Any, scale: float = 1.0) -> tuple[Any, str]:
        return hidden_states + scale * self.out(self.mix(hidden_states).relu()), "weights"


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Tuples() for _ in range(3))

    def forward(self, x: Any) -> Any:
        for block in self.blocks:
            x, word = block(scale=0.5, hidden_states=x)
            assert word == "weights"
        return x


@pytest.mark.parametrize("variant", ["layer", "chain", "none"])
def test_unusual_blocks_are_found_by_the_name_of_their_list(variant: str) -> None:
    torch.manual_seed(0)
    model, x = Encoder(), torch.randn(2, 5, 6)
    base = model(x)
    config = IAAConfig(variant=variant, layers_pattern="blocks", init_weights=False, r_host=2, r_aside=2)
    tuned = get_peft_model(model, config)
    names = {n for n, p in tuned.named_parameters() if p.requires_grad}
    assert all(".out.iaa." in n or n.split(".")[-5].isdigit() for n in names)
    assert len(names) == (12 if variant == "none" else 24)
    assert not torch.equal(tuned(x), base)
    tuned(x).sum().backward()
    assert all(p.grad.any() for n, p in tuned.named_parameters() if n in names)
    assert torch.equal(tuned.unload()(x), base)


class Inside(Tuples):
    """A block as in transformers up to 5.22: its ``__call__`` checkpoints hooks and forward together."""

    reentrant: bool | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.reentrant is None:
            return super().__call__(*args, **kwargs)
        whole = functools.partial(super().__call__, **kwargs)
        return torch.utils.checkpoint.checkpoint(whole, *args, use_reentrant=self.reentrant)


@pytest.mark.parametrize("variant", ["layer", "chain"])
def test_blocks_that_checkpoint_their_hooks_too(monkeypatch: Any, variant: str) -> None:
    def gradients(reentrant: bool | None) -> dict[str, Any]:
        monkeypatch.setattr(Inside, "reentrant", reentrant)
        torch.manual_seed(0)
        model, x = Encoder(), torch.randn(2, 5, 6)
        model.blocks = nn.ModuleList(Inside() for _ in range(3))
        for block in model.blocks:
            block.gradient_checkpointing = reentrant is not None
        more: dict[str, Any] = {"layers_pattern": "blocks", "init_weights": False, "init_scale": 0.3}
        tuned = get_peft_model(model, IAAConfig(variant=variant, r_host=2, r_aside=2, **more))
        (tuned(x).square().sum() + tuned(2 * x).sum()).backward()
        return {n: p.grad for n, p in tuned.named_parameters() if p.requires_grad}

    plain = gradients(None)
    assert all(g.any() for g in plain.values())
    for reentrant in (False, True):
        for name, gradient in gradients(reentrant).items():
            torch.testing.assert_close(gradient, plain[name], rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("variant", ["layer", "chain"])
def test_mpnet_needs_the_name_of_its_list_alone(output_of: Any, variant: str) -> None:
    from transformers import MPNetConfig, MPNetModel

    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = MPNetModel(MPNetConfig(vocab_size=30, **small)).eval()
    inputs = {"input_ids": torch.tensor([[3, 4, 5, 1]]), "attention_mask": torch.tensor([[1, 1, 1, 0]])}
    base = output_of(model(**inputs))
    config = IAAConfig(variant=variant, layers_pattern="layer", r_host=2, r_aside=2, init_weights=False)
    tuned = get_peft_model(model, config)
    hosts = {
        n.split(".iaa.")[0] for n, p in tuned.named_parameters() if p.requires_grad and ".output.dense" in n
    }
    assert hosts == {f"base_model.model.encoder.layer.{i}.output.dense" for i in range(2)}
    assert not torch.equal(output_of(tuned(**inputs)), base)
    assert torch.equal(output_of(tuned.unload()(**inputs)), base)
