"""UDS: every statement of the method that must hold, with numbers worked by hand."""

from __future__ import annotations

import pytest
import torch

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.select.online import (
    Candidates,
    LogitSketch,
    OutputLayer,
    SketchMemory,
    UDSPolicy,
    nuclear_norms,
)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def norm(matrix) -> float:
    return float(nuclear_norms(torch.as_tensor(matrix).float().unsqueeze(0)))


def rows(logits: torch.Tensor, **more) -> Candidates:
    return Candidates(torch.ones(logits.shape[:2], dtype=torch.bool), logits=logits, **more)


@pytest.mark.parametrize(
    ("matrix", "nuclear", "frobenius"),
    [
        ([[3, 0], [0, 4]], 7.0, 5.0),
        ([[3, 4], [3, 4]], 50**0.5, 50**0.5),  # rank one: both 7.0711
        ([[5, 0], [0, 0]], 5.0, 5.0),
        ([[0, 0], [0, 0]], 0.0, 0.0),
    ],
)
def test_nuclear_norm_by_hand(matrix, nuclear, frobenius):
    assert norm(matrix) == pytest.approx(nuclear, abs=1e-6)
    assert float(torch.tensor(matrix).float().norm()) == pytest.approx(frobenius, abs=1e-6)


@pytest.mark.parametrize("rank", [1, 3, 12])
def test_nuclear_norm_between_its_bounds(rank):
    matrix = draw(12, rank, seed=1) @ draw(rank, 40, seed=2)
    frobenius = float(matrix.norm())
    tol = 1e-5 * frobenius
    assert frobenius - tol <= norm(matrix) <= rank**0.5 * frobenius + tol


@pytest.mark.parametrize(("n", "v", "rank"), [(512, 600, 512), (256, 2000, 5), (64, 300, 1), (40, 10, 10)])
def test_gram_equals_the_svd(n, v, rank):
    matrix = (draw(n, rank, seed=1).double() @ draw(rank, v, seed=2).double()).float()
    exact = float(torch.linalg.svdvals(matrix.double())[:rank].sum())
    assert norm(matrix) == pytest.approx(exact, rel=1e-5)


