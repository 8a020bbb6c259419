"""Stage 3: pull what a trigger excites back to where clean images put it, and leave the rest (arXiv 2506.12411)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tunesmith.audit.backdoor._passes import descend, group_of, see, trainable
from tunesmith.audit.backdoor.encoders import DualEncoder
from tunesmith.audit.backdoor.objective import (
    critical_layers,
    feature_alignment,
    layer_impact,
    mse_alignment,
    preservation,
    relative_alignment,
    scaled_mse_alignment,
    two_means,
)
from tunesmith.audit.backdoor.rates import SCHEDULES, schedule_of, suggested_rate
from tunesmith.audit.backdoor.triggers import Trigger
from tunesmith.audit.backdoor.zero_shot import check_images
from tunesmith.core.errors import ParameterError, TrainingError, UnknownNameError

__all__ = ["VARIANTS", "ActivationTuner"]

Callback = Callable[[int, dict[str, float]], Any]

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {
        "alignment": "relative", "layer_rule": "top_k", "mask_gradients": False, "learning_rate": "auto",
        "schedule": "cosine", "train_mode": False, "steps": 100,
    },
    "official": {
        "alignment": "relative", "layer_rule": "top_k", "mask_gradients": False, "learning_rate": 2e-6,
        "schedule": "restart", "train_mode": True, "steps": 200,
    },
    "paper": {
        "alignment": "mse", "layer_rule": "mean_std", "mask_gradients": True, "learning_rate": 8e-6,
        "schedule": "constant", "train_mode": False, "steps": 200,
    },
}  # fmt: skip
ALIGNMENTS = {"relative": relative_alignment, "mse": mse_alignment, "scaled_mse": scaled_mse_alignment}
CHOICES = {
    "alignment": tuple(ALIGNMENTS),
    "layer_rule": ("top_k", "mean_std"),
    "schedule": SCHEDULES,
}


class ActivationTuner:
    """Tunes the image tower so that triggered images excite it as clean ones do (InverTune, stage 3).

    The layers that the trigger moves most are critical, and in each the neurons of the larger of two clusters of
    movement; their activations are aligned while a frozen copy holds the features of clean images in place. The text
    tower and all buffers stay bit for bit.

    Each parameter that is None takes its variant's value. ``"official"`` is the authors' code; ``"paper"`` is the rule
    of the paper as far as it is known (MSE of every image, layers above mean + std, only critical rows of critical
    layers move); ``"default"`` aligns like the code, but normalisation layers keep their statistics, the rate falls
    once, and it suits small models: see ``learning_rate``.

    Time: ``steps`` forward and backward passes of (1 + number of triggers) batches. Memory: that of a pass of
    ``micro_batch`` images, and the activations of the critical layers of all of them.

    Args:
        variant: ``"default"``, ``"official"`` or ``"paper"``.
        alignment: ``"relative"``: norm of the difference of batch means over that of the clean mean, per layer;
            ``"mse"``: mean square of each image's difference, which depends on the scale of the activations;
            ``"scaled_mse"``: the same over the mean square of the clean ones.
        layer_rule: ``"top_k"`` or ``"mean_std"``, see `critical_layers`.
        top_k: of the first.
        layers: candidates; default `DualEncoder.image_layers`.
        mask_gradients: let only rows move whose index is that of a critical channel, in critical layers.
        alignment_weight: factor of the alignment.
        preservation_weight: beta.
        feature_weight: factor of `feature_alignment`, which is ours: the features of triggered images are drawn to the
            ones that the clean images had, as if the embedding were one more critical layer. 0: the paper.
        aligned: how many of the clean images, the first, are also triggered and aligned; the others only hold the
            features. None: all, as in the code.
        micro_batch: images of one pass; more go through in groups, with the same gradients, at the cost of one more
            forward pass. None: as many as 64 images of 224 pixels have pixels. Not with ``train_mode``.
        learning_rate: of AdamW; ``"auto"``, 2e-6 and 8e-6 in the variants. See `suggested_rate`.
        schedule: ``"constant"``; ``"cosine"``: to a twentieth over the steps; ``"restart"``: cosine of half-period
            100 to 1e-7, which rises again after step 100, as in the code.
        steps: 100, 200 and 200 in the variants.
        weight_decay: of AdamW.
        max_grad_norm: of each step.
        keep_best: return to the weights of the least total loss, looked at every ``check_every`` steps.
        check_every: steps.
        train_mode: let normalisation layers see batches, as the code does; their statistics then drift.
        min_success: refuse triggers whose measured success is lower: tuning on them would be tuning on noise.
        check_range: refuse images outside the normalised range.
        callbacks: functions of step and its numbers, called after each step; one that returns True ends the tuning.

    Attributes:
        impact_: layer -> s_l, the mean over the triggers, before tuning.
        impact_after_: the same with the tuned model.
        critical_layers_: largest impact first.
        neuron_masks_: for each trigger, layer -> 0 or 1 per neuron.
        learning_rate_: the rate that was used.
        history_: for each step its losses before the step and the gradient's norm.
        best_step_: the step whose weights were kept.

    Raises:
        ParameterError: a value outside its set.
    """

    def __init__(
        self,
        variant: str = "default",
        *,
        alignment: str | None = None,
        layer_rule: str | None = None,
        top_k: int = 3,
        layers: Sequence[str] | None = None,
        mask_gradients: bool | None = None,
        alignment_weight: float = 1.0,
        preservation_weight: float = 0.5,
        feature_weight: float = 0.0,
        aligned: int | None = None,
        micro_batch: int | None = None,
        learning_rate: float | str | None = None,
        schedule: str | None = None,
        steps: int | None = None,
        weight_decay: float = 1e-4,
        max_grad_norm: float = 1.0,
        keep_best: bool = True,
        check_every: int = 10,
        train_mode: bool | None = None,
        min_success: float = 0.7,
        check_range: bool = True,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        if variant not in VARIANTS:
            raise ParameterError("variant", self, f"one of {', '.join(map(repr, VARIANTS))}", variant)
        given = {
            "alignment": alignment, "layer_rule": layer_rule, "mask_gradients": mask_gradients,
            "learning_rate": learning_rate, "schedule": schedule, "steps": steps, "train_mode": train_mode,
        }  # fmt: skip
        chosen: dict[str, Any] = {
            name: VARIANTS[variant][name] if v is None else v for name, v in given.items()
        }
        for name, allowed in CHOICES.items():
            if chosen[name] not in allowed:
                raise ParameterError(name, self, f"one of {', '.join(map(repr, allowed))}", chosen[name])
        counts = {"steps": chosen["steps"], "top_k": top_k, "check_every": check_every}
        counts |= {
            name: 1 if v is None else v for name, v in (("aligned", aligned), ("micro_batch", micro_batch))
        }
        for name, value in counts.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ParameterError(name, self, "an int of at least 1", value)
        sizes: dict[str, Any] = {
            "alignment_weight": alignment_weight,
            "preservation_weight": preservation_weight,
            "feature_weight": feature_weight,
        }
        rate = chosen["learning_rate"]
        sizes |= {"weight_decay": weight_decay, "learning_rate": 0.0 if rate == "auto" else rate}
        for name, number in sizes.items():
            if not isinstance(number, (int, float)) or not math.isfinite(number) or number < 0:
                also = ", or 'auto'" if name == "learning_rate" else ""
                raise ParameterError(name, self, f"a finite number of at least 0{also}", number)
        self.variant = variant
        self.alignment, self.layer_rule, self.schedule = (chosen[name] for name in CHOICES)
        self.mask_gradients, self.train_mode = bool(chosen["mask_gradients"]), bool(chosen["train_mode"])
        self.learning_rate, self.steps = rate, int(chosen["steps"])
        self.top_k, self.layers, self.check_every = top_k, layers, check_every
        self.alignment_weight, self.preservation_weight = alignment_weight, preservation_weight
        self.feature_weight = feature_weight
        self.weight_decay, self.max_grad_norm, self.keep_best = weight_decay, max_grad_norm, keep_best
        if micro_batch is not None and chosen["train_mode"]:
            expected = "None with train_mode, where images of a pass see one another"
            raise ParameterError("micro_batch", self, expected, micro_batch)
        self.aligned, self.micro_batch = aligned, micro_batch
        self.min_success, self.check_range, self.callbacks = min_success, check_range, tuple(callbacks)

    def fit(
        self,
        model: DualEncoder,
        trigger: Trigger | Sequence[Trigger],
        clean_images: Tensor,
        reference: DualEncoder | None = None,
    ) -> ActivationTuner:
        """Tune the model in place on one fixed batch.

        Args:
            model: its image tower changes.
            trigger: one, or several that are aligned together.
            clean_images: (B, 3, H, W), normalised, of all classes, the target's too: what is not held may be
                unlearned; 64 in the code.
            reference: the frozen model whose features of clean images are kept; default the model as it comes.

        Raises:
            ParameterError: no trigger, images of another size than the model's or the trigger's.
            DataError: values outside the normalised range.
            TrainingError: a trigger that hardly works, or a loss that is not finite.
            UnknownNameError: a layer that the model does not have.

        Warns:
            UserWarning: a layer whose activations the trigger moves all by the same; it has no critical neuron.
        """
        triggers = [trigger] if isinstance(trigger, Trigger) else list(trigger)
        if not triggers:
            raise ParameterError("trigger", self, "a Trigger, or at least one of them", "none")
        if self.check_range:
            check_images(model, clean_images, "ActivationTuner.fit", "clean_images", least=2)
        for t in triggers:
            if t.success < self.min_success:
                raise TrainingError(
                    f"The trigger turns only {100 * t.success:.0f} % of held-out images into its target, below "
                    f"min_success = {100 * self.min_success:.0f} %: its activations say little about a backdoor. "
                    "Search longer, or for another target."
                )
        x = clean_images.to(model.device, model.dtype)
        names = self._candidates(model)
        n = min(self.aligned or len(x), len(x))
        # The images that are only held come last: the rest are equal parts, clean and under each trigger.
        pictures = torch.cat([x[:n], *(t.apply(x[:n]) for t in triggers), x[n:]])
        parts = 1 + len(triggers)
        size = len(pictures) if self.train_mode else self.micro_batch or group_of(pictures)
        with torch.no_grad():
            features, found = see(model, pictures, names, parts * n, size)
            seen = _split(found, n)
            original = _clean(features, parts, n)
            if reference is not None:
                original = torch.cat([reference.encode_image(some) for some in torch.split(x, size)])
        self.impact_ = _mean([layer_impact(seen[0], after) for after in seen[1:]])
        self.critical_layers_ = critical_layers(self.impact_, self.layer_rule, self.top_k)  # type: ignore[arg-type]
        self.neuron_masks_ = [self._neurons(seen[0], after) for after in seen[1:]]
        del found, seen, features  # as large as all activations of the batch
        moving = self._moving(model)
        with trainable(model, moving, self.train_mode):
            self._train(model, pictures, parts, n, size, original, moving)
        with torch.no_grad():
            seen = _split(see(model, pictures, names, parts * n, size)[1], n)
        self.impact_after_ = _mean([layer_impact(seen[0], after) for after in seen[1:]])
        return self

    def _candidates(self, model: DualEncoder) -> list[str]:
        known = model.image_layers()
        modules = dict(model.model.named_modules())
        for name in self.layers or ():
            if name not in modules:
                raise UnknownNameError("layer of the model", name, known)
        return list(self.layers or known)

    def _neurons(self, clean: Mapping[str, Tensor], triggered: Mapping[str, Tensor]) -> dict[str, Tensor]:
        masks = {}
        for name in self.critical_layers_:
            masks[name] = two_means((clean[name].mean(dim=0) - triggered[name].mean(dim=0)).abs())
            if not bool(masks[name].any()):
                warnings.warn(
                    f"The trigger moves all activations of '{name}' by the same: no neuron of it is critical.",
                    stacklevel=3,
                )
        return masks

    def _moving(self, model: DualEncoder) -> dict[str, Tensor | None]:
        """Return parameter -> rows that may move, None for all of them; parameters that stay are left out."""
        parameters = model.image_parameters()
        if not self.mask_gradients:
            return dict.fromkeys(parameters)
        found: dict[str, Tensor | None] = {}
        for layer in self.critical_layers_:
            rows = torch.stack([_channels(masks[layer]) for masks in self.neuron_masks_]).any(dim=0)
            for name, p in parameters.items():
                if name.startswith(f"{layer}.") and p.shape[:1] == rows.shape and bool(rows.any()):
                    found[name] = rows
        return found

    def _train(
        self,
        model: DualEncoder,
        pictures: Tensor,
        parts: int,
        n: int,
        size: int,
        original: Tensor,
        moving: dict[str, Any],
    ) -> None:
        named = model.image_parameters()
        trained = [named[name] for name in moving]
        held = [
            (named[name], ~rows, named[name].detach().clone())
            for name, rows in moving.items()
            if rows is not None
        ]
        self.history_: list[dict[str, float]] = []
        self.best_step_, least = 0, math.inf
        best: dict[str, Tensor] = {}
        if not trained:
            return
        self.learning_rate_ = (
            suggested_rate(model) if self.learning_rate == "auto" else float(self.learning_rate)
        )
        optimizer = torch.optim.AdamW(trained, lr=self.learning_rate_, weight_decay=self.weight_decay)
        rate = schedule_of(optimizer, self.schedule, self.steps)
        align = ALIGNMENTS[self.alignment]

        def terms(features: Tensor, found: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
            clean, *triggered = _split(found, n)
            pulls = [
                align(clean, after, masks) for after, masks in zip(triggered, self.neuron_masks_, strict=True)
            ]
            alignment = torch.stack(pulls).mean()
            kept = preservation(_clean(features, parts, n), original)
            drawn = torch.zeros(())
            if self.feature_weight:
                drawn = feature_alignment(features[n : parts * n], original[:n])
            loss = (
                self.alignment_weight * alignment
                + self.preservation_weight * kept
                + self.feature_weight * drawn
            )
            if not bool(torch.isfinite(loss)):
                raise TrainingError(
                    f"The loss of activation tuning is {float(loss)} in step {step}; lower learning_rate."
                )
            return loss, alignment, kept, drawn

        for step in range(1, self.steps + 1):
            optimizer.zero_grad()
            loss, alignment, kept, drawn = descend(
                model, pictures, self.critical_layers_, parts * n, size, terms, trained
            )
            norm = torch.nn.utils.clip_grad_norm_(trained, self.max_grad_norm)
            optimizer.step()
            rate.step()
            with torch.no_grad():
                for p, rows, before in held:  # weight decay moves rows whose gradient is 0, too
                    p[rows] = before[rows]
            row = {
                "step": float(step),
                "alignment": float(alignment),
                "preservation": float(kept),
                "features": float(drawn),
                "loss": float(loss),
                "gradient_norm": float(norm),
            }
            self.history_.append(row)
            if self.keep_best and step % self.check_every == 0 and row["loss"] < least:
                least, self.best_step_ = row["loss"], step
                best = {name: named[name].detach().clone() for name in moving}
            stop = [callback(step, row) is True for callback in self.callbacks]
            if any(stop):
                break
        with torch.no_grad():
            for name, value in best.items():
                named[name].copy_(value)
        self.best_step_ = self.best_step_ or len(self.history_)


def _split(found: Mapping[str, Tensor], n: int) -> list[dict[str, Tensor]]:
    """Return the activations of each group of ``n`` images: the clean ones, then those under each trigger."""
    pieces = {name: torch.split(values, n) for name, values in found.items()}
    return [dict(zip(pieces, group, strict=True)) for group in zip(*pieces.values(), strict=True)]


def _clean(features: Tensor, parts: int, n: int) -> Tensor:
    return torch.cat([features[:n], features[parts * n :]])


def _channels(mask: Tensor) -> Tensor:
    """Return which channels have a critical neuron: (C, H, W) maps channel first, (T, C) tokens channel last."""
    if mask.dim() == 2:
        return mask.any(dim=0)
    return mask.flatten(1).any(dim=1) if mask.dim() > 1 else mask.bool()


def _mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
