"""ACOL's pooled soft-max and GAR: what its dossier says must hold, and parity with the authors' code."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from tunesmith.cluster.acol import (
    ACOLHead,
    affinity,
    balance,
    coactivity,
    gar_loss,
    parent_logits,
    parent_probabilities,
    pooling_matrix,
    range_penalty,
)
from tunesmith.core.errors import ParameterError
from tunesmith.metrics.clustering import purity

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "acol.json").read_text())["cases"]
TYPES = range(1, 9)


def golden(*prefixes):
    return [pytest.param(case, id=case["name"]) for case in GOLDEN if case["name"].startswith(prefixes)]


def tensor(value):
    return torch.tensor(np.array(value["data"], dtype=value["dtype"]).reshape(value["shape"]))


def draw(b, n, seed=0, dtype=torch.float64):
    return torch.randn(b, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def by_matrices(Z, n_parents, balance_type):
    """Affinity and balance of the definition, with N and V formed."""
    k = Z.shape[1] // n_parents
    B = Z.relu()
    if balance_type in (5, 6):
        B, n_parents = B.reshape(-1, k, n_parents).sum(dim=2), 1
    blocks = [B] if balance_type < 7 else [B[:, p::n_parents] for p in range(n_parents)]
    found = []
    for B in blocks:
        N = B.T @ B
        v = {1: N.diag(), 0: B.sum(dim=0)}[balance_type % 2]
        if balance_type == 8:
            v = N.sum(dim=0)
        V = torch.outer(v, v)
        n = len(N)
        mask = ~torch.eye(n, dtype=torch.bool)
        if balance_type in (3, 4):
            parent = torch.arange(n) % n_parents
            mask &= parent[:, None] == parent
        others = n - 1 if balance_type in (1, 2) else k - 1
        found.append([(M * mask).sum() / (others * M.trace()) for M in (N, V)])
    return torch.tensor(found).mean(dim=0)


# --- what must hold ---


def test_1_pooled_probabilities():
    Z = draw(7, 12)
    Y, P = parent_probabilities(Z, 3), torch.softmax(Z, dim=1)
    assert_allclose(Y.sum(dim=1), 1, atol=1e-14)
    for j in range(3):
        assert_allclose(Y[:, j], P[:, [i for i in range(12) if i % 3 == j]].sum(dim=1), atol=1e-14)
    assert_allclose(torch.softmax(parent_logits(Z, 3), dim=1), Y, atol=1e-14)


def test_1_one_duplicate_is_the_ordinary_classifier():
    head = ACOLHead(5, 4, k=1).double()
    plain = nn.Linear(5, 4).double()
    plain.load_state_dict(head.linear.state_dict())
    H, t = draw(9, 5), torch.arange(9) % 4
    losses = [F.cross_entropy(layer(H), t) for layer in (head, plain)]
    assert float(losses[0]) == pytest.approx(float(losses[1]), abs=1e-14)
    for loss in losses:
        loss.backward()
    assert_allclose(head.linear.weight.grad, plain.weight.grad, atol=1e-15)
    assert float(gar_loss(head.nodes, 4, c_alpha=0, c_beta=0, c_f=0)) == 0


def test_2_by_hand():
    first, second = torch.tensor([[1.0, 0], [0, 1], [1, 1]]), torch.tensor([[2.0, 0], [1, 1]])
    assert (first.T @ first).tolist() == [[2, 1], [1, 2]]
    assert float(affinity(first)) == 0.5
    assert float(balance(first)) == 1
    assert (second.T @ second).tolist() == [[5, 1], [1, 1]]
    assert float(affinity(second)) == pytest.approx(2 / 6, abs=1e-7)
    assert float(balance(second)) == pytest.approx(10 / 26, abs=1e-7)
    assert float(balance(second, balance_type=2)) == pytest.approx(12 / 20, abs=1e-7)


@pytest.mark.parametrize("kind", TYPES)
def test_3_scale_and_order_do_not_matter(kind):
    Z = draw(8, 6)
    base = [float(f(Z, 2, kind)) for f in (affinity, balance)]
    columns = [4, 1, 0, 5, 2, 3] if kind in (3, 4, 7, 8) else [2, 3, 4, 5, 0, 1]
    if kind in (1, 2):
        columns = [3, 0, 5, 1, 4, 2]
    for other in (Z * 37.5, Z * 1e-6, Z.flip(0), Z[:, columns]):
        assert_allclose([float(f(other, 2, kind)) for f in (affinity, balance)], base, rtol=1e-12)


def test_4_extremes():
    one_hot = torch.eye(4)[[0, 1, 2, 3, 1]]
    equal = torch.rand(6, 1).expand(6, 4)
    single = torch.cat([torch.rand(6, 1), torch.zeros(6, 3)], dim=1)
    assert float(affinity(one_hot)) == 0
    assert [float(f(equal)) for f in (affinity, balance)] == pytest.approx([1, 1], abs=1e-6)
    assert [float(f(single)) for f in (affinity, balance)] == pytest.approx([0, 0], abs=1e-7)


@pytest.mark.parametrize("kind", TYPES)
def test_5_no_gradient_below_zero_but_that_of_the_square(kind):
    Z = draw(8, 6).requires_grad_()
    gar_loss(Z, 2, c_f=0.5, balance_type=kind).backward()
    below = Z < 0
    assert_allclose(Z.grad[below], (2 * 0.5 * Z)[below].detach(), atol=1e-15)
    assert not torch.allclose(Z.grad[~below], (2 * 0.5 * Z)[~below])


def test_5_gradient_of_the_cross_entropy():
    Z, t = draw(5, 6).requires_grad_(), torch.tensor([0, 1, 1, 0, 1])
    F.cross_entropy(parent_logits(Z, 2), t, reduction="sum").backward()
    P, Y = torch.softmax(Z, dim=1).detach(), parent_probabilities(Z, 2).detach()
    for i in range(5):
        for j in range(6):
            expected = P[i, j] * (1 - 1 / Y[i, t[i]]) if j % 2 == t[i] else P[i, j]
            assert float(Z.grad[i, j]) == pytest.approx(float(expected), abs=1e-14)
    assert_allclose(Z.grad.sum(dim=1), 0, atol=1e-14)


def test_6_pooling_has_no_weights():
    d, parents, k = 7, 3, 4
    counts = [
        sum(p.numel() for p in m.parameters()) for m in (ACOLHead(d, parents, k), nn.Linear(d, parents))
    ]
    assert counts[0] - counts[1] == (d + 1) * (parents * k - parents)


@pytest.mark.parametrize("kind", range(9))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_7_nothing_active_is_finite(kind, dtype):
    Z = (-draw(6, 6).abs()).to(dtype).requires_grad_()
    loss = gar_loss(Z, 2, c_f=0, c_3=1, balance_type=kind)
    loss.backward()
    assert float(loss) == (0 if kind == 0 else 1)  # c_beta (1 - 0)
    assert float(Z.grad.abs().sum()) == 0


@pytest.mark.parametrize("kind", TYPES)
def test_8_cheap_formulas_are_the_matrix_formulas(kind):
    for seed, (b, parents, k) in enumerate([(9, 2, 3), (5, 3, 4), (20, 1, 5)]):
        Z = draw(b, parents * k, seed)
        found = [float(f(Z, parents, kind)) for f in (affinity, balance)]
        assert_allclose(found, by_matrices(Z, parents, kind), rtol=1e-10)
        assert_allclose([float(f(Z.float(), parents, kind)) for f in (affinity, balance)], found, rtol=1e-5)


def test_9_one_more_dead_duplicate():
    parents, k, d = 2, 3, 4
    small, large = ACOLHead(d, parents, k).double(), ACOLHead(d, parents, k + 1).double()
    with torch.no_grad():
        large.linear.weight.zero_()
        large.linear.bias.fill_(-1e9)
        large.linear.weight[: parents * k] = small.linear.weight
        large.linear.bias[: parents * k] = small.linear.bias
    H, t = draw(10, d), torch.arange(10) % 2
    losses = [F.cross_entropy(head(H), t) for head in (small, large)]
    assert float(losses[0]) == pytest.approx(float(losses[1]), rel=1e-14)  # summed in another order: an ulp
    for loss in losses:
        loss.backward()
    assert_allclose(large.linear.weight.grad[: parents * k], small.linear.weight.grad, atol=1e-16)
    n, more = parents * k, parents * (k + 1)
    for f in (affinity, balance):
        assert float(f(large.nodes)) == pytest.approx(float(f(small.nodes)) * (n - 1) / (more - 1), abs=1e-14)


def test_10_the_loss_is_affine_in_its_weights():
    Z = draw(9, 6)

    def loss(a, b, c):
        return float(gar_loss(Z, 2, c_alpha=a, c_beta=b, c_f=c))

    units = [loss(1, 0, 0), loss(0, 1, 0), loss(0, 0, 1)]
    assert units == pytest.approx(
        [float(affinity(Z)), 1 - float(balance(Z)), float(Z.square().sum())], abs=1e-14
    )
    assert loss(0.3, 2, 1e-3) == pytest.approx(0.3 * units[0] + 2 * units[1] + 1e-3 * units[2], abs=1e-12)
    assert loss(0, 0, 0) == 0


def test_10_the_nodes_are_those_before_dropout():
    head = ACOLHead(3, 2, 2, dropout=0.5).train()
    H = torch.rand(4, 3)
    torch.manual_seed(0)
    first = head(H)
    assert_allclose(head.nodes.detach(), head.linear(H).detach())
    assert not torch.equal(first, head(H))
    assert torch.equal(head.eval()(H), head(H))


def test_bfloat16_activities_are_squared_in_float32():
    Z = draw(64, 10).bfloat16()
    for kind in TYPES:
        wide = [float(f(Z.double(), 2, kind)) for f in (affinity, balance)]
        assert [float(f(Z, 2, kind)) for f in (affinity, balance)] == pytest.approx(wide, rel=1e-5)
    assert gar_loss(Z, 2).dtype == torch.float32
    head = ACOLHead(4, 2, 3).bfloat16()
    assert head(torch.rand(5, 4).bfloat16()).dtype == torch.float32
    assert head.nodes.dtype == torch.bfloat16


def test_the_logarithm_of_a_tiny_probability_is_finite():
    Z = torch.tensor([[200.0, -200, 200, -200]])
    assert float(F.cross_entropy(parent_logits(Z, 2), torch.tensor([1]))) == pytest.approx(400, abs=1e-3)


def test_coactivity_is_what_lies_off_the_diagonal():
    B = torch.tensor([[2.0, 0], [1, 1]])
    assert float(coactivity(B)) == 2
    assert float(gar_loss(B, c_alpha=0, c_beta=0, c_f=0, c_3=3)) == 6


def test_a_head_is_copied_without_its_last_batch():
    head = ACOLHead(3, 2, 2)
    head(torch.rand(4, 3, requires_grad=True))
    for twin in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        assert twin.nodes is None
        assert_array_equal(twin.linear.weight.detach(), head.linear.weight.detach())
    assert "n_parents=2, k=2" in repr(head)


# --- the authors' code ---


@pytest.mark.parametrize("case", golden("hand_", "gar_"))
def test_gar_of_the_authors(case):
    params, out, atol = case["params"], case["outputs"], case["tolerance"]
    Z = tensor(case["inputs"]["Z"]).requires_grad_()
    kind, parents = params["balance_type"], params["n_parents"]
    assert float(affinity(Z, parents, kind)) == pytest.approx(out["affinity"], abs=atol)
    assert float(balance(Z, parents, kind)) == pytest.approx(out["balance"], abs=atol)
    if kind in (3, 4):
        assert float(coactivity(Z, parents, kind)) == pytest.approx(
            out["coactivity_term"], rel=1e-6, abs=atol
        )
    loss = gar_loss(
        Z,
        parents,
        c_alpha=params["c_alpha"],
        c_beta=params["c_beta"],
        c_3=params["c_3"],
        c_f=params["c_F"],
        balance_type=kind,
        variant="official",
    )
    assert float(loss) == pytest.approx(out["regulariser"], abs=atol)
    loss.backward()
    assert_allclose(Z.grad, tensor(out["gradient_wrt_Z"]), atol=atol)


@pytest.mark.parametrize("case", golden("range_"))
def test_range_penalty_of_the_authors(case):
    Z = tensor(case["inputs"]["Z"])
    found = gar_loss(Z, c_alpha=case["params"]["c_R"], c_f=0, balance_type=0)
    assert float(found) == pytest.approx(case["outputs"]["regulariser"], abs=case["tolerance"])
    assert float(found) == pytest.approx(case["params"]["c_R"] * float(range_penalty(Z)))


@pytest.mark.parametrize("case", golden("pooling_"))
def test_pooling_of_the_authors(case):
    parents, k = case["params"]["n_parents"], case["params"]["k"]
    out, atol = case["outputs"], case["tolerance"]
    Z = tensor(case["inputs"]["Z"]).requires_grad_()
    assert_array_equal(pooling_matrix(parents, k), tensor(out["W_pool"]))
    assert_allclose(torch.softmax(Z, dim=1).detach(), tensor(out["P"]), atol=atol)
    assert_allclose(parent_probabilities(Z, parents).detach(), tensor(out["Y_sum"]), atol=atol)
    assert_allclose(parent_probabilities(Z, parents, "max").detach(), tensor(out["Y_max"]), atol=atol)
    loss = F.cross_entropy(parent_logits(Z, parents), torch.tensor(case["inputs"]["parent_labels"]))
    assert float(loss) == pytest.approx(out["cross_entropy"], abs=atol)
    loss.backward()
    assert_allclose(Z.grad, tensor(out["gradient_wrt_Z"]), atol=atol)


@pytest.mark.parametrize("case", golden("pool_weights_"))
def test_contiguous_pooling_of_the_authors(case):
    wanted = tensor(case["outputs"]["W_pool"])
    null = "nullnode" in case["name"]
    parents = wanted.shape[1] - null
    assert_array_equal(pooling_matrix(parents, len(wanted) // parents, "contiguous", null), wanted)


@pytest.mark.parametrize("case", golden("node_purity_"))
def test_node_purity_of_the_authors(case):
    assert purity(case["inputs"]["true"], case["inputs"]["node"]) == pytest.approx(case["outputs"]["purity"])


# --- bad input ---


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: affinity(draw(4, 6), 4),
            "'n_parents' parameter of affinity must be a divisor of the number of nodes, 6",
        ),
        (
            lambda: balance(draw(4, 6), 2, 9),
            r"'balance_type' parameter of balance must be an int in \[1, 8\]. Got 9",
        ),
        (
            lambda: affinity(draw(4, 2), 2, 3),
            r"'k' parameter of affinity must be at least 2 nodes to compare for bal",
        ),
        (
            lambda: gar_loss(draw(4, 2), variant="v1"),
            "'variant' parameter of gar_loss must be 'paper' or 'official'",
        ),
        (lambda: ACOLHead(3, 0), r"'n_parents' parameter of ACOLHead must be an int in the range \[1, inf\)"),
        (lambda: ACOLHead(3, 2, 0), r"'k' parameter of ACOLHead must be an int in the range \[1, inf\)"),
        (
            lambda: ACOLHead(3, 2, dropout=1),
            r"'dropout' parameter of ACOLHead must be a float in the range \[0, 1\)",
        ),
    ],
)
def test_bad_parameters(call, message):
    with pytest.raises(ParameterError, match=message):
        call()
