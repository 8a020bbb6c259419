"""The house rules that a machine can check: every registered method, every package, every file."""

from __future__ import annotations

import importlib.util
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tunesmith import methods

ROOT = Path(__file__).resolve().parent.parent

# Files past 400 lines, each with a reason that a reader would accept.
LONG_FILES = {
    "tests/families/test_select_family.py": "the suite of a family: one row per selector, then the behaviours",
    "tests/families/test_curate_family.py": "the suite of a family: one row per filter, then the behaviours",
    "tests/select/test_mig.py": "every statement of one paper, hand-worked numbers and the authors' fixtures",
    "tests/data/test_data_read.py": "one case per format, per file type and per kind of damage",
    "tests/select/test_lifelong_parts.py": "hand-worked numbers of one paper's eight parts",
}

# Families whose few members share no behaviour yet that a suite could check.
NO_SUITE = {
    "train": "one trainer so far; tested in tests/trainers",
    "evaluate": "plain metrics; tested in tests/metrics",
}

HEAVY = (
    "torch",
    "transformers",
    "numpy",
    "datasets",
    "sklearn",
    "scipy",
    "peft",
    "trl",
    "matplotlib",
    "pandas",
)
SOURCE = re.compile(r"arXiv|doi|et al\.|\b(19|20)\d\d\b")


