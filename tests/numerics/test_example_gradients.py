"""Per-example gradients in batches equal one backward pass per example, whatever the model is made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.core.events import EventLog
from tunesmith.numerics import ExampleGradients, per_example_grad_norms, projected_gradients

VOCAB = 50


def rows(n: int = 5, seed: int = 0) -> list[dict[str, list[int]]]:
    """Rows of 5 to 14 tokens, prompts of 2 to 4; one without a trained token."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        ids = rng.integers(0, VOCAB, rng.integers(5, 15)).tolist()
        cut = len(ids) if i == 3 else int(rng.integers(2, 5))
        found.append({"input_ids": ids, "labels": [-100] * cut + ids[cut:]})
    return found


def llama(tied: bool = True, **config):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    settings = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=VOCAB, tie_word_embeddings=tied, bos_token_id=None, **{**settings, **config})
    )


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=2, n_positions=32))


def gemma():
    from transformers import Gemma2Config, Gemma2ForCausalLM  # caps its logits and scales its embeddings

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=VOCAB, num_key_value_heads=1, head_dim=8, final_logit_softcapping=2.0, **sizes
        )
    )


def peft(kind: str, **parameters):
    import peft as library

    model = library.get_peft_model(llama(), getattr(library, kind)(task_type="CAUSAL_LM", **parameters))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # LoRA's B starts at 0, where A has no gradient
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def shared():
    model = llama(num_hidden_layers=3)
    model.model.layers[2] = model.model.layers[0]  # runs twice
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[
        0
    ].mlp.gate_proj.weight  # a tie within layers
    return model


