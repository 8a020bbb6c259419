"""Outputs of the authors' code on small inputs, kept in tests/golden."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch


def decoded(value: Any) -> Any:
    """Return a value with its arrays of numbers as tensors; infinities and not-a-numbers come as strings."""
    if isinstance(value, dict) and "dtype" in value:
        if not hasattr(torch, value["dtype"]):  # texts
            return value["data"]
        data = [float(x) if isinstance(x, str) else x for x in np.array(value["data"], dtype=object).ravel()]
        return torch.tensor(data, dtype=getattr(torch, value["dtype"])).reshape(value["shape"])
    if isinstance(value, dict):
        return {name: decoded(item) for name, item in value.items()}
    return value


def tensor(value: dict[str, Any]) -> torch.Tensor:
    """Return an array of a golden file as a tensor."""
    found: torch.Tensor = decoded(value)
    return found


def raw_cases(method: str) -> dict[str, dict[str, Any]]:
    """Return the cases of a file by name, as they are."""
    file = Path(__file__).parent / "golden" / f"{method}.json"
    return {case["name"]: case for case in json.loads(file.read_text(encoding="utf-8"))["cases"]}


def cases(method: str) -> dict[str, dict[str, Any]]:
    """Return the cases of a file by name, ``inputs`` and ``outputs`` decoded."""
    return {
        name: {**case, **{part: decoded(case[part]) for part in ("inputs", "outputs") if part in case}}
        for name, case in raw_cases(method).items()
    }
