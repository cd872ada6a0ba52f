"""The backend "cuda": Triton kernels, CUDA graphs by batch size, grouped experts, and the head in one pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dgemma_core.errors import DeviceError

if TYPE_CHECKING:
    from dgemma_core.backends import Backend
    from dgemma_core.model import DiffusionGemma


def make(model: DiffusionGemma) -> Backend:
    """Raises DeviceError where the model is on neither a CUDA device nor a CPU, or triton is missing on the former.

    On a CPU the same code runs without recordings: for tests, not for speed.
    """
    from dgemma_core.backends.cuda.backend import CudaBackend
    from dgemma_core.backends.cuda.experts import has_triton
    from dgemma_core.backends.guard import Guarded
    from dgemma_core.files.lora import adapted

    if any(adapted(model)):
        raise DeviceError(
            "backend 'cuda' runs merged adapters, and this model's stand beside quantised matrices: it cannot run here"
        )
    device = model.device.type
    if device not in ("cuda", "cpu"):
        raise DeviceError(
            f"backend 'cuda' runs models on a CUDA device, this one is on {model.device}: choose backend 'torch'"
        )
    if device == "cuda" and not has_triton():
        raise DeviceError(
            "backend 'cuda' needs triton: pip install triton, or choose backend 'torch'"
        )
    return Guarded(model, CudaBackend(model))
