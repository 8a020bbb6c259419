"""The messages a user reads, in their one form."""

from __future__ import annotations

import pytest

from tunesmith.core.errors import (
    ConfigError,
    DataError,
    DiskFullError,
    MissingModelError,
    ParameterError,
    RunDirectoryError,
    TrainingError,
    TunesmithError,
    UnknownNameError,
    nearest,
    shorten,
)


class Thing:
    """Stands for any method."""


@pytest.mark.parametrize("owner", ["Thing", Thing, Thing()])
def test_parameter_error_has_one_form(owner: object) -> None:
    error = ParameterError("budget", owner, "an int in [1, n] or a float in (0, 1]", 0)
    assert str(error) == (
        "The 'budget' parameter of Thing must be an int in [1, n] or a float in (0, 1]. Got 0 instead."
    )
    assert error.parameter == "budget"


def test_parameter_error_shortens_what_it_got() -> None:
    message = str(ParameterError("x", "f", "short", "a" * 5_000_000))
    assert len(message) < 300
    assert "(4,999,842 more characters) instead." in message


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "it is empty"),
        ({"source": "a.jsonl"}, "a.jsonl: it is empty"),
        ({"row": 7}, "row 7: it is empty"),
        ({"source": "a.jsonl", "row": 0}, "a.jsonl, row 0: it is empty"),
        ({"source": "a", "row": 3, "content": {"q": 1}}, "a, row 3: it is empty The row reads: {'q': 1}"),
        ({"content": "two\n  lines"}, "it is empty The row reads: two lines"),
    ],
)
def test_data_error_names_file_and_row(given: dict[str, object], expected: str) -> None:
    assert str(DataError("it is empty", **given)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "no such key"),
        ({"source": "r.yaml"}, "r.yaml: no such key"),
        ({"line": 4}, "line 4: no such key"),
        ({"source": "r.yaml", "line": 4, "column": 9}, "r.yaml:4:9: no such key"),
        ({"source": "r.yaml", "column": 9}, "r.yaml: no such key"),
    ],
)
def test_config_error_names_line_and_column(given: dict[str, object], expected: str) -> None:
    assert str(ConfigError("no such key", **given)) == expected  # type: ignore[arg-type]


def test_unknown_name_gives_the_nearest_and_all() -> None:
    error = UnknownNameError("method", "select.mgi", ["select.random", "select.mig"])
    assert str(error) == (
        "There is no method named 'select.mgi'. Did you mean 'select.mig'? Valid names: select.mig, "
        "select.random."
    )
    assert str(UnknownNameError("method", "x", [])) == "There is no method named 'x'. Valid names: none."


def test_nearest_is_silent_when_nothing_is_near() -> None:
    assert nearest("zebra", ["mig", "random"]) == ""


def test_shorten_keeps_a_text_of_exactly_the_limit() -> None:
    assert shorten("a" * 160) == "a" * 160
    assert shorten("a" * 161) == "a" * 160 + "… (1 more characters)"


@pytest.mark.parametrize(
    ("kind", "builtin", "code"),
    [
        (ParameterError, ValueError, 2),
        (DataError, ValueError, 1),
        (ConfigError, ValueError, 2),
        (MissingModelError, OSError, 2),
        (RunDirectoryError, RuntimeError, 1),
        (DiskFullError, OSError, 1),
        (TrainingError, RuntimeError, 1),
        (UnknownNameError, LookupError, 2),
    ],
)
def test_every_error_is_ours_and_also_the_builtin_that_callers_expect(
    kind: type[TunesmithError], builtin: type[Exception], code: int
) -> None:
    assert issubclass(kind, TunesmithError)
    assert issubclass(kind, builtin)
    assert not issubclass(kind, KeyError)
    assert kind.exit_code == code
