"""The auto-clustering output layer: a linear layer of n = n_parents * k nodes whose soft-max is pooled to parents."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from tunesmith.cluster.acol.objective import parent_logits
from tunesmith.core.errors import ParameterError

__all__ = ["ACOLHead"]


class ACOLHead(nn.Module):
    """Drop-in classifier with k duplicates of every parent class (Kilinc and Uysal 2017, arXiv 1702.08648).

    ``forward`` returns parent logits, so any loss on classes works on it; their soft-max is the pooled Y. The nodes'
    activities Z of the last forward pass are kept in ``nodes`` for `gar_loss`; argmax over them is the sub-class,
    and node j belongs to parent j mod n_parents. Pooling has no weights: there are (d + 1)(n - n_parents) parameters
    more than in the plain classifier, and k = 1 is that classifier.

    Time O(b d n), memory O(b n).

    Args:
        in_features: d.
        n_parents: parent classes, at least 1 (with 1 the cross-entropy is constant: only `gar_loss` trains).
        k: duplicates per parent; at least the number of sub-classes expected, spare ones stay empty.
        dropout: on Z before the soft-max, only while training; ``nodes`` are those before it.
        bias: of the linear layer.

    Raises:
        ParameterError: ``n_parents`` or ``k`` below 1, ``dropout`` outside [0, 1).
    """

    nodes: Tensor | None  # (..., n), of the last forward pass
    output: Tensor | None  # (..., n_parents), likewise

    def __init__(
        self, in_features: int, n_parents: int, k: int = 5, dropout: float = 0.0, bias: bool = True
    ) -> None:
        super().__init__()
        for name, value in (("n_parents", n_parents), ("k", k)):
            if value < 1:
                raise ParameterError(name, "ACOLHead", "an int in the range [1, inf)", value)
        if not 0 <= dropout < 1:
            raise ParameterError("dropout", "ACOLHead", "a float in the range [0, 1)", dropout)
        self.in_features, self.n_parents, self.k, self.dropout = in_features, n_parents, k, dropout
        self.linear = nn.Linear(in_features, n_parents * k, bias=bias)
        self.nodes = self.output = None

    def forward(self, H: Tensor) -> Tensor:
        """Return parent logits (..., n_parents), in float32 at least, of features (..., d)."""
        self.nodes = self.linear(H)
        self.output = parent_logits(F.dropout(self.nodes, self.dropout, self.training), self.n_parents)
        return self.output

    def __getstate__(self) -> dict[str, object]:
        """Leave the activities of the last pass out of copies and pickles."""
        return {**self.__dict__, "nodes": None, "output": None}

    def extra_repr(self) -> str:
        """Say what the linear layer's width is made of."""
        return f"n_parents={self.n_parents}, k={self.k}, dropout={self.dropout}"
