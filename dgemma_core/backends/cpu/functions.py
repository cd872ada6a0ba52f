"""What "cpu" puts in the place of torch's functions while the plain modules run.

- linear, in float32: torch asks MKL, which does without AVX-512 on AMD's processors, and reads a large matrix for a
  single row with one thread. oneDNN, which torch brings along for bfloat16, takes less than half of the time there;
- gated_gelu and rms_norm, in float32 and bfloat16: by C (norms.py), a quarter of the time or less.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from dgemma_core.backends.cpu import norms
from dgemma_core.functions import Functions

LONG = 2**19
"""Multiplications from which oneDNN's longer start pays."""
ROUNDED = 16
"""Rows are padded to a multiple of this for oneDNN, which keeps what it has prepared for every number of rows. Experts
get any number of rows, and a prompt of 128 tokens left 50 MB behind; so it leaves 9."""
MANY = 2**13
"""Numbers from which a gated GELU by C pays for its call."""


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


def _onednn_linear(x: Tensor, weight: Tensor) -> Tensor:
    count = x.numel() // x.shape[-1]
    if count == 1 or count % ROUNDED == 0:
        return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    rows = F.pad(x.reshape(count, -1), (0, 0, 0, -count % ROUNDED))
    found = torch.ops.mkldnn._linear_pointwise(rows, weight, None, "none", [], "")
    return found[:count].view(*x.shape[:-1], -1)


class Faster(Functions):
    """Torch's own where the others do not serve or do not pay."""

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        if x.numel() * weight.shape[0] >= LONG and onednn_leads() and _plain(x, weight):
            return _onednn_linear(x, weight)
        return super().linear(x, weight)

    def gated_gelu(self, gate: Tensor, up: Tensor) -> Tensor:
        found = norms.gated_gelu(gate, up) if gate.numel() >= MANY else None
        return super().gated_gelu(gate, up) if found is None else found

    def rms_norm(self, x: Tensor, eps: float, weight: Tensor | None = None) -> Tensor:
        found = norms.rms_norm(x, weight, eps)
        return super().rms_norm(x, eps, weight) if found is None else found
