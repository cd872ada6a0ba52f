"""Matrix products x · Wᵀ, from whichever library inside torch is the faster.

In float32 torch asks MKL, which does without AVX-512 on AMD's processors, and reads a large matrix for a single row
with one thread. oneDNN, which torch brings along for bfloat16, takes less than half of the time there. Both are plain
float32.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LONG = 2**19
"""Multiplications from which oneDNN's longer beginning pays."""


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


def _long(x: Tensor, weight: Tensor) -> bool:
    return x.numel() * weight.shape[0] >= LONG


def _served(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dtype == torch.float32
        and x.device.type == "cpu"
        and weight.dtype == torch.float32
        and _long(x, weight)
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and onednn_leads()
    )


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x (…, K) · weight (R, K) → (…, R)."""
    if _served(x, weight):
        return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return F.linear(x, weight)


class Linear(nn.Linear):
    """A projection without bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight)
