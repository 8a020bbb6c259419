"""Check the method blocks of a recipe against the registered methods, before anything heavy is loaded."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

from tunesmith import methods
from tunesmith.core.errors import TunesmithError, UnknownNameError, nearest
from tunesmith.recipe.loading import LoadedRecipe, Problem, expand
from tunesmith.recipe.schema import MethodSpec, Recipe

__all__ = ["Parameters", "check", "parameters_of"]

CLASSIFIER_TUNER = "tuner of a classifier"
# What the runner passes itself, so that a recipe does not set it.
_GIVEN = frozenset(
    "self model tokenizer train output_dir tuner validation callbacks log resume seed".split()  # noqa: SIM905
)
_GIVEN_AUDIT = frozenset(["base", "base_tokenizer", "finetuned", "log", "subject", "tokenizer"])
_GIVEN_TARGETS = frozenset(["dataset", "folder", "generate", "gold", "log", "random_state", "source_column"])
# What people call these elsewhere, too far from our names for the nearest match.
_KNOWN_AS = {
    "rank": "r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "targets": "target_modules",
    "lr": "learning_rate",
}


@dataclasses.dataclass(frozen=True)
class Parameters:
    """What a recipe may set for a method.

    Attributes:
        named: the method's own parameters.
        required: those of them that have no default.
        passed_on: further names that the method hands to a library.
        passed_to: what takes them, in words.
    """

    named: frozenset[str]
    required: frozenset[str] = frozenset()
    passed_on: frozenset[str] = frozenset()
    passed_to: str = ""

    def __contains__(self, name: str) -> bool:
        return name in self.named or name in self.passed_on


def check(loaded: LoadedRecipe) -> list[Problem]:
    """Return what is wrong with the methods and parameters that a recipe names; an empty list if nothing is.

    Every arm of ``compare`` is checked. Imports the modules of the named methods, and PEFT or TRL when the
    recipe sets a parameter of theirs.
    """
    problems: dict[str, Problem] = {}
    arms = expand(loaded.recipe)
    for arm in arms:
        for path, family, spec in _blocks(arm.recipe):
            for key, message in (*_faults(family, spec), *_mismatch(arm.recipe, family, spec)):
                if message in problems:
                    continue
                prefix = (
                    f"arm '{arm.name}': "
                    if len(arms) > 1 and path[0] in ("cluster", "select", "targets", "tuner", "train")
                    else ""
                )
                place = (*path, *([key] if key else []))
                if place not in loaded.positions and (axis := ".".join(map(str, place))) in _axes(
                    loaded.recipe
                ):
                    place = ("compare", axis)
                problems[message] = loaded.problem(prefix + message, place)
    return list(problems.values())


def _mismatch(recipe: Recipe, family: str, spec: MethodSpec) -> Iterator[tuple[str | None, str]]:
    """Yield what does not go with a classifier, or with a language model."""
    if family == "audit" and (recipe.classifies or recipe.train is None):
        yield (
            "type",
            f"audit.{spec.type} examines a tuned language model: train one, not train.type 'classify'.",
        )
    if family == "targets" and recipe.classifies:
        yield (
            None,
            "targets rewrites answers, and a classifier learns none; leave it out with train.type 'classify'.",
        )
    if family == "train" and recipe.classifies and recipe.export is not None and recipe.export.merged:
        yield (
            None,
            "export.merged merges adapters of language models; leave it out with train.type 'classify'.",
        )
    if family == "evaluate" and f"evaluate.{spec.type}" in methods.names("evaluate.*"):
        classes = getattr(methods.get(f"evaluate.{spec.type}"), "needs", None) == "classes"
        if classes != recipe.classifies:
            needs = "train.type 'classify'" if classes else "a language model, not train.type 'classify'"
            yield "type", f"the metric '{spec.type}' needs {needs}."


def _axes(recipe: Recipe) -> dict[str, list[Any]]:
    return recipe.compare.axes if recipe.compare else {}


def _blocks(recipe: Recipe) -> Iterator[tuple[tuple[str | int, ...], str, MethodSpec]]:
    for family in ("curate", "evaluate", "audit"):
        for i, spec in enumerate(getattr(recipe, family)):
            yield (family, i), family, spec
    for family in ("cluster", "select", "targets", "train"):
        spec = getattr(recipe, family)
        if spec is not None:
            yield (family,), family, spec
    if recipe.train is not None:
        yield ("tuner",), CLASSIFIER_TUNER if recipe.classifies else "tuner", recipe.tuner


def _faults(family: str, spec: MethodSpec) -> Iterator[tuple[str | None, str]]:
    """Yield (key, message) for the method's name and each of its parameters."""
    if family == "tuner" and spec.type in ("full", "lora") and not spec.parameters:
        return  # the two most used need no import of PEFT (15 s)
    try:
        valid = parameters_of(family, spec.type)
    except UnknownNameError as error:
        yield "type", str(error)
        return
    except TunesmithError as error:
        yield None, str(error)
        return
    own = set(type(spec).model_fields)
    renamed, ours = _special(family, spec.type)
    unknown = False
    for key in spec.parameters:
        if key in renamed:
            yield key, f"the key '{key}' is called '{renamed[key]}' in a recipe."
        elif key in ours:
            yield key, f"the key '{key}' is set by tunesmith itself; leave it out of {family}."
        elif key not in valid:
            unknown = True
            names = {*valid.named, *own}
            known = _KNOWN_AS.get(key)
            hint = f" Did you mean '{known}'?" if known in names else nearest(key, names | valid.passed_on)
            more = f", and {valid.passed_to}" if valid.passed_to else ""
            yield (
                key,
                f"unknown key '{key}' in {family} of type '{spec.type}'.{hint} "
                f"Valid keys: {', '.join(sorted(names))}{more}.",
            )
    for key in sorted(valid.required - set(spec.parameters) - own):
        yield None, f"the key '{key}' is missing in {family} of type '{spec.type}'."
    if family == "tuner" and spec.parameters and not unknown and spec.type != "full":
        yield from _refused(spec)
    if family == "train" and "objective" in valid and "objective" in spec.parameters:
        yield from _objective_faults(spec)
    if family == "train" and spec.parameters.get("masked") is not None and "masked" in valid:
        yield from _masked_faults(spec)
    if family == "train" and spec.parameters.get("online") is not None and "online" in valid:
        yield from _online_faults(spec)


