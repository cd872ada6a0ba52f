"""The functions in which a pass spends its time: torch's own, or those that a backend puts in while its pass runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor


def working_dtype(x: Tensor) -> torch.dtype:
    """The dtype of x, or the one that autocast (in training) works in."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class Functions:
    """Torch's own."""

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """x (…, K) · weight (R, K) → (…, R)."""
        return F.linear(x, weight)

    def gated_gelu(self, gate: Tensor, up: Tensor) -> Tensor:
        """gate (…, D), up (…, D) → gelu(gate) · up, the GELU in its tanh form."""
        return F.gelu(gate, approximate="tanh") * up

    def rms_norm(self, x: Tensor, eps: float, weight: Tensor | None = None) -> Tensor:
        """Root-mean-square norm over the last axis, computed in float32, returned in the working dtype."""
        wide, scale = x.float(), None if weight is None else weight.float()
        return F.rms_norm(wide, wide.shape[-1:], scale, eps).to(working_dtype(x))


TORCH = Functions()
_current: ContextVar[Functions] = ContextVar("functions", default=TORCH)
functions = _current.get


@contextmanager
def using(others: Functions) -> Iterator[None]:
    """While this context lasts, in this thread, `functions()` gives others."""
    before = _current.set(others)
    try:
        yield
    finally:
        _current.reset(before)
