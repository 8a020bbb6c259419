"""The command line. Each verb imports what it needs when it runs, so that ``--help`` answers at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tunesmith._cli import auditing, cards, data_verbs, merging
from tunesmith.core.errors import ConfigError, TunesmithError

__all__ = ["app", "main"]

INTERRUPTED = 130  # what shells report for a process ended by Ctrl-C


class _Group(TyperGroup):
    """Turns the package's own errors into a message and an exit code; any other error keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except TunesmithError as error:
            print(error, file=sys.stderr)
            raise SystemExit(error.exit_code) from error
        except KeyboardInterrupt:
            print("Interrupted.", file=sys.stderr)
            raise SystemExit(INTERRUPTED) from None


_PLAIN: dict[str, Any] = {
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
    "add_completion": False,
}

app = typer.Typer(
    cls=_Group,
    name="tunesmith",
    help="Fine-tuning research you can run: choose data, tune, compare and report, from one recipe file.",
    no_args_is_help=True,
    **_PLAIN,
)
papers_app = typer.Typer(help="The catalogue of papers.", no_args_is_help=True, **_PLAIN)
app.add_typer(papers_app, name="papers")
audit_app = typer.Typer(
    help="What hides in a model: a planted trigger, or what fine-tuning added.",
    no_args_is_help=True,
    **_PLAIN,
)
audit_app.command("backdoor")(auditing.backdoor)
audit_app.command("novelty")(auditing.novelty)
audit_app.command("drift")(auditing.drift)
app.add_typer(audit_app, name="audit")

RecipeFile = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe in YAML.")]


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        from tunesmith import __version__

        print(f"tunesmith {__version__}")
        raise typer.Exit


@app.command()
def run(
    recipe: RecipeFile,
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="output=DIR KEY.SUB=VALUE",
            help="output=DIR names the run directory (runs/NAME by default, NAME from the recipe); anything "
            "else overrides a key of the recipe, for example select.budget=10%.",
        ),
    ] = None,
) -> None:
    """Run a recipe; running again into the same directory continues it."""
    output, overrides = _split_output(settings or [])
    import shlex

    from tunesmith._cli.display import open_display
    from tunesmith._cli.tables import summary_table
    from tunesmith.recipe import load
    from tunesmith.recipe import run as run_recipe

    loaded = load(recipe, overrides)
    folder = Path("runs", _folder_name(loaded.recipe.name)) if output is None else Path(output)
    try:
        with open_display() as display:
            result = run_recipe(loaded, folder, listeners=[display])
    except KeyboardInterrupt:
        again = shlex.join(["tunesmith", "run", recipe, f"output={folder}", *overrides])
        print(
            f"Interrupted. Everything finished is kept in {folder}; this continues the run:\n  {again}",
            file=sys.stderr,
        )
        raise SystemExit(INTERRUPTED) from None
    if result.summary:
        print(summary_table(result.summary))
    print(f"\nReport: {result.report}")


@app.command()
def validate(
    recipe: RecipeFile,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY.SUB=VALUE", help="Overrides, as for run.")
    ] = None,
    estimates: Annotated[
        bool, typer.Option("--estimates/--no-estimates", help="Estimate time, memory and disk too.")
    ] = True,
) -> None:
    """Check a recipe without loading a model, and estimate what it takes; exit code 2 if it cannot run."""
    _, settings = _split_output(overrides or [])
    from tunesmith._cli.tables import table
    from tunesmith.recipe import check, estimate, load

    loaded = load(recipe, settings)
    problems = [str(problem) for problem in check(loaded)]
    if problems:
        raise ConfigError("\n".join(problems))
    print(f"{recipe} is valid.")
    if estimates:
        try:
            found = estimate(loaded.recipe)
        except TunesmithError as error:
            raise ConfigError(f"{recipe} cannot run here: {error}") from error
        print()
        print(table(["", "estimate"], found.rows(), wrap=1))
        for warning in found.warnings:
            print(f"warning: {warning}")


@app.command()
def init(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Your rows: a file, a folder or a Hub id.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Write here instead of to the terminal; an existing file is not replaced."),
    ] = None,
) -> None:
    """Write a complete, commented recipe for your own data."""
    if out is not None and out.exists():
        raise ConfigError(f"{out} exists already and is not replaced. Name another file, or remove it first.")
    from tunesmith.recipe import init_recipe

    text = init_recipe(data)
    if out is None:
        print(text, end="")
        return
    from tunesmith.core.files import atomic_open

    with atomic_open(out) as stream:
        stream.write(text)
    print(f"Wrote {out}. Check it with `tunesmith validate {out}`, run it with `tunesmith run {out}`.")


