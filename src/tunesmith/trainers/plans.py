"""What may move in a training, by name: all weights, an adapter of any kind, half of them, one matrix, a sparse delta,
or weights under fake quantisation.

`train_sft` asks a plan how to make the model ready and what to add to the trainer, so a recipe's ``tuner: {type: …}``
takes PEFT's adapters and tunesmith's other methods alike.
"""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass
from typing import Any

from tunesmith.core.errors import ParameterError, nearest
from tunesmith.core.events import EventLog
from tunesmith.core.files import hash_json
from tunesmith.core.seeds import child_seed

__all__ = ["ADAPTER_RATE", "FULL_RATE", "PLANS", "Context", "Plan", "parameters_of_plan", "plan_of"]

ADAPTER_RATE, FULL_RATE = 2e-4, 2e-5


@dataclass(frozen=True)
class Context:
    """What a plan may look at while it makes a model ready.

    Attributes:
        rows: encoded training rows, with ``input_ids`` and ``labels``.
        seed: of the training.
        batch_size: rows per forward pass.
        epochs: passes over the rows.
        log: for messages.
    """

    rows: Any
    seed: int
    batch_size: int
    epochs: float
    log: EventLog

    def batches(self, n: int, size: int) -> list[dict[str, Any]]:
        """Return n drawn rows as padded batches of ``input_ids``, ``attention_mask`` and ``labels``."""
        import numpy as np
        import torch

        picks = np.random.default_rng(child_seed(self.seed, "plan")).permutation(len(self.rows))[:n]
        batches = []
        for start in range(0, len(picks), size):
            chosen = [self.rows[int(i)] for i in picks[start : start + size]]
            width = max(len(row["input_ids"]) for row in chosen)
            batch = {
                "input_ids": torch.zeros(len(chosen), width, dtype=torch.long),
                "attention_mask": torch.zeros(len(chosen), width, dtype=torch.long),
                "labels": torch.full((len(chosen), width), -100),
            }
            for i, row in enumerate(chosen):
                length = len(row["input_ids"])
                batch["input_ids"][i, :length] = torch.as_tensor(row["input_ids"])
                batch["attention_mask"][i, :length] = 1
                batch["labels"][i, :length] = torch.as_tensor(row["labels"])
            batches.append(batch)
        return batches


class Plan:
    """All weights move; the base of the others.

    Attributes:
        rate: learning rate by default.
        mixins: classes to put in front of the trainer's.
        arguments: further arguments of the trainer, for the mixins.
    """

    parameters: frozenset[str] = frozenset()
    rate = FULL_RATE
    mixins: tuple[type, ...] = ()

    def __init__(self, name: str = "full", **values: Any) -> None:
        self.name, self.values = name, values
        self.arguments: dict[str, Any] = {}
        self.consistency = 0.0

    def ask_consistency(self, weight: float | None, caller: Any) -> None:
        """Run each batch twice and pull the passes together with this weight; None: as the method wants it.

        Raises:
            ParameterError: it is negative or not finite.
        """
        if weight is None:
            weight = self.consistency
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < float("inf"):
            raise ParameterError("consistency", caller, "a float of at least 0, or None", weight)
        self.consistency = float(weight)
        if weight > 0:
            from tunesmith.trainers.consistency import Consistency, ConsistencyMixin

            self.mixins = (ConsistencyMixin, *self.mixins)
            self.arguments["consistency"] = Consistency(beta=float(weight))

    def ask_masking(self, masked: Any) -> dict[str, Any]:
        """Hide tokens of the reasoning in the input (masked thought), and return the settings.

        Raises:
            ParameterError: a setting is outside its set.
        """
        from tunesmith.trainers.masked_thought import MaskedThought, MaskedThoughtMixin

        settings = MaskedThought.of(masked)
        self.mixins = (
            MaskedThoughtMixin,
            *self.mixins,
        )  # in front: the others run the model on what it has hidden
        self.arguments["masked"] = settings
        return settings.describe()

    def describe(self) -> str:
        """Return what tells this plan from another, for the checkpoints' identity."""
        return self.name if not self.values else f"{self.name} {hash_json(self.values)}"

    def prepare(self, model: Any, context: Context) -> Any:
        """Return the model with what may move released; called after everything is seeded."""
        return model.requires_grad_(True)

    def callbacks(self) -> list[Any]:
        """Return callbacks for the trainer; called after `prepare`."""
        return []


