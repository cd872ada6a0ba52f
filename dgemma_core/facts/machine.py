"""What the machine lends to this process."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def bfloat16_multiplies(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 matrices at least as fast as float32 ones: a CPU without instructions for
    them takes five times as long."""
    import torch

    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
