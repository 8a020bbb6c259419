"""Cards and README stay in step with the claims."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def sync() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sync_papers", ROOT / "scripts" / "sync_papers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def copy(tmp_path: Path, sync: ModuleType) -> Path:
    shutil.copytree(ROOT / "src/tunesmith/papers/cards", tmp_path / "src/tunesmith/papers/cards")
    (tmp_path / "docs/claims").mkdir(parents=True)
    (tmp_path / "README.md").write_text(f"# title\n\n{sync.BEGIN}\nold\n{sync.END}\n\nend\n")
    assert sync.main([], tmp_path) == 0
    return tmp_path


def test_the_repository_is_in_step(sync: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert sync.main(["--check"]) == 0, capsys.readouterr().out


def test_a_claim_goes_into_card_and_table(
    sync: ModuleType, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sync.main(["--check"], copy) == 0
    claim = {
        "verdict": "Holds | 3 seeds. More (+4.7).",
        "command": "python benchmarks/claims/mig.py",
        "figure": 1,
    }
    (copy / "docs/claims/mig.json").write_text(json.dumps(claim))
    capsys.readouterr()
    assert sync.main(["--check"], copy) == 1
    assert capsys.readouterr().out == (
        "out of date: src/tunesmith/papers/cards/mig.json, README.md; run python scripts/sync_papers.py\n"
    )
    assert sync.main([], copy) == 0
    card = json.loads((copy / "src/tunesmith/papers/cards/mig.json").read_text())
    assert card["claim"] == {
        "verdict": "Holds | 3 seeds. More (+4.7).",
        "command": "python benchmarks/claims/mig.py",
    }
    readme = (copy / "README.md").read_text()
    assert "**working**. Claim at small scale: Holds \\| 3 seeds. |" in readme
    assert readme.startswith("# title\n\n<!-- papers:begin -->\n")
    assert readme.endswith("<!-- papers:end -->\n\nend\n")
    (copy / "docs/claims/mig.json").unlink()
    assert sync.main([], copy) == 0
    assert json.loads((copy / "src/tunesmith/papers/cards/mig.json").read_text())["claim"] is None


def test_the_table_has_every_paper_and_the_working_ones_first(copy: Path) -> None:
    rows = [line for line in (copy / "README.md").read_text().splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 41
    done = ["**working**" in row or "**reconstruction**" in row for row in rows]
    assert done == sorted(done, reverse=True)
    assert any("planned as a reconstruction" in row for row in rows)


def test_a_claim_without_verdict_stops(sync: ModuleType, copy: Path) -> None:
    (copy / "docs/claims/mig.json").write_text('{"command": "x"}')
    with pytest.raises(SystemExit, match=r"docs/claims/mig\.json lacks verdict"):
        sync.main([], copy)


def test_a_readme_without_the_marks_stops(sync: ModuleType, copy: Path) -> None:
    (copy / "README.md").write_text("# title\n")
    with pytest.raises(
        SystemExit, match=r"README\.md must hold <!-- papers:begin --> and <!-- papers:end --> once"
    ):
        sync.main(["--check"], copy)
