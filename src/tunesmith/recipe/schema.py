"""The recipe: one pydantic object behind the command line, Python and the Studio.

Strict everywhere: an unknown key is an error. A method block (``{type: mig, budget: 0.1, threshold: 0.9}``) takes
the keys of its own model plus the parameters of the method named by ``type``; those are checked against the
method's signature by `tunesmith.recipe.check`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

__all__ = [
    "ClusterSpec",
    "CompareSpec",
    "DataSpec",
    "ExportSpec",
    "FeaturesSpec",
    "MethodSpec",
    "ModelSpec",
    "PreflightSpec",
    "Recipe",
    "SelectSpec",
    "TrainSpec",
    "TunerSpec",
    "parse_budget",
]


def parse_budget(value: Any) -> int | float:
    """Turn a budget as people write it (``200``, ``0.1``, ``"10%"``) into an int of rows or a share in (0, 1].

    Raises:
        ValueError: it is none of these.
    """
    wanted = (
        "The 'budget' parameter must be an int >= 1 (rows), a float in (0, 1] (share) or a percentage such as "
        f"'10%'. Got {value!r} instead."
    )
    if isinstance(value, bool):
        raise ValueError(wanted)
    if isinstance(value, str):
        text = value.strip()
        try:
            if text.endswith("%"):
                value = float(text[:-1]) / 100
            else:
                value = int(text) if text.lstrip("+-").isdigit() else float(text)
        except ValueError:
            raise ValueError(wanted) from None
    if isinstance(value, int) and value >= 1:
        return value
    if isinstance(value, float) and 0 < value <= 1:
        return value
    raise ValueError(wanted)


Budget = Annotated[int | float, BeforeValidator(parse_budget)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True, use_attribute_docstrings=True)


class ModelSpec(_Strict):
    """The base model."""

    id: str
    """Alias of a bundled model, a local folder, or a Hub id."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 where the hardware computes it natively, else float32."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    trust_remote_code: bool = False
    """Run Python code that the model's repository brings."""


class DataSpec(_Strict):
    """Where rows come from: a file (JSONL, JSON, CSV, Parquet), an Arrow folder, a Hub id, or ``demo:NAME``."""

    train: str
    """The pool to choose from and train on."""
    validation: str | None = None
    """Rows for held-out loss while training, and the target of selectors that aim at one; none by default."""
    test: str | None = None
    """Rows for the evaluation; when absent, ``holdout`` of the pool is set aside before anything else."""
    holdout: float = Field(default=0.1, gt=0, lt=1)
    """Share of the pool set aside when ``test`` is absent."""
    format: Literal[
        "auto", "messages", "sharegpt", "alpaca", "prompt_completion", "preference", "pairs", "text"
    ] = "auto"
    """auto reads the format from the rows themselves and shows what it found."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Rename columns before reading: {their_name: our_name}."""
    max_rows: int | None = Field(default=None, ge=1)
    """Read at most this many rows of the pool."""


class MethodSpec(BaseModel):
    """A method by its registered name without the family (``mig`` for ``select.mig``), with its parameters."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)

    type: str
    """Name of the method within its family."""

    @property
    def parameters(self) -> dict[str, Any]:
        """The keys that belong to the method itself."""
        return dict(self.__pydantic_extra__ or {})


class FeaturesSpec(_Strict):
    """How the features that a selector asks for are computed."""

    encoder: str = "minilm"
    """Sentence encoder: ``minilm`` (bundled), ``static`` (its word table only, hundreds of times faster), a folder
    or a Hub id."""
    scorer: str | None = None
    """Language model for perplexity, IFD and the default quality; the recipe's base model by default."""
    quality: Literal["auto", "column", "ifd", "constant"] = "auto"
    """auto: the column ``quality`` if the rows have it, else 1 - IFD under the scorer."""
    tags: Literal["auto", "column", "clusters"] = "auto"
    """auto: the column ``tags`` if the rows have it, else cluster ids at two granularities."""
    batch_size: int = Field(default=32, ge=1)
    """Rows per forward pass."""
    max_length: int = Field(default=512, ge=8)
    """Longest row in tokens when scoring; longer rows are cut and counted."""


class ClusterSpec(MethodSpec):
    """Group the pool before anything is chosen; the groups are the map's clusters and the tags of selectors."""

    standardize: bool = False
    """Bring every column of the embedding to mean 0 and variance 1 first: for networks that do not scale themselves."""
    labels: str | None = None
    """Column of known classes for methods that use some; null and the empty string mean unknown."""
    known: list[str] | None = None
    """The classes that the method may see; by default all that occur."""
    per_class: int | None = Field(default=None, ge=1)
    """Most labels per class that the method may see; the others only score the result."""


class SelectSpec(MethodSpec):
    """Which rows to train on."""

    budget: Budget = 1.0
    """Rows (int), share (0.1) or percentage ('10%')."""


