"""ACOL as the head of a transformers sequence or image classifier, with a loss for ``transformers.Trainer``.

    head = replace_classifier(model, n_parents=2, k=5)
    Trainer(model, args, train_dataset=rows, compute_loss_func=ACOLLoss(head)).train()
    outputs = model(**inputs)
    node_logits(head, outputs.logits).argmax(1)     # sub-class ids

The model's logits are those of the parents, so metrics and pipelines see an ordinary classifier.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunesmith.cluster.acol.head import ACOLHead
from tunesmith.cluster.acol.objective import gar_loss
from tunesmith.core.errors import DataError, MissingModelError, ParameterError
from tunesmith.engine.silence import quiet

__all__ = ["ACOLLoss", "load_classifier", "node_logits", "replace_classifier"]


def replace_classifier(model: Any, n_parents: int, k: int = 5, dropout: float = 0.0) -> ACOLHead:
    """Replace the last linear layer of a classifier by an `ACOLHead` and return it; ``model`` is changed.

    The new layer has the old one's device and type; its weights are drawn from the model's ``initializer_range``.
    ``config.num_labels`` becomes ``n_parents`` and ``config.acol`` keeps what `load_classifier` needs.

    Args:
        model: a ``*ForSequenceClassification`` or ``*ForImageClassification`` of transformers.
        n_parents: parent classes.
        k: duplicates per parent.
        dropout: on the nodes, see `ACOLHead`.

    Raises:
        ParameterError: no linear layer of ``config.num_labels`` outputs lies outside the backbone, or see `ACOLHead`.
    """
    name, old = _classifier(model)
    head = ACOLHead(old.in_features, n_parents, k, dropout, bias=old.bias is not None)
    nn.init.normal_(head.linear.weight, std=float(getattr(model.config, "initializer_range", 0.02)))
    if head.linear.bias is not None:
        nn.init.zeros_(head.linear.bias)
    head.to(old.weight.device, old.weight.dtype).train(old.training)
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, head)
    model.config.num_labels = n_parents
    if hasattr(model, "num_labels"):
        model.num_labels = n_parents
    model.config.problem_type = "single_label_classification"
    model.config.acol = {"n_parents": n_parents, "k": k, "dropout": dropout, "layer": name}
    return head


def _classifier(model: Any) -> tuple[str, nn.Linear]:
    """Return name and layer: the last linear one of ``num_labels`` outputs that is not in the backbone."""
    backbone = getattr(model, "base_model_prefix", "")
    wide = getattr(getattr(model, "config", None), "num_labels", None)
    found = [
        (name, module)
        for name, module in (model.named_modules() if isinstance(model, nn.Module) else ())
        if isinstance(module, nn.Linear) and module.out_features == wide and name.split(".")[0] != backbone
    ]
    if not found:
        raise ParameterError(
            "model",
            "replace_classifier",
            "a transformers classifier whose last layer is linear with config.num_labels outputs",
            type(model).__name__,
        )
    return found[-1]


def node_logits(head: ACOLHead, logits: Tensor) -> Tensor:
    """Return the nodes' activities Z (b, n) behind the parent logits of the last forward pass.

    Decoders compute logits at every token and return those of the last one; its place is found by its logits.

    Args:
        head: what `replace_classifier` returned.
        logits: (b, n_parents), ``outputs.logits``.

    Raises:
        DataError: the logits are not from the head's last forward pass.
    """
    Z = head.nodes
    every = head.output
    if Z is not None and every is not None and len(Z) == len(logits):
        if Z.ndim == 2:
            return Z
        same = (every.detach() == logits[:, None]).all(dim=2)  # (b, t)
        if bool(same.any(dim=1).all()):
            return Z[torch.arange(len(Z), device=Z.device), same.int().argmax(dim=1)]
    raise DataError("node_logits needs the logits of the head's last forward pass; run the model again.")


class ACOLLoss:
    """``compute_loss_func`` for ``transformers.Trainer``: cross-entropy of the parents plus `gar_loss`.

    Affinity and balance are taken per micro-batch and device, weighted by its share of the rows of the step; make
    micro-batches several times larger than the number of nodes. Without labels (one parent) only GAR trains.

    Args:
        head: what `replace_classifier` returned; the module that the model uses, not a copy.
        gar: keywords of `gar_loss`: ``c_alpha``, ``c_beta``, ``c_f``, ``c_3``, ``balance_type``, ``variant``; the
            first two are 0.1 if not given.
    """

    def __init__(self, head: ACOLHead, **gar: Any) -> None:
        self.head, self.gar = head, {"c_alpha": 0.1, "c_beta": 0.1, **gar}

    def __call__(self, outputs: Any, labels: Tensor | None, num_items_in_batch: Any = None) -> Tensor:
        """Return the loss of a micro-batch."""
        logits = outputs["logits"]
        Z = node_logits(self.head, logits)
        loss = gar_loss(Z, self.head.n_parents, **self.gar)
        if labels is not None:
            loss = loss + F.cross_entropy(logits.float(), labels.view(-1))
        return loss if num_items_in_batch is None else loss * (len(logits) / num_items_in_batch)


def load_classifier(model_class: Any, folder: str | os.PathLike[str], **options: Any) -> tuple[Any, ACOLHead]:
    """Load a model that was saved with its head: ``load_classifier(AutoModelForSequenceClassification, folder)``.

    ``save_pretrained`` stores the head like any layer, but ``from_pretrained`` alone would build the plain one.

    Args:
        model_class: of transformers.
        folder: where ``save_pretrained`` wrote to.
        options: for ``from_pretrained``.

    Raises:
        MissingModelError: the folder holds no model with an ACOL head.
    """
    from safetensors import safe_open

    path = Path(folder)
    try:
        acol = json.loads((path / "config.json").read_text(encoding="utf-8"))["acol"]
    except (OSError, KeyError):
        raise MissingModelError(
            f"{path} holds no model with an ACOL head (config.json without 'acol')."
        ) from None
    with quiet():
        model = model_class.from_pretrained(path, ignore_mismatched_sizes=True, **options)
    head = replace_classifier(model, acol["n_parents"], acol["k"], acol["dropout"])
    weights = {}
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118  (safe_open is no mapping)
                if key.startswith(f"{acol['layer']}.linear."):
                    weights[key.removeprefix(f"{acol['layer']}.")] = tensors.get_tensor(key)
    head.load_state_dict(weights)
    return model, head
