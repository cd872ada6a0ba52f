"""The RMS norm and the gated GELU with gradients: by C where that serves (backends/cpu/gradients.c), else by torch.

Torch has neither in one piece on a CPU: composed of its operations, they took half of a training step.

Axes: D columns, w columns of a gate.
"""

from __future__ import annotations

from ctypes import CDLL
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from dgemma_core.backends.cpu import bindings
from dgemma_core.layers import rms_norm, working_dtype

VECTOR = 16
"""Numbers that C may take at once."""


def norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x (…, D), weight (D,) or None → x / √(mean x² + eps) · weight, (…, D) in the working dtype."""
    functions = _functions(x, x.shape[-1])
    if functions is None or not (weight is None or weight.dtype is torch.float32):
        return rms_norm(x, eps, weight)
    return cast(Tensor, _Norm.apply(x, weight, eps, working_dtype(x), functions))


def gated_gelu(gate_up: Tensor) -> Tensor:
    """gate_up (…, 2w), the gate first → gelu(gate) · up, (…, w)."""
    functions = _functions(gate_up, gate_up.shape[-1] // 2)
    if functions is None:
        gate, up = gate_up.chunk(2, dim=-1)
        return F.gelu(gate, approximate="tanh") * up
    return cast(Tensor, _Gated.apply(gate_up, functions))


def _functions(x: Tensor, width: int) -> CDLL | None:
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
            rows, width, x.data_ptr(), _half(x), _pointer(weight), eps, out.data_ptr(), _half(out),
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
            len(factor), x.shape[-1], x.data_ptr(), _half(x), _pointer(weight), factor.data_ptr(),
            grad.data_ptr(), _half(grad), of_x.data_ptr(), _pointer(of_weight),
        )  # fmt: skip
        return of_x, of_weight, None, None, None


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, functions: CDLL) -> Tensor:
        gate_up, width = gate_up.contiguous(), gate_up.shape[-1] // 2
        out = gate_up.new_empty(*gate_up.shape[:-1], width)
        functions.gated(out.numel() // width, width, gate_up.data_ptr(), _half(out), out.data_ptr())
        ctx.functions = functions
        ctx.save_for_backward(gate_up)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gate_up,) = ctx.saved_tensors
        grad = gradients[0].to(gate_up.dtype).contiguous()
        out, width = torch.empty_like(gate_up), grad.shape[-1]
        ctx.functions.gated_gradient(
            grad.numel() // width, width, gate_up.data_ptr(), grad.data_ptr(), _half(grad), out.data_ptr(),
        )  # fmt: skip
        return out, None


def _half(x: Tensor) -> bool:
    return x.dtype is torch.bfloat16


def _pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()
