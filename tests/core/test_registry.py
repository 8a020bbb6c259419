"""The registry reads entry points, says what is wrong with a name, and refuses two owners of one name."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint

import pytest

from tunesmith.core import registry
from tunesmith.core.errors import TunesmithError, UnknownNameError


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EntryPoint]]:
    """The entry points that the registry sees."""
    found = [
        EntryPoint("select.fraction", "fractions:Fraction", "tunesmith"),
        EntryPoint("select.broken", "no_such_module_here:Thing", "tunesmith"),
        EntryPoint("select.gone", "fractions:NoSuchClass", "tunesmith"),
        EntryPoint("curate.ordered", "collections:OrderedDict", "tunesmith"),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: found if group == "tunesmith" else [])
    registry.refresh()
    yield found
    registry.refresh()


def test_names_are_sorted_and_filtered(points: list[EntryPoint]) -> None:
    assert registry.names("select.*") == ["select.broken", "select.fraction", "select.gone"]
    assert registry.names() == ["curate.ordered", *registry.names("select.*")]


def test_create_passes_parameters_on(points: list[EntryPoint]) -> None:
    assert registry.create("select.fraction", numerator=1, denominator=2) == 0.5


def test_an_unknown_name_lists_its_family(points: list[EntryPoint]) -> None:
    with pytest.raises(UnknownNameError) as caught:
        registry.get("select.fractoin")
    assert str(caught.value) == (
        "There is no method named 'select.fractoin'. Did you mean 'select.fraction'? Valid names: "
        "select.broken, "
        "select.fraction, select.gone."
    )
    with pytest.raises(UnknownNameError, match=r"Valid names: curate\.ordered, select\.broken"):
        registry.get("elsewhere.x")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "select.broken",
            "no_such_module_here:Thing but cannot be imported: No module named 'no_such_module_here'",
        ),
        ("select.gone", "fractions:NoSuchClass but cannot be imported: module 'fractions' has no attribute"),
    ],
)
def test_a_method_that_cannot_be_imported_says_why(points: list[EntryPoint], name: str, reason: str) -> None:
    with pytest.raises(TunesmithError) as caught:
        registry.get(name)
    assert f"The method '{name}' is registered as {reason}" in str(caught.value)


def test_two_owners_of_one_name_are_refused(points: list[EntryPoint]) -> None:
    points.append(EntryPoint("curate.ordered", "collections:Counter", "tunesmith"))
    registry.refresh()
    with pytest.raises(TunesmithError) as caught:
        registry.names()
    assert str(caught.value) == (
        "Two installed packages register the method 'curate.ordered': collections:OrderedDict and "
        "collections:Counter. Uninstall one of them or ask its author to rename the method."
    )


def test_the_same_entry_seen_twice_is_one(points: list[EntryPoint]) -> None:
    points.append(EntryPoint("curate.ordered", "collections:OrderedDict", "tunesmith"))
    registry.refresh()
    assert "curate.ordered" in registry.names()
