"""The RMS norm and the gated GELU by C (norms.c): one pass over memory, float32 or bfloat16, computed in float32.

Each function gives None where C does not serve: another device or dtype, gradients, autocast, a width that is no
multiple of `VECTOR`, rows that are not contiguous, or no C compiler. The caller takes torch's own function then.

Axes: N rows, D columns.
"""

from __future__ import annotations

from ctypes import CDLL

import torch
from torch import Tensor

from dgemma_core.backends.cpu import bindings

VECTOR = 16
"""Numbers that C may take at once."""
_A_THREAD = 2**15
"""Numbers from which another thread pays."""
_DTYPES = (torch.float32, torch.bfloat16)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor | None:
    """x (…, D), weight (D,) or None → x / √(mean x² + eps) · weight, (…, D) in the dtype of x, rounded once."""
    width = x.shape[-1] if x.dim() else 0
    functions = _functions(x, width)
    if functions is None or not x.is_contiguous():
        return None
    if weight is not None and not (
        weight.shape == (width,) and weight.is_contiguous() and _plain(weight)
    ):
        return None
    out = torch.empty_like(x)
    functions.rms_norm(
        x.numel() // width, width, x.data_ptr(), x.dtype is torch.bfloat16,
        None if weight is None else weight.data_ptr(),
        weight is not None and weight.dtype is torch.bfloat16, eps, out.data_ptr(), _threads(x.numel()),
    )  # fmt: skip
    return out


def gated_gelu(gate: Tensor, up: Tensor) -> Tensor | None:
    """gate and up (N, D), whose rows may be parts of longer rows → gelu(gate) · up, contiguous.

    In bfloat16 the GELU is rounded before the product, as torch's two operations do.
    """
    if gate.dim() != 2 or gate.shape != up.shape or gate.dtype is not up.dtype or not _plain(up):
        return None
    functions = _functions(gate, gate.shape[1])
    if functions is None or gate.stride(1) != 1 or up.stride(1) != 1:
        return None
    (rows, width), out = gate.shape, gate.new_empty(gate.shape)
    functions.gated_gelu(
        rows, width, gate.data_ptr(), gate.stride(0), up.data_ptr(), up.stride(0),
        gate.dtype is torch.bfloat16, out.data_ptr(), _threads(gate.numel()),
    )  # fmt: skip
    return out


def _functions(x: Tensor, width: int) -> CDLL | None:
    """norms.c, where it serves x, of rows of this width."""
    if not width or width % VECTOR or not _plain(x) or torch.is_autocast_enabled("cpu"):
        return None
    return bindings.norms()


def _plain(x: Tensor) -> bool:
    """Whether C can read its numbers, and nobody asks for their gradient."""
    return (
        x.is_cpu
        and x.dtype in _DTYPES
        and type(x) in (Tensor, torch.nn.Parameter)
        and x.layout is torch.strided
        and not (x.requires_grad and torch.is_grad_enabled())
    )


def _threads(numbers: int) -> int:
    return max(1, min(torch.get_num_threads(), numbers // _A_THREAD))
