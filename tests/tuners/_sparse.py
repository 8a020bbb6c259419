"""Small models and deltas for the tests of sparse deltas."""

from __future__ import annotations

import torch
from torch import nn

from tunesmith.tuners.sparse import SparseDelta


class Bag(nn.Module):
    """Named parameters and nothing else."""

    def __init__(self, values):
        super().__init__()
        for name, value in values.items():
            self.register_parameter(name, nn.Parameter(value.clone()))

    def copy(self):
        return {name: p.detach().clone() for name, p in self.named_parameters()}


def delta(entries, shape, name="w", **options):
    index = torch.tensor(list(entries), dtype=torch.int64)
    values = torch.tensor(list(entries.values()), dtype=torch.float32)
    return SparseDelta({name: (index, values)}, {name: shape}, **options)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