def test_nuclear_norm_is_invariant():
    matrix = draw(9, 30)
    q, _ = torch.linalg.qr(draw(9, 9, seed=1))
    p, _ = torch.linalg.qr(draw(30, 30, seed=2))
    for other in (matrix[torch.randperm(9)], q @ matrix, matrix @ p):
        assert norm(other) == pytest.approx(norm(matrix), rel=1e-5)
    assert norm(-2.5 * matrix) == pytest.approx(2.5 * norm(matrix), rel=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("options", [{}, {"normalise": "sqrt_tokens"}, {"center": True}])
def test_padding_on_either_side_changes_neither_score(side, options):
    logits = draw(2, 5, 20)
    policy = UDSPolicy(proj_dims=(8, 4), max_length=16, **options)
    policy.memory_.push(draw(3, 32, seed=3))
    plain = policy.measure(rows(logits))
    junk, off = 100 * draw(2, 6, 20, seed=4), torch.zeros(2, 6, dtype=torch.bool)
    parts = (junk, logits) if side == "left" else (logits, junk)
    masks = (off, ~off[:, :5]) if side == "left" else (~off[:, :5], off)
    padded = policy.measure(Candidates(torch.cat(masks, 1), logits=torch.cat(parts, 1)))
    for name, value in plain.items():
        torch.testing.assert_close(padded[name], value)
    torch.testing.assert_close(policy.score(2, padded), policy.score(2, plain))


def test_alpha_zero_is_the_nuclear_norm():
    policy = UDSPolicy(alpha=0, proj_dims=(4, 2), max_length=8)
    policy.memory_.push(draw(5, 8))
    logits = draw(6, 4, 15, seed=2)
    measures = policy.measure(rows(logits))
    kept = policy.choose(2, 6, measures)
    assert torch.equal(policy.scores_, nuclear_norms(logits))
    assert kept.tolist() == sorted(nuclear_norms(logits).topk(2).indices.tolist())


def test_memory():
    memory = SketchMemory(4)
    vectors = draw(7, 3)
    assert memory.mean_distance(vectors).tolist() == [0] * 7  # empty
    for vector in vectors:  # M + 3 of them
        memory.push(vector.unsqueeze(0))
        assert memory.count <= 4
    held = {tuple(v) for v in memory.rows.tolist()}
    assert held == {tuple(v) for v in vectors[3:].tolist()}  # the oldest three are gone
    assert memory.pointer == 3
    # distances (3, 4) and (0, 0) from the origin: mean 2.5
    memory = SketchMemory(4)
    memory.push(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    assert memory.mean_distance(torch.zeros(1, 2)).tolist() == [2.5]


def test_only_kept_rows_are_remembered():
    policy = UDSPolicy(proj_dims=(4, 2), max_length=8, buffer_size=5)
    measures = policy.measure(rows(draw(6, 4, 15)))
    kept = policy.choose(2, 6, measures)
    assert policy.memory_.count == 2
    assert {tuple(z) for z in policy.memory_.rows.tolist()} == {
        tuple(z) for z in measures["sketch"][kept].tolist()
    }
    assert (policy.seen_, policy.kept_) == (6, 2)


def test_sketch_keeps_the_frobenius_norm_in_expectation():
    logits = draw(1, 64, 300)
    mask, length = torch.ones(1, 64, dtype=torch.bool), float(logits.square().sum())
    squares = [float(LogitSketch((128, 8), 64, s)(logits, mask).square().sum()) / length for s in range(60)]
    assert abs(sum(squares) / 60 - 1) < 0.05


@pytest.mark.parametrize(("row", "column"), [(0, None), (None, 0), (32, None)])
def test_sketch_counts_no_place_twice(row, column):
    """The real part alone gives 1.99 for a matrix whose only row is row 0."""
    logits = torch.zeros(1, 64, 128)
    if row is None:
        logits[0, :, column] = draw(64)
    else:
        logits[0, row] = draw(128)
    mask, length = torch.ones(1, 64, dtype=torch.bool), float(logits.square().sum())
    squares = [float(LogitSketch((64, 16), 64, s)(logits, mask).square().sum()) / length for s in range(300)]
    assert abs(sum(squares) / 300 - 1) < 0.1  # one draw has a variance of at most 3.5/16 + 3.5/64 and a bit


def test_sketch_is_linear_and_zero_at_zero():
    sketch, mask = LogitSketch((8, 4), 16, 0), torch.ones(1, 9, dtype=torch.bool)
    a, b = draw(1, 9, 30), draw(1, 9, 30, seed=1)
    torch.testing.assert_close(sketch(a, mask) - sketch(b, mask), sketch(a - b, mask), atol=1e-4, rtol=1e-4)
    assert not sketch(torch.zeros(1, 9, 30), mask).any()


def test_rows_beyond_the_length_are_folded_isometrically():
    logits, mask = draw(1, 40, 64), torch.ones(1, 40, dtype=torch.bool)
    length = float(logits.square().sum())
    squares = [float(LogitSketch((32, 8), 16, s)(logits, mask).square().sum()) / length for s in range(200)]
    assert abs(sum(squares) / 200 - 1) < 0.05
    short = LogitSketch((32, 8), 16, 0)(logits[:, :16], mask[:, :16])
    assert torch.equal(
        LogitSketch((32, 8), 16, 0)(torch.cat([logits[:, :16], 0 * logits[:, 16:]], 1), mask), short
    )


def test_distance_to_itself_is_zero():
    memory, z = SketchMemory(8), 1e3 * draw(1, 1024)
    memory.push(z.expand(6, -1))
    assert memory.mean_distance(z).tolist() == [0.0]


def test_alpha_at_which_diversity_decides():
    """Row a leads by 4 in s_intra and trails by 2 in s_inter: they swap at alpha = 2."""
    for alpha, winner in ((1.9, 0), (2.1, 1)):
        policy = UDSPolicy(alpha=alpha, proj_dims=(2, 1), max_length=4)
        policy.memory_.push(torch.zeros(1, 2))
        measures = {"intra": torch.tensor([10.0, 6.0]), "sketch": torch.tensor([[1.0, 0.0], [0.0, 3.0]])}
        assert policy.choose(1, 2, measures).tolist() == [winner]
        assert measures["inter"].tolist() == [1.0, 3.0]


def test_ties_go_to_the_first():
    policy = UDSPolicy(alpha=0, proj_dims=(2, 1), max_length=4)
    measures = {"intra": torch.ones(5), "sketch": torch.zeros(5, 2)}
    assert policy.choose(2, 5, measures).tolist() == [0, 1]


def test_batch_term_separates_copies():
    z = torch.tensor([[0.0, 0.0], [0.0, 0.0], [6.0, 8.0]])
    measures = {"intra": torch.ones(3), "sketch": z}
    UDSPolicy(batch_weight=0.5, proj_dims=(2, 1)).score(3, measures)
    assert measures["inter"].tolist() == [2.5, 2.5, 5.0]  # half the mean distance to the two others


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("tokens", [7, 30])  # fewer and more than the 12 dimensions
def test_states_and_a_frozen_layer_give_the_scores_of_logits(biased, center, tokens):
    head = torch.nn.Linear(12, 50, bias=biased)
    states = draw(3, tokens, 12)
    mask = torch.ones(3, tokens, dtype=torch.bool)
    mask[1, 4:] = False
    layer = OutputLayer(head.weight, head.bias, center=center)
    for options in ({}, {"legacy_scale": True}, {"normalise": "sqrt_tokens"}):
        policy = UDSPolicy(proj_dims=(8, 4), max_length=16, center=center, **options)
        direct = policy.measure(Candidates(mask, logits=head(states).detach()))
        layer._sketched = None
        short = policy.measure(Candidates(mask, states=states, layer=layer))
        for name, value in direct.items():
            torch.testing.assert_close(short[name], value, rtol=2e-4, atol=1e-4 * float(value.abs().max()))


def test_legacy_scale():
    logits = draw(2, 5, 20)
    plain, legacy = (UDSPolicy(proj_dims=(4, 2), max_length=16, legacy_scale=flag) for flag in (False, True))
    factor = (20 * 16) ** 0.5 / 2
    torch.testing.assert_close(
        legacy.measure(rows(logits))["sketch"], factor * plain.measure(rows(logits))["sketch"]
    )
    assert (plain.alpha, legacy.alpha) == (6.6, 1.5e-3)


def test_answer_tokens_only():
    logits = draw(1, 6, 20)
    labels = torch.tensor([[-100, -100, -100, 4, 5, 6]])
    policy = UDSPolicy(tokens="answer", proj_dims=(4, 2), max_length=8)
    found = policy.measure(rows(logits, labels=labels))["intra"]
    torch.testing.assert_close(found, nuclear_norms(logits[:, 2:5]))  # the places that predict 4, 5 and 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1}, r"'alpha' parameter of UDSPolicy must be a float >= 0\. Got -1 instead"),
        ({"batch_weight": -0.5}, r"'batch_weight' .* must be a float >= 0\. Got -0.5"),
        ({"buffer_size": 0}, r"'buffer_size' .* must be an int >= 1\. Got 0"),
        ({"max_length": 2.5}, r"'max_length' .* must be an int >= 1\. Got 2.5"),
        ({"proj_dims": 128}, r"'proj_dims' .* must be two ints >= 1\. Got 128"),
        ({"normalise": "l2"}, r"'normalise' .* must be 'none' or 'sqrt_tokens'\. Got 'l2'"),
        ({"tokens": "prompt"}, r"'tokens' .* must be 'all' or 'answer'\. Got 'prompt'"),
        ({"variant": "code"}, r"'variant' .* must be 'paper' or 'official'\. Got 'code'"),
        (
            {"variant": "official", "center": True},
            r"'variant' .* must be 'paper' with tokens='answer' or center",
        ),
    ],
)
def test_parameters_are_checked(options, message):
    with pytest.raises(ParameterError, match=message):
        UDSPolicy(**options)


