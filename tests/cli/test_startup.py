"""The command line starts without the heavy libraries, and the reference pages are those of the code."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = [
    "torch",
    "transformers",
    "datasets",
    "sklearn",
    "scipy",
    "numpy",
    "pandas",
    "pyarrow",
    "pydantic",
    "rich",
]
HEAVY += ["peft", "trl", "matplotlib", "ruamel.yaml", "sentence_transformers", "jinja2"]
LOOK = "import json, sys; print('\\n' + json.dumps([m for m in {heavy} if m in sys.modules]))"


def loaded_by(code: str) -> list[str]:
    """Return the heavy libraries that are loaded when ``code`` has run in a process of its own."""
    code = f"{code}\n{LOOK.format(heavy=HEAVY)}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout.splitlines()[-1]))


def command(*arguments: str) -> str:
    return (
        f"import sys; sys.argv = ['tunesmith', *{list(arguments)!r}]\n"
        "from tunesmith.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code"
    )


def test_importing_the_package_loads_nothing() -> None:
    assert loaded_by("import tunesmith") == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["run", "--help"],
        ["select", "--help"],
        ["--version"],
        ["papers", "list"],
        ["papers", "show", "mig"],
        ["methods"],
    ],
)
def test_light_verbs_load_nothing_heavy(arguments: list[str]) -> None:
    # typer itself takes pydantic, where it is installed, to read the arguments of a verb
    assert set(loaded_by(command(*arguments))) <= ({"pydantic"} if arguments != ["--help"] else set())


def test_every_package_can_be_imported_lightly() -> None:
    assert loaded_by("import tunesmith\nfor name in tunesmith.__all__: getattr(tunesmith, name)") == []


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gen_reference", ROOT / "scripts" / "gen_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_up_to_date(reference: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert reference.main(["--check"]) == 0, capsys.readouterr().out


def test_a_stale_page_is_found_and_written(
    reference: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reference.main([], tmp_path) == 0
    capsys.readouterr()
    (tmp_path / "docs/reference/cli.md").write_text("old")
    assert reference.main(["--check"], tmp_path) == 1
    assert (
        capsys.readouterr().out == "out of date: docs/reference/cli.md; run python scripts/gen_reference.py\n"
    )
    assert reference.main([], tmp_path) == 0
    assert reference.main(["--check"], tmp_path) == 0


def test_the_pages_name_every_verb_and_key(reference: ModuleType) -> None:
    from tunesmith.recipe.schemas import BLOCKS

    cli, recipe = reference.cli_page(), reference.recipe_page()
    for verb in (
        "run",
        "validate",
        "init",
        "schema",
        "select",
        "report",
        "methods",
        "papers list",
        "papers show",
    ):
        assert f"$ tunesmith {verb} --help" in cli
    for name in BLOCKS:
        assert f"## {name}\n" in recipe
    assert "| `budget` | integer or float or text | `1.0` |" in recipe
