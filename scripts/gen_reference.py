"""Write docs/reference/cli.md and docs/reference/recipe.md from the commands and the schema themselves.

python scripts/gen_reference.py            # write
python scripts/gen_reference.py --check    # exit code 1 if a page is not what the code says
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from tunesmith import papers
from tunesmith.cli import app
from tunesmith.papers.catalogue import public_name
from tunesmith.recipe import json_schema

ROOT = Path(__file__).resolve().parent.parent
NOTE = "<!-- Written by scripts/gen_reference.py; edit the code instead. -->"
WIDTH = "90"


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Write or check both pages; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is out of date")
    check = parser.parse_args(arguments).check
    stale = []
    for name, text in (("cli.md", cli_page()), ("recipe.md", recipe_page())):
        page = root / "docs/reference" / name
        if page.exists() and page.read_text(encoding="utf-8") == text:
            continue
        stale.append(page.relative_to(root).as_posix())
        if not check:
            page.parent.mkdir(parents=True, exist_ok=True)
            page.write_text(text, encoding="utf-8")
            print(f"wrote {stale[-1]}")
    if check and stale:
        print(f"out of date: {', '.join(stale)}; run python scripts/gen_reference.py")
        return 1
    return 0


def cli_page() -> str:
    """Return the page of the command line: the ``--help`` of every verb."""
    parts = [
        "# Command line",
        NOTE,
        "A problem with the recipe, an option or a name ends with exit code 2 and a message that says what "
        "would be right; a failed run with 1; Ctrl-C with 130, and the same command continues the run.",
    ]
    for verb in verbs(typer.main.get_command(app)):
        title = " ".join(["tunesmith", *verb])
        parts += [
            f"## {title}" if verb else "## All verbs",
            f"```text\n$ {title} --help\n{help_of(verb)}\n```",
        ]
    return "\n\n".join(parts) + "\n"


def verbs(command: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the words of every command, a group before its own."""
    yield prefix
    for name, child in getattr(command, "commands", {}).items():
        yield from verbs(child, (*prefix, name))


def help_of(verb: tuple[str, ...]) -> str:
    """Return what ``tunesmith VERB --help`` prints on a terminal of `WIDTH` columns."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = WIDTH
    stream = io.StringIO()
    try:
        with contextlib.redirect_stdout(stream), contextlib.suppress(SystemExit):
            app([*verb, "--help"], prog_name="tunesmith")
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
    return "\n".join(line.rstrip() for line in stream.getvalue().strip().splitlines())


def recipe_page() -> str:
    """Return the page of the recipe: every key with its type, default and meaning, and the methods."""
    schema = json_schema()
    top, definitions = schema["properties"], schema["$defs"]
    blocks = {key: name for key, value in top.items() if (name := definition_of(value)) is not None}
    parts = [
        "# Recipe",
        NOTE,
        "A recipe is a YAML file of stages; all but `data` are optional. An unknown key is an error that "
        "names the nearest valid one, with line and column. `tunesmith init DATA` writes a complete recipe for "
        "your rows, `tunesmith schema` prints this page's content as JSON Schema.",
        "## Top level",
        key_table({"properties": {k: v for k, v in top.items() if k not in blocks}, "required": []}),
    ]
    for key, name in blocks.items():
        block = definitions[name]
        lead = top[key].get("description") or block.get("description", "")
        parts += [f"## {key}", markdown(lead)]
        if "items" in top[key]:
            parts.append("A list of blocks, each with `type` and the parameters of that method.")
        else:
            parts.append(key_table(block))
        listed = methods_of(key)
        if listed:
            parts.append(listed)
    return "\n\n".join(parts) + "\n"


def definition_of(value: dict[str, Any]) -> str | None:
    """Return the name of the definition that a property refers to, directly, as a list or as an option."""
    for part in (value, value.get("items", {}), *value.get("anyOf", [])):
        if "$ref" in part:
            return str(part["$ref"].rsplit("/", 1)[-1])
    return None


def key_table(block: dict[str, Any]) -> str:
    """Return a table of the keys of a block."""
    required = block.get("required", [])
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key, value in block["properties"].items():
        default = "required" if key in required else f"`{json.dumps(value.get('default'))}`"
        meaning = markdown(value.get("description", ""))
        lines.append(f"| `{key}` | {type_of(value)} | {default} | {meaning} |")
    return "\n".join(lines)


def type_of(value: dict[str, Any]) -> str:
    """Return a property's type in words."""
    if "anyOf" in value:
        return " or ".join(type_of(part) for part in value["anyOf"])
    if "enum" in value:
        return ", ".join(f"`{item}`" for item in value["enum"])
    if value.get("type") == "array":
        return f"list of {type_of(value['items'])}"
    words = {"string": "text", "number": "float", "object": "mapping", "boolean": "true or false"}
    word = words.get(value.get("type", ""), value.get("type", "any"))
    limits = [
        f"{sign} {value[name]:g}"
        for name, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
        )
        if name in value
    ]
    return " ".join([word, *limits])


def methods_of(family: str) -> str:
    """Return a list of the methods that a block may name."""
    from tunesmith import methods

    lines = []
    for name in methods.names(f"{family}.*"):
        card = papers.of_method(name)
        about = f"{card.title} (arXiv {card.arxiv})" if card else papers.BASELINES.get(name, "")
        lines.append(f"- `{name.removeprefix(family + '.')}`: {about}. In Python `{public_name(name)}`.")
    return "\n".join(lines)


def markdown(text: str) -> str:
    """Return a docstring's text as one line of Markdown."""
    return " ".join(text.replace("``", "`").split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