class TunerSpec(MethodSpec):
    """What may move: ``full``, ``lora``, or any PEFT method by its name, with the parameters of its config."""

    type: str = "lora"
    """``full``, ``lora``, or another PEFT type in lower case; the parameters of its config follow as further keys."""


class TrainSpec(MethodSpec):
    """How it learns; keys beyond these go to the trainer's own arguments (for SFT: ``trl.SFTConfig``)."""

    type: str = "sft"
    """Name of the trainer."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the selected rows."""
    learning_rate: float | None = Field(default=None, gt=0)
    """By default 2e-4 for adapters and 2e-5 for full tuning."""
    batch_size: int = Field(default=8, ge=1)
    """Rows per forward pass and device."""
    accumulate: int = Field(default=1, ge=1)
    """Forward passes per optimiser step."""
    max_length: int = Field(default=1024, ge=8)
    """Longest row in tokens; longer rows are cut and counted by the preflight."""
    loss: Literal["completion", "assistant", "all"] = "completion"
    """Learn the last answer, every assistant turn, or all tokens."""
    schedule: str = "cosine"
    """Learning-rate schedule by its transformers name."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    save_every: int = Field(default=50, ge=1)
    """Optimiser steps between the checkpoints from which a killed run continues."""


class PreflightSpec(_Strict):
    """Shares above which the preflight stops the run."""

    max_truncated: float = Field(default=0.2, ge=0, le=1)
    """Rows whose end is cut off at ``train.max_length``."""
    max_dropped: float = Field(default=0.2, ge=0, le=1)
    """Rows without any trained token, or unreadable."""


class ExportSpec(_Strict):
    """What is left in ``model/``."""

    merged: bool = False
    """Merge the adapter into the base, compare the logits of both and of the reloaded model, and write that."""


class CompareSpec(BaseModel):
    """Run each value of each dotted key, at the same budget, over the same seeds.

    ``{select.type: [random, mig], seeds: [0, 1, 2]}``; further dotted keys may be set per value through
    ``overrides``: ``{mig: {"select.threshold": 0.8}}``.
    """

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)

    seeds: list[int] = Field(default_factory=lambda: [0, 1, 2], min_length=1)
    """Seeds per arm; three at least for a claim."""
    base: bool = True
    """Evaluate the untuned base model too."""
    baseline: str | None = None
    """The arm that others are compared with; by default ``random`` where it is an arm, else the first."""
    overrides: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Arm -> further dotted keys for it alone."""
    early_stop: bool | float = False
    """End arms of a sweep over how to step that early gradient norms and losses rule out; true judges after the first
    10 % of the samples, a share such as 0.2 after that. An arm ends if it is dominated under every seed."""

    @property
    def axes(self) -> dict[str, list[Any]]:
        """Dotted key -> values."""
        return dict(self.__pydantic_extra__ or {})

    @model_validator(mode="after")
    def _a_window(self) -> CompareSpec:
        if not isinstance(self.early_stop, bool) and not 0 < self.early_stop < 1:
            raise ValueError(
                "The 'compare.early_stop' key must be true, false or a share of the samples in (0, 1). "
                f"Got {self.early_stop!r} instead."
            )
        return self

    @model_validator(mode="after")
    def _one_axis(self) -> CompareSpec:
        for key, values in self.axes.items():
            if not isinstance(values, list) or len(values) < 2:
                raise ValueError(f"compare.{key} must be a list of at least two values")
        if not self.axes:
            raise ValueError("compare needs a dotted key with its values, such as select.type: [random, mig]")
        return self


class Recipe(_Strict):
    """A whole run. Every stage but data is optional."""

    name: str = "run"
    """Shown in the report."""
    seed: int = Field(default=0, ge=0)
    """Root seed; each consumer gets its own child of it."""
    model: ModelSpec | None = None
    data: DataSpec
    curate: list[MethodSpec] = Field(default_factory=list)
    """Filters and repairs in order."""
    features: FeaturesSpec = Field(default_factory=FeaturesSpec)
    cluster: ClusterSpec | None = None
    select: SelectSpec | None = None
    targets: MethodSpec | None = None
    """Rewrite the answers of the chosen rows before training."""
    tuner: TunerSpec = Field(default_factory=TunerSpec)
    train: TrainSpec | None = None
    evaluate: list[MethodSpec] = Field(default_factory=list)
    """Metrics on the test rows; the first decides which arm is best."""
    audit: list[MethodSpec] = Field(default_factory=list)
    """Examinations of the tuned model."""
    preflight: PreflightSpec = Field(default_factory=PreflightSpec)
    export: ExportSpec | None = None
    compare: CompareSpec | None = None

    @property
    def classifies(self) -> bool:
        """Whether a classifier is trained, not a language model."""
        return self.train is not None and self.train.type == "classify"

    @model_validator(mode="after")
    def _needs_model(self) -> Recipe:
        for stage in ("targets", "train", "evaluate", "export"):
            if getattr(self, stage) and self.model is None:
                raise ValueError(f"the stage '{stage}' needs a model: add model: {{id: ...}}")
        return self