def script(name: str) -> Any:
    """Import a file of scripts/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CHECK_DOCS = script("check_docs")
OURS: list[str] = CHECK_DOCS.built_in()
PAPERS = [name for name in OURS if name not in CHECK_DOCS.NO_PAGE]


def python(code: str, *paths: Path) -> str:
    """Run code in a fresh interpreter with folders put on its path; return what it printed."""
    import os

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def recipe_types() -> set[str]:
    """Registry names of all methods that a recipe in recipes/ runs."""
    found = set()
    for path in (ROOT / "recipes").rglob("*.yaml"):
        recipe = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
        for key, value in recipe.items():
            for block in value if isinstance(value, list) else [value]:
                if isinstance(block, dict) and (key == "train" or "type" in block):
                    found.add(f"{key}.{block.get('type', 'sft')}")  # sft: the default of that stage
                if isinstance(block, dict) and isinstance(block.get("online"), dict):
                    found.add(f"online.{block['online'].get('policy', 'uds')}")
        for key, values in (recipe.get("compare") or {}).items():
            if key.endswith(".type"):
                found |= {f"{key.removesuffix('.type')}.{value}" for value in values}
    return found


def test_the_registry_is_what_pyproject_says() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = set(project["entry-points"]["tunesmith"])
    assert declared == set(OURS), "install again: the installed metadata is older than pyproject.toml"


@pytest.mark.parametrize("name", OURS)
def test_a_method_imports_and_says_what_it_is(name: str) -> None:
    method = methods.get(name)
    assert callable(method)
    assert method.__module__.startswith("tunesmith."), "a method lives where it is registered"
    own = method.__dict__.get("__doc__") if inspect.isclass(method) else method.__doc__
    assert own, f"{name} has no docstring of its own"


@pytest.mark.parametrize("name", PAPERS)
def test_a_published_method_cites_its_source(name: str) -> None:
    method = methods.get(name)
    text = (inspect.getdoc(method) or "") + (inspect.getdoc(sys.modules[method.__module__]) or "")
    assert SOURCE.search(text), f"neither {name} nor its module names paper and year"


@pytest.mark.parametrize("name", OURS)
def test_a_method_is_a_row_of_its_familys_suite(name: str) -> None:
    family = name.split(".", 1)[0]
    if family in NO_SUITE:
        return
    suites = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests" / "families").glob("*.py"))
    names = (re.escape(name), methods.get(name).__name__)
    assert re.search(rf"\b({'|'.join(names)})\b", suites), f"no suite of tests/families has a row for {name}"


def test_every_published_method_has_a_page_and_every_link_leads_somewhere() -> None:
    problems = [*CHECK_DOCS.missing_pages(), *CHECK_DOCS.broken_links(), *CHECK_DOCS.incomplete_nav()]
    assert problems == []


def test_every_published_method_is_run_by_a_recipe() -> None:
    assert set(PAPERS) - recipe_types() == set()


def _python_files() -> Iterator[Path]:
    for folder in ("src", "tests", "scripts", "benchmarks"):
        yield from (ROOT / folder).rglob("*.py")


def test_no_file_is_long_without_a_reason() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in _python_files()
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert set(long) - set(LONG_FILES) == set(), long
    assert set(LONG_FILES) - set(long) == set(), "no longer long: remove from LONG_FILES"


def test_importing_any_package_loads_nothing_heavy() -> None:
    packages = sorted(p.parent.name for p in (ROOT / "src" / "tunesmith").glob("*/__init__.py"))
    code = (
        "import sys, importlib, tunesmith\n"
        "from tunesmith import methods\n"
        "methods.names('select.*')\n"
        f"heavy = {HEAVY!r}\n"
        f"for name in [''] + {packages!r}:\n"
        "    importlib.import_module('tunesmith.' + name if name else 'tunesmith')\n"
        "    found = [h for h in heavy if h in sys.modules]\n"
        "    print(name, found) if found else None"
    )
    assert python(code) == ""


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom tunesmith.cli import main\nsys.argv = ['tunesmith', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print('HEAVY', [h for h in {HEAVY!r} if h in sys.modules])"
    )
    assert python(code).splitlines()[-1] == "HEAVY []"


def test_every_public_name_exists() -> None:
    code = (
        "import importlib, pathlib, tunesmith\n"
        "root = pathlib.Path(tunesmith.__file__).parent\n"
        "for init in sorted(root.rglob('__init__.py')):\n"
        "    name = '.'.join(['tunesmith', *init.parent.relative_to(root).parts])\n"
        "    module = importlib.import_module(name)\n"
        "    missing = [n for n in getattr(module, '__all__', []) if not hasattr(module, n)]\n"
        "    assert not missing, (name, missing)\n"
        "try:\n    tunesmith.nothing\nexcept AttributeError as error:\n    print(error)"
    )
    assert python(code) == "module 'tunesmith' has no attribute 'nothing'"


def write_plugin(root: Path, package: str, line: str) -> Path:
    """Write an installed distribution as pip leaves it: a module and its metadata."""
    folder = root / package
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[tunesmith]\n{line}\n")
    (folder / f"{package}.py").write_text(
        "import numpy as np\n"
        "from tunesmith.select._base import Selector\n\n"
        "class FirstRows(Selector):\n"
        "    def __init__(self, skip=0):\n"
        "        self.skip = skip\n\n"
        "    def fit(self, X=None, y=None, **features):\n"
        "        self.n_rows_ = len(X)\n"
        "        return self\n\n"
        "    def _pick(self, count):\n"
        "        self.scores_ = np.zeros(self.n_rows_)\n"
        "        return (np.arange(count) + self.skip) % self.n_rows_\n"
    )
    return folder


def test_a_plugin_package_adds_a_method(tmp_path: Path) -> None:
    plugin = write_plugin(tmp_path, "first_rows_plugin", "select.first_rows = first_rows_plugin:FirstRows")
    code = (
        "from tunesmith import methods\n"
        "print('select.first_rows' in methods.names('select.*'), 'select.mig' in methods.names())\n"
        "selector = methods.create('select.first_rows', skip=2)\n"
        "print(selector.fit([[0.0]] * 10).select(0.3).tolist(), selector.get_params())"
    )
    assert python(code, plugin).splitlines() == ["True True", "[2, 3, 4] {'skip': 2}"]


def test_two_packages_with_one_name_are_refused(tmp_path: Path) -> None:
    plugin = write_plugin(tmp_path, "clashing_plugin", "select.mig = clashing_plugin:FirstRows")
    code = (
        "from tunesmith import methods\n"
        "from tunesmith.core.errors import TunesmithError\n"
        "try:\n    methods.names()\nexcept TunesmithError as error:\n    print(error)"
    )
    message = python(code, plugin)
    assert message.startswith("Two installed packages register the method 'select.mig': ")
    assert "clashing_plugin:FirstRows" in message
    assert "tunesmith.select.mig:MIGSelector" in message
    assert message.endswith("Uninstall one of them or ask its author to rename the method.")
