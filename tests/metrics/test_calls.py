"""Function calls are read without being run, and compared argument by argument."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.metrics.calls import parse_call, score_call

TRUTH = {"geo.weather": {"city": ["Paris", "Paris, FR"], "days": [3], "units": ["metric", ""]}}


@pytest.mark.parametrize(
    "text",
    [
        'geo.weather(city="Paris", days=3)',
        " geo.weather(days=3, city='paris ') ",
        "[geo.weather(city='Paris', days=3.0)]",
        '```python\ngeo.weather(city="Paris, FR", days=3)\n```',
        '{"name": "geo.weather", "arguments": {"city": "Paris", "days": 3}}',
        '[{"name": "geo.weather", "parameters": {"city": "Paris", "days": 3}}]',
        '{"name": "geo.weather", "arguments": "{\\"city\\": \\"Paris\\", \\"days\\": 3}"}',
        '```json\n{"name": "geo.weather", "arguments": {"city": "PARIS", "days": 3, "units": "metric"}}\n```',
    ],
)
def test_wholly_right(text):
    assert score_call(text, TRUTH) == 1


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('geo.weather(city="Paris", days=4)', 0.5 + 0.5 * 1 / 2),
        ('geo.weather(city="Paris")', 0.5 + 0.5 * 1 / 2),
        ('geo.weather(city="Paris", days=3, extra=1)', 0.5 + 0.5 * 2 / 3),
        ('geo.weather(city="Paris", days=3, units="imperial")', 0.5 + 0.5 * 2 / 3),
        ('geo.weather(city="Paris", days="3")', 0.5 + 0.5 * 1 / 2),
        ('geo.weather(city="Paris", days=True)', 0.5 + 0.5 * 1 / 2),
        ("geo.weather()", 0.5),
        ('weather(city="Paris", days=3)', 0),
        ('geo.weather("Paris", 3)', 0),
        ("I would call geo.weather(city='Paris', days=3)", 0),
        ("geo.weather(city='Paris', days=3", 0),
        ("geo.weather(**{'city': 'Paris'})", 0),
        ("geo.weather(city=Paris, days=3)", 0),
        ('{"name": "geo.weather", "arguments": [1]}', 0),
        ('{"name": "geo.weather", "arguments": "{"}', 0),
        ("", 0),
    ],
)
def test_partly_right_and_wrong(text, score):
    assert score_call(text, TRUTH) == pytest.approx(score)


def test_values_of_all_kinds():
    truth = {"f": {"xs": [[1, 2.5, "B"]], "d": [{"k": [1]}], "flag": [True], "none": [None], "neg": [-2]}}
    assert score_call("f(xs=(1, 2.5, 'b '), d={'k': [1.0]}, flag=true, none=null, neg=-2)", truth) == 1
    assert score_call("f(xs=[1, 2.5], d={'j': [1]}, flag=1, none=0, neg=2)", truth) == 0.5
    assert score_call("f()", {"f": {}}) == 1
    assert score_call("f(a='')", {"f": {"a": ["x", ""]}}) == 1


def test_nothing_is_run():
    for text in (
        "f(x=__import__('os').system('true'))",
        "f(x=open('/etc/passwd').read())",
        "f(x=[y for y in range(9)])",
        "__import__('os').system(command='true')",
        "(lambda: 1)(x=1)",
        "f(x=" + "9" * 30_000 + ")",
        "f(x=" + "(" * 5_000 + ")" * 5_000 + ")",
        "[" * 9_000,
    ):
        assert parse_call(text) is None


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.dictionaries(
        st.from_regex(r"\Aa[a-z]{0,5}\Z").filter(
            lambda k: k not in ("as", "and", "assert", "async", "await")
        ),
        VALUES,
        max_size=4,
    )
)
def test_what_is_written_is_read(arguments):
    python = f"f({', '.join(f'{k}={v!r}' for k, v in arguments.items())})"
    assert parse_call(python) == ("f", arguments)
    assert parse_call(json.dumps({"name": "f", "arguments": arguments})) == ("f", arguments)
    assert score_call(python, {"f": {k: [v] for k, v in arguments.items()}}) == 1


@given(st.text(max_size=200))
def test_any_text_has_a_score(text):
    assert score_call(text, TRUTH) == 0 or "weather" in text
