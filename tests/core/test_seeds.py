"""Child seeds are stable, separate, and fit every library."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.core.seeds import child_seed, seed_everything


@given(st.integers(0, 2**40), st.lists(st.text(max_size=5) | st.integers(0, 9), max_size=3))
def test_a_child_seed_is_31_bits_and_repeats(root: int, names: list[str | int]) -> None:
    seed = child_seed(root, *names)
    assert 0 <= seed < 2**31
    assert seed == child_seed(root, *names)


def test_consumers_do_not_share_a_seed() -> None:
    seeds = {
        child_seed(root, name, i) for root in range(20) for name in ("select", "train") for i in range(20)
    }
    assert len(seeds) == 20 * 2 * 20


def test_the_values_do_not_change_between_versions() -> None:
    assert (child_seed(0, "select"), child_seed(7, "arm", 3)) == (1_819_153_675, 359_090_915)


def test_everything_is_seeded() -> None:
    import torch

    def draw() -> tuple[float, float, float]:
        seed_everything(7)
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    assert draw() == draw()
