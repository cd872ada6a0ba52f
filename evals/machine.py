"""Where and with what a measurement ran."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dgemma_core.facts.machine import cores
from dgemma_evals.hashes import digest


def environment() -> dict[str, Any]:
    """Where and with what this process runs."""
    import torch

    facts: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": cores(),
        "torch_threads": torch.get_num_threads(),
        "allocator": os.environ.get("LD_PRELOAD") or "the system's",
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "python": platform.python_version(),
    }
    for package in ("torch", "transformers", "lm-eval", "numpy", "dgemma-lab"):
        facts[package] = version(package)
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def machine(facts: Mapping[str, Any]) -> str:
    """A hash of what of an `environment` decides the last bits and the times."""
    return digest([facts.get(name) for name in ("processor", "cores", "torch_threads", "gpu")])


class Others:
    """How many cores other processes keep busy, from the start until it is asked.

    Linux only. What this process and its ended children use is its own; a server that is measured on the same machine
    counts among the others.
    """

    def __init__(self, pids: Sequence[int] = ()) -> None:
        """pids: living processes that are measured, too."""
        self._pids = list(pids)
        self._began = self._now()

    def _now(self) -> tuple[float, float, float] | None:
        """Seconds of a clock, of all cores at work, and of what is measured."""
        tick = os.sysconf("SC_CLK_TCK")
        try:
            fields = [int(f) for f in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
        except (OSError, ValueError):
            return None
        busy = (sum(fields[:8]) - fields[3] - fields[4]) / tick
        own = sum(os.times()[:4])
        for pid in self._pids:
            try:
                stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            own += (int(stat[11]) + int(stat[12])) / tick
        return time.perf_counter(), busy, own

    def cores(self) -> float | None:
        """None where the system does not say, or too little time has passed."""
        now = self._now()
        if now is None or self._began is None or now[0] - self._began[0] < 0.1:
            return None
        passed, busy, own = (b - a for a, b in zip(self._began, now, strict=True))
        return round(max(0.0, busy - own) / passed, 3)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
