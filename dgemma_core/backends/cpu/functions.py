"""Faster forms of a few torch functions on a CPU, put in while the plain modules run.

- F.linear in float32: torch asks MKL, which does without AVX-512 on AMD's processors, and reads a large matrix for a
  single row with one thread. oneDNN, which torch brings along for bfloat16, takes less than half of the time there;
- F.gelu (tanh form) and F.rms_norm in float32 and bfloat16: by C (norms.py), a quarter of the time or less.

The modules themselves run, so hooks, replaced modules and changed weights are seen. Torch tells `FasterFunctions` of
every function that a pass calls, some 1,400 in six layers. That costs more than the norms and GELUs save (Zen 3, random
weights of width 640: 1.3 times the time of one token, 1.03 times that of a canvas of 256), so it is put in only where
oneDNN's product leads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dgemma_core.backends.cpu import norms

LONG = 2**19
"""Multiplications from which oneDNN's longer start pays."""
MANY = 2**13
"""Numbers from which a GELU by C pays for its call."""


@cache
def onednn_leads() -> bool:
    """Whether this CPU is an AMD with AVX-512, and torch has oneDNN's product."""
    if (
        torch.backends.cpu.get_cpu_capability() != "AVX512"
        or not torch.backends.mkldnn.is_available()
    ):
        return False
    described = Path("/proc/cpuinfo")
    vendor = described.read_text(errors="replace") if described.exists() else ""
    return "AuthenticAMD" in vendor and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _plain(*tensors: Tensor) -> bool:
    return not torch.is_autocast_enabled("cpu") and all(
        tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and not (tensor.requires_grad and torch.is_grad_enabled())
        for tensor in tensors
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (…, K) · weight (R, K) → (…, R)."""
    long = x.numel() * weight.shape[0] >= LONG
    if bias is None and long and onednn_leads() and _plain(x, weight):
        return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return F.linear(x, weight, bias)


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """The GELU: in its tanh form, and of many numbers, by C."""
    found = norms.gelu(x) if approximate == "tanh" and x.numel() >= MANY else None
    return F.gelu(x, approximate=approximate) if found is None else found


def rms_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """The RMS norm over the last axes: over the last one alone by C."""
    found = norms.rms_norm(x, weight, eps) if len(shape) == 1 and eps is not None else None
    return F.rms_norm(x, shape, weight, eps) if found is None else found


_FASTER: Mapping[Callable[..., Any], Callable[..., Any]] = {
    F.linear: linear,
    F.gelu: gelu,
    F.rms_norm: rms_norm,
}


class FasterFunctions(TorchFunctionMode):
    """While this context lasts, `_FASTER` stands in for torch's own functions."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return _FASTER.get(func, func)(*args, **(kwargs or {}))


def faster_functions() -> AbstractContextManager[object]:
    """`FasterFunctions` where it pays, else a context that changes nothing."""
    return FasterFunctions() if onednn_leads() else nullcontext()
