"""The cards agree with one another, with the registry and with what can be imported."""

from __future__ import annotations

import dataclasses
import datetime
import importlib
import re
from importlib.metadata import entry_points

import pytest

import tunesmith
from tunesmith import methods, papers
from tunesmith.core.errors import UnknownNameError
from tunesmith.papers.catalogue import STATUSES, public_name

CARDS = papers.list()
BUILT_IN = [p.name for p in entry_points(group="tunesmith") if p.value.startswith("tunesmith.")]


def resolve(name: str) -> object:
    """Import ``select.MIGSelector`` and the like, going down through modules and attributes."""
    package, *rest = name.split(".")
    found = importlib.import_module(f"tunesmith.{package}")
    for i, part in enumerate(rest):
        if not hasattr(found, part):  # a package inside the package, which nobody has imported yet
            importlib.import_module(".".join(["tunesmith", package, *rest[: i + 1]]))
        found = getattr(found, part)
    return found


def test_there_are_forty_one_in_the_order_of_the_page() -> None:
    assert [card.position for card in CARDS] == list(range(1, 42))


@pytest.mark.parametrize("field", ["slug", "arxiv", "title", "summary"])
def test_no_two_cards_share(field: str) -> None:
    values = [getattr(card, field) for card in CARDS]
    assert len(set(values)) == 41


def test_no_public_name_belongs_to_two_papers() -> None:
    names = [name for card in CARDS for name in card.names]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.slug)
def test_a_card_is_complete(card: papers.Card) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", card.slug)
    assert re.fullmatch(r"\d{4}\.\d{4,5}", card.arxiv)
    assert card.date is None or datetime.date.fromisoformat(card.date) <= datetime.date.today()
    assert card.authors is None or card.authors >= 1
    assert card.status in STATUSES
    assert card.family in tunesmith.__all__
    assert card.names
    assert all(name.split(".")[0] in tunesmith.__all__ for name in card.names)
    assert 2 <= len(re.findall(r"[.!?](?:\s|$)", card.summary)) <= 3
    assert card.status != "reconstruction" or card.reconstruction
    assert not card.reconstruction or card.note


@pytest.mark.parametrize("card", [c for c in CARDS if c.status != "planned"], ids=lambda card: card.slug)
def test_every_name_of_a_working_card_can_be_imported(card: papers.Card) -> None:
    for name in card.names:
        assert resolve(name) is not None


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_registered_method_is_of_a_paper_or_a_baseline(name: str) -> None:
    assert (papers.of_method(name) is None) == (name in papers.BASELINES)


def test_no_baseline_is_listed_that_is_not_registered() -> None:
    assert set(papers.BASELINES) <= set(BUILT_IN)


def test_the_reconstructions_say_so() -> None:
    assert {c.slug for c in CARDS if c.reconstruction} == {"iaa-retrieval", "ihas", "anytasktune", "levi"}
    for slug in ("ila-sdp", "deep-subspace-clustering"):
        assert "derivation" in (papers.get(slug).note or "")


@pytest.mark.parametrize(
    "name",
    ["mig", "2504.13835", "arXiv:2504.13835v2", "https://arxiv.org/abs/2504.13835", "arxiv:2504.13835"],
)
def test_get_by_slug_or_arxiv_id(name: str) -> None:
    assert papers.get(name).title.startswith("MIG: Automatic Data Selection")
    assert papers.get(name).url == "https://arxiv.org/abs/2504.13835"


def test_an_unknown_paper_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"There is no paper named 'migg'\. Did you mean 'mig'\?"):
        papers.get("migg")


def test_list_by_status_and_family() -> None:
    assert "mig" in [c.slug for c in papers.list(status="working")]
    assert {c.family for c in papers.list(family="cluster")} == {"cluster"}
    parts = [papers.list(status=status) for status in STATUSES]
    assert sum(map(len, parts)) == 41


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"status": "workin"},
            r"no status named 'workin'\. Did you mean 'working'\? Valid names: planned, recons",
        ),
        (
            {"family": "clusters"},
            r"no family named 'clusters'\. Did you mean 'cluster'\? Valid names: audit, clus",
        ),
    ],
)
def test_an_unknown_status_or_family_names_the_valid_ones(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        papers.list(**arguments)


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("mig", "mig"),
        ("information gain", "mig"),
        ("MIGSelector", "mig"),
        ("2401.01335", "spin"),
        ("semidefinite", "ila-sdp"),
        ("Half Fine-Tuning", "hft"),
        ("backdoor clip", "invertune"),
    ],
)
def test_search_finds_by_any_field(text: str, first: str) -> None:
    assert papers.search(text)[0].slug == first


def test_search_wants_every_word_and_finds_nothing_in_nothing() -> None:
    assert papers.search("information zebra") == []
    assert papers.search("  ") == []
    both = {c.slug for c in papers.search("optimal transport")}
    assert both == {"got-d", "goracs"}


def test_public_name_of_a_method() -> None:
    assert public_name("select.mig") == "tunesmith.select.MIGSelector"
    assert public_name("train.sft") == "tunesmith.trainers.train_sft"
    with pytest.raises(
        UnknownNameError, match=r"There is no method named 'select\.migg'\. Did you mean 'select\.mig'"
    ):
        public_name("select.migg")


def test_a_method_of_another_package_belongs_to_no_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    point = next(iter(entry_points(group="tunesmith", name="select.mig")))
    other = type(point)("select.other", "outside.selectors:Other", "tunesmith")
    monkeypatch.setattr("tunesmith.papers.catalogue.entry_points", lambda **_: [other])
    monkeypatch.setattr(methods, "names", lambda pattern="*": ["select.other"])
    assert public_name("select.other") == "outside.selectors.Other"
    assert papers.of_method("select.other") is None


def test_the_year_comes_from_the_date_or_the_arxiv_id() -> None:
    assert papers.get("mig").year == "2025"
    undated = papers.get("fine-t2i")
    assert undated.date is None
    assert undated.year == "2026"


def test_a_claim_is_read_into_the_card() -> None:
    from tunesmith.papers.catalogue import _card

    values = dataclasses.asdict(papers.get("mig")) | {"claim": {"verdict": "holds", "command": "python x.py"}}
    assert _card(values).claim == papers.Claim("holds", "python x.py")
