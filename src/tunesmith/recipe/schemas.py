"""The JSON Schema of recipes, with the names of the registered methods."""

from __future__ import annotations

from typing import Any

from tunesmith import methods
from tunesmith.recipe.schema import Recipe

__all__ = ["json_schema"]

_LISTS = ("curate", "evaluate", "audit")
_BLOCKS = {"select": "SelectSpec", "train": "TrainSpec"}


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a recipe.

    A method block is an open object, since its further keys are the method's own parameters; its ``type`` is
    one of the methods installed here. The tuner's ``type`` is ``full`` or a PEFT type, which only PEFT can
    list, so it stays open.
    """
    schema = Recipe.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    definitions = schema["$defs"]
    for family, name in _BLOCKS.items():
        definitions[name]["properties"]["type"]["enum"] = _names(family)
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
