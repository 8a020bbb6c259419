"""DEPICT's objective and pathways: what its dossier says must hold, and parity with the authors' code."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from tunesmith.cluster.depict import (
    LayeredAutoencoder,
    cluster_loss,
    conv_autoencoder,
    mlp_autoencoder,
    reconstruction_loss,
    relative_entropy,
    target_distribution,
)
from tunesmith.core.errors import ParameterError

GOLDEN = {
    case["name"]: case
    for case in json.loads((Path(__file__).parents[1] / "golden" / "depict.json").read_text())["cases"]
}


def tensor(value):
    return torch.tensor(np.array(value["data"], dtype=value["dtype"]).reshape(value["shape"]))


def soft(n, k, seed=0):
    return torch.softmax(torch.randn(n, k, generator=torch.Generator().manual_seed(seed)).double(), dim=1)


HAND = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2]], dtype=torch.float64)


# --- what must hold ---


@pytest.mark.parametrize("rule", ["dec", "paper"])
def test_1_rows_sum_to_one_and_the_target_has_no_gradient(rule):
    logits = torch.randn(20, 4, dtype=torch.float64, requires_grad=True)
    Q = target_distribution(torch.softmax(logits, dim=1), rule)
    assert_allclose(Q.sum(dim=1), 1, atol=1e-12)
    assert not Q.requires_grad


def test_2_by_hand():
    paper, dec = target_distribution(HAND, "paper"), target_distribution(HAND)
    assert_allclose(paper, [[0.832, 0.168], [0.453, 0.547], [0.688, 0.312]], atol=5e-4)
    assert_allclose(dec, [[0.961, 0.039], [0.407, 0.593], [0.830, 0.170]], atol=6e-4)
    for Q in (paper, dec):
        assert float(Q[1, 1]) > float(HAND[1, 1])
        assert HAND[1].argmax() == 0
        assert Q[1].argmax() == 1


def test_3_equal_column_sums():
    P = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.7, 0.2], [0.2, 0.1, 0.7]], dtype=torch.float64)
    assert_allclose(target_distribution(P, "paper"), P, atol=1e-15)
    squared = P**2 / (P**2).sum(dim=1, keepdim=True)
    assert_allclose(target_distribution(P, "dec"), squared, atol=1e-15)


@pytest.mark.parametrize("rule", ["dec", "paper"])
def test_4_one_hot_is_fixed_also_with_an_empty_cluster(rule):
    P = torch.eye(4, dtype=torch.float64)[[0, 0, 1, 2]]
    assert float(P[:, 3].sum()) == 0
    assert_array_equal(target_distribution(P, rule), P)


def test_5_without_noise_the_pathways_coincide_and_the_gradient_is_p_minus_q_over_b():
    network = mlp_autoencoder(6, [5], 3, dropout=0.0)
    x = torch.randn(7, 6)
    for clean, noisy in zip(network.activations(x), network.activations(x, noise=True), strict=True):
        assert_array_equal(clean.detach(), noisy.detach())
    logits = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    Q = soft(7, 3, 1)
    cluster_loss(logits, Q).backward()
    assert_allclose(logits.grad, (torch.softmax(logits, 1).detach() - Q) / 7, atol=1e-15)


def test_6_the_balance_term():
    uniform = torch.full((8, 4), 0.25, dtype=torch.float64)
    collapsed = torch.eye(4, dtype=torch.float64)[[2] * 8]
    assert float(relative_entropy(uniform, uniform)[1]) == pytest.approx(0, abs=1e-15)
    assert float(relative_entropy(collapsed, uniform)[1]) == pytest.approx(math.log(4), abs=1e-12)
    assert float(relative_entropy(soft(8, 4), uniform)[1]) > 1e-3
    one_hot_even = torch.eye(4, dtype=torch.float64)
    assert float(relative_entropy(one_hot_even, uniform[:4])[1]) == pytest.approx(0, abs=1e-15)
    assert float(relative_entropy(one_hot_even, uniform[:4])[0]) == pytest.approx(math.log(4), abs=1e-12)
    prior = torch.tensor([0.5, 0.2, 0.2, 0.1], dtype=torch.float64)
    assert float(relative_entropy(prior.expand(3, 4), uniform[:3], prior)[1]) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize(("rule", "power"), [("dec", 1.0), ("paper", 0.5)])
def test_a_prior_weighs_the_columns(rule, power):
    P, prior = soft(9, 3), torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    plain, weighed = target_distribution(P, rule), target_distribution(P, rule, prior)
    expected = plain * prior**power
    assert_allclose(weighed, expected / expected.sum(dim=1, keepdim=True), atol=1e-14)
    assert_allclose(target_distribution(P, rule, torch.full((3,), 1 / 3)), plain, atol=1e-7)


def test_8_permuting_clusters_permutes_targets():
    P = soft(15, 4)
    order = [2, 0, 3, 1]
    for rule in ("dec", "paper"):
        assert_allclose(
            target_distribution(P[:, order], rule), target_distribution(P, rule)[:, order], atol=1e-15
        )


def test_9_the_decoder_hears_the_noise_and_the_targets_do_not():
    network = conv_autoencoder((1, 8, 8), [4, 4], 3, dropout=0.3)
    x = torch.rand(5, 1, 8, 8)
    noisy = [network.reconstructions(network.activations(x, noise=True)[-1])[0] for _ in range(2)]
    assert not torch.equal(noisy[0], noisy[1])
    for first, second in zip(network.activations(x), network.activations(x), strict=True):
        assert torch.equal(first, second)


# --- the authors' code ---


@pytest.mark.parametrize("name", [name for name in GOLDEN if name.startswith("target_")])
def test_targets_of_the_authors(name):
    case = GOLDEN[name]
    P, out = tensor(case["inputs"]["P"]), case["outputs"]
    Q = target_distribution(P, "dec")
    assert_allclose(P.sum(dim=0), tensor(out["column_sums"]), atol=case["tolerance"])
    assert_allclose(Q, tensor(out["Q_official"]), atol=case["tolerance"])
    assert Q.argmax(dim=1).tolist() == out["labels_official"]
    assert_allclose(target_distribution(P, "paper"), tensor(out["Q_paper_rule"]), atol=case["tolerance"])


class Masked(LayeredAutoencoder):
    """Noise by given masks instead of drawn ones."""

    masks: list[torch.Tensor]

    def activations(self, x, noise=False):
        kept = []
        z = x
        for block, mask, p in zip(self.encoder, self.masks, self.dropout, strict=True):
            z = z * mask / (1 - p) if noise else z
            kept.append(z)
            z = block(z)
        return [*kept, z]


def authors_network():
    """The small network of the fixture."""
    case = GOLDEN["joint_losses"]
    given = {
        name: tensor(value) for name, value in case["inputs"].items() if name.split("_")[-1] in ("W", "b")
    }
    plain = conv_autoencoder((1, 8, 8), [2, 3], 2, dropout=case["params"]["dropout"])
    network = Masked(plain.encoder, plain.decoder, plain.dropout)
    network.masks = [tensor(mask) for mask in case["inputs"]["dropout_keep_masks"]]
    head = nn.Linear(2, 2)
    places = {
        "conv1": network.encoder[0][0],
        "conv2": network.encoder[1][0],
        "code": network.encoder[2][1],
        "dec_dense": network.decoder[0][0],
        "deconv1": network.decoder[1][0],
        "deconv2": network.decoder[2][0],
    }
    with torch.no_grad():
        for name, layer in places.items():
            weight = given[f"{name}_W"]
            layer.weight.copy_(weight.T if weight.ndim == 2 else weight)
            layer.bias.copy_(given[f"{name}_b"])
        head.weight.copy_(given["head_W"].T)
        head.bias.zero_()
    return case, network, head, {**places, "head": head}


def test_losses_and_gradients_of_the_authors():
    case, network, head, places = authors_network()
    inputs, out, atol = case["inputs"], case["outputs"], case["tolerance"]
    x, Q = tensor(inputs["X"]), tensor(inputs["Q"])
    clean, noisy = network.activations(x), network.activations(x, noise=True)
    assert [list(z.shape[1:]) for z in clean[:3]] == out["shapes_per_layer"]
    assert_allclose(clean[-1].detach(), tensor(out["clean_code"]), atol=atol)
    assert_allclose(noisy[-1].detach(), tensor(out["noisy_code"]), atol=atol)
    assert_allclose(torch.softmax(head(clean[-1]), 1).detach(), tensor(out["clean_P"]), atol=atol)
    assert_allclose(torch.softmax(head(noisy[-1]), 1).detach(), tensor(out["noisy_P"]), atol=atol)
    decoded = network.reconstructions(noisy[-1])
    terms = [float(reconstruction_loss([z], [z_hat])) for z, z_hat in zip(clean, decoded, strict=False)]
    assert_allclose(terms, out["unweighted_terms_input_layer1_layer2"], atol=atol)
    reconstruction = reconstruction_loss(clean, decoded, inner_weight=0.1)
    assert float(reconstruction) == pytest.approx(out["reconstruction"], abs=atol)
    assert float(reconstruction_loss(clean, decoded)) == pytest.approx(sum(terms), abs=atol)
    quiet = reconstruction_loss(clean, network.reconstructions(clean[-1]), inner_weight=0.1)
    assert float(quiet) == pytest.approx(out["reconstruction_clean"], abs=atol)
    logits = head(noisy[-1])
    hard = torch.tensor(inputs["hard_labels"])
    assert float(cluster_loss(logits, hard)) == pytest.approx(out["cluster_ce_hard"], abs=atol)
    total = cluster_loss(logits, Q) + reconstruction
    assert float(cluster_loss(logits, Q)) == pytest.approx(out["cluster_ce_Q"], abs=atol)
    assert float(total) == pytest.approx(out["total"], abs=atol)
    total.backward()
    for name, gradient in out["gradients_of_total"].items():
        layer, kind = name.rsplit("_", 1)
        found = places[layer].weight.grad if kind == "W" else places[layer].bias.grad
        assert_allclose(found.T if found.ndim == 2 else found, tensor(gradient), atol=atol)


# --- networks ---


@pytest.mark.parametrize("side", [8, 12, 28, 32])
def test_the_papers_convolutions_give_back_their_input_size(side):
    network = conv_autoencoder((3, side, side), [4, 5], 2)
    levels = network.activations(torch.zeros(2, 3, side, side))
    assert [z.shape for z in network.reconstructions(levels[-1])] == [z.shape for z in levels[:-1]]
    assert network.dropout == (0.1, 0.1, 0.0)


def test_networks_that_do_not_fit():
    gives = r"such that the decoder gives back the size \(4, 4\) of a level; with kernel 5, stride 2 and padding 2 it"
    with pytest.raises(
        ParameterError, match=rf"{gives} gives \(3, 3\)\. Pad or resize the images\. Got \(4, 5\)"
    ):
        conv_autoencoder((1, 10, 10), [4, 4], 2)
    with pytest.raises(
        ParameterError, match="'kernel_sizes' parameter of DEPICT must be as long as n_filters"
    ):
        conv_autoencoder((1, 8, 8), [4], 2)
    block = [nn.Linear(3, 2)]
    with pytest.raises(
        ParameterError, match="'decoder' parameter of LayeredAutoencoder must be as many blocks as"
    ):
        LayeredAutoencoder(block, [*block, *block])
    with pytest.raises(ParameterError, match=r"'dropout' .* must be one rate in \[0, 1\) or 1 of them"):
        LayeredAutoencoder(block, block, [1.5])
    with pytest.raises(
        ParameterError, match="'rule' parameter of target_distribution must be 'dec' or 'paper'"
    ):
        target_distribution(HAND, "softer")
