"""The documentation scripts find what they are for, and write figures only from result files."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


check_docs, gen_results = script("check_docs"), script("gen_results")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "docs" / "methods").mkdir(parents=True)
    (tmp_path / "docs" / "index.md").write_text("# Home page\n\n[tutorial](tutorial.md)\n")
    (tmp_path / "docs" / "tutorial.md").write_text("# Tutorial\n\n## First step!\n")
    (tmp_path / "mkdocs.yml").write_text("nav:\n  - index.md\n  - More:\n      - T: tutorial.md\n")
    (tmp_path / "pyproject.toml").write_text(
        '[project.entry-points.tunesmith]\n"select.mig" = "a:b"\n"select.random" = "a:c"\n'
    )
    return tmp_path


def test_a_sound_site_has_no_problem(site: Path) -> None:
    (site / "README.md").write_text(
        "[a](docs/index.md#home-page) [b](https://example.org/x) [c](#none)\n# none\n"
    )
    assert [*check_docs.broken_links(site), *check_docs.incomplete_nav(site)] == []


@pytest.mark.parametrize(
    ("link", "problem"),
    [
        ("[a](gone.md)", "docs/page.md: the link gone.md leads nowhere"),
        ("![a](pictures/gone.png)", "docs/page.md: the link pictures/gone.png leads nowhere"),
        ("[a](tutorial.md#second-step)", "docs/page.md: tutorial.md has no heading #second-step"),
        (
            "[a](../mkdocs.yml)",
            "docs/page.md: the link ../mkdocs.yml leaves docs/, so the built site cannot follow it",
        ),
    ],
)
def test_a_broken_link_is_named(site: Path, link: str, problem: str) -> None:
    (site / "docs" / "page.md").write_text(f"# P\n\n[ok](tutorial.md#first-step) {link}\n")
    assert list(check_docs.broken_links(site)) == [problem]


def test_links_in_code_are_no_links(site: Path) -> None:
    (site / "docs" / "page.md").write_text("# P\n\n```\n[a](gone.md)\n```\n")
    assert list(check_docs.broken_links(site)) == []


def test_the_navigation_and_the_pages_agree(site: Path) -> None:
    (site / "docs" / "tutorial.md").rename(site / "docs" / "methods" / "new.md")
    assert list(check_docs.incomplete_nav(site)) == [
        "mkdocs.yml: nav does not list methods/new.md",
        "mkdocs.yml: nav lists tutorial.md, which does not exist",
    ]


def test_a_method_without_a_page_is_named(site: Path) -> None:
    (site / "docs" / "methods" / "a.md").write_text("see select.migrate and my.select.mig\n")
    (site / "docs" / "methods" / "index.md").write_text("`select.mig` is only listed here\n")
    assert next(check_docs.missing_pages(site)) == "docs/methods/: no page mentions the method select.mig"
    (site / "docs" / "methods" / "b.md").write_text("# MIG\n\n`select.mig`\n")
    assert not any("no page" in line for line in check_docs.missing_pages(site))


def test_a_result_page_prints_what_the_files_say(tmp_path: Path) -> None:
    result = {
        "title": "MIG",
        "summary": "Lazy greedy against a full scan.",
        "verdict": "reached",
        "command": "python benchmarks/mig.py",
        "rows": [{"n_rows": 20_000, "ratio": 361.4251}, {"n_rows": 1_000_000, "ratio": None}],
        "settings": {"a|b": True},
        "seconds": 0.12345,
    }
    (tmp_path / "mig.json").write_text(json.dumps(result))
    page = gen_results.render("benchmarks", tmp_path)
    assert "## MIG\n\nLazy greedy against a full scan.\n\n**Verdict:** reached" in page
    assert "Printed by `python benchmarks/mig.py`." in page
    assert "| N rows | Ratio |\n|---|---|\n| 20,000 | 361 |\n| 1,000,000 | – |" in page
    assert "| A\\|b | yes |" in page
    assert "| Seconds | 0.123 |" in page


def test_no_results_are_said_to_be_none(tmp_path: Path) -> None:
    assert "No claim has been tried yet." in gen_results.render("claims", tmp_path)