@app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors and other tools."""
    import json

    from tunesmith.recipe import json_schema

    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))


app.command()(data_verbs.look)
app.command()(data_verbs.curate)
app.command()(data_verbs.cluster)
app.command()(data_verbs.select)
app.command()(merging.merge)


@app.command()
def tuners(
    model: Annotated[
        str | None, typer.Option(help="Count trained numbers, memory and time of a step for this model.")
    ] = None,
    family: Annotated[
        str | None, typer.Option(help="selective, additive, prompt, reparameterization or hybrid.")
    ] = None,
    mergeable: Annotated[
        bool | None,
        typer.Option("--mergeable/--not-mergeable", help="Only those that fold into the weights, or not."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Also methods that nothing here implements.")] = False,
) -> None:
    """List the methods of parameter-efficient tuning, or what each costs in a model."""
    from tunesmith._cli.tuning import list_methods, sizes_for

    lines = list_methods(family, mergeable, every) if model is None else sizes_for(model, family, mergeable)
    print("\n".join(lines))


@app.command()
def report(
    directory: Annotated[
        Path, typer.Argument(metavar="RUN_DIR", help="The directory of a run, finished or not.")
    ],
) -> None:
    """Write the report of a run again, from what its directory holds."""
    from tunesmith.recipe.report import write_report

    print(f"Report: {write_report(directory)}")


app.command()(cards.card)


@app.command()
def methods(
    pattern: Annotated[
        str, typer.Argument(metavar="PATTERN", help="A family (select) or a pattern (select.*).")
    ] = "*",
) -> None:
    """List the methods that are installed, ours and those of other packages."""
    from tunesmith import papers
    from tunesmith._cli.tables import table
    from tunesmith.core.errors import UnknownNameError
    from tunesmith.core.registry import names
    from tunesmith.papers.catalogue import public_name

    found = names(pattern) or names(f"{pattern}.*")
    if not found:
        raise UnknownNameError("method or family", pattern, [*names(), *{n.split(".")[0] for n in names()}])
    rows = []
    for name in found:
        card = papers.of_method(name)
        about = f"{card.title} (arXiv {card.arxiv})" if card else papers.BASELINES.get(name, "")
        rows.append((name, public_name(name), about))
    print(table(["name", "in Python", "what it is"], rows, wrap=2))


@papers_app.command("list")
def papers_list(
    status: Annotated[
        str | None,
        typer.Option(help="Only papers that are planned, working, or a reconstruction that works."),
    ] = None,
    family: Annotated[str | None, typer.Option(help="Only papers of this family.")] = None,
) -> None:
    """List the papers with their status."""
    from tunesmith import papers

    _print_cards(papers.list(status=status, family=family))


@papers_app.command("search")
def papers_search(
    words: Annotated[list[str], typer.Argument(metavar="WORD...", help="All of these must occur.")],
) -> None:
    """Search titles, names and summaries."""
    from tunesmith import papers

    found = papers.search(" ".join(words))
    if not found:
        print(f"No paper has '{' '.join(words)}'.", file=sys.stderr)
        raise typer.Exit(1)
    _print_cards(found)


@papers_app.command("show")
def papers_show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Short name or arXiv id.")],
) -> None:
    """Show one paper: facts, summary, names in Python, status and claim."""
    import textwrap

    from tunesmith import papers
    from tunesmith._cli.tables import width

    card = papers.get(name)
    authors = "" if card.authors is None else f"{card.authors} authors, "
    status = card.status + (
        " (a reconstruction)" if card.reconstruction and card.status != "reconstruction" else ""
    )
    lines = [card.title, f"{authors}{card.date or card.year}, {card.url}", "", card.summary, ""]
    lines += [f"Status: {status}.", "In Python: " + ", ".join(f"tunesmith.{n}" for n in card.names)]
    if card.note:
        lines.append(f"Note: {card.note}")
    if card.claim:
        lines += [f"Claim at small scale: {card.claim.verdict}", f"  {card.claim.command}"]
    print(
        "\n".join(
            textwrap.fill(line, width(), break_on_hyphens=False, break_long_words=False) for line in lines
        )
    )


def _print_cards(cards: list[Any]) -> None:
    from tunesmith._cli.tables import table

    rows = [(card.slug, card.status, card.family, card.arxiv, card.title) for card in cards]
    print(table(["name", "status", "family", "arXiv", "title"], rows, wrap=4))


def _split_output(settings: list[str]) -> tuple[str | None, list[str]]:
    """Return the run directory and the overrides."""
    output, overrides = None, []
    for setting in settings:
        key, equals, value = setting.partition("=")
        if key == "output":
            if not value:
                raise ConfigError("output= names no directory; write output=DIR.")
            output = value
        elif equals:
            overrides.append(setting)
        else:
            raise ConfigError(
                f"An override reads key.sub=value, and the run directory output=DIR. Got '{setting}' instead."
            )
    return output, overrides


def _folder_name(name: str) -> str:
    import re

    return re.sub(r"[^\w.-]+", "-", name).strip(".-") or "run"


def main() -> None:
    """Entry point of the command ``tunesmith``."""
    app(prog_name="tunesmith")
