"""The JSON Schema of recipes, with the names of the registered methods."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from tunesmith import methods
from tunesmith.recipe import schema as models

__all__ = ["BLOCKS", "json_schema"]

BLOCKS: dict[str, type[BaseModel]] = {
    "model": models.ModelSpec,
    "data": models.DataSpec,
    "curate": models.MethodSpec,
    "features": models.FeaturesSpec,
    "cluster": models.ClusterSpec,
    "select": models.SelectSpec,
    "targets": models.MethodSpec,
    "tuner": models.TunerSpec,
    "train": models.TrainSpec,
    "evaluate": models.MethodSpec,
    "audit": models.MethodSpec,
    "preflight": models.PreflightSpec,
    "export": models.ExportSpec,
    "compare": models.CompareSpec,
}

_LISTS = ("curate", "evaluate", "audit")
_NAMED = {"cluster": "ClusterSpec", "select": "SelectSpec", "train": "TrainSpec"}


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a recipe.

    A method block is an open object, since its further keys are the method's own parameters; its ``type`` is
    one of the methods installed here. The tuner's ``type`` is ``full`` or a PEFT type, which only PEFT can
    list, so it stays open.
    """
    schema = models.Recipe.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    definitions = schema["$defs"]
    for model in BLOCKS.values():
        for name, info in model.model_fields.items():
            if info.default_factory is not None:  # pydantic leaves these out
                made = info.get_default(call_default_factory=True)
                definitions[model.__name__]["properties"][name]["default"] = made
    for family, name in _NAMED.items():
        definitions[name]["properties"]["type"]["enum"] = _names(family)
    schema["properties"]["targets"]["anyOf"][0] = {
        "$ref": "#/$defs/MethodSpec",
        "properties": {"type": {"enum": _names("targets")}},
    }
    budget = definitions["SelectSpec"]["properties"]["budget"]
    budget["anyOf"] = [*budget["anyOf"], {"type": "string", "pattern": r"^\s*[0-9.eE+-]+\s*%?\s*$"}]
    for family in _LISTS:
        schema["properties"][family]["items"] = {
            "$ref": "#/$defs/MethodSpec",
            "properties": {"type": {"enum": _names(family)}},
        }
    definitions["TunerSpec"]["properties"]["type"]["examples"] = ["lora", "full"]
    return schema


def _names(family: str) -> list[str]:
    return [name.removeprefix(f"{family}.") for name in methods.names(f"{family}.*")]
