"""The cases of golden/composable-sft.json, and their tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

CASES: dict[str, Any] = {
    case["name"]: case
    for case in json.loads(Path(__file__).with_name("golden").joinpath("composable-sft.json").read_text())[
        "cases"
    ]
}


def tensors(group: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors of a group; one that is None (no gradient) is left out."""
    return {
        name: torch.tensor(a["data"], dtype=getattr(torch, a["dtype"])).reshape(a["shape"])
        for name, a in group.items()
        if a is not None
    }