def _online_faults(spec: MethodSpec) -> Iterator[tuple[str | None, str]]:
    """Yield what is wrong with the policy that chooses rows while training."""
    from tunesmith.trainers.online import OnlineSelection

    try:
        OnlineSelection.of(spec.parameters["online"]).rows(getattr(spec, "batch_size", 1))
    except TunesmithError as error:
        yield "online", str(error)


def _masked_faults(spec: MethodSpec) -> Iterator[tuple[str | None, str]]:
    """Yield what is wrong with the settings of masked thought."""
    from tunesmith.trainers.masked_thought import MaskedThought

    try:
        MaskedThought.of(spec.parameters["masked"])
    except TunesmithError as error:
        yield "masked", str(error)


def _objective_faults(spec: MethodSpec) -> Iterator[tuple[str | None, str]]:
    """Yield what is wrong with the objective of a classifier."""
    from tunesmith.trainers.classify.objectives import objective_of

    try:
        objective_of(spec.parameters["objective"], "train")
    except TunesmithError as error:
        yield "objective", str(error)


def _refused(spec: MethodSpec) -> Iterator[tuple[str | None, str]]:
    """Yield what the method itself says against the values."""
    from tunesmith.trainers.plans import plan_of

    try:
        plan_of({"type": spec.type, **spec.parameters}, "tuner")
    except TunesmithError as error:
        yield None, str(error)


def parameters_of(family: str, name: str) -> Parameters:
    """Return the parameters that a recipe may set for a method.

    Args:
        family: ``"select"``, ``"cluster"``, ``"curate"``, ``"targets"``, ``"train"``, ``"evaluate"``, ``"audit"``,
            ``"tuner"`` or `CLASSIFIER_TUNER`.
        name: the method within it; for ``"tuner"`` ``"full"`` or a PEFT type in lower case.

    Raises:
        UnknownNameError: there is no such method.
        TunesmithError: the method's package cannot be imported.
    """
    if family == CLASSIFIER_TUNER:
        from tunesmith.trainers.classify.moving import tuner_parameters

        own = tuner_parameters(name)
        return Parameters(_peft_fields(name, ["full", "head", "levi"]) if own is None else own)
    if family == "tuner":
        return Parameters(_tuner_fields(name))
    target = methods.get(f"{family}.{name}")
    signature = inspect.signature(target.__init__ if inspect.isclass(target) else target)
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    every = signature.parameters.values()
    given = {"targets": _GIVEN_TARGETS, "audit": _GIVEN_AUDIT}.get(family, _GIVEN)
    named = {p.name: p for p in every if p.kind not in variable and p.name not in given}
    required = frozenset(p.name for p in named.values() if p.default is p.empty)
    if (family, name) == ("train", "classify"):
        from tunesmith.recipe.classifying import ROW_KEYS

        return Parameters(frozenset(named) | ROW_KEYS, required)
    if family != "train" or not any(p.kind is p.VAR_KEYWORD for p in every):
        return Parameters(frozenset(named), required)
    from trl import SFTConfig

    renamed, ours = _special(family, name)
    fields = {field.name for field in dataclasses.fields(SFTConfig) if field.init}
    passed_on = frozenset(fields - ours - renamed.keys() - _GIVEN)
    return Parameters(frozenset(named), required, passed_on, "the fields of trl.SFTConfig")


def _tuner_fields(name: str) -> frozenset[str]:
    from tunesmith.trainers.plans import PLANS, parameters_of_plan

    if name in PLANS:
        return parameters_of_plan(name)
    return _peft_fields(name, list(PLANS))


def _peft_fields(name: str, others: list[str]) -> frozenset[str]:
    from tunesmith.tuners.registration import config_of

    configs = config_of()
    if name not in configs:
        raise UnknownNameError("tuner", name, [*configs, *others])
    return frozenset(field.name for field in dataclasses.fields(configs[name]) if field.init)


def _special(family: str, name: str) -> tuple[dict[str, str], frozenset[str]]:
    """Return the fields of TRL's config that have a name of our own, and those that are not the user's."""
    if (family, name) != ("train", "sft"):
        return {}, frozenset()
    from tunesmith.trainers.sft import OURS, RENAMED

    return RENAMED, OURS - {"max_length"}  # max_length is a key of the train block itself
