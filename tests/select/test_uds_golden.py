"""Parity with the authors' code (gfyddha/UDS, UDSamplingTrainer.py) on the inputs of tests/golden/uds.json.

The fixtures say that they show the official form: real part of an unnormalised transform, no mask.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tunesmith.select.online import Candidates, SketchMemory, UDSPolicy, nuclear_norms
from tunesmith.select.online.sketch import official_sketch

CASES = {
    case["name"]: case
    for case in json.loads((Path(__file__).parents[1] / "golden" / "uds.json").read_text())["cases"]
}
DRAWS = ("sign_vocab", "index_vocab", "sign_time", "index_time")
SEQUENCES = [name for name in CASES if name.startswith("sequence")]


def tensor(entry) -> torch.Tensor:
    return torch.tensor(entry["data"], dtype=getattr(torch, entry["dtype"])).reshape(entry["shape"])


def draws(inputs) -> tuple[torch.Tensor, ...]:
    return tuple(tensor(inputs[name]) for name in DRAWS)


def close(ours: torch.Tensor, theirs, tolerance: float) -> None:
    """The fixtures' tolerances are relative to the largest absolute value."""
    expected = tensor(theirs)
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() <= tolerance * max(1e-12, float(expected.abs().max()))


@pytest.mark.parametrize("name", ["sketch_0", "sketch_1", "sketch_2"])
def test_sketch(name):
    case = CASES[name]
    z = official_sketch(tensor(case["inputs"]["logits"]), *draws(case["inputs"]))
    close(z, case["outputs"]["z"], case["tolerance"])


def test_nuclear_norm():
    case = CASES["nuclear_norm"]
    for name, entry in case["inputs"].items():
        ours = float(nuclear_norms(tensor(entry).unsqueeze(0)))
        assert ours == pytest.approx(case["outputs"][name], rel=case["tolerance"])


def official(case) -> UDSPolicy:
    p = case["params"]
    policy = UDSPolicy(
        alpha=p["alpha"],
        buffer_size=p["M"],
        proj_dims=(p["d1_vocab"], p["d2_time"]),
        max_length=p["T"],
        variant="official",
    )
    policy._official = draws(case["inputs"])
    return policy


@pytest.mark.parametrize("name", SEQUENCES)
def test_batches_in_a_row(name):
    case = CASES[name]
    policy, k, tolerance = official(case), case["params"]["K"], case["tolerance"]
    for entry, step in zip(case["inputs"]["logits"], case["outputs"]["steps"], strict=True):
        logits = tensor(entry)
        b, n, _ = logits.shape
        measures = policy.measure(Candidates(torch.ones(b, n, dtype=torch.bool), logits=logits))
        kept = policy.choose(k, b, measures)
        close(measures["intra"], step["s_intra"], tolerance)
        close(measures["inter"], step["s_inter"], tolerance)
        close(policy.scores_, step["total"], tolerance)
        assert kept.tolist() == step["kept"]
        assert policy.memory_.count == step["memory_count"]
        assert policy.memory_.pointer == step["memory_pointer"]
    close(measures["sketch"], case["outputs"]["z_last_batch"], tolerance)
    last = policy.memory_.mean_distance(measures["sketch"])
    close(last, case["outputs"]["s_inter_last_batch_final_memory"], tolerance)
    close(policy.memory_.rows, case["outputs"]["memory"], tolerance)


def test_padding_side():
    """Left padding moves the authors' sketch; ours, with a mask, is the same on either side."""
    case = CASES["padding_side"]
    logits, parts = tensor(case["inputs"]["logits"]), draws(case["inputs"])
    zeros = torch.zeros(2, logits.shape[1])
    for name, padded in (
        ("z_plain", logits),
        ("z_right_padded", torch.cat([logits, zeros])),
        ("z_left_padded", torch.cat([zeros, logits])),
    ):
        close(official_sketch(padded, *parts).flatten(), case["outputs"][name], case["tolerance"])
    policy = UDSPolicy(proj_dims=(3, 2), max_length=6)
    found = []
    for front, back in ((0, 0), (0, 2), (2, 0)):
        padded = torch.cat([zeros[:front], logits, zeros[:back]])
        mask = torch.tensor([False] * front + [True] * len(logits) + [False] * back)
        found.append(policy.measure(Candidates(mask.unsqueeze(0), logits=padded.unsqueeze(0)))["sketch"])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_fifo():
    case = CASES["fifo"]
    memory = SketchMemory(case["params"]["M"])
    for push, after in zip(case["inputs"]["pushes"], case["outputs"]["after_each_push"], strict=True):
        memory.push(tensor(push))
        np.testing.assert_array_equal(memory.rows, tensor(after["memory"]))
        assert (memory.count, memory.pointer) == (after["count"], after["pointer"])