def test_bad_input():
    policy = UDSPolicy(proj_dims=(4, 2), max_length=4, variant="official")
    with pytest.raises(ParameterError, match=r"'logits' .* must be of at most max_length = 4 tokens\. Got 5"):
        policy.measure(rows(draw(1, 5, 20)))
    policy = UDSPolicy(proj_dims=(4, 2), max_length=4)
    with pytest.raises(DataError, match="UDSPolicy needs logits, and the model returned none"):
        policy.measure(Candidates(torch.ones(1, 3, dtype=torch.bool)))
    with pytest.raises(DataError, match="tokens='answer' needs labels, and the batch has none"):
        UDSPolicy(tokens="answer").measure(rows(draw(1, 3, 20)))
    policy.measure(rows(draw(1, 3, 20)))
    with pytest.raises(ParameterError, match=r"must be of a vocabulary of 20, as before\. Got 21"):
        policy.measure(rows(draw(1, 3, 21)))
    with pytest.raises(ParameterError, match=r"'size' parameter of SketchMemory must be an int >= 1\. Got 0"):
        SketchMemory(0)
    state = UDSPolicy(buffer_size=9).state_dict() | {"memory": draw(9, 8)}
    with pytest.raises(ParameterError, match=r"'buffer_size' .* must be at least the state's 9\. Got 3"):
        UDSPolicy(buffer_size=3).load_state_dict(state)


def test_logits_that_are_not_finite_stop_the_training():
    policy = UDSPolicy(proj_dims=(4, 2), max_length=4)
    logits = draw(3, 3, 20)
    logits[1, 0, 0] = torch.inf
    with pytest.raises(
        DataError, match=r"UDSPolicy's score of row 1 of the batch is nan: the model's logits"
    ):
        policy.choose(1, 3, policy.measure(rows(logits)))


def test_half_precision_logits_are_read_in_full():
    logits = (300 * draw(2, 4, 200)).half()  # squares of these overflow float16
    torch.testing.assert_close(nuclear_norms(logits), nuclear_norms(logits.float()))
    assert torch.isfinite(UDSPolicy(proj_dims=(4, 2), max_length=4).measure(rows(logits))["sketch"]).all()
