"""Where a model is loaded to: the device, and whether its memory is large enough."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from dgemma_core.errors import CheckpointError, DeviceError


def resolve_device(asked: str | torch.device) -> torch.device:
    """The device to load to. Raises DeviceError where it is unknown or not there."""
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
        if device.type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise DeviceError(
            f"device {asked}: cannot be used here ({reason}); choose auto or cpu"
        ) from error
    return device


def available_memory(device: torch.device) -> int | None:
    """Bytes that a model may take on this device now; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    meminfo, group = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
    if not meminfo.exists():  # macOS says how much there is, used or not
        known = hasattr(os, "sysconf")
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if known else None
    lines = (line.split() for line in meminfo.read_text().splitlines())
    free = next(int(line[1]) * 1024 for line in lines if line[0] == "MemAvailable:")
    limit = (group / "memory.max").read_text().strip() if (group / "memory.max").exists() else "max"
    if limit != "max":  # a container: what its limit leaves beside memory that cannot be dropped
        held = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        free = min(free, int(limit) - int(held["anon"]))
    return free


def check_memory(folder: Path, needed: int, form: str, smaller: str, device: torch.device) -> None:
    """Raises CheckpointError where weights of `needed` bytes do not fit.

    form: what they would be stored as. smaller: the advice to store them smaller, may be empty.
    """
    free = available_memory(device)
    if free is None or needed <= free:
        return
    raise CheckpointError(
        f"{folder}: expected {needed / 1e9:.1f} GB of free memory on {device} for the weights as"
        f" {form}, found {free / 1e9:.1f} GB; {smaller}free memory, or load a smaller checkpoint"
    )
