"""The parameters of the pipeline, checked before anything is read or scored."""

from __future__ import annotations

from numbers import Integral, Real
from typing import TYPE_CHECKING

import numpy as np

from tunesmith.core.errors import ParameterError

if TYPE_CHECKING:
    from tunesmith.curate.fine_t2i.curator import TextToImageCurator

__all__ = ["check_parameters"]


def check_parameters(curator: TextToImageCurator) -> None:
    """Check every parameter but the taxonomy, which checks itself.

    Raises:
        ParameterError: one is outside its range, or a threshold outside the range of its scorer.
    """
    for name, least, also in (
        ("min_words", 0, ""),
        ("max_words", curator.min_words, ""),
        ("groups", 1, "None or "),
        ("probes", 0, "None or "),
        ("n_candidates", 1, ""),
        ("random_state", 0, ""),
    ):
        value = getattr(curator, name)
        if value is None and also:
            continue
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise ParameterError(name, curator, f"{also}an int >= {least}", value)
    t = curator.dedup_threshold
    if t is not None and (isinstance(t, bool) or not isinstance(t, Real) or not t > 0):
        raise ParameterError("dedup_threshold", curator, "None or a number > 0", t)
    if curator.aesthetic is not None and curator.aesthetic != "sharpness" and not callable(curator.aesthetic):
        raise ParameterError(
            "aesthetic", curator, "None, 'sharpness' or a callable on images", curator.aesthetic
        )
    if (
        curator.alignment is not None
        and not isinstance(curator.alignment, str)
        and not callable(curator.alignment)
    ):
        expected = "None, a model's folder, or a callable on prompts and images"
        raise ParameterError("alignment", curator, expected, curator.alignment)
    for name in ("safety", "attributes", "writer", "enhancer", "generator"):
        value = getattr(curator, name)
        if value is not None and not callable(value):
            raise ParameterError(name, curator, "None or a callable", value)
    if not curator.shapes or any(shape not in ("square", "random") for shape in curator.shapes):
        raise ParameterError("shapes", curator, "a list of 'square' and 'random'", curator.shapes)
    for name, scorer in (
        ("aesthetic_threshold", curator._aesthetic()),
        ("real_aesthetic_threshold", curator._aesthetic()),
        ("alignment_threshold", curator._alignment()),
    ):
        value = getattr(curator, name)
        low, high = getattr(scorer, "range", (-np.inf, np.inf))
        if isinstance(value, bool) or not isinstance(value, Real) or not low <= float(value) <= high:
            where = f" from {low:g} to {high:g}, the range of its scorer" if hasattr(scorer, "range") else ""
            raise ParameterError(name, curator, f"a number{where}", value)
