"""Check the documentation without building it: method pages, links, navigation.

python scripts/check_docs.py
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

from tunesmith import methods

ROOT = Path(__file__).resolve().parent.parent

# Registered, but no published method: the reason why the name needs no page of its own.
NO_PAGE = {
    "select.random": "the baseline that every comparison names",
    "online.random": "the baseline of online policies, described in methods/uds.md",
    "online.max_loss": "a baseline of online policies, described in methods/uds.md",
    "curate.dedup": "a utility, described in how-to/data.md",
    "curate.near_dedup": "a utility, described in how-to/clean.md",
    "curate.contamination": "a utility, described in how-to/clean.md",
    "cluster.kmeans": "the baseline of the family, described in how-to/cluster.md",
    "targets.gold": "the baseline of targets.s3ft",
    "train.classify": "the trainer of classifiers, described in how-to/classify.md",
    "train.sft": "TRL's own trainer behind our contract, described in how-to/train.md",
    "evaluate.accuracy": "a plain metric, described in how-to/classify.md",
    "evaluate.exact_match": "a plain metric, described in how-to/train.md",
    "evaluate.task_score": "a plain metric, described in how-to/train.md",
    "evaluate.perplexity": "a plain metric, described in how-to/train.md",
}

_LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
_CODE = re.compile(r"^(```|~~~).*?^\1", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*\s*$", re.MULTILINE)


def main() -> int:
    """Print every problem; return the exit code."""
    problems = [*missing_pages(), *broken_links(), *incomplete_nav()]
    for problem in problems:
        print(problem)
    print(
        f"docs: {len(problems)} problem(s)" if problems else "docs: pages, links and navigation are complete"
    )
    return 1 if problems else 0


def missing_pages(root: Path = ROOT) -> Iterator[str]:
    """Yield a line for each built-in method whose registry name no page of docs/methods/ mentions."""
    text = "\n".join(
        page.read_text(encoding="utf-8")
        for page in sorted((root / "docs/methods").glob("*.md"))
        if page.name != "index.md"
    )
    for name in built_in(root):
        if name not in NO_PAGE and not re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.]*\w)", text):
            yield f"docs/methods/: no page mentions the method {name}"
    for name in sorted(set(NO_PAGE) - set(built_in(root))):
        yield f"scripts/check_docs.py: NO_PAGE names {name}, which is not registered"


def built_in(root: Path = ROOT) -> list[str]:
    """Return the names that this project registers (a plug-in brings its own documentation)."""
    import tomllib

    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ours = project["entry-points"]["tunesmith"]
    return [name for name in methods.names() if name in ours]


def pages(root: Path = ROOT) -> list[Path]:
    """Return the Markdown files whose links are checked."""
    return [*sorted(root.glob("*.md")), *sorted((root / "docs").rglob("*.md"))]


def broken_links(root: Path = ROOT) -> Iterator[str]:
    """Yield a line for each relative link to a file, or to a heading of a page, that does not exist."""
    for page in pages(root):
        text = _CODE.sub("", page.read_text(encoding="utf-8"))
        for target in _LINK.findall(text):
            url = urlsplit(target)
            if url.scheme or url.netloc:
                continue
            name = page.relative_to(root)
            path = (page.parent / unquote(url.path)).resolve() if url.path else page
            if not path.exists():
                yield f"{name}: the link {target} leads nowhere"
            elif url.fragment and path.suffix == ".md" and url.fragment not in anchors(path):
                yield f"{name}: {path.name} has no heading #{url.fragment}"
            elif (root / "docs") in page.parents and (root / "docs").resolve() not in path.parents:
                yield f"{name}: the link {target} leaves docs/, so the built site cannot follow it"


def anchors(page: Path) -> set[str]:
    """Return the ids that Markdown gives to the headings of a page."""
    text = _CODE.sub("", page.read_text(encoding="utf-8"))
    plain = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in _HEADING.findall(text))
    return {re.sub(r"[-\s]+", "-", heading) for heading in plain} | set(re.findall(r'\bid="([^"]+)"', text))


def incomplete_nav(root: Path = ROOT) -> Iterator[str]:
    """Yield a line for each page that mkdocs.yml does not list, and for each listed page that is missing."""
    config = yaml.safe_load((root / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = set(_leaves(config["nav"]))
    present = {page.relative_to(root / "docs").as_posix() for page in (root / "docs").rglob("*.md")}
    for name in sorted(present - listed):
        yield f"mkdocs.yml: nav does not list {name}"
    for name in sorted(listed - present):
        yield f"mkdocs.yml: nav lists {name}, which does not exist"


def _leaves(node: object) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for value in node.values():
            yield from _leaves(value)
    elif isinstance(node, list):
        for value in node:
            yield from _leaves(value)


if __name__ == "__main__":
    sys.exit(main())
