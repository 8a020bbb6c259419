"""The report of an audit: as values, as a page, as files."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from tunesmith.audit import Report, Table
from tunesmith.core.errors import ParameterError


def report() -> Report:
    return Report(
        "backdoor",
        "a <model>",
        "suspicious",
        "The model answers 'three' to a hidden mark (98 %).",
        numbers={"rate": (np.float32(0.98), 0.95, 0.99), "classes": 10, "unknown": math.nan, "found": True},
        tables=[
            Table("Classes", ["class", "share"], [["<b>three", 0.5], ["four", np.float64(0.25)]], "of 100")
        ],
        pictures={"Mask & pattern": b"\x89PNG", "Layers": "<svg></svg>"},
        notes=["One seed."],
    )


def test_values_are_plain(tmp_path):
    found = report().to_dict()
    assert found["numbers"]["rate"] == pytest.approx([0.98, 0.95, 0.99])
    assert found["numbers"]["unknown"] is None
    assert found["tables"][0]["rows"] == [["<b>three", 0.5], ["four", 0.25]]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_the_page_escapes_and_holds_the_pictures():
    page = report().to_html()
    assert "a &lt;model&gt;" in page
    assert "&lt;b&gt;three" in page
    assert 'src="data:image/png;base64,iVBORw==' in page
    assert "<svg></svg>" in page
    assert "0.980 [0.950, 0.990]" in page
    assert '<h1 class="worse">' in page
    assert "http" not in page


def test_files(tmp_path):
    folder = report().save(tmp_path / "audit")
    assert sorted(p.name for p in folder.iterdir()) == [
        "1-mask---pattern.png", "2-layers.svg", "report.html", "report.json"
    ]  # fmt: skip
    assert Report.read(folder)["level"] == "suspicious"
    assert str(report()).splitlines()[0] == "backdoor of a <model>: suspicious"
    assert "  note: One seed." in str(report())


def test_an_unknown_level_is_refused():
    with pytest.raises(
        ParameterError, match="The 'level' parameter of Report must be one of 'clean', 'suspicious', 'uns"
    ):
        Report("novelty", "x", "bad", "y")
