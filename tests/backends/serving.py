"""Which implementation of a pass serves which models on a CPU, and a model put on one of them.

The backend "cpu" has two: C for small float32 models, and the modules with faster functions. On a CPU, "cuda" runs the
functions that it records on a card. The parity tests take their parameters from `SERVED`; test_serving.py holds the
table against what `model.use` does.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from dgemma_core.backends.cpu import Modules, small_model
from dgemma_core.backends.cpu.small_model import SmallModel
from dgemma_core.backends.cuda.backend import CudaBackend
from dgemma_core.backends.guard import Guarded
from dgemma_core.backends.reference import Reference
from dgemma_core.model import DiffusionGemma
from tests.oracle.build import Drawn, aligned

BACKEND: Mapping[str, str] = {"torch": "torch", "C": "cpu", "modules": "cpu", "cuda": "cuda"}
"""The backend that each implementation belongs to."""

SERVED: Mapping[str, tuple[str, ...]] = {
    "float32": ("torch", "modules", "cuda"),
    "float32, aligned": ("torch", "C", "modules", "cuda"),
    "bfloat16": ("torch", "modules", "cuda"),
    "bfloat16, aligned": ("torch", "modules", "cuda"),
    "no denoiser": ("torch", "modules", "cuda"),
    "no denoiser, aligned": ("torch", "C", "modules", "cuda"),
    "int8": ("torch", "modules", "cuda"),
}
"""Kind of model → its implementations. "aligned": widths are multiples of `small_model.UNIT`, as C needs them."""

_TYPES: Mapping[type, str] = {
    Reference: "torch",
    SmallModel: "C",
    Modules: "modules",
    CudaBackend: "cuda",
}


def drawn_for(name: str, drawn: Drawn) -> Drawn:
    """The case as this implementation serves it."""
    return aligned(drawn, small_model.UNIT) if name == "C" else drawn


def implementation(model: DiffusionGemma) -> str:
    """What runs the model's next pass."""
    backend = model.backend
    return _TYPES[type(backend.fast if isinstance(backend, Guarded) else backend)]


def put(model: DiffusionGemma, name: str) -> DiffusionGemma:
    """The model on this implementation, which serves it."""
    assert implementation(choose(model, name)) == name
    return model


def choose(model: DiffusionGemma, name: str) -> DiffusionGemma:
    """The model on the backend of this implementation, and on the implementation itself if it serves the model."""
    with pytest.MonkeyPatch.context() as patch:
        if name == "modules":
            patch.setattr(small_model, "serves", lambda model: False)
        model.use(BACKEND[name])
    return model
