"""The verb ``merge``: models, or an adapter and its base, become one checked folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["merge"]


def merge(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...", help="Folders with safetensors weights; one folder of an adapter."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the merged model.")],
    method: Annotated[
        str,
        typer.Option(
            help="soup, slerp (two models), task_arithmetic (with --base), or a method of mergekit."
        ),
    ] = "soup",
    base: Annotated[
        str | None, typer.Option(help="The model that all were tuned from, or an adapter's base.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="A number for each model, separated by commas.")] = None,
    t: Annotated[float, typer.Option(help="slerp: share of the second model, 0 to 1.")] = 0.5,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="A parameter of mergekit's method; may be repeated."
        ),
    ] = None,
) -> None:
    """Merge models of one architecture, or an adapter into its base, and check what was written."""
    numbers = _numbers(weights)
    if len(models) == 1 and (Path(models[0]) / "adapter_config.json").exists():
        lines = _adapter(models[0], base, out)
    else:
        lines = _models(models, out, method, base, numbers, t, set_ or [])
    for line in [*lines, f"Written to {out}."]:
        typer.echo(line)


def _numbers(text: str | None) -> list[float] | None:
    from tunesmith.core.errors import ParameterError

    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ParameterError("--weights", "merge", "numbers separated by commas", text) from None


def _adapter(folder: str, base: str | None, out: Path) -> list[str]:
    from tunesmith.core.errors import ParameterError
    from tunesmith.core.files import read_json
    from tunesmith.engine.logits import fixed_batch
    from tunesmith.merge import merge_adapter
    from tunesmith.trainers import load_tuned

    name = base or read_json(Path(folder) / "adapter_config.json").get("base_model_name_or_path")
    if not name:
        raise ParameterError("--base", "merge", "the adapter's base, which its config does not name", base)
    model = load_tuned(folder, str(name), dtype="float32")
    report = merge_adapter(model, out, fixed_batch(model).tolist())
    return [
        f"adapter and merged model differ by at most {report.adapter_vs_merged:.2g} in a logit, "
        f"merged and reloaded by {report.merged_vs_reloaded:.2g} (largest logit {report.largest_logit:.3g})."
    ]


def _models(
    models: list[str],
    out: Path,
    method: str,
    base: str | None,
    numbers: list[float] | None,
    t: float,
    settings: list[str],
) -> list[str]:
    from tunesmith.core.errors import ParameterError
    from tunesmith.merge import merge_with_mergekit, slerp, soup, task_arithmetic

    check: Any
    if method in ("soup", "slerp") and base is not None:
        raise ParameterError("--base", "merge", f"left out with --method {method}", base)
    if method == "slerp":
        if len(models) != 2:
            raise ParameterError("models", "merge", "two models with --method slerp", models)
        check = slerp(models[0], models[1], t, output=out).check
    elif method == "soup":
        kind = "uniform" if numbers is None else "weighted"
        check = soup(models, numbers, kind, output=out).check
    elif method == "task_arithmetic":
        if base is None:
            raise ParameterError("--base", "merge", "a model with --method task_arithmetic", base)
        check = task_arithmetic(base, models, 1.0 if numbers is None else numbers, output=out).check
    else:
        parameters = _parameters(settings)
        if numbers is not None:
            parameters["weight"] = numbers  # of the models; mergekit gives the base none
        check = merge_with_mergekit(models, method, base=base, parameters=parameters, output=out).check
    if check is None:
        return ["Not a causal language model: the tensors were written and not run."]
    names = models if base is None else [base, *models]
    apart = [f"  {name}: {value:.3g}" for name, value in zip(names, check.parts_vs_merged, strict=True)]
    return [
        f"Largest difference of a logit from the merged model (its largest logit is {check.largest_logit:.3g}):",
        *apart,
        f"  read back from disk: {check.merged_vs_reloaded:.2g}",
    ]


def _parameters(settings: list[str]) -> dict[str, Any]:
    from tunesmith.core.errors import ParameterError

    values: dict[str, Any] = {}
    for setting in settings:
        name, found, text = setting.partition("=")
        if not found or not name:
            raise ParameterError("--set", "merge", "NAME=VALUE", setting)
        try:
            values[name] = float(text)
        except ValueError:
            values[name] = text
    return values
