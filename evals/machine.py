"""Where and with what a measurement ran."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
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


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
