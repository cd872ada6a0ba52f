"""The mixture of experts with its gradient: by C and products where that serves, else by the core's own.

Tokens are sorted by expert, each expert's padded to a multiple of `SLICE`: shapes recur, and a CPU prepares its matrix
products anew for every shape that it has not seen.

Axes: N tokens, D hidden size, E experts, K experts a token, w expert width.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import CDLL
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor

from dgemma_core.experts import Experts, Routing
from dgemma_core.train.functions import half, in_c

SLICE = 64


def mixture(experts: Experts, x: Tensor, routing: Routing) -> Tensor:
    """x (…, D) → (…, D), the sum of the chosen experts by their weights."""
    functions = in_c(x, x.shape[-1])
    plain = type(experts) is Experts and experts.down_proj.requires_grad
    if (
        functions is None
        or not plain
        or in_c(x, experts.down_proj.shape[-1]) is None
        or x.dtype is not experts.down_proj.dtype
    ):
        return experts(x, routing.weights, routing.chosen)
    flat, k = x.reshape(-1, x.shape[-1]), routing.chosen.shape[-1]
    mixed = _Mixture.apply(
        flat,
        routing.weights.reshape(-1, k),
        routing.chosen.reshape(-1, k),
        experts.gate_up_proj,
        experts.down_proj,
        functions,
    )
    return cast(Tensor, mixed).view_as(x)


class _Mixture(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weights: Tensor,
        chosen: Tensor,
        gate_up_proj: Tensor,
        down_proj: Tensor,
        functions: CDLL,
    ) -> Tensor:
        x, weights, chosen = x.contiguous(), weights.float().contiguous(), chosen.contiguous()
        (tokens, width), k, count = x.shape, chosen.shape[1], len(gate_up_proj)
        counts = torch.bincount(chosen.flatten(), minlength=count).tolist()
        sizes = [-(-each // SLICE) * SLICE for each in counts]
        ends = list(accumulate(sizes))
        total = ends[-1]
        following = torch.tensor([end - size for end, size in zip(ends, sizes, strict=True)])
        slot = torch.empty_like(chosen)
        functions.expert_slots(tokens * k, chosen.data_ptr(), following.data_ptr(), slot.data_ptr())
        rows = x.new_zeros(total, width)
        functions.to_experts(
            tokens, k, width, x.data_ptr(), half(x), slot.data_ptr(), rows.data_ptr()
        )
        gate_up = _products(rows, gate_up_proj.mT, sizes)
        inner = gate_up.new_empty(total, gate_up.shape[-1] // 2)
        functions.gated(total, inner.shape[-1], gate_up.data_ptr(), half(inner), inner.data_ptr())
        outputs = _products(inner, down_proj.mT, sizes)
        out = torch.empty_like(x)
        functions.from_experts(
            tokens, k, width, outputs.data_ptr(), half(x), slot.data_ptr(), weights.data_ptr(), out.data_ptr(),
        )  # fmt: skip
        ctx.functions, ctx.sizes = functions, sizes
        ctx.save_for_backward(weights, slot, rows, gate_up, inner, outputs, gate_up_proj, down_proj)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weights, slot, rows, gate_up, inner, outputs, gate_up_proj, down_proj = ctx.saved_tensors
        functions, grad = ctx.functions, gradients[0].contiguous()
        (tokens, k), width = weights.shape, grad.shape[-1]
        of_outputs, of_weights = torch.zeros_like(outputs), torch.empty_like(weights)
        functions.from_experts_gradient(
            tokens, k, width, outputs.data_ptr(), half(grad), slot.data_ptr(), weights.data_ptr(),
            grad.data_ptr(), of_outputs.data_ptr(), of_weights.data_ptr(),
        )  # fmt: skip
        sizes = ctx.sizes
        of_inner = _products(of_outputs, down_proj, sizes)
        of_down = _sums(of_outputs, inner, sizes)
        of_gate_up = torch.empty_like(gate_up)
        functions.gated_gradient(
            len(inner), inner.shape[-1], gate_up.data_ptr(), of_inner.data_ptr(), half(of_inner),
            of_gate_up.data_ptr(),
        )  # fmt: skip
        of_rows = _products(of_gate_up, gate_up_proj, sizes)
        of_gate_up_proj = _sums(of_gate_up, rows, sizes)
        of_x = torch.empty_like(grad)
        functions.from_experts(
            tokens, k, width, of_rows.data_ptr(), half(grad), slot.data_ptr(), None, of_x.data_ptr()
        )
        return of_x, of_weights, None, of_gate_up_proj, of_down, None


def _products(rows: Tensor, matrices: Tensor, sizes: Sequence[int]) -> Tensor:
    """rows (R, i), of which `sizes` belong to each expert, times its matrix of (E, i, o) → (R, o)."""
    out = rows.new_empty(len(rows), matrices.shape[-1])
    for part, matrix, into in zip(rows.split(sizes), matrices, out.split(sizes), strict=True):
        torch.mm(part, matrix, out=into)
    return out


def _sums(a: Tensor, b: Tensor, sizes: Sequence[int]) -> Tensor:
    """Of each expert's rows of a (R, i) and b (R, o) the sum of their outer products → (E, i, o)."""
    out = a.new_empty(len(sizes), a.shape[1], b.shape[1])
    for left, right, into in zip(a.split(sizes), b.split(sizes), out, strict=True):
        torch.mm(left.T, right, out=into)
    return out
