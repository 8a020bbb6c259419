"""Gradients of each example's loss, as a random sketch or as a norm, at the price of one pass over a batch.

The gradient of a weight matrix for one example is ``G = sum_t delta_t x_t^T`` over its tokens, with inputs ``x`` and
derivatives ``delta`` of the outputs (Goodfellow 2015, arXiv 1510.01799). So ``A G B^T = sum_t (A delta_t) (B x_t)^T``:
both factors are sketched before they are multiplied and G is never formed (LoGra: Choe et al. 2024, arXiv 2405.13954).
Its squared norm is ``sum_tt' <delta_t, delta_t'> <x_t, x_t'>`` (ghost norms: Li et al. 2021, arXiv 2110.05679).

The sketch of the whole gradient is the sum over parameters of ``A_p G_p B_p^T`` with signs of their own for each, k1 x
k2 = dim numbers. The expectation of its squared length is the gradient's. For ``||g|| = 1``, with s the sum over
matrices of ``||G_p||^4`` (1 for one matrix, about 1/L for L alike), its variance is at most
``s (2/k1 + 2/k2 + 4/dim) + (1 - s) 2/dim``: with many layers that of a dense sign sketch of length dim, although it
costs a fraction of it.
"""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

if TYPE_CHECKING:
    from tunesmith.numerics.gradients.examples import ExampleGradients
    from tunesmith.numerics.gradients.functions import per_example_grad_norms, projected_gradients

__all__ = ["ExampleGradients", "per_example_grad_norms", "projected_gradients"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "ExampleGradients": "examples",
        "per_example_grad_norms": "functions",
        "projected_gradients": "functions",
    },
)
