"""The verbs ``audit …``: what hides in a model, what is new in one, and whether the traffic has changed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["backdoor", "drift", "novelty"]


def backdoor(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder of a CLIP- or SigLIP-type model.")],
    images: Annotated[
        Path, typer.Option(help="Clean images; subfolders named after classes give their labels.")
    ],
    classes: Annotated[Path, typer.Option(help="Text file with a class name per line.")],
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("audit"),
    repair: Annotated[
        Path | None, typer.Option(help="Erase what is found, and write the repaired model here.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="The hidden target's class, if it is known.")] = None,
    limit: Annotated[int, typer.Option(help="Most images to read.")] = 600,
    seed: Annotated[int, typer.Option(help="Seed of everything drawn.")] = 0,
) -> None:
    """Look for a planted trigger in a model of images and texts, rebuild it, and erase it if asked to."""
    from tunesmith.audit.backdoor import DualEncoder, audit_backdoor
    from tunesmith.audit.backdoor.reading import read_classes, read_images

    names = read_classes(classes)
    encoder = DualEncoder.load(model)
    pixels, labels = read_images(images, encoder.image_size, names, limit=limit)
    report = audit_backdoor(
        encoder,
        encoder.normalise(pixels),
        names,
        labels=labels,
        target=target,
        repair=repair is not None,
        random_state=seed,
        subject=Path(model).name,
    )
    _show(report, out)
    if repair is not None and report.level == "suspicious":
        encoder.save(repair)
        typer.echo(f"Repaired model: {repair}")


def novelty(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model before tuning.")],
    tuned: Annotated[
        str, typer.Argument(metavar="TUNED", help="Folder of the tuned model, or of its adapter.")
    ],
    n: Annotated[int, typer.Option("--n", help="Texts to generate.")] = 40,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("audit"),
    mode: Annotated[
        str, typer.Option(help="iterative: learn each text, to find others; or static.")
    ] = "iterative",
    alpha: Annotated[float, typer.Option(help="Plausibility, 0 to 1; lower finds rarer openings.")] = 0.1,
    length: Annotated[int, typer.Option(help="Tokens per text.")] = 64,
    start: Annotated[str | None, typer.Option(help="Text that each generation begins with.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
) -> None:
    """Show what fine-tuning added to a model, without its data."""
    from tunesmith.audit import audit_novelty
    from tunesmith.engine.models import load_model, load_tokenizer
    from tunesmith.trainers import load_tuned

    adapter = (Path(tuned) / "adapter_config.json").exists()
    model = load_tuned(tuned, base, dtype="float32")
    before = None if adapter else load_model(base, dtype="float32")
    theirs = load_tokenizer(base)
    ours = theirs if adapter else load_tokenizer(tuned)
    report = audit_novelty(
        model, before, ours, n=n, mode=mode, alpha=alpha, length=length, start=start, seed=seed,
        base_tokenizer=theirs, subject=Path(tuned).name,
    )  # fmt: skip
    _show(report, out)


def drift(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="REFERENCE", help="Clean rows: the training file, or a log known to be clean."
        ),
    ],
    live: Annotated[
        list[str],
        typer.Argument(
            metavar="LIVE...", help="Logs of requests in the order served: JSON lines, folders, .gz."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("audit"),
    events: Annotated[
        Path | None, typer.Option(help="Append an event per window, and a warning per alarm, to this file.")
    ] = None,
    window: Annotated[int, typer.Option(help="Rows per window.")] = 250,
    text_field: Annotated[str | None, typer.Option(help="Field of the text, if it is not found.")] = None,
    feature: Annotated[
        list[str] | None, typer.Option(help="What to compare; repeat it. Else everything.")
    ] = None,
    encoder: Annotated[
        str, typer.Option(help="Sentence encoder of the texts; none compares numbers alone.")
    ] = "minilm",
    metric: Annotated[
        str | None, typer.Option(help="Field with a score, such as correct, where answers were labelled.")
    ] = None,
    baseline: Annotated[
        float | None, typer.Option(help="Of the metric; else its mean in the reference.")
    ] = None,
    false_alarm_rate: Annotated[float, typer.Option(help="Share of clean windows that may alarm.")] = 0.05,
    examples: Annotated[bool, typer.Option("--examples", help="Quote users' texts in the report.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of everything drawn.")] = 0,
) -> None:
    """Tell whether live requests have moved away from what the model was tuned on."""
    from tunesmith.audit import audit_drift
    from tunesmith.core.events import EventLog

    report = audit_drift(
        reference, live[0] if len(live) == 1 else live, text_field=text_field, features=feature or None,
        encoder=None if encoder == "none" else encoder, window=window, false_alarm_rate=false_alarm_rate,
        metric=metric, baseline=baseline, examples=examples, random_state=seed, log=EventLog(events),
    )  # fmt: skip
    _show(report, out)


def _show(report: Any, out: Path) -> None:
    report.save(out)
    typer.echo(str(report))
    typer.echo(f"Report: {out / 'report.html'}")
