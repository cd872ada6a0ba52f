"""The card: whether it is there and large enough, what it is, what it can do at most; and its clock."""

from __future__ import annotations

import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from dgemma_core.backends.cuda import experts as grouped
from dgemma_core.config import ModelConfig
from dgemma_core.errors import DeviceError
from dgemma_evals.bench.gpu.model import Shape, needed_bytes


def find_device(name: str) -> torch.device:
    """DeviceError where it is not there."""
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            "no CUDA device is there: run this on a machine with an NVIDIA GPU and a CUDA build of torch, or try small "
            "shapes with --device cpu"
        )
    if device.type == "cuda" and not grouped.has_triton():
        raise DeviceError("triton is not installed: pip install triton")
    return device


def check_memory(
    config: ModelConfig,
    shape: Shape,
    tokens: int,
    device: torch.device,
    dtype: torch.dtype,
    batch: int = 1,
) -> int:
    """Bytes that the run needs, with `batch` rows of `tokens` new ones. DeviceError where the card has less."""
    needed = needed_bytes(config, shape.prefix, tokens, dtype.itemsize, batch)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if needed > free:
            layers = max(1, int(shape.layers * (free - 4e9) / needed))
            raise DeviceError(
                f"this shape needs about {needed / 1e9:.0f} GB, and {free / 1e9:.0f} GB of the card are free: "
                f"pass --layers {layers} or fewer (of {shape.layers}), fewer --experts, or a smaller --batch"
            )
    return needed


def environment(device: torch.device) -> dict[str, Any]:
    """The card, its driver, and the libraries."""
    found: dict[str, Any] = {
        "device": device.type,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": None,
    }
    if grouped.has_triton():
        from importlib.metadata import version

        found["triton"] = version("triton")
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["card"] = properties.name
        found["memory_bytes"] = properties.total_memory
        found["multiprocessors"] = properties.multi_processor_count
        if tool := shutil.which("nvidia-smi"):
            asked = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
            answer = subprocess.run(asked, capture_output=True, text=True, check=False)
            found["driver"] = (
                answer.stdout.strip().splitlines()[0] if answer.stdout.strip() else None
            )
    else:
        found["note"] = "no GPU result: small shapes on a CPU, to try the command"
    return found


@contextmanager
def _clocked(device: torch.device, into: list[float], count: int) -> Iterator[None]:
    """Milliseconds of one of `count` repetitions of the block, by the device's own clock."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        yield
        end.record()
        end.synchronize()
        into.append(start.elapsed_time(end) / count)
    else:
        begun = time.perf_counter()
        yield
        into.append(1e3 * (time.perf_counter() - begun) / count)


def timed(
    device: torch.device,
    rounds: int,
    count: int,
    action: Callable[[], Any],
    begin: Callable[[], Any] = lambda: None,
) -> list[float]:
    """Milliseconds of `action`, the mean of `count` in a row, in each of `rounds` rounds after one to warm up."""
    found: list[float] = []
    for _ in range(rounds + 1):
        begin()
        with _clocked(device, found, count):
            for _ in range(count):
                action()
    return found[1:]


def ceilings(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Bytes a second of a copy (read and written), operations a second of a matrix product, both of random data."""
    large = device.type == "cuda"
    size = 2**30 if large else 2**24  # numbers; far above the cache on a GPU
    side = 8192 if large else 256

    def copies() -> list[float]:
        source = torch.empty(size, dtype=torch.bfloat16, device=device).normal_()
        target = torch.empty_like(source)
        return timed(device, 5, 10, lambda: target.copy_(source))

    def products() -> list[float]:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        return timed(device, 5, 10, lambda: torch.mm(a, b, out=out))

    return {
        "bytes_per_second": 2 * size * 2 / (statistics.median(copies()) / 1e3),
        "operations_per_second": 2 * side**3 / (statistics.median(products()) / 1e3),
    }
