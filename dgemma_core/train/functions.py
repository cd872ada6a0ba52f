"""Norms, the gated GELU and the loss with gradients: by C where that serves (backends/cpu/gradients.c), else by torch.

Torch has none of them in one piece on a CPU: composed of its operations, they took half of a training step.

Axes: N tokens, D columns, w columns of a gate, V vocabulary.
"""

from __future__ import annotations

from ctypes import CDLL
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from dgemma_core.backends.cpu import bindings
from dgemma_core.functions import TORCH, working_dtype
from dgemma_core.head import soft_capped

VECTOR = 16
"""Numbers that C may take at once."""


def norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x (…, D), weight (D,) or None → x / √(mean x² + eps) · weight, (…, D) in the working dtype."""
    functions = in_c(x, x.shape[-1])
    if functions is None or not (weight is None or weight.dtype is torch.float32):
        return TORCH.rms_norm(x, eps, weight)
    return cast(Tensor, _Norm.apply(x, weight, eps, working_dtype(x), functions))


def added_norm(
    x: Tensor, y: Tensor, weight: Tensor, eps: float, scale: Tensor | None = None
) -> Tensor:
    """(x + norm(y)) · scale, all (…, D), in the dtype of x. weight (D,); scale (…), float32, a number a token, or
    None."""
    functions = in_c(x, x.shape[-1])
    if functions is None or in_c(y, y.shape[-1]) is None or weight.dtype is not torch.float32:
        added = x + TORCH.rms_norm(y, eps, weight)
        return added if scale is None else added * scale.unsqueeze(-1).to(added.dtype)
    return cast(Tensor, _AddedNorm.apply(x, y, weight, eps, scale, functions))


def capped_loss(hidden: Tensor, weight: Tensor, targets: Tensor, cap: float) -> Tensor:
    """The mean cross-entropy in nats of hidden states (N, D) against targets (N,), over those that are not negative.
    weight: the head's, (V, D). No array (N, V) is kept for the gradient."""
    functions = in_c(hidden, weight.shape[0])
    if functions is None or hidden.dtype is not weight.dtype:
        logits = soft_capped(F.linear(hidden, weight), cap)
        return F.cross_entropy(logits, targets.clamp(min=-1), ignore_index=-1)
    return cast(Tensor, _CappedLoss.apply(hidden, weight, targets, cap, functions))


@torch.no_grad()
def capped_probabilities(hidden: Tensor, weight: Tensor, cap: float) -> Tensor:
    """The raw prediction's probabilities, (N, V) in the dtype of hidden (N, D); without a gradient."""
    functions = in_c(hidden, weight.shape[0])
    if functions is None:
        return soft_capped(F.linear(hidden, weight), cap).softmax(dim=-1).to(hidden.dtype)
    logits = F.linear(hidden, weight).contiguous()
    rows, vocab = logits.shape
    scratch = torch.empty(vocab)
    functions.capped_softmax(rows, vocab, logits.data_ptr(), half(logits), cap, scratch.data_ptr())
    return logits


def gated_gelu(gate_up: Tensor) -> Tensor:
    """gate_up (…, 2w), the gate first → gelu(gate) · up, (…, w)."""
    functions = in_c(gate_up, gate_up.shape[-1] // 2)
    if functions is None:
        return TORCH.gated_gelu(*gate_up.chunk(2, dim=-1))
    return cast(Tensor, _Gated.apply(gate_up, functions))


def in_c(x: Tensor, width: int) -> CDLL | None:
    """gradients.c, where it serves x, of rows of this width."""
    served = x.is_cpu and x.dtype in (torch.float32, torch.bfloat16) and width % VECTOR == 0
    return bindings.gradients() if served else None


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, eps: float, dtype: torch.dtype, functions: CDLL
    ) -> Tensor:
        x, width = x.contiguous(), x.shape[-1]
        rows = x.numel() // width
        weight = None if weight is None else weight.contiguous()
        out = torch.empty(x.shape, dtype=dtype)
        factor = torch.empty(rows)
        functions.norm(
            rows, width, x.data_ptr(), half(x), pointer(weight), eps, out.data_ptr(), half(out),
            factor.data_ptr(),
        )  # fmt: skip
        ctx.functions = functions
        ctx.save_for_backward(x, weight, factor)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, factor = ctx.saved_tensors
        grad = gradients[0].contiguous()
        of_x = torch.empty_like(x)
        of_weight = None if weight is None else torch.zeros_like(weight)
        ctx.functions.norm_gradient(
            len(factor), x.shape[-1], x.data_ptr(), half(x), pointer(weight), factor.data_ptr(),
            grad.data_ptr(), half(grad), of_x.data_ptr(), pointer(of_weight),
        )  # fmt: skip
        return of_x, of_weight, None, None, None