MODELS = {
    "llama, tied": llama,
    "llama, untied, biased": lambda: llama(False, attention_bias=True, pad_token_id=3),
    "gpt2": gpt2,
    "gemma2": gemma,
    "shared module": shared,
    "lora": lambda: peft("LoraConfig", r=3, target_modules="all-linear"),
    "lora on the output layer": lambda: peft("LoraConfig", r=3, target_modules=["v_proj", "lm_head"]),
    "dora": lambda: peft("LoraConfig", r=3, use_dora=True, target_modules=["v_proj"]),
    "ia3": lambda: peft(
        "IA3Config", target_modules=["v_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_batches_equal_one_backward_pass_each(name):
    model, data = MODELS[name](), rows()
    for function, options in ((projected_gradients, {"dim": 24}), (per_example_grad_norms, {})):
        loop = function(model, data, method="loop", **options)
        batched = function(model, data, method="batched", batch_size=4, **options)
        scale = np.abs(loop).max()
        assert scale > 0
        assert np.abs(batched - loop).max() < 1e-5 * max(scale, 1)
        assert not batched[3].any()  # nothing is trained in this row


def test_norms_of_long_rows_are_formed_explicitly():
    model = llama(hidden_size=4, intermediate_size=4)  # 14 tokens x (4 + 4) numbers exceed the 4 x 4 gradient
    wanted = {"params": r"proj"}
    loop = per_example_grad_norms(model, rows(), method="loop", **wanted)
    np.testing.assert_allclose(
        per_example_grad_norms(model, rows(), method="batched", **wanted), loop, rtol=1e-5
    )


def test_against_autograd_by_hand():
    """One token is predicted: the norm is that of torch's own gradient, the sketch that of A G B^T."""
    model = llama(False)
    row = {"input_ids": [1, 2, 3], "labels": [-100, -100, 3]}
    weight = model.model.layers[1].self_attn.v_proj.weight
    loss = cross_entropy(model(input_ids=torch.tensor([[1, 2, 3]])).logits[0, 1:2], torch.tensor([3]))
    (gradient,) = torch.autograd.grad(loss, [weight])
    only = {"params": r"layers\.1\..*v_proj"}
    assert per_example_grad_norms(model, [row], **only)[0] == pytest.approx(gradient.norm().item(), rel=1e-5)
    gradients = ExampleGradients(model, **only)
    z = gradients.project([row], dim=12, seed=5)[0]
    (name,) = gradients.parameters
    a, b = gradients._sketch(12, 5)._pair(name)
    assert (a.signs.shape, b.signs.shape) == ((3, 16), (4, 16))
    np.testing.assert_allclose(z, (a.signs @ gradient @ b.signs.T).flatten().numpy() / 12**0.5, atol=1e-6)


def test_the_mean_is_over_trained_tokens_and_the_sum_is_its_multiple():
    model, data = llama(), rows(3)
    counts = np.array([sum(label != -100 for label in row["labels"]) for row in data])
    mean = projected_gradients(model, data, dim=16)
    total = projected_gradients(model, data, dim=16, reduction="sum")
    np.testing.assert_allclose(total, mean * counts[:, None], rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["llama, tied", "gpt2"])
def test_a_row_does_not_depend_on_its_batch(name):
    model, data = MODELS[name](), rows()
    long = {"input_ids": list(range(30)), "labels": list(range(30))}
    alone = projected_gradients(model, data, dim=16, batch_size=1)
    padded = projected_gradients(model, [*data, long], dim=16, batch_size=6)[: len(data)]
    np.testing.assert_allclose(padded, alone, atol=1e-5)


@pytest.mark.parametrize("name", ["llama, tied", "gpt2", "lora"])
def test_bfloat16(name):
    exact, model = MODELS[name](), MODELS[name]().to(torch.bfloat16)
    data = rows(8)
    reference = projected_gradients(exact, data, dim=64)
    ours = projected_gradients(model, data, dim=64)
    loop = projected_gradients(model, data, dim=64, method="loop")
    size = np.linalg.norm(reference)
    # bfloat16 has 8 bits: both ways stand equally near to the exact gradients, 1 % or so
    assert np.linalg.norm(ours - reference) < 0.03 * size
    assert np.linalg.norm(loop - reference) < 0.03 * size
    norms = per_example_grad_norms(model, data)
    np.testing.assert_allclose(norms, per_example_grad_norms(exact, data), rtol=0.05)


@pytest.mark.slow
def test_squared_lengths_are_kept_within_the_stated_variance():
    model, data = llama(num_hidden_layers=1), rows(2)
    gradients = ExampleGradients(model, params=r"proj", method="batched")
    norms = gradients.norms(data)
    draws = np.stack([(gradients.project(data, dim=64, seed=s) ** 2).sum(1) for s in range(200)]) / norms**2
    bound = 2 / 8 + 2 / 8 + 4 / 64  # of one matrix; seven share the length here
    assert np.abs(draws.mean(axis=0) - 1).max() < 5 * (bound / 200) ** 0.5
    assert (draws.var(axis=0) < bound).all()


def test_the_model_is_left_as_it_was():
    model = peft("LoraConfig", r=2, target_modules=["v_proj"]).train()
    model.get_base_model().model.norm.eval()
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    modes = [m.training for m in model.modules()]
    for method in ("batched", "loop"):
        projected_gradients(model, rows(), dim=4, method=method, params="proj")
    assert flags == {name: p.requires_grad for name, p in model.named_parameters()}
    assert modes == [m.training for m in model.modules()]
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_only_the_part_above_is_differentiated():
    model = llama(num_hidden_layers=4)
    touched = []
    model.model.layers[1].register_full_backward_hook(lambda *_: touched.append(1))
    model.model.layers[3].register_full_backward_hook(lambda *_: touched.append(3))
    projected_gradients(model, rows(), dim=4, params=r"layers\.2\..*v_proj", method="batched")
    assert 3 in touched
    assert 1 not in touched


def test_seed_names_and_predicates():
    model, data = llama(), rows(2)
    z = projected_gradients(model, data, dim=16, params=r"v_proj")
    assert np.array_equal(z, projected_gradients(model, data, dim=16, params=lambda name: "v_proj" in name))
    assert not np.allclose(z, projected_gradients(model, data, dim=16, params=r"v_proj", seed=1))
    assert z.dtype == np.float32
    assert projected_gradients(model, [], dim=16).shape == (0, 16)


class Outside(nn.Module):
    """Uses a weight of a module without calling the module."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return nn.functional.linear(x, self.inner.weight)


def test_what_batches_cannot_see_is_done_one_by_one():
    model = llama()
    attention = model.model.layers[0].self_attn
    attention.o_proj = Outside(attention.o_proj)
    events = []
    log = EventLog(listeners=[events.append])
    z = projected_gradients(model, rows(), dim=8, params=r"layers\.0\..*o_proj", log=log)
    assert np.array_equal(z, projected_gradients(model, rows(), dim=8, params=r"0\..*o_proj", method="loop"))
    assert [e["message"] for e in events if e["kind"] == "warning"] == [
        "Gradients are computed by one backward pass per row, since for LlamaForCausalLM they cannot be had in "
        "batches: the uses of model.layers.0.self_attn.o_proj.inner.weight are not seen."
    ]


def test_prompt_tuning_is_done_one_by_one():
    model = peft("PromptTuningConfig", num_virtual_tokens=3)
    gradients = ExampleGradients(model)
    norms = gradients.norms(rows())
    assert gradients.method == "loop"
    assert (norms > 0).tolist() == [True, True, True, False, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"reduction": "max"},
            r"'reduction' parameter of ExampleGradients must be one of 'mean', 'sum'\. Got 'max'",
        ),
        ({"method": "fast"}, r"'method' parameter .* must be one of 'auto', 'batched', 'loop'\. Got 'fast'"),
        ({"batch_size": 0}, r"'batch_size' parameter .* must be an int >= 1\. Got 0"),
        ({"dim": 0}, r"'dim' parameter .* must be an int >= 1\. Got 0"),
        (
            {"params": "nothing"},
            r"'params' parameter .* must be with a match among the model's .* Got 'nothing'",
        ),
        (
            {"params": "("},
            r"'params' parameter .* must be a regular expression, a predicate or None\. Got '\('",
        ),
    ],
)
def test_parameters_are_checked(options, message):
    with pytest.raises(ParameterError, match=message):
        projected_gradients(llama(num_hidden_layers=1), rows(1), **options)


def test_nothing_is_trained():
    with pytest.raises(ParameterError, match=r"must be given: no parameter is trained\. Got None"):
        per_example_grad_norms(llama().requires_grad_(False), rows(1))


def test_quantised_weights_are_refused():
    model = llama()
    model.codes = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ParameterError, match=r"must be without codes, which is quantised\. Got 'codes'"):
        per_example_grad_norms(model, rows(1), params="codes")


def test_bad_rows():
    model = llama(False)
    with pytest.raises(
        DataError, match=r"row 1: 'input_ids' and 'labels' must be lists of one length. Got 2 and 1"
    ):
        per_example_grad_norms(model, [*rows(1), {"input_ids": [1, 2], "labels": [1]}])
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = torch.inf
    data = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}, {"input_ids": [7, 2, 3], "labels": [7, 2, 3]}]
    with pytest.raises(DataError, match=r"row 1: the gradient of its loss is not finite\."):
        per_example_grad_norms(model, data, method="batched")