class Adapter(Plan):
    """An adapter of any PEFT kind."""

    rate = ADAPTER_RATE

    def __init__(self, config: Any) -> None:
        super().__init__("adapter")
        self.config = config
        self.consistency = 1.0 if getattr(config, "tuner_name", "") == "mosa" else 0.0

    def describe(self) -> str:
        """Return the hash of the config."""
        return hash_json(self.config.to_dict())

    def prepare(self, model: Any, context: Context) -> Any:
        """Put the adapter in; LoFiT with ``k`` chooses its heads on the training rows first."""
        from peft import get_peft_model

        from tunesmith.tuners import check_target_modules

        config = self.config
        check_target_modules(model, config)
        if getattr(config, "tuner_name", "") == "lofit" and config.heads is None and config.k is not None:
            from tunesmith.tuners.lofit import with_heads

            batches = context.batches(len(context.rows), context.batch_size)
            config = with_heads(model, config, batches, seed=child_seed(context.seed, "lofit"))
            chosen = ", ".join(f"{layer}.{head}" for layer, head in config.heads or ())
            context.log.emit("message", message=f"LoFiT trains the heads (layer.head) {chosen}.")
        return get_peft_model(model, config)


class Half(Plan):
    """Half of each layer (HFT)."""

    def __init__(self, **values: Any) -> None:
        super().__init__("hft", **values)
        self.half: Any = None

    def prepare(self, model: Any, context: Context) -> Any:
        """Draw the half of this stage."""
        from tunesmith.tuners.hft import HalfFineTuning

        self.half = HalfFineTuning(model, **{"seed": child_seed(context.seed, "hft"), **self.values})
        self.half.new_round()
        trained, every = self.half.trainable_parameters()
        context.log.emit(
            "message", message=f"HFT trains {trained:,} of {every:,} weights ({trained / every:.1%})."
        )
        return model

    def callbacks(self) -> list[Any]:
        """Return the guard that refuses a checkpoint of another half."""
        return [self.half.callback()]


class Located(Plan):
    """One place of one layer (LocFT), under the trainer's own loss; `trainers.edit` is the editor with its own loop."""

    parameters = frozenset({"layer", "module"})

    def __init__(self, **values: Any) -> None:
        super().__init__("locft", **values)
        from tunesmith.tuners.locft import LocFTConfig

        self.config = LocFTConfig(**values)
        self.rate = self.config.rate

    def prepare(self, model: Any, context: Context) -> Any:
        """Freeze all but the place; in 16 bits the steps on it would round to nothing, so the model becomes float32."""
        import torch

        from tunesmith.tuners.locft import find_sites

        sites, _ = find_sites(model, self.config)
        if any(getattr(site, "rows", None) is not None for site in sites):
            raise ParameterError(
                "module",
                "tuner 'locft'",
                "a whole matrix; this model has it fused with another",
                self.config.module,
            )
        if model.dtype in (torch.bfloat16, torch.float16):
            context.log.emit(
                "message", message="The model is trained in float32: 16 bits would round the steps away."
            )
            model = model.float()
        model.requires_grad_(False)
        names = {site.name for site in sites}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in names)
        return model


