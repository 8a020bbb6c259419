"""A detector as one safetensors file: arrays as tensors, the rest as JSON in its header. No pickle."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.core.errors import DataError
from tunesmith.core.files import atomic_open

if TYPE_CHECKING:
    from tunesmith.audit.drift.detector import DriftDetector

__all__ = ["read", "write"]

_KEY = "tunesmith.drift"
_VERSION = 1
_ARRAYS = ("held_out_", "_buffer", "edges_", "centers_")
_VALUES = ("features_", "n_reference_", "bandwidth_", "n_windows_", "n_rows_", "bookmark_")


def write(path: str | os.PathLike[str], detector: DriftDetector) -> None:
    """Write a fitted detector, atomically."""
    from safetensors.numpy import save

    tensors = {}
    for group in _ARRAYS:
        for name, values in getattr(detector, group).items():
            place = detector.features_.index(name)
            tensors[f"{group}.{place}"] = np.ascontiguousarray(values)
    header = {
        "version": _VERSION,
        "parameters": detector.get_params(),
        **{name: getattr(detector, name) for name in _VALUES},
    }
    data = save(tensors, metadata={_KEY: json.dumps(header, ensure_ascii=False, default=_plain)})
    with atomic_open(path, "wb") as stream:
        stream.write(data)


def read(path: str | os.PathLike[str], kind: type[DriftDetector]) -> DriftDetector:
    """Return the detector.

    Raises:
        DataError: there is no such file, it is torn, or no state of a detector.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), framework="numpy") as stream:
            header = json.loads((stream.metadata() or {})[_KEY])
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118  (no mapping)
    except FileNotFoundError:
        raise DataError("there is no such file.", source=str(path)) from None
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise DataError(
            "this is no saved DriftDetector, or the file is torn. Fit one and save it again.",
            source=str(path),
        ) from error
    if header["version"] != _VERSION:
        raise DataError(
            f"the state is of version {header['version']}, this program reads {_VERSION}. Fit again.",
            source=str(path),
        )
    detector = kind(**header["parameters"])
    for name in _VALUES[:3]:
        setattr(detector, name, header[name])
    for group in _ARRAYS:
        found = {}
        for place, name in enumerate(detector.features_):
            if f"{group}.{place}" in tensors:
                found[name] = tensors[f"{group}.{place}"]
        setattr(detector, group, found)
    detector._cache = {}
    for name in _VALUES[3:]:
        setattr(detector, name, header[name])
    return detector


def _plain(value: Any) -> Any:
    item = getattr(value, "item", None)  # of NumPy's scalars
    return item() if callable(item) else str(value)
