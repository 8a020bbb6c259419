"""One entry of the catalogue, and whether what it names is here."""

from __future__ import annotations

import importlib
import importlib.metadata
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["FAMILIES", "MODELS", "Family", "MethodEntry"]

Family = Literal["selective", "additive", "prompt", "reparameterization", "hybrid"]
FAMILIES: tuple[Family, ...] = ("selective", "additive", "prompt", "reparameterization", "hybrid")
MODELS = (
    "LLM",
    "VFM",
    "VLM",
    "MFM",
    "VGM",
)  # language, vision, vision-language, multi-modal, visual generation


@dataclass(frozen=True)
class MethodEntry:
    """A method.

    Attributes:
        key: unique; a PEFT tuner's own name in lower case where there is one.
        title: as its paper writes it.
        family: one of `FAMILIES`.
        subfamily: within it.
        models: kinds of models it was made for, of `MODELS`.
        mechanism: in a few words.
        position: what is tuned, or where.
        changes_structure: the network has other modules or inputs while it is used.
        extra_inference_cost: it still costs something after merging, where merging is possible.
        adds_parameters: what is trained is not part of the base model.
        mergeable: it folds exactly into the base model's weights.
        reference: ``"peft:LoraConfig"``, ``"ours:tuners.SparseDelta"``, ``"other:…"``, or None: nothing here implements
            it.
        min_version: first release of PEFT that has it.
        arxiv: of its paper.
        survey: whether the survey lists it.
        note: what else to know.
        parameters: trained numbers per linear layer (or as it says), a formula.
        starts: ``"unchanged"``: the model is the base model before the first step; ``"random"``: a random change;
            ``"random tokens"``: random virtual tokens.
        guessed: PEFT has it and this catalogue does not know it yet; its family is read off its classes.
    """

    key: str
    title: str
    family: Family
    subfamily: str
    models: tuple[str, ...]
    mechanism: str
    position: str = ""
    changes_structure: bool = False
    extra_inference_cost: bool = False
    adds_parameters: bool = True
    mergeable: bool = False
    reference: str | None = None
    min_version: str | None = None
    arxiv: str | None = None
    survey: bool = False
    note: str = ""
    parameters: str = ""
    starts: str = "unchanged"
    guessed: bool = False

    @property
    def implemented_by(self) -> str:
        """``"peft"``, ``"tunesmith"``, ``"other"`` or ``"none"``."""
        kind = (self.reference or "none").split(":", 1)[0]
        return {"ours": "tunesmith"}.get(kind, kind)

    @property
    def available(self) -> bool:
        """Whether `build` can make its config, or our class can be imported, with what is installed."""
        kind, _, name = (self.reference or "none:").partition(":")
        if kind == "peft":
            return has_peft(self.min_version) and peft_class(name) is not None
        return kind == "ours" and our_class(name) is not None


def has_peft(version: str | None) -> bool:
    """Say whether the installed PEFT is at least ``version`` ("0.17"); without importing it."""
    if version is None:
        return True
    from packaging.version import Version

    return Version(Version(importlib.metadata.version("peft")).base_version) >= Version(version)


def peft_class(name: str) -> Any | None:
    """Return PEFT's config class of that name, or None."""
    import peft

    return getattr(peft, name, None)


def our_class(name: str) -> Any | None:
    """Return a class of ours by its public name below ``tunesmith.``, or None where it is not built yet."""
    package, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(f"tunesmith.{package}"), attribute)
    except (ImportError, AttributeError):
        return None