class Quantised(Plan):
    """All weights under fake quantisation, rotated where that helps (RoSTE)."""

    def __init__(self, n_calibration: int = 128, **values: Any) -> None:
        from tunesmith.tuners.roste import RosteConfig

        if isinstance(n_calibration, bool) or not isinstance(n_calibration, int) or n_calibration < 1:
            raise ParameterError("n_calibration", "tuner 'roste'", "an int of at least 1", n_calibration)
        super().__init__("roste", n_calibration=n_calibration, **values)
        self.n_calibration, self.config = n_calibration, RosteConfig.from_dict(values)

    def prepare(self, model: Any, context: Context) -> Any:
        """Choose the rotations on training rows, and put the fake quantisers in."""
        from tunesmith.tuners.roste import apply_roste, roste_state

        batches = [
            {name: batch[name] for name in ("input_ids", "attention_mask")}
            for batch in context.batches(self.n_calibration, 1)
        ]
        model = apply_roste(model, self.config, batches)
        rotate = roste_state(model).rotate
        context.log.emit("message", message=f"RoSTE rotates {sum(rotate.values())} of {len(rotate)} sites.")
        return model.requires_grad_(True)


class Sparse(Plan):
    """A sparse delta in two phases (LT-SFT): the entries that moved most in full tuning, tuned again from the start.

    Each phase has the length of the training unless the settings say otherwise. The trainer's mixin keeps its
    checkpoints in a folder per phase.
    """

    def __init__(self, **values: Any) -> None:
        from tunesmith.trainers.lottery import LotteryTicket, LotteryTicketMixin

        super().__init__("lt_sft", **values)
        LotteryTicket.of({"dense_epochs": 1, "sparse_epochs": 1, **values})  # checks the values
        self.mixins = (LotteryTicketMixin,)

    def prepare(self, model: Any, context: Context) -> Any:
        """Release all weights; the mixin chooses among them."""
        lengths = {
            f"{phase}_epochs": context.epochs
            for phase in ("dense", "sparse")
            if self.values.get(f"{phase}_steps") is None and self.values.get(f"{phase}_epochs") is None
        }
        self.arguments["lottery"] = {**lengths, **self.values}
        return model.requires_grad_(True)


PLANS: dict[str, type[Plan]] = {
    "full": Plan, "hft": Half, "locft": Located, "lt_sft": Sparse, "roste": Quantised
}  # fmt: skip
"""Names that a recipe's ``tuner.type`` takes beside those of PEFT's methods."""


def parameters_of_plan(name: str) -> frozenset[str]:
    """Return the parameters that a recipe may set for a name of `PLANS`."""
    if name == "hft":
        from tunesmith.tuners.hft import HalfFineTuning

        return frozenset(inspect.signature(HalfFineTuning.__init__).parameters) - {"self", "model"}
    if name == "roste":
        from tunesmith.tuners.roste import RosteConfig

        return frozenset(field.name for field in dataclasses.fields(RosteConfig)) | {"n_calibration"}
    if name == "lt_sft":
        from tunesmith.trainers.lottery import LotteryTicket

        return frozenset(field.name for field in dataclasses.fields(LotteryTicket))
    return PLANS[name].parameters


def plan_of(tuner: Any, caller: Any) -> Plan:
    """Return the plan that ``tuner`` stands for.

    Args:
        tuner: a dict with ``type`` and parameters, a ``peft.PeftConfig``, or None for all weights.
        caller: whose parameter ``tuner`` is, for messages.

    Raises:
        UnknownNameError: there is no such method.
        ParameterError: it is none of these, or a parameter is not the method's or outside its set.
        ConfigError: PEFT refuses the values.
    """
    if tuner is None:
        return Plan()
    if not isinstance(tuner, dict):
        from peft import PeftConfig

        if not isinstance(tuner, PeftConfig):
            raise ParameterError("tuner", caller, "a dict with 'type', a PeftConfig or None", tuner)
        return Adapter(tuner)
    values = dict(tuner)
    kind = values.pop("type", "lora")
    if kind not in PLANS:
        from tunesmith.tuners import peft_config

        return Adapter(peft_config(kind, **values))
    known = parameters_of_plan(kind)
    for name, value in values.items():
        if name not in known:
            expected = (
                f"left out: it has no such parameter.{nearest(name, known)} Its parameters: {', '.join(sorted(known))}"
                if known
                else "left out: full tuning has no parameters"
            )
            raise ParameterError(name, f"tuner '{kind}'", expected, value)
    return PLANS[kind](**values)
