"""Products with quantised matrices that let a gradient through to their input (QLoRA, arXiv 2305.14314).

The codes stay as they are. What autograd keeps of a product is the codes alone: the numbers that they stand for are
made anew for the gradient, so that a quantised model is as small in training as in use.

Axes: E stacked matrices, R rows (outputs), K columns (inputs).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from dgemma_core.files.quantised import Quantised


def product(x: Tensor, weight: Quantised) -> Tensor:
    """x (…, K) times a matrix (R, K) → (…, R); or x (E, n, K) times a stack (E, R, K) → (E, n, R)."""
    return cast(Tensor, _Product.apply(x, weight.codes, weight.scales, weight))


class _Product(torch.autograd.Function):
    """codes and scales are given apart from their matrix too, so that autograd watches them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scales: Tensor, weight: Quantised) -> Tensor:
        ctx.save_for_backward(codes, scales)
        ctx.weight, ctx.dtype = weight, x.dtype
        if codes.dim() == 2:
            return weight.linear(x)
        return torch.stack([weight[e].linear(rows) for e, rows in enumerate(x)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        _ = ctx.saved_tensors  # raises where they were changed in place
        weight, (gradient,) = ctx.weight, gradients
        if len(weight.shape) == 2:
            return _times(gradient, weight).to(ctx.dtype), None, None, None
        parts = [_times(rows, weight[e]) for e, rows in enumerate(gradient)]
        return torch.stack(parts).to(ctx.dtype), None, None, None


def _times(gradient: Tensor, weight: Quantised) -> Tensor:
    """gradient (…, R) times the matrix (R, K) → (…, K), slice by slice."""
    total: Tensor | None = None
    start = 0
    for part in weight.slices():
        rows = part.dequantize(gradient.dtype)  # (r, K)
        found = F.linear(gradient[..., start : start + len(part)], rows.mT)
        total = found if total is None else total + found
        start += len(part)
    assert total is not None
    return total
