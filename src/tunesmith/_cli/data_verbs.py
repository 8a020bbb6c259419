"""The verbs that take a pile of data: look, curate, cluster, select. Each imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["cluster", "curate", "look", "select"]

Data = Annotated[str, typer.Argument(metavar="DATA", help="Rows: a file, a folder, a Hub id or demo:messy.")]
AnyData = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="Rows of text or of a table, a folder of images, vectors (.npy), a Hub id or demo:messy.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A parameter of the method; may be repeated."),
]
Seed = Annotated[int, typer.Option(help="Root seed.")]
RowFormat = Annotated[str, typer.Option("--format", help="Format of the rows, if it is not to be detected.")]
Kind = Annotated[str, typer.Option(help="text, images, vectors or table, if it is not to be told by itself.")]


def look(
    data: AnyData,
    out: Annotated[
        Path, typer.Option(help="The page, an .html file; the facts go beside it as .json.")
    ] = Path("look.html"),
    against: Annotated[
        list[str] | None,
        typer.Option(help="Evaluation rows that must not be in the data, read like DATA; may be repeated."),
    ] = None,
    encoder: Annotated[
        str, typer.Option(help="auto, minilm, static (much faster), or a sentence-transformers model.")
    ] = "auto",
    kind: Kind = "auto",
    max_rows: Annotated[int | None, typer.Option(help="Look at the first so many rows alone.")] = None,
    seed: Seed = 0,
) -> None:
    """Look at a pile of data before anything else: one page on how it reads and what stands out."""
    from tunesmith._cli.display import open_display
    from tunesmith.core.events import EventLog
    from tunesmith.look import Look
    from tunesmith.look import look as look_at

    Look.check_path(out)
    with open_display() as display:
        found = look_at(
            data,
            against=against or [],
            encoder=encoder,
            kind=kind,
            max_rows=max_rows,
            seed=seed,
            log=EventLog(listeners=[display]),
        )
    page, facts = found.write(out)
    print(found.summary())
    print(f"\nPage: {page}\nFacts: {facts}")


def cluster(
    data: AnyData,
    out: Annotated[
        Path, typer.Option(help="Folder for labels.csv, clusters.html, map.svg and clusters.json.")
    ] = Path("clusters"),
    method: Annotated[
        str, typer.Option(help="A clusterer; `tunesmith methods cluster` lists them.")
    ] = "kmeans",
    clusters: Annotated[
        int | None,
        typer.Option(help="How many; by default about the root of a quarter of the rows, 2 to 16."),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="Column of known classes, for methods that use some; empty means unknown."),
    ] = None,
    known: Annotated[
        str | None, typer.Option(help="The classes of --labels that the method may see, separated by commas.")
    ] = None,
    per_class: Annotated[
        int | None, typer.Option(help="Labels per class that the method may see; the others only score it.")
    ] = None,
    settings: Settings = None,
    standardize: Annotated[
        bool,
        typer.Option(
            "--standardize", help="Bring columns to mean 0 and variance 1 first, as pbn and acol want."
        ),
    ] = False,
    encoder: Annotated[
        str, typer.Option(help="auto, minilm, static (much faster), or a sentence-transformers model.")
    ] = "auto",
    kind: Kind = "auto",
    seed: Seed = 0,
) -> None:
    """Cluster texts, images, vectors or a table: labels, a map, telling words and the rows nearest to each centre."""
    from tunesmith._cli.clustering import cluster_data
    from tunesmith._cli.display import open_display
    from tunesmith.core.events import EventLog

    with open_display() as display:
        lines = cluster_data(
            data,
            out,
            method,
            clusters=clusters,
            labels=labels,
            known=known,
            per_class=per_class,
            settings=settings or [],
            standardize=standardize,
            encoder=encoder,
            kind=kind,
            seed=seed,
            log=EventLog(listeners=[display]),
        )
    print("\n".join(lines))


def select(
    data: Data,
    out: Annotated[
        Path, typer.Option(help="Where the chosen rows go: .jsonl, .json, .csv, .tsv or .parquet.")
    ],
    method: Annotated[str, typer.Option(help="A selector; `tunesmith methods select` lists them.")] = "mig",
    budget: Annotated[str, typer.Option(help="Rows (500), share (0.1) or percentage (10%).")] = "10%",
    settings: Settings = None,
    encoder: Annotated[
        str, typer.Option(help="Sentence encoder: minilm, static (much faster), a folder or a Hub id.")
    ] = "minilm",
    target: Annotated[
        str | None, typer.Option(help="Rows of the task to aim at, for gotd and goracs; read like DATA.")
    ] = None,
    scorer: Annotated[
        str | None, typer.Option(help="Language model for perplexity, IFD and the default quality.")
    ] = None,
    quality: Annotated[str, typer.Option(help="auto, column, ifd or constant.")] = "auto",
    tags: Annotated[str, typer.Option(help="auto, column or clusters.")] = "auto",
    seed: Seed = 0,
    rows: RowFormat = "auto",
    scores: Annotated[
        Path | None, typer.Option(help="Also write score and rank of every row to this CSV file.")
    ] = None,
) -> None:
    """Choose rows to train on and write them as they stood in the source."""
    from tunesmith._cli.display import open_display
    from tunesmith._cli.selecting import recipe_of, select_rows
    from tunesmith.core.events import EventLog

    features = {"encoder": encoder, "scorer": scorer, "quality": quality, "tags": tags}
    recipe = recipe_of(data, method, budget, settings or [], features, seed, rows, target)
    with open_display() as display:
        lines = select_rows(recipe, out, scores, EventLog(listeners=[display]))
    print("\n".join(lines))


def curate(
    data: Data,
    out: Annotated[
        Path, typer.Option(help="Where the rows that stay go: .jsonl, .json, .csv, .tsv or .parquet.")
    ],
    method: Annotated[
        str, typer.Option(help="A filter or repair; `tunesmith methods curate` lists them.")
    ] = "dedup",
    settings: Settings = None,
    model: Annotated[
        str | None, typer.Option(help="Language model for methods that ask one: alias, folder or Hub id.")
    ] = None,
    reasons: Annotated[
        Path | None,
        typer.Option(help="JSON lines: what was done to which row, and why; OUT.reasons.jsonl by default."),
    ] = None,
    seed: Seed = 0,
    rows: RowFormat = "auto",
) -> None:
    """Filter or repair rows; every dropped or changed row is listed with its reason."""
    from tunesmith._cli.curating import curate_rows, recipe_of
    from tunesmith._cli.display import open_display
    from tunesmith.core.events import EventLog

    recipe = recipe_of(data, method, settings or [], model, seed, rows)
    with open_display() as display:
        lines = curate_rows(recipe, out, reasons, EventLog(listeners=[display]))
    print("\n".join(lines))
