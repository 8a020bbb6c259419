"""SparseDelta: composition, bit-exact reverts, files, and refusals."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
import torch
from _sparse import Bag, delta, same

from _composable_sft import CASES, tensors
from tunesmith.tuners.sparse import SparseDelta, applied_to


def test_two_deltas_add_up_in_either_order():
    task, language = delta({0: 0.5}, (3,)), delta({0: -0.2, 2: 1.0}, (3,))
    expected = torch.tensor([1.3, 2.0, 4.0])
    for order in (
        (task, language),
        (language, task),
        (task + language,),
        (language + task,),
        (sum((task, language)),),
    ):
        model = Bag({"w": torch.tensor([1.0, 2.0, 3.0])})
        for part in order:
            part.apply(model)
        assert torch.allclose(model.w, expected, rtol=0, atol=2**-22 * 4)
        assert model.w[1] == 2.0


def test_arithmetic():
    a, b = delta({0: 0.5, 3: 1.0}, (2, 2)), delta({0: 0.25, 1: -1.0}, (2, 2))
    assert (a + b).dense("w").tolist() == [[0.75, -1.0], [0.0, 1.0]]
    assert (a - b).dense("w").tolist() == [[0.25, 1.0], [0.0, 1.0]]
    assert (2 * a).dense("w").tolist() == [[1.0, 0.0], [0.0, 2.0]] == (a * 2.0).dense("w").tolist()
    assert (-a).dense("w").tolist() == [[-0.5, 0.0], [0.0, -1.0]]
    assert (a + b).diffs["w"][0].tolist() == [0, 1, 3]
    assert a.overlap(b) == 1
    assert a.nnz == 2
    assert a.density == 0.5
    assert a == delta({0: 0.5, 3: 1.0}, (2, 2))
    assert a != b


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_apply_and_revert_are_bit_exact_in_any_order(dtype):
    torch.manual_seed(0)
    model = Bag(
        {"w": torch.randn(6, 5).to(dtype), "s": torch.tensor(0.3).to(dtype), "b": torch.randn(4).to(dtype)}
    )
    parts = []
    for seed in range(3):
        torch.manual_seed(seed + 1)
        tuned = {
            n: t + torch.randn_like(t) * (torch.rand_like(t.float()) < 0.5) for n, t in model.copy().items()
        }
        parts.append(SparseDelta.from_models(model, tuned))
    start = model.copy()
    for part in parts:
        part.apply(model)
    assert [d is p for d, p in zip(applied_to(model), parts, strict=True)] == [True] * 3
    parts[1].revert(model)  # from the middle: what is left is what the others alone give
    other = Bag(start)
    parts[0].apply(other)
    parts[2].apply(other)
    assert same(model.copy(), other.copy())
    parts[0].revert(model)
    parts[2].revert(model)
    assert same(model.copy(), start)
    with parts[0].applied(model) as inside:
        assert inside is model
        assert not same(model.copy(), start)
    assert same(model.copy(), start)


def test_arithmetic_revert_is_within_one_and_a_half_units_in_the_last_place():
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(100_000, generator=generator) * 10 ** torch.randint(
        -3, 4, (100_000,), generator=generator
    )
    phi = torch.randn(100_000, generator=generator) * 10 ** torch.randint(
        -3, 4, (100_000,), generator=generator
    )
    model = Bag({"w": theta})
    change = SparseDelta({"w": (torch.arange(100_000), phi)}, {"w": (100_000,)})
    change.apply(model)
    (-change).apply(model)
    assert ((model.w - theta).abs() <= 2**-22 * torch.maximum(theta.abs(), phi.abs())).all()


def test_the_authors_composition():
    """Golden: their apply with and without head; their revert leaves the head, ours puts it back."""
    case = CASES["apply_compose_revert"]
    given = {name: tensors(group) for name, group in case["inputs"].items()}
    zeros = {n: torch.zeros_like(t) for n, t in given["task_diff"].items()}
    model = Bag(given["theta0"])

    def make(part):
        made = SparseDelta.from_models(zeros, given[f"{part}_diff"])
        return SparseDelta(made.diffs, made.shapes, given[f"{part}_abs"])

    task, language = make("task"), make("language")
    task.apply(model)
    expected = {name: tensors(group) for name, group in case["outputs"].items()}
    for name, value in expected["after_task"].items():
        assert torch.allclose(model.get_parameter(name), value, atol=1e-6)
    language.apply(model, with_abs=False)
    for name, value in expected["after_task_and_language"].items():
        assert torch.allclose(model.get_parameter(name), value, atol=1e-6)
    task.revert(model)
    for name in ("a", "b"):
        assert torch.allclose(model.get_parameter(name), expected["after_reverting_task"][name], atol=1e-6)
    assert torch.equal(model.head, given["theta0"]["head"])


def test_small_differences_are_dropped():
    case = CASES["zero_threshold"]
    theta0, theta = tensors(case["inputs"]["theta0"]), tensors(case["inputs"]["theta"])
    for key, threshold in (("eps", "diffs"), ("eps_second", "diffs_eps_second")):
        found = SparseDelta.from_models(theta0, theta, threshold=case["params"][key])
        for name, expected in tensors(case["outputs"][threshold]).items():
            assert torch.equal(found.dense(name), expected)
    found = SparseDelta.from_models(theta0, theta)
    assert {n: len(i) for n, (i, _) in found.diffs.items()} == case["outputs"]["stored_entries"]
    assert SparseDelta.from_models(theta0, theta, k=1).nnz == 1


def test_files_keep_everything(tmp_path):
    torch.manual_seed(0)
    base = {
        "zero": torch.tensor(1.0),
        "one": torch.randn(5),
        "two": torch.randn(3, 4),
        "four": torch.randn(2, 3, 2, 2),
    }
    tuned = {n: t + 1 if n != "one" else t for n, t in base.items()}
    tuned["head"] = torch.randn(2, 2)
    made = SparseDelta.from_models(base, tuned, dense=["head"], info={"num_params": 3})
    path = made.save_pretrained(tmp_path / "delta")
    assert path == tmp_path / "delta" / "sparse_delta.safetensors"
    read = SparseDelta.from_pretrained(tmp_path / "delta")
    assert read == made
    assert read.info == made.info
    assert read.diffs["two"][0].dtype == torch.int64
    assert read.diffs["two"][0].tolist() == list(range(12))
    empty = SparseDelta({}, {})
    empty.save_pretrained(tmp_path / "empty")
    assert SparseDelta.from_pretrained(tmp_path / "empty" / "sparse_delta.safetensors") == empty
    model = Bag(base)
    read.apply(model, with_abs=False)
    assert torch.equal(model.two, base["two"] + 1)


@pytest.mark.parametrize(
    "name", ["file_encoding_3x4", "file_encoding_5", "file_encoding_2x3x2", "file_encoding_empty"]
)
@pytest.mark.parametrize(("body", "head"), [("diffs", "abs"), ("body", "head")])
def test_the_authors_files(name, body, head, tmp_path):
    """Golden: first dimension fastest; their own decoder mixes up three dimensions."""
    case = CASES[name]
    wanted = tensors(case["inputs"])["delta"]
    out = case["outputs"]
    values = torch.tensor(out["values"]["data"]) if "values" in out else torch.zeros(0)
    steps = np.array(out["index_steps"], dtype=np.int32)
    encoded = {"size": wanted.shape, "index_steps": steps, "values": values}
    torch.save({body: {"w": encoded}, head: {"h": torch.ones(2)}}, tmp_path / "pytorch_diff.bin")
    read = SparseDelta.from_official(tmp_path)
    assert torch.equal(read.dense("w"), wanted)
    assert torch.equal(read.abs["h"], torch.ones(2))
    torch.save({body: {"w": wanted.to_sparse()}}, tmp_path / "pytorch_diff.bin")
    assert torch.equal(SparseDelta.from_official(tmp_path / "pytorch_diff.bin").dense("w"), wanted)


def test_files_written_with_numpy_1(tmp_path):
    steps = np.array([1, 2], dtype=np.int32)
    encoded = {"size": torch.Size([4]), "index_steps": steps, "values": torch.tensor([5.0, 6.0])}
    torch.save({"diffs": {"w": encoded}}, tmp_path / "new.bin")
    with zipfile.ZipFile(tmp_path / "new.bin") as new, zipfile.ZipFile(tmp_path / "old.bin", "w") as old:
        for item in new.infolist():
            old.writestr(item, new.read(item).replace(b"cnumpy._core.multiarray", b"cnumpy.core.multiarray"))
    assert SparseDelta.from_official(tmp_path / "old.bin").dense("w").tolist() == [0.0, 5.0, 0.0, 6.0]


@pytest.mark.parametrize("kind", ["llama-tied", "llama", "gpt2", "bert", "vit", "clip"])
def test_real_architectures(kind, tiny_transformer, output_of, tmp_path):
    """A delta over embeddings, biases, Conv1D and tied weights; a non-contiguous weight too."""
    model, inputs = tiny_transformer(kind)
    before = output_of(model(**inputs))
    torch.manual_seed(1)
    tuned = {n: p.detach() + 0.02 * torch.randn_like(p) for n, p in model.named_parameters()}
    change = SparseDelta.from_models(model, tuned, k=2000)
    assert change.nnz == 2000
    assert sum(change.shares().values()) == pytest.approx(1.0)
    model.save_pretrained(tmp_path / "base")
    for name, p in model.named_parameters():
        if p.ndim == 2 and name in change.diffs and "embed" not in name:
            p.data = p.data.t().contiguous().t()
            break
    change.apply(model)
    after = output_of(model(**inputs))
    assert (after - before).abs().max() > 1e-4
    fresh = type(model).from_pretrained(tmp_path / "base", dtype=torch.float32).eval()
    change.apply(fresh)
    assert torch.equal(output_of(fresh(**inputs)), after)
    change.revert(model)
    assert torch.equal(output_of(model(**inputs)), before)
    if kind.startswith("llama"):  # files of some architectures use other names than the module
        again = SparseDelta.from_models(tmp_path / "base", fresh, names=list(change.diffs))
        assert again.nnz == change.nnz


def test_an_output_layer_that_was_untied_is_untied_and_tied_again(tiny_transformer):
    model, _ = tiny_transformer("llama-tied")
    name = "model.embed_tokens.weight"
    change = delta({0: 1.0}, tuple(model.get_parameter(name).shape), name=name, info={"untied_output": True})
    before = model.lm_head.weight.detach().clone()
    change.apply(model)
    assert torch.equal(model.lm_head.weight, before)
    assert not torch.equal(model.get_parameter(name), before)
    assert model.config.tie_word_embeddings is False
    change.revert(model)
    assert model.lm_head.weight is model.get_parameter(name)
    assert model.config.tie_word_embeddings is True
    assert torch.equal(model.lm_head.weight, before)
