"""Small models and traces for the tests of the lab."""

from __future__ import annotations

from typing import Any

import torch

from dgemma_core.files.checkpoint import Loaded
from dgemma_core.files.trace import Trace
from dgemma_core.observe import Observe
from dgemma_lab.session.plan import record
from tests.core import tiny

PROMPT = "Sort ascending:\n3,1,2"


def loaded(**defaults: Any) -> Loaded:
    """A random model over nano's vocabulary, canvases of 8; answers of two canvases, at most 6 passes each."""
    return tiny.loaded(**{"max_new_tokens": 16, "max_denoising_steps": 6, **defaults})


def diffusion(observe: Observe | None = None, **options: Any) -> Trace:
    """A run of two canvases, which the random model does not end early."""
    return record(loaded(eos_token_ids=()), PROMPT, observe=observe, **options)


def slow(model: Any, seconds: float) -> Any:
    """The model, each of whose denoising passes takes at least so long."""
    denoise = model.denoise

    def denoise_slowly(*args: Any, **options: Any) -> torch.Tensor:
        import time

        time.sleep(seconds)
        return denoise(*args, **options)

    model.denoise = denoise_slowly
    return model
