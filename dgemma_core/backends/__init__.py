"""How passes run fast: one protocol, one registry, lazy imports. The core knows of no backend by name.

"torch" is the reference: the model's plain modules. "cpu" and "cuda" are faster. "auto" takes the one for the model's
device. What a backend cannot do it hands to "torch", once, with one line (`guard.Guarded`).

Axes: B batch, C canvas length, N tokens of all rows, D hidden size.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from dgemma_core.errors import DeviceError, RequestError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from dgemma_core.cache import RowCache
    from dgemma_core.head import Prediction, SampleDraws
    from dgemma_core.model import DiffusionGemma, Watch

AUTO = "auto"
_HOMES = {
    "torch": "dgemma_core.backends.reference",
    "cpu": "dgemma_core.backends.cpu",
    "cuda": "dgemma_core.backends.cuda",
}
"""Each module has `make(model) -> Backend`, which raises DeviceError where it cannot run the model."""


class Backend(Protocol):
    """What runs the passes of one model."""

    @property
    def name(self) -> str:
        """What runs the next pass: "torch", "cpu" or "cuda"."""

    def forward(
        self,
        ids: Tensor,
        rows: Sequence[RowCache],
        lengths: Sequence[int],
        *,
        causal: bool,
        canvas: Sequence[int] = (),
        soft: Tensor | None = None,
        watch: Watch | None = None,
    ) -> Tensor:
        """ids (N,) int64, of which `lengths` stand behind each row's prefix → final hidden states (N, D).

        causal: keys and values are appended to the rows, whose `length` the caller advances; else the tokens are
        canvases, and soft (N, D) is their soft embedding (None: the first step's zeros). canvas: how many of a causal
        row's last tokens are a canvas at its first step, none if empty; the row does not keep them.
        """

    def predict(
        self,
        hidden: Tensor,
        temperature: Tensor | float,
        draws: SampleDraws | None = None,
        **options: Any,
    ) -> Prediction:
        """hidden (B, C, D) → `Prediction`; arguments as in `head.VocabularyHead.predict`."""

    def refresh(self) -> None:
        """Called before a loop begins to write: the time for checks of the weights that are too slow for every pass."""


def names() -> tuple[str, ...]:
    """All backends, the reference first."""
    return tuple(_HOMES)


def check_name(name: str) -> None:
    """Raises RequestError unless `name` is "auto" or a backend's."""
    if not isinstance(name, str) or (name != AUTO and name not in _HOMES):
        raise RequestError(f"unknown backend {name!r}: choose one of {AUTO}, {', '.join(_HOMES)}")


def default_name(device: torch.device, name: str = AUTO) -> str:
    """The backend that `name` means on a device, where it can run the model: "auto" goes by the device.

    Raises RequestError for an unknown name.
    """
    check_name(name)
    if name != AUTO:
        return name
    return device.type if device.type in _HOMES else "torch"


def choose(model: DiffusionGemma, name: str = AUTO) -> Backend:
    """The backend of that name for this model; "auto" goes by the model's device.

    Raises RequestError for an unknown name, DeviceError where the named backend cannot run this model; there "auto"
    warns and takes "torch".
    """
    found = default_name(model.device, name)
    try:
        backend: Backend = import_module(_HOMES[found]).make(model)
    except DeviceError as error:
        if name != AUTO:
            raise
        warnings.warn(f"the model runs on backend 'torch': {error}", stacklevel=3)
        backend = import_module(_HOMES["torch"]).make(model)
    return backend
