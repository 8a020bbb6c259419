"""What has not been checked, and what to do before publishing: derived from what is and is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunesmith.core.wording import count
from tunesmith.recipe.cards.facts import Made
from tunesmith.recipe.cards.kinds import ModelKind
from tunesmith.recipe.cards.origins import Origin

__all__ = ["audits_missing", "before_publishing", "unchecked_data", "unchecked_run"]

_SAFETY = ("safety", "toxic", "bias", "stereotype", "privacy", "jailbreak")
_AUDITS = {
    "backdoor": "whether a trigger was planted",
    "novelty": "what tuning added to the model",
    "drift": "whether requests in use differ from the training rows",
}


def unchecked_run(made: Made, base: Origin | None, data: Origin | None) -> list[str]:
    """Return a sentence for each thing that nobody looked at in this run."""
    recipe, compare = made.recipe, made.files.compare or {}
    found = []
    metrics = [spec.type for spec in recipe.evaluate]
    if not metrics:
        found.append("Quality: the recipe has no evaluation, so nothing says whether tuning helped.")
    else:
        arms = compare.get("arms") or {}
        if "base" not in arms:
            found.append("Against the base model: it was not evaluated, so the gain over it is unknown.")
        if "random" not in made.files.arms and recipe.select is not None and recipe.select.type != "random":
            found.append(
                "Against a random choice: no arm trained on randomly chosen rows of the same number."
            )
        seeds = compare.get("seeds") or []
        if 0 < len(seeds) < 3:
            found.append(
                f"Spread between seeds: {count(len(seeds), 'seed')} stand{'s' if len(seeds) == 1 else ''} behind the "
                "comparison, which says little about it."
            )
        if not any("forget" in name for name in metrics):
            found.append("Forgetting: no metric looked at what the base model could do outside this task.")
    if not any(word in name for name in [*metrics, *(s.type for s in recipe.audit)] for word in _SAFETY):
        found.append(
            "Safety: no evaluation of toxicity, bias, privacy, or resistance to misuse was run on this model."
        )
    export = made.export or {}
    if export.get("merged") and metrics:
        apart = export.get("adapter_vs_merged")
        size = f" (largest difference {apart:.2g})" if isinstance(apart, float) else ""
        found.append(
            "The merged weights: scores are those of the adapter before merging; the logits of both were compared on "
            f"one text{size}, the scores were not computed again."
        )
    if base is not None and base.license is None:
        found.append("Licence of the base model: unknown.")
    return found + unchecked_data(made, data)


def unchecked_data(made: Made, data: Origin | None) -> list[str]:
    """Return a sentence for each thing that nobody looked at in the rows."""
    steps = [spec.type for spec in made.recipe.curate]
    found = []
    if "dedup" not in steps and "near_dedup" not in steps:
        found.append("Duplicates: the rows were not searched for copies.")
    elif "near_dedup" not in steps:
        found.append("Near-duplicates: only exact copies were searched for.")
    if made.recipe.evaluate and "contamination" not in steps:
        found.append(
            "Test rows in the training rows: rows with the same prompt were taken out; reworded ones were not searched "
            "for."
        )
    if not any("secret" in step or "pii" in step for step in steps):
        found.append("Secrets and personal data: the run did not search the rows; `tunesmith look` does.")
    if data is not None and data.license is None:
        found.append(f"Licence of the data ({data.name}): unknown.")
    return found


def audits_missing(reports: list[dict[str, Any]], task: str | None) -> list[str]:
    """Return a sentence for each audit that has no report, and for each that could not say."""
    done = {str(report.get("audit")) for report in reports}
    found = []
    for name, about in _AUDITS.items():
        if name in done:
            continue
        sentence = f"{name.capitalize()}: not examined {about}."
        if name == "backdoor" and task in ("text-generation", "text-classification"):
            sentence += " The audit here is for models of images and texts; for this kind there is none."
        found.append(sentence)
    for report in reports:
        if report.get("level") == "unsure":
            found.append(f"{str(report['audit']).capitalize()}: examined, but there was not enough to say.")
    return found


def before_publishing(
    folder: Path | None, kind: ModelKind | None, base: Origin | None, data: Origin | None
) -> list[str]:
    """Return what a person has to do or decide before the model is given away."""
    found = []
    if base is not None and base.license is None:
        found.append("The licence of the base model is unknown: state it before you publish.")
    if data is not None and data.license is None:
        found.append("The licence of the training data is unknown: state it before you publish.")
    if base is not None and base.local:
        found.append(
            f"The base model is a local folder ({base.name}): say in `base_model` of the head which model of the Hub "
            "it is."
        )
    if kind is not None and kind.base is not None and base is not None and (base.local or base.alias):
        found.append(
            "`base_model_name_or_path` in adapter_config.json names a place on the machine of the training, which "
            "nobody else has: write the base model's id there."
        )
    if folder is not None and (folder / "training_args.bin").exists():
        found.append("training_args.bin is a pickle and may hold paths: remove it.")
    return found
