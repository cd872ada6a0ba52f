"""Launches recorded once as a CUDA graph and replayed: the host starts a whole pass by one call."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")
WARM_UP = 3
"""Eager runs before a recording: kernels are compiled, and libraries make their choices."""


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One stream for all warm-ups: what they have allocated serves the next one."""
    return torch.cuda.Stream(device)


class Replay(Generic[T]):
    """`function` as a CUDA graph on a GPU; elsewhere a call runs the function itself.

    `result` is what the last call returned. On a GPU that is the same memory after every call, and memory that other
    graphs of the same `pool` use too: copy what must outlive the next replay.
    """

    def __init__(self, function: Callable[[], T], device: torch.device, pool: Any = None) -> None:
        self.function = function
        self.graph: torch.cuda.CUDAGraph | None = None
        self.result: T
        if device.type != "cuda":
            return
        stream = _side_stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream), torch.inference_mode():
            for _ in range(WARM_UP):
                function()
        torch.cuda.current_stream(device).wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        # other threads may use the device meanwhile
        recording = torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local")
        with recording, torch.inference_mode():
            self.result = function()

    def __call__(self) -> T:
        if self.graph is not None:
            self.graph.replay()
        else:
            with torch.inference_mode():
                self.result = self.function()
        return self.result
