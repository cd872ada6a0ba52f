"""What the machine lends to this process."""

from __future__ import annotations

import os
import time
from pathlib import Path
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


BUSY = 0.15
"""Share of the cores that other programs may use beside a measurement."""


class Watch:
    """Watches from its making on how much of the machine's CPU time other programs take; `others` says it."""

    def __init__(self) -> None:
        self._began, self._own, self._all = time.monotonic(), _own_seconds(), _all_seconds()

    def others(self) -> float:
        """Share of all cores, 0 … 1, that other programs used since; outside Linux from the load average."""
        count = os.cpu_count() or 1
        own = _own_seconds() - self._own
        elapsed = max(time.monotonic() - self._began, 1e-6)
        if self._all is None:
            load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
            return min(max(load - own / elapsed, 0.0) / count, 1.0)
        used = (_all_seconds() or 0.0) - self._all
        return min(max(used - own, 0.0) / (elapsed * count), 1.0)


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _all_seconds() -> float | None:
    """CPU seconds of all programs since the machine started, those stolen by other machines too; None unless Linux."""
    try:
        fields = Path("/proc/stat").read_text("ascii").split("\n", 1)[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, _idle, _wait, irq, soft, stolen = map(int, fields)
    return (user + nice + system + irq + soft + stolen) / os.sysconf("SC_CLK_TCK")
