"""The mathematics of LEVI (arXiv 2402.04644), by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from tunesmith.core.errors import ParameterError
from tunesmith.models.levi.core import AdaptingLayer, Heads, aggregate, ensemble_loss, even_layers, pool
from tunesmith.models.levi.views import ImageView, TextView, VectorView, make_view, view_parameters

MULTI = "multi_label_classification"


@pytest.mark.parametrize(
    ("depth", "n", "layers"),
    [(12, 4, [3, 6, 9, 12]), (6, 4, [2, 3, 5, 6]), (30, 4, [8, 15, 23, 30]), (2, 4, [1, 2]), (1, 4, [1])],
)
def test_layers_are_evenly_spaced_with_the_last_among_them(depth: int, n: int, layers: list[int]) -> None:
    assert even_layers(depth, n) == layers


def test_pooling_leaves_padding_out_on_either_side() -> None:
    H = torch.tensor([[[1.0, 2], [3, 4], [math.nan, math.inf]], [[99.0, 99], [5, 6], [7, 10]]])
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    assert pool(H, "mean", mask).tolist() == [[2, 3], [6, 8]]
    assert pool(H, "cls", mask).tolist() == [[1, 2], [5, 6]]
    assert pool(H, "last", mask).tolist() == [[3, 4], [7, 10]]


def test_without_a_mask_every_token_counts() -> None:
    H = torch.tensor([[[1.0, 2], [3, 6]]])
    assert [pool(H, how).tolist() for how in ("mean", "cls", "last")] == [[[2, 4]], [[1, 2]], [[3, 6]]]
    assert pool(H, "mean", torch.zeros(1, 2)).tolist() == [[0, 0]]


def test_maps_are_averaged_over_space_and_vectors_stay() -> None:
    maps = torch.arange(8.0).view(1, 2, 2, 2)
    assert pool(maps).tolist() == [[1.5, 5.5]]
    assert torch.equal(pool(maps[0, 0], "cls"), maps[0, 0])


def test_half_precision_is_averaged_in_float32() -> None:
    H = torch.full((1, 1000, 1), 1.0).index_fill(1, torch.tensor([0]), 300.0).bfloat16()
    found = pool(H, "mean", torch.ones(1, 1000))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(1.299)


def test_pooling_errors() -> None:
    with pytest.raises(ParameterError) as error:
        pool(torch.zeros(2, 3, 4, 4), "last")
    assert str(error.value) == (
        "The 'pooling' parameter of LEVI must be 'mean' for maps (B, channels, height, width), and features must be "
        "(B, d), (B, T, d) or such maps. Got 'last' for features of shape (2, 3, 4, 4) instead."
    )
    with pytest.raises(ParameterError) as error:
        pool(torch.zeros(2, 3, 4), "mean", torch.ones(2, 6))
    assert str(error.value) == (
        "The 'attention_mask' of LEVI must have one entry per hidden state, (2, 3). Got (2, 6) instead."
    )


def test_a_linear_layer_is_the_sum_of_two_linear_heads() -> None:
    A = AdaptingLayer(2, 1, 0, 2, norm=False)
    A.up.weight.data = torch.tensor([[1.0, 0, 1], [0, 1, -1]])
    z, h = torch.tensor([[1.0, 2]]), torch.tensor([[3.0]])
    assert A(z, h).tolist() == [[4, -1]]
    assert A(z, h, "view").tolist() == [[1, 2]]
    assert A(z, h, "base").tolist() == [[3, -3]]


def test_without_the_base_nothing_but_h_is_left_though_the_norm_has_a_bias() -> None:
    A = AdaptingLayer(3, 2, 4, 2)
    for parameter in A.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    h = torch.randn(5, 2)
    assert torch.equal(A(torch.randn(5, 3), h, "base"), A(torch.randn(5, 3), h, "base"))
    hidden = torch.nn.functional.gelu(h @ A.down.weight[:, 3:].T + A.down.bias)
    assert torch.allclose(A(torch.randn(5, 3), h, "base"), hidden @ A.up.weight.T + A.up.bias, atol=1e-6)


def test_each_head_starts_at_the_uniform_prediction() -> None:
    heads = Heads([AdaptingLayer(3, 2, 4, 5), AdaptingLayer(3, 2, 0, 5)])
    o = heads([torch.randn(7, 3)] * 2, torch.randn(7, 2))
    assert o.shape == (2, 7, 5)
    assert not o.any()


def test_the_count_of_trained_numbers() -> None:
    d, m, r, n, C = 4096, 256, 256, 4, 2
    with torch.device("meta"):
        heads = Heads(AdaptingLayer(d, m, r, C) for _ in range(n))
    count = sum(p.numel() for p in heads.parameters())
    assert count == n * ((d + m) * r + r + r * C + C + 2 * d) == 4_492_296


def test_probabilities_are_averaged_by_hand() -> None:
    p = torch.tensor([[[0.9, 0.1]], [[0.5, 0.5]]])
    assert aggregate(p.log() + 3, "probs").exp().tolist()[0] == pytest.approx([0.7, 0.3])
    q = torch.tensor([[[0.9, 0.2]], [[0.5, 0.4]]])
    assert aggregate(torch.logit(q), "probs", MULTI).sigmoid().tolist()[0] == pytest.approx([0.7, 0.3])
    assert aggregate(torch.tensor([[[1.0]], [[4.0]]])).tolist() == [[2.5]]


def test_losses_by_hand() -> None:
    o = torch.tensor([[[1.0]], [[3.0]]])
    two = torch.tensor([2.0])
    assert ensemble_loss(o, two, problem="regression").item() == 1
    assert ensemble_loss(o, two, loss="joint", problem="regression").item() == 0
    p = torch.tensor([[[0.5, 0.5]], [[0.25, 0.75]]]).log()
    y = torch.tensor([1])
    assert ensemble_loss(p, y).item() == pytest.approx(-(math.log(0.5) + math.log(0.75)) / 2)
    assert ensemble_loss(p, y, loss="joint", how="probs").item() == pytest.approx(-math.log(0.625))


def test_one_head_makes_both_losses_equal() -> None:
    o = torch.randn(1, 6, 3)
    y = torch.randint(3, (6,))
    each = [
        ensemble_loss(o, y, loss=loss, how=how)
        for loss in ("per_head", "joint")
        for how in ("logits", "probs")
    ]
    assert torch.allclose(torch.stack(each), cross_entropy(o[0], y).expand(4))
    assert torch.equal(aggregate(o), o[0])


@pytest.mark.parametrize("how", ["logits", "probs"])
@pytest.mark.parametrize("problem", ["single_label_classification", MULTI, "regression"])
def test_the_ensemble_is_at_most_as_bad_as_its_heads_on_average(how: str, problem: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for scale in (0.1, 1.0, 30.0):
        o = scale * torch.randn(4, 50, 3, generator=generator)
        y = torch.randint(3, (50,), generator=generator)
        if problem == MULTI:
            y = (torch.rand(50, 3, generator=generator) < 0.5).float()
        if problem == "regression":
            o, y, how = o[..., :1], torch.randn(50, generator=generator), "logits"
        for i in range(50):
            one = o[:, i : i + 1], y[i : i + 1]
            joint, apart = (
                ensemble_loss(*one, loss=loss, how=how, problem=problem) for loss in ("joint", "per_head")
            )
            assert joint <= apart * (1 + 1e-6) + 1e-7


@pytest.mark.parametrize("loss", ["per_head", "joint"])
@pytest.mark.parametrize("problem", ["single_label_classification", MULTI, "regression"])
def test_parts_of_a_batch_add_up(loss: str, problem: str) -> None:
    o = torch.randn(3, 10, 2)
    y = torch.tensor([0, 1, -100, 1, 0, 1, 1, -100, -100, 0])
    items = 7
    whole = cross_entropy
    if problem != "single_label_classification":
        y, items = torch.randint(2, (10, 2)).float(), 20
        whole = binary_cross_entropy_with_logits if problem == MULTI else mse_loss
    options = {"loss": loss, "problem": problem}
    mean = ensemble_loss(o, y, **options)
    parts = [ensemble_loss(o[:, a:b], y[a:b], num_items=items, **options) for a, b in ((0, 3), (3, 10))]
    assert torch.allclose(sum(parts), mean)
    expected = [whole(head, y) for head in (o if loss == "per_head" else o.mean(0, keepdim=True))]
    assert torch.allclose(mean, torch.stack(expected).mean())


def test_a_batch_without_labels_costs_nothing() -> None:
    assert ensemble_loss(torch.randn(2, 3, 2), torch.full((3,), -100)).item() == 0


def test_a_text_view_ignores_padding_and_reads_any_length() -> None:
    torch.manual_seed(0)
    view = TextView(50, 8, 2)
    ids = torch.randint(50, (2, 600))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    h = view(ids, mask)
    assert h.shape == (2, 8)
    assert torch.allclose(h[1], view(ids[1:, :5])[0], atol=1e-5)
    assert not torch.allclose(view(ids[:, :5]), view(ids[:, :5].flip(1)), atol=1e-3), "order counts"
    assert torch.isfinite(view(ids, torch.zeros_like(ids))).all()


def test_views_and_their_default_size() -> None:
    assert ImageView(3, 32, 3)(torch.randn(2, 3, 17, 9)).shape == (2, 32)
    assert VectorView(5, 6, 2)(torch.randn(2, 5)).shape == (2, 6)
    for kind, inputs, m, layers in (
        ("text", 9, 8, 2),
        ("image", 3, 32, 3),
        ("image", 1, 4, 2),
        ("vector", 5, 6, 3),
    ):
        view, *_ = make_view(kind, inputs, m, layers, 0)
        assert sum(p.numel() for p in view.parameters()) == view_parameters(kind, inputs, m, layers)
    assert view_parameters("text", 30_522, 32, 2) == 1_002_176, "with MiniLM's vocabulary"


def test_a_view_is_at_most_a_twentieth_of_the_base_if_it_can_be() -> None:
    assert make_view("vector", 10, None, None, 100)[1] == 32
    assert make_view("vector", 10, None, None, 20 * view_parameters("vector", 10, 64, 2))[1:] == (64, 2)
    assert make_view("image", 3, None, None, 10**9)[1:] == (256, 3)