class _AddedNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        weight: Tensor,
        eps: float,
        scale: Tensor | None,
        functions: CDLL,
    ) -> Tensor:
        x, y, width = x.contiguous(), y.contiguous(), x.shape[-1]
        weight = weight.contiguous()
        scale = None if scale is None else scale.contiguous()
        rows = x.numel() // width
        out, factor = torch.empty_like(x), torch.empty(rows)
        functions.added_norm(
            rows, width, x.data_ptr(), half(x), y.data_ptr(), half(y), weight.data_ptr(), eps, pointer(scale),
            out.data_ptr(), factor.data_ptr(),
        )  # fmt: skip
        ctx.functions = functions
        ctx.save_for_backward(x if scale is not None else None, y, weight, factor, scale)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, y, weight, factor, scale = ctx.saved_tensors
        grad = gradients[0].contiguous()
        of_x = grad if scale is None else torch.empty_like(grad)
        of_y, of_weight = torch.empty_like(y), torch.zeros_like(weight)
        of_scale = None if scale is None else torch.empty_like(scale)
        ctx.functions.added_norm_gradient(
            len(factor), y.shape[-1], pointer(x), half(grad), y.data_ptr(), half(y), weight.data_ptr(),
            factor.data_ptr(), pointer(scale), grad.data_ptr(), None if scale is None else of_x.data_ptr(),
            of_y.data_ptr(), of_weight.data_ptr(), pointer(of_scale),
        )  # fmt: skip
        return of_x, of_y, of_weight, None, of_scale, None


class _CappedLoss(torch.autograd.Function):
    """The gradient is made beside the loss, where the logits stand."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, cap: float, functions: CDLL
    ) -> Tensor:
        hidden, targets = hidden.contiguous(), targets.contiguous()
        logits = F.linear(hidden, weight)
        rows, vocab = logits.shape
        losses, scratch = torch.empty(rows), torch.empty(vocab)
        functions.capped_loss(
            rows, vocab, logits.data_ptr(), half(logits), targets.data_ptr(), cap, losses.data_ptr(),
            scratch.data_ptr(),
        )  # fmt: skip
        counted = int((targets >= 0).sum())
        ctx.counted = counted
        # Where the head does not learn, its gradient is not made.
        of_weight = torch.mm(logits.T, hidden) if ctx.needs_input_grad[1] else None
        ctx.save_for_backward(torch.mm(logits, weight), of_weight)
        return losses.sum() / counted

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        of_hidden, of_weight = ctx.saved_tensors
        by = gradients[0] / ctx.counted
        if of_weight is not None:
            of_weight = of_weight * by.to(of_weight.dtype)
        return of_hidden * by.to(of_hidden.dtype), of_weight, None, None, None


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, functions: CDLL) -> Tensor:
        gate_up, width = gate_up.contiguous(), gate_up.shape[-1] // 2
        out = gate_up.new_empty(*gate_up.shape[:-1], width)
        functions.gated(out.numel() // width, width, gate_up.data_ptr(), half(out), out.data_ptr())
        ctx.functions = functions
        ctx.save_for_backward(gate_up)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gate_up,) = ctx.saved_tensors
        grad = gradients[0].to(gate_up.dtype).contiguous()
        out, width = torch.empty_like(gate_up), grad.shape[-1]
        ctx.functions.gated_gradient(
            grad.numel() // width, width, gate_up.data_ptr(), grad.data_ptr(), half(grad), out.data_ptr(),
        )  # fmt: skip
        return out, None


def half(x: Tensor) -> bool:
    """What C is told of an array's dtype."""
    return x.dtype is torch.bfloat16


def pointer(x: Tensor | None) -> int | None:
    """What C is told of an array that may be missing."""
    return None if x is None else x.data_ptr()
