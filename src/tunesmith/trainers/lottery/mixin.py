"""`LotteryTicketMixin`: any trainer of transformers or TRL learns a sparse delta in two phases.

LT-SFT, "Composable Sparse Fine-Tuning for Cross-Lingual Transfer", Ansell et al., ACL 2022, arXiv 2110.07560. The dense
phase tunes everything and shows which K entries move most; all goes back to the start; the sparse phase tunes those K
and the head alone, from the same random state.

Deviations from the released code: exactly K entries are chosen (ties by position, entries that did not move never);
the L1 term acts, which there cancels; the sparse phase keeps gradients and moments for the K entries only.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import TrainerCallback, set_seed

from tunesmith.core.errors import ParameterError, TrainingError
from tunesmith.core.files import hash_json, read_json
from tunesmith.core.seeds import child_seed
from tunesmith.trainers.lottery.moving import Moving, l1_gradient
from tunesmith.trainers.lottery.parts import divide
from tunesmith.trainers.lottery.settings import LotteryTicket, phase_length
from tunesmith.trainers.lottery.ticket import START, VALUES, Ticket, read_tensors, write_tensors
from tunesmith.tuners.sparse import SparseDelta
from tunesmith.tuners.sparse.applying import base_hashes, stack

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer  # what the mixin expects behind it
else:
    _Trainer = object

__all__ = ["LotteryTicketMixin", "can_continue"]

BESIDE = "tunesmith_moving"  # name under which the moving values hang on the model, for optimisers and DDP


class LotteryTicketMixin(_Trainer):
    """Learn a sparse delta: put it in front of a trainer.

    Example::

        class Lottery(LotteryTicketMixin, SFTTrainer):
            pass

        trainer = Lottery(model, args, train_dataset=rows, lottery={"density": 0.05, "dense_epochs": 1})
        trainer.train()
        trainer.sparse_delta.save_pretrained("delta")

    ``train`` runs both phases (R times with ``n_iterations``) and leaves the model as the base with
    ``trainer.sparse_delta`` applied, so ``trainer.sparse_delta.revert(model)`` gives the base back, bit for bit. The
    learning rate, batch size and schedule of ``args`` hold in both phases, their lengths come from the settings. Each
    phase starts with fresh optimiser and schedule and with the random state of ``args.seed``. Checkpoints lie in
    ``output_dir/dense-1``, ``output_dir/sparse-1`` and so on; ``train(resume_from_checkpoint=True)`` continues in the
    phase that was interrupted and ends as a straight run does.

    Time: T1 + T2 steps, and one reading of theta0 and theta1 to choose. Memory beside the model: in the dense phase a
    copy of theta0, gradients and moments (and a float32 copy of 16-bit weights); in the sparse phase gradients, moments
    and values of K entries, and the dense gradient of one tensor at a time. Optimisers that work entry by entry (SGD,
    Adam, AdamW) are exact; those that look at the shape of a weight (Adafactor, Muon) see vectors.

    Works with DDP; every process gets the mask of the first. FSDP, DeepSpeed and ``DataParallel`` are refused.

    Args:
        lottery: a `LotteryTicket`, or a mapping of its fields.
        *args: of the trainer.
        **kwargs: of the trainer.

    Attributes:
        sparse_delta: the result, None before.
        phase: ``("dense", 1)``, ``("sparse", 1)``, ...; None outside of training.

    Raises:
        ParameterError: a setting is outside its set, K exceeds the maskable entries, a name is not in the model, the
            base is quantised, or the trainer brings its own optimiser, model_init, FSDP or DeepSpeed.
    """

    def __init__(self, *args: Any, lottery: LotteryTicket | Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lottery = LotteryTicket.of(lottery)
        self.sparse_delta: SparseDelta | None = None
        self.phase: tuple[str, int] | None = None
        self._refuse()
        model = self.model
        self._flags = {name: p.requires_grad for name, p in model.named_parameters()}
        self._untied = divide(model, self.lottery).untied
        self._moving: Moving | None = None
        self._ticket: Ticket | None = None
        self.add_callback(_Follow(self))

    def _refuse(self) -> None:
        if self.optimizer is not None or self.lr_scheduler is not None:
            expected = "left out: each phase makes its own; give optimizer_cls_and_kwargs"
            raise ParameterError("optimizers", type(self), expected, (self.optimizer, self.lr_scheduler))
        if self.model_init is not None:
            raise ParameterError("model_init", type(self), "left out: give the model", self.model_init)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ParameterError(
                "args", type(self), "of a training without FSDP or DeepSpeed (DDP works)", "one of both"
            )
        if self.args.n_gpu > 1:
            expected = "of one GPU per process: start it with `accelerate launch` or show it one GPU"
            raise ParameterError("args", type(self), expected, f"{self.args.n_gpu} GPUs")

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Run all phases; return what the last one returned.

        Args:
            resume_from_checkpoint: True for the newest state in ``output_dir``, or a checkpoint inside one of its phase
                folders. The model must be the base, as for a fresh run.
            *args: of the trainer's ``train``.
            **kwargs: of the trainer's ``train``.

        Raises:
            TrainingError: there is nothing to continue, or it is of another training or another base.
        """
        settings, model = self.lottery, self.model
        parts = divide(model, settings)
        parts.untied = self._untied = self._untied or parts.untied
        budget = settings.budget(sum(parts.maskable.values()))
        base = base_hashes(model, list(parts.maskable))
        identity = {"base": hash_json(base), **settings.describe(), "training seed": self.args.seed}
        ticket = self._ticket = Ticket(model, parts)
        plan = [("sparse", 1)]
        if settings.method == "lottery_ticket":
            plan = [(kind, t) for t in range(1, settings.n_iterations + 1) for kind in ("dense", "sparse")]
        outer = {name: getattr(self.args, name) for name in ("output_dir", "max_steps", "num_train_epochs")}
        root = Path(outer["output_dir"])
        resumed = bool(resume_from_checkpoint)
        first, checkpoint = _place(root, plan, resume_from_checkpoint) if resumed else (0, None)
        output = None
        try:
            if resumed:
                ticket.load(_folder(root, plan[first]), identity)
            elif self._writes():
                _clear(root)
            for place in plan[first:]:
                self.phase = place
                if settings.method == "random" and not resumed:
                    seed = self.args.seed if settings.seed is None else settings.seed
                    ticket.extend(ticket.draw(budget, child_seed(seed, "lottery")))
                if self._writes() and not resumed:
                    ticket.save(_folder(root, place), identity)
                output = self._run_phase(root, budget, checkpoint, args, kwargs) or output
                checkpoint, resumed = None, False
        finally:
            self._detach()
            self.phase = None
            for name, value in outer.items():
                setattr(self.args, name, value)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(self._flags.get(name, False))
        info = {
            "method": settings.method,
            "num_params": budget,
            "n_maskable": sum(parts.maskable.values()),
            "n_iterations": settings.n_iterations,
            "base_model": getattr(getattr(model, "config", None), "_name_or_path", "") or None,
            **({"untied_output": True} if self._untied else {}),
        }
        delta = ticket.finish(settings.threshold, base, info)
        delta.apply(model, check_base=False)
        stack(model)[-1].untied = self._untied
        self.sparse_delta, self._ticket = delta, None
        return output

    def _writes(self) -> bool:
        return str(getattr(self.args.save_strategy, "value", self.args.save_strategy)) != "no"

    def _run_phase(self, root: Path, budget: int, checkpoint: Path | None, args: Any, kwargs: Any) -> Any:
        """Run one phase, and keep what it has found: the mask, or the tuned values."""
        assert self.phase is not None
        assert self._ticket is not None
        (kind, t), ticket, settings = self.phase, self._ticket, self.lottery
        self.args.output_dir = str(_folder(root, self.phase))
        self._set_length(kind)
        moving = ticket.start_dense(settings.l1_dense > 0) if kind == "dense" else ticket.start_sparse()
        self._attach(moving)
        if checkpoint is not None:
            moving.load(read_tensors(checkpoint / VALUES)[0])
        set_seed(self.args.seed)
        output = None
        if any(p.requires_grad for p in self.model.parameters()):
            if checkpoint is not None and _finished(checkpoint):  # one step more would be one too many
                self._load_from_checkpoint(str(checkpoint))
            else:
                resume = None if checkpoint is None else str(checkpoint)
                output = super().train(resume, *args, **kwargs)
            best = self.state.best_model_checkpoint if self.args.load_best_model_at_end else None
            if best is not None and moving.names:
                moving.load(read_tensors(Path(best) / VALUES)[0])
        if kind == "dense":
            wanted = budget * t // settings.n_iterations - budget * (t - 1) // settings.n_iterations
            picks = self._of_first_process(ticket.choose(wanted, moving))
            self._detach()
            ticket.reset()
            ticket.extend(picks)
        else:
            ticket.end_sparse(moving)
            self._detach()
        return output

    def _set_length(self, kind: str) -> None:
        settings, args = self.lottery, self.args
        steps, epochs = getattr(settings, f"{kind}_steps"), getattr(settings, f"{kind}_epochs")
        if epochs is None:
            args.max_steps = steps
            return
        rows = len(self.train_dataset)
        batch = self.args.train_batch_size * self.args.world_size
        args.max_steps, length = phase_length(
            settings.min_steps, steps, epochs, rows, batch, args.gradient_accumulation_steps
        )
        if length is not None:
            args.num_train_epochs = length

    def _of_first_process(self, picks: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.accelerator.num_processes == 1:
            return picks
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([picks])[0]

    def _attach(self, moving: Moving) -> None:
        self._moving = moving
        self.model.add_module(BESIDE, moving)
        self.optimizer = self.lr_scheduler = None
        self.model_wrapped = self.model

    def _detach(self) -> None:
        self._moving = None
        if hasattr(self.model, BESIDE):
            delattr(self.model, BESIDE)

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """Return the names of what decays: values of chosen entries do if their tensors do."""
        names = set(super().get_decay_parameter_names(model))
        if self._moving is not None:
            for own, name in self._moving.parameter_names().items():
                if name not in names:
                    names.discard(f"{BESIDE}.{own}")
        return [name for name, _ in model.named_parameters() if name in names]

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Do a forward and a backward pass, with the L1 term's gradient once per optimiser step."""
        if self._moving is None:
            return super().training_step(*args, **kwargs)
        with self._moving.seen():
            loss = super().training_step(*args, **kwargs)
        if self._penalty() > 0 and self.accelerator.sync_gradients:
            scaler = self.accelerator.scaler
            scale = scaler.get_scale() if scaler is not None and scaler.is_enabled() else 1.0
            for value, origin in self._penalised():
                gradient = l1_gradient(value, origin, self._penalty() * scale)
                value.grad = gradient if value.grad is None else value.grad.add_(gradient)
        return loss

    def _penalty(self) -> float:
        """Return lambda / N of the current phase."""
        assert self._ticket is not None
        dense = self.phase is not None and self.phase[0] == "dense"
        return (self.lottery.l1_dense if dense else self.lottery.l1_sparse) / self._ticket.parts.total

    def _penalised(self) -> list[tuple[Any, Tensor]]:
        """Return what moves, each with its theta0."""
        ticket, moving = self._ticket, self._moving
        assert ticket is not None
        assert moving is not None
        found = []
        for name in [*ticket.parts.maskable, *([] if self.lottery.l1_maskable_only else ticket.parts.dense)]:
            value = moving.values(name) if name in moving.index else ticket.parameters[name]
            if value.requires_grad:
                origin = ticket.head_origin.get(name, ticket.origin.get(name))
                found.append((value, ticket.chosen_origin[name] if origin is None else origin))
        return found

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, with J (``l1``) where there is an L1 term."""
        if "loss" in logs and self._moving is not None and self._penalty() > 0:
            with torch.no_grad():
                parts = [(v - o.to(v.device, v.dtype)).abs().sum() for v, o in self._penalised()]
            logs["l1"] = self._penalty() * float(sum(parts))
        super().log(logs, *args, **kwargs)


class _Follow(TrainerCallback):
    """Write moved values into the model after each step, and beside each checkpoint."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer right after the optimiser's step."""
        if self.trainer._moving is not None:
            self.trainer._moving.write()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer when the checkpoint's other files are written."""
        moving = self.trainer._moving
        if moving is not None and state.is_world_process_zero:
            path = Path(args.output_dir, f"checkpoint-{state.global_step}", VALUES)
            write_tensors(path, moving.tensors(), {"step": state.global_step})


def can_continue(output_dir: str | Path) -> bool:
    """Say whether ``train(resume_from_checkpoint=True)`` finds a lottery-ticket training in ``output_dir``."""
    return any(Path(output_dir).glob(f"*-*/{START}"))


def _folder(root: Path, place: tuple[str, int]) -> Path:
    return root / f"{place[0]}-{place[1]}"


def _place(root: Path, plan: list[tuple[str, int]], wanted: Any) -> tuple[int, Path | None]:
    """Return the number of the phase to continue, and its checkpoint if it has one."""
    if wanted is True:
        started = [i for i, place in enumerate(plan) if (_folder(root, place) / START).exists()]
        if not started:
            raise TrainingError(f"{root} holds no lottery-ticket training that could be continued.")
        return started[-1], _last(_folder(root, plan[started[-1]]))
    checkpoint = Path(wanted)
    for i, place in enumerate(plan):
        folder = _folder(root, place)
        if checkpoint.parent.name == folder.name and (checkpoint.parent / START).exists():
            return i, checkpoint
    raise TrainingError(
        f"{checkpoint} is no checkpoint in a phase's folder (dense-1, sparse-1, ...) of this training."
    )


def _last(folder: Path) -> Path | None:
    """Return the newest whole checkpoint: our file is the last that is written to it."""
    found = [path.parent for path in folder.glob(f"checkpoint-*/{VALUES}")]
    return max(found, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)


def _finished(checkpoint: Path) -> bool:
    state = read_json(checkpoint / "trainer_state.json")
    return bool(state["global_step"] >= state["max_steps"])


def _clear(root: Path) -> None:
    """Remove the phases of an earlier training in the same folder, which a later resume would take for its own."""
    for path in root.glob(f"*-*/{START}"):
        shutil.rmtree(path.parent)
