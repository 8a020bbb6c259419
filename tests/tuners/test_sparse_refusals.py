"""What SparseDelta refuses: files, bases, models and sums that do not fit, with the exact messages."""

from __future__ import annotations

import pytest
import torch
from _sparse import Bag, delta, same
from torch import nn

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.tuners.sparse import SparseDelta, applied_to


class Touch:
    """What a pickle could run."""

    def __reduce__(self):
        return (print, ("run",))


def test_files_that_are_no_deltas(tmp_path):
    with pytest.raises(DataError) as error:
        SparseDelta.from_pretrained(tmp_path)
    assert (
        str(error.value) == f"{tmp_path}: no sparse delta here: the file sparse_delta.safetensors is missing."
    )
    with pytest.raises(DataError) as error:
        SparseDelta.from_official(tmp_path)
    assert (
        str(error.value) == f"{tmp_path}: no delta of the authors here: the file pytorch_diff.bin is missing."
    )
    file = tmp_path / "pytorch_diff.bin"
    torch.save({"diffs": {}, "more": Touch()}, file)
    with pytest.raises(DataError) as error:
        SparseDelta.from_official(file)
    assert str(error.value) == f"{file}: not a delta of tensors and arrays alone; it is not read."
    torch.save({"weights": {}}, file)
    with pytest.raises(DataError) as error:
        SparseDelta.from_official(file)
    assert str(error.value) == f"{file}: not a delta of the authors: neither 'diffs' nor 'body' in it."
    ours = tmp_path / "sparse_delta.safetensors"
    ours.write_bytes(b"12345678")
    with pytest.raises(DataError) as error:
        SparseDelta.from_pretrained(tmp_path)
    assert "not a safetensors file" in str(error.value)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, ours)
    with pytest.raises(DataError) as error:
        SparseDelta.from_pretrained(tmp_path)
    assert str(error.value) == f"{ours}: not a sparse delta of a version that is read here."


def test_another_base_is_refused_and_untouched():
    torch.manual_seed(0)
    base = Bag({"v": torch.randn(3), "w": torch.randn(4, 4)})
    tuned = {n: t + 1 for n, t in base.copy().items()}
    change = SparseDelta.from_models(base, tuned)
    other = Bag({"v": base.v, "w": base.w + 1})
    before = other.copy()
    with pytest.raises(ParameterError) as error:
        change.apply(other)
    assert str(error.value) == (
        "The 'model' parameter of SparseDelta.apply must be the base that the delta was learned on, or one with other "
        'deltas applied to it; check_base=False adds it all the same. Got "a model in which 1 of 2 tensors differ, the '
        "first 'w'\" instead."
    )
    assert same(other.copy(), before)
    assert applied_to(other) == []
    change.apply(other, check_base=False)
    assert torch.equal(other.w, base.w + change.dense("w") + 1) or not same(other.copy(), before)
    # With another delta applied the base below counts, and a bfloat16 base has the hash of its float32 copy.
    first = SparseDelta.from_models(base, {n: t * 2 for n, t in base.copy().items()})
    first.apply(base)
    change.apply(base)
    low = Bag({n: t.bfloat16() for n, t in before.items()})
    SparseDelta.from_models(low, {n: t + 1 for n, t in low.copy().items()}).apply(
        Bag({n: t.bfloat16().float() for n, t in before.items()})
    )


def two(**options):
    return delta({0: 1.0}, (2,), **options)


@pytest.mark.parametrize(
    ("change", "model", "options", "message"),
    [
        (
            delta({0: 1.0}, (2,), name="weigth"),
            {"weight": torch.zeros(2)},
            {},
            "The 'model' parameter of SparseDelta.apply must be a model with the weight 'weigth'. "
            "Got \"1 other names, the nearest 'weight'\" instead.",
        ),
        (
            two(),
            {"w": torch.zeros(3)},
            {},
            "The 'model' parameter of SparseDelta.apply must be a model whose 'w' has the shape (2,); embeddings may "
            "have been resized. Got (3,) instead.",
        ),
        (
            two(),
            {"w": torch.zeros(2)},
            {"with_abs": True},
            "The 'with_abs' parameter of SparseDelta.apply must be False for a delta without dense tensors (heads). "
            "Got True instead.",
        ),
        (
            two(abs={"head": torch.zeros(1)}),
            {"w": torch.zeros(2)},
            {},
            "The 'model' parameter of SparseDelta.apply must be a model with the weight 'head'. "
            "Got '1 other names' instead.",
        ),
    ],
)
def test_models_that_do_not_fit(change, model, options, message):
    with pytest.raises(ParameterError) as error:
        change.apply(Bag(model), **options)
    assert str(error.value) == message


def test_quantised_weights_and_other_things_are_refused():
    model = Bag({"v": torch.zeros(2)})
    model.register_parameter("w", nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False))
    with pytest.raises(ParameterError) as error:
        two().apply(model)
    assert str(error.value) == (
        "The 'model' parameter of SparseDelta.apply must be in floating point: a delta cannot be added to quantised "
        "weights. Got 'w: torch.uint8' instead."
    )
    with pytest.raises(ParameterError, match=r"must be a torch module\. Got 3 instead"):
        two().apply(3)
    with pytest.raises(ParameterError) as error:
        two().revert(model)
    assert str(error.value) == (
        "The 'model' parameter of SparseDelta.revert must be one that this delta has been applied to. "
        "Got 'a model with 0 other deltas applied' instead."
    )
    with pytest.raises(ParameterError, match="ascending int64 positions below 2 with one value each for 'w'"):
        delta({1: 1.0, 0: 1.0}, (2,))
    with pytest.raises(ParameterError, match="ascending int64 positions below 2"):
        delta({5: 1.0}, (2,))
    with pytest.raises(
        ParameterError, match=r"The 'threshold' parameter of SparseDelta\.from_models must be a float >= 0"
    ):
        SparseDelta.from_models({"a": torch.zeros(1)}, {"a": torch.zeros(1)}, threshold=-1.0)


def test_sums_that_make_no_sense():
    a = two(base={"w": "1"})
    with pytest.raises(ParameterError) as error:
        a + two(base={"w": "2"})
    assert str(error.value) == (
        "The 'other' parameter of SparseDelta + SparseDelta must be a delta of the same base. "
        "Got \"another base's 'w'\" instead."
    )
    with pytest.raises(ParameterError, match=r"a delta in which 'w' has the shape \(2,\). Got \(3,\)"):
        a - delta({0: 1.0}, (3,))
    head = two(abs={"head": torch.zeros(1)})
    with pytest.raises(ParameterError) as error:
        head + two(abs={"head": torch.ones(1)})
    assert str(error.value) == (
        "The 'other' parameter of SparseDelta + SparseDelta must be a delta with other heads; drop one side's with "
        "without_abs(). Got \"another 'head'\" instead."
    )
    assert set((head + two(abs={"head": torch.ones(1)}).without_abs()).abs) == {"head"}
    assert set((head - two(abs={"head": torch.ones(1)})).abs) == {"head"}
    with pytest.raises(TypeError):
        a + 3
    with pytest.raises(TypeError):
        a * "x"
