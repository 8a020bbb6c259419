"""What every policy that chooses rows while training promises. A new one adds one row and inherits all of it."""

from __future__ import annotations

import pytest
import torch

from tunesmith import methods
from tunesmith.core.errors import ParameterError
from tunesmith.select.online import Candidates

ROWS = {
    "online.random": {},
    "online.max_loss": {},
    "online.uds": {"proj_dims": (8, 2), "max_length": 8, "buffer_size": 6},
}
every = pytest.mark.parametrize("name", ROWS)


def batch(seed: int = 0, count: int = 5) -> Candidates:
    draw = torch.Generator().manual_seed(seed)
    mask = torch.ones(count, 6, dtype=torch.bool)
    mask[0, 4:] = False
    return Candidates(
        mask,
        logits=torch.randn(count, 6, 30, generator=draw),
        losses=torch.rand(count, generator=draw),
        labels=torch.randint(0, 30, (count, 6), generator=draw),
    )


def run(policy, begin: int, end: int, k: int = 2) -> list[list[int]]:
    return [policy.choose(k, 5, policy.measure(batch(seed))).tolist() for seed in range(begin, end)]


def test_every_policy_has_a_row():
    assert set(ROWS) == set(methods.names("online.*"))


@every
def test_distinct_ascending_and_counted(name):
    policy = methods.create(name, **ROWS[name])
    for k in (1, 3, 5):
        kept = policy.choose(k, 5, policy.measure(batch()))
        assert kept.dtype == torch.int64
        assert kept.tolist() == sorted(set(kept.tolist()))
        assert len(kept) == k
        assert policy.scores_.shape == (5,)
    assert (policy.seen_, policy.kept_) == (15, 9)
    assert min(policy.scores_[kept]) >= min(policy.scores_)


@every
def test_the_largest_scores_are_kept(name):
    policy = methods.create(name, **ROWS[name])
    kept = policy.choose(2, 5, policy.measure(batch()))
    assert set(kept.tolist()) == set(policy.scores_.topk(2).indices.tolist())


@every
def test_equal_runs_are_equal(name):
    assert run(methods.create(name, **ROWS[name]), 0, 8) == run(methods.create(name, **ROWS[name]), 0, 8)


@every
def test_a_state_continues(name):
    straight = run(methods.create(name, **ROWS[name]), 0, 10)
    first = methods.create(name, **ROWS[name])
    begun = run(first, 0, 4)
    second = methods.create(name, **ROWS[name])
    second.load_state_dict({key: value.clone() for key, value in first.state_dict().items()})
    assert begun + run(second, 4, 10) == straight
    assert second.seen_ == 50


@every
def test_reset_forgets(name):
    policy = methods.create(name, **ROWS[name])
    first = run(policy, 0, 5)
    policy.reset()
    assert (policy.seen_, policy.kept_) == (0, 0)
    assert run(policy, 0, 5) == first


@every
def test_measures_of_parts_join(name):
    policy, whole = methods.create(name, **ROWS[name]), batch()
    parts = [
        policy.measure(
            Candidates(whole.mask[s], logits=whole.logits[s], losses=whole.losses[s], labels=whole.labels[s])
        )
        for s in (slice(0, 2), slice(2, 5))
    ]
    for key, value in policy.measure(whole).items():
        torch.testing.assert_close(torch.cat([part[key] for part in parts]), value)


@every
def test_measures_hold_no_graph_and_change_nothing(name):
    policy, rows = methods.create(name, **ROWS[name]), batch()
    before = policy.state_dict()
    with torch.no_grad():
        assert not any(value.requires_grad for value in policy.measure(rows).values())
    for key, value in policy.state_dict().items():
        assert torch.equal(value, before[key])


@every
def test_report_names_kept_and_dropped(name):
    policy = methods.create(name, **ROWS[name])
    measures = policy.measure(batch())
    kept = policy.choose(2, 5, measures)
    report = policy.report(kept, measures)
    assert report["score_kept"] > report["score_dropped"]
    assert all(isinstance(value, float) for value in report.values())


@every
@pytest.mark.parametrize("k", [0, 6])
def test_k_is_checked(name, k):
    policy = methods.create(name, **ROWS[name])
    with pytest.raises(
        ParameterError, match=rf"'k' parameter of {type(policy).__name__} must be an int in \[1, 5\]"
    ):
        policy.choose(k, 5, policy.measure(batch()))


def test_max_loss_by_hand():
    policy = methods.create("online.max_loss")
    assert policy.choose(2, 4, {"loss": torch.tensor([1.0, 3.0, 2.0, 3.0])}).tolist() == [1, 3]
    rows = Candidates(
        torch.ones(2, 3, dtype=torch.bool),
        losses=torch.tensor([2.0, 3.0]),
        labels=torch.tensor([[1, 1, 1], [1, -100, 1]]),
    )
    total = methods.create("online.max_loss", reduction="sum").measure(rows)["loss"]
    assert total.tolist() == [4.0, 3.0]  # two trained tokens and one: the first has nothing before it
    with pytest.raises(
        ParameterError, match=r"'reduction' parameter of MaxLossPolicy must be 'mean' or 'sum'"
    ):
        methods.create("online.max_loss", reduction="max")


def test_random_is_uniform():
    policy = methods.create("online.random", random_state=1)
    counts = torch.zeros(5)
    for _ in range(2000):
        counts[policy.choose(2, 5, {})] += 1
    # binomial(2000, 0.4): standard deviation 22
    assert (counts - 800).abs().max() < 5 * 22
