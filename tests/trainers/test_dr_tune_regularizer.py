"""DR-Tune's banks: the ring, the authors' steps, where gradients go, the drift, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from _golden import raw_cases, tensor
from tunesmith.core.errors import DataError, ParameterError
from tunesmith.trainers.dr_tune import DRTuneRegularizer, dr_tune_loss, procrustes_rotation

CASES = raw_cases("dr-tune")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def filled(K: int, d: int, classes: int, **more: Any) -> DRTuneRegularizer:
    regularizer = DRTuneRegularizer(d, K, **more)
    regularizer.enqueue(draw(K, d, seed=1), draw(K, d, seed=2), torch.arange(K) % classes)
    return regularizer


def test_golden_ring() -> None:
    case = CASES["ring_buffer"]
    x, out = {k: tensor(v) for k, v in case["inputs"].items()}, case["outputs"]
    regularizer = DRTuneRegularizer(2, case["params"]["K"])
    pointers = []
    for z_d, z_p, y in zip(x["z_d"], x["z_p"], x["y"], strict=True):
        regularizer.enqueue(z_d, z_p, y)
        pointers.append(int(regularizer.position[0]))
    assert pointers == out["pointers"]
    for name in ("bank_d", "bank_p", "bank_labels"):
        assert_close(getattr(regularizer, name), tensor(out[name]), atol=0, rtol=0)


@pytest.mark.parametrize(("K", "B"), [(6, 2), (7, 3), (5, 5), (3, 8), (1, 2)])
def test_the_ring_wraps_at_any_sizes_and_a_pass_replaces_every_slot(K: int, B: int) -> None:
    regularizer = DRTuneRegularizer(1, K)
    rows = torch.arange(5.0 * B * K).view(-1, B, 1)
    for step, batch in enumerate(rows):
        regularizer.enqueue(batch, -batch, torch.zeros(B, dtype=torch.int64))
        kept = sorted(regularizer.bank_d[: regularizer.held, 0].tolist())
        stop = (step + 1) * B
        assert kept == [float(i) for i in range(max(0, stop - K), stop)]
        assert torch.equal(regularizer.bank_p, -regularizer.bank_d)


@pytest.mark.parametrize("name", ["training_step_rotating", "training_step_not_rotating"])
@pytest.mark.parametrize("scale", ["mean", "eq14"])
def test_golden_steps(name: str, scale: str) -> None:
    case = CASES[name]
    x, out = {k: tensor(v) for k, v in case["inputs"].items()}, case["outputs"]
    B, K = case["params"]["B"], case["params"]["K"]
    regularizer = DRTuneRegularizer(4, K).double()
    regularizer.enqueue(x["bank_d"], x["bank_p"], x["bank_labels"])
    regularizer.position.copy_(
        torch.tensor([case["params"]["pointer_before"], K, case["params"]["iteration"]])
    )
    E_d, head = x["E_d"].requires_grad_(), nn.Linear(4, 3).double()
    with torch.no_grad():
        head.weight.copy_(x["head_weight"])
        head.bias.copy_(x["head_bias"])
    z = x["x"] @ E_d.T
    bank, labels = regularizer(z, x["x"] @ x["E_p"].T, x["y"], head)
    loss = dr_tune_loss(z, x["y"], bank, labels, head, loss_scale=scale)
    loss.backward()
    factor = 1 if scale == "mean" else 1 + K / B
    tolerance = {"atol": case["tolerance"], "rtol": 0.0}
    assert_close(loss / factor, tensor(out["loss_mean_over_rows"]), **tolerance)
    assert_close(cross_entropy(head(z), x["y"]), tensor(out["L_CE"]), **tolerance)
    assert_close(cross_entropy(head(bank), labels), tensor(out["R_DR"]), **tolerance)
    for grad, wanted in (
        (head.weight.grad, "grad_head_weight"),
        (head.bias.grad, "grad_head_bias"),
        (E_d.grad, "grad_E_d"),
    ):
        assert grad is not None
        assert_close(grad / factor, tensor(out[wanted]), **tolerance)
    for bank_name in ("bank_p", "bank_d", "bank_labels"):
        assert_close(getattr(regularizer, bank_name), tensor(out[f"{bank_name}_after"]), **tolerance)
    assert int(regularizer.position[0]) == out["pointer_after"]


def test_the_regulariser_reaches_the_head_alone() -> None:
    regularizer, encoder, head = filled(12, 5, 3), nn.Linear(4, 5), nn.Linear(5, 3)
    y = torch.tensor([0, 1, 2, 0])
    z = encoder(draw(4, 4))
    bank, labels = regularizer(z, z.detach() + 1, y, head)
    R_DR = cross_entropy(head(bank), labels)
    grads = torch.autograd.grad(R_DR, [*encoder.parameters(), head.weight], allow_unused=True)
    assert grads[:-1] == (None, None)  # absent from the graph, not merely 0
    assert float(grads[-1].abs().sum()) > 0
    # The scale, if it kept its gradient, would lead to the encoder.
    attached = bank / bank.norm(dim=1, keepdim=True) * z.norm(dim=1).mean()
    through = torch.autograd.grad(cross_entropy(head(attached), labels), encoder.weight, retain_graph=True)
    assert float(through[0].abs().sum()) > 0
    # And so the encoder's gradient is that of the plain loss over 1 + K / B.
    found = torch.autograd.grad(dr_tune_loss(z, y, bank, labels, head), encoder.weight, retain_graph=True)[0]
    plain = torch.autograd.grad(cross_entropy(head(z), y), encoder.weight)[0]
    assert_close(found * (1 + 12 / 4), plain)


def test_a_batch_is_not_in_its_own_bank_and_evaluation_stores_nothing() -> None:
    regularizer, head = DRTuneRegularizer(3, 4), nn.Linear(3, 2)
    z, y = draw(2, 3), torch.tensor([0, 1])
    bank, labels = regularizer(z, z, y, head)
    assert (len(bank), len(labels), regularizer.held) == (0, 0, 2)
    assert float(dr_tune_loss(z, y, bank, labels, head)) == float(cross_entropy(head(z), y))
    before = {name: value.clone() for name, value in regularizer.state_dict().items()}
    bank, labels = regularizer.eval()(z, z, y, head)
    assert len(bank) == 2
    assert all(torch.equal(before[name], value) for name, value in regularizer.state_dict().items())
    assert len(DRTuneRegularizer(3, 0)(z, z, y, head)[0]) == 0


def drifted(calibration: str, seed: int) -> tuple[float, float]:
    """Cross-entropy of a fitted head on its bank, and on the bank after a turn and calibration."""
    d, classes, K = 6, 3, 60
    labels = torch.arange(K) % classes
    features = 3 * draw(classes, d, seed=seed)[labels] + draw(K, d, seed=seed + 1)
    head = nn.Linear(d, classes)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=50)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(head(features), labels) + 1e-3 * head.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    turn = torch.linalg.qr(draw(d, d, seed=seed + 2)).Q
    turn[0] *= torch.linalg.det(turn).sign()  # a rotation, not a reflection
    regularizer = DRTuneRegularizer(d, K, calibration=calibration, normalize=False).eval()
    regularizer.enqueue(features, features @ turn.T, labels)
    bank, _ = regularizer(features[:4], features[:4], labels[:4], head)
    with torch.no_grad():
        return float(cross_entropy(head(features), labels)), float(cross_entropy(head(bank), labels))


@pytest.mark.parametrize("seed", range(3))
def test_calibration_undoes_a_drift(seed: int) -> None:
    torch.manual_seed(seed)
    plain, turned = drifted("none", 10 * seed)
    assert turned > plain + 0.5
    assert drifted("rotation", 10 * seed)[1] == pytest.approx(plain, abs=1e-3)
    assert abs(drifted("both", 10 * seed)[1] - plain) < 0.1 * (turned - plain)


def test_when_the_bank_is_rotated() -> None:
    head, y = nn.Linear(4, 3), torch.tensor([0, 1])
    found: dict[bool, list[torch.Tensor]] = {}
    for reuse in (False, True):
        regularizer = filled(
            6, 4, 3, rotate_every=3, reuse_rotation=reuse, calibration="rotation", normalize=False
        )
        R = procrustes_rotation(regularizer.bank_p, regularizer.bank_d)
        for call in range(4):
            P, D = regularizer.bank_p.clone(), regularizer.bank_d.clone()
            bank = regularizer(draw(2, 4, seed=5 + call), draw(2, 4, seed=15 + call), y, head)[0]
            now = procrustes_rotation(P, D) if call % 3 == 0 else R if reuse else None
            assert_close(bank, P if now is None else (P - P.mean(0)) @ now.T + D.mean(0))
            found.setdefault(reuse, []).append(bank)
    same = [torch.allclose(a, b, atol=1e-5) for a, b in zip(*found.values(), strict=True)]
    assert same == [True, False, False, True]


@pytest.mark.parametrize("reuse", [False, True])
def test_state_goes_on_where_it_stood(reuse: bool) -> None:
    head = nn.Linear(7, 3)
    steps = [(draw(2, 7, seed=s), draw(2, 7, seed=50 + s), torch.tensor([s % 3, 1])) for s in range(8)]
    straight = filled(5, 7, 3, rotate_every=3, reuse_rotation=reuse)
    for step in steps[:4]:
        straight(*step, head)
    other = DRTuneRegularizer(7, 5, rotate_every=3, reuse_rotation=reuse)
    other.load_state_dict(straight.state_dict())
    for step in steps[4:]:
        assert torch.equal(straight(*step, head)[0], other(*step, head)[0])


def test_warm_up() -> None:
    batches = [(draw(3, 2, seed=s), torch.tensor([0, 1, 0])) for s in range(5)]
    regularizer = DRTuneRegularizer(2, 7)
    read = iter(batches)
    assert regularizer.warm_up(read) == 7
    assert len(list(read)) == 2  # stops when full
    assert torch.equal(regularizer.bank_p, regularizer.bank_d)
    assert torch.equal(regularizer.bank_p, torch.cat([z for z, _ in batches])[:7])  # however they are cut
    assert regularizer.warm_up(read) == 7
    short = DRTuneRegularizer(2, 2048)
    message = r"^The warm-up ended with 15 rows in banks of 2,048; the rest fills in training\.$"
    with pytest.warns(UserWarning, match=message):
        assert short.warm_up(batches) == 15


def test_types_and_wrapped_heads() -> None:
    regularizer, head = filled(6, 4, 3), nn.Linear(4, 3).bfloat16()
    z = draw(2, 4).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        bank, labels = regularizer(z, z, torch.tensor([0, 1], dtype=torch.int32), head)
    assert (bank.dtype, labels.dtype, bank.requires_grad) == (torch.bfloat16, torch.int64, False)
    assert regularizer.bank_p.dtype == torch.float32
    by_weight = filled(6, 4, 3)(z, z, torch.tensor([0, 1]), head.weight)[0]
    assert torch.equal(bank, by_weight)
    assert filled(6, 4, 3).half()(z, z, torch.tensor([0, 1]), head)[0].isfinite().all()
    assert repr(regularizer) == "DRTuneRegularizer(dim=4, bank_size=6, calibration='both')"


HEAD = "a linear layer, or its weight, of shape (classes, 4)"
PARAMETERS = "The '{}' parameter of DRTuneRegularizer must be {}. Got {} instead."


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dim": 0}, PARAMETERS.format("dim", "an int of at least 1", 0)),
        ({"bank_size": -1}, PARAMETERS.format("bank_size", "an int of at least 0", -1)),
        ({"bank_size": 2.5}, PARAMETERS.format("bank_size", "an int of at least 0", 2.5)),
        ({"rotate_every": 0}, PARAMETERS.format("rotate_every", "an int of at least 1", 0)),
        (
            {"calibration": "all"},
            PARAMETERS.format("calibration", "one of 'both', 'rotation', 'translation', 'none'", "'all'"),
        ),
    ],
)
def test_bad_settings(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError) as caught:
        DRTuneRegularizer(**{"dim": 4, **given})
    assert str(caught.value) == message


Z, Y = torch.zeros(2, 4), torch.tensor([0, 1])
SOFT = (
    "DR-Tune keeps one class for each bank entry: labels must be class ids, integers of shape (B,). Got {}; soft or "
    "mixed labels and regression do not work."
)


@pytest.mark.parametrize(
    ("down", "pre", "labels", "head", "message"),
    [
        (Z, Z, torch.tensor([0, 3]), None, "row 1: label 3 is not a class of the head, 0 to 2"),
        (Z, Z, torch.tensor([-100, 0]), None, "row 0: label -100 is not a class of the head, 0 to 2"),
        (Z, Z, torch.zeros(2, 3), None, SOFT.format("float32 of shape (2, 3)")),
        (Z, Z, torch.zeros(2), None, SOFT.format("float32 of shape (2,)")),
        (Z, Z, [0, 1], None, SOFT.format("list")),
        (None, Z, Y, None, PARAMETERS.format("features_down", "a tensor of pooled features, (2, 4)", "'NoneType'")),
        ((Z,), Z, Y, None, PARAMETERS.format("features_down", "a tensor of pooled features, (2, 4)", "'tuple'")),
        (Z, Z[:1], Y, None, PARAMETERS.format("features_pre", "a tensor of pooled features, (2, 4)", "(1, 4)")),
        (Z, Z, Y, nn.Linear(5, 3), PARAMETERS.format("head", HEAD, "(3, 5)")),
        (Z, Z, Y, nn.ReLU(), PARAMETERS.format("head", HEAD, "'ReLU'")),
    ],
)  # fmt: skip
def test_bad_batches(down: Any, pre: Any, labels: Any, head: Any, message: str) -> None:
    regularizer = filled(6, 4, 3)
    before = {name: value.clone() for name, value in regularizer.state_dict().items()}
    with pytest.raises((ParameterError, DataError)) as caught:
        regularizer(down, pre, labels, head or nn.Linear(4, 3))
    assert str(caught.value) == message
    assert all(torch.equal(before[name], value) for name, value in regularizer.state_dict().items())


def test_negative_labels_are_refused_without_a_head() -> None:
    with pytest.raises(DataError, match=r"^row 1: label -1 is not a class of the head, 0$"):
        DRTuneRegularizer(4, 6).enqueue(Z, Z, torch.tensor([0, -1]))
