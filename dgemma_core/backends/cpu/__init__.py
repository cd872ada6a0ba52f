"""The backend "cpu": small float32 models wholly in C, larger ones by their modules with faster functions and head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dgemma_core.errors import DeviceError
from dgemma_core.functions import using

if TYPE_CHECKING:
    from torch import Tensor

    from dgemma_core.backends import Backend
    from dgemma_core.cache import RowCache
    from dgemma_core.head import Prediction
    from dgemma_core.model import DiffusionGemma


def make(model: DiffusionGemma) -> Backend:
    """Raises DeviceError for a model that is not on a CPU."""
    from dgemma_core.backends.cpu import small_model
    from dgemma_core.backends.guard import Guarded

    if model.device.type != "cpu":
        raise DeviceError(
            f"backend 'cpu' runs models on a CPU, this one is on {model.device}: load it with device='cpu'"
        )
    if small_model.serves(model):
        small = small_model.SmallModel(model)
        return Guarded(model, small, lambda: small.unchanged)
    return Modules(model)


class Modules:
    """Runs the model's own modules, with faster functions where they pay, and the head with statistics by C."""

    name = "cpu"

    def __init__(self, model: DiffusionGemma) -> None:
        self.model = model

    def forward(
        self, ids: Tensor, rows: Sequence[RowCache], lengths: Sequence[int], **options: Any
    ) -> Tensor:
        from dgemma_core.backends.cpu.functions import Faster

        with using(Faster()):
            return self.model.run(ids, rows, lengths, **options)

    def predict(self, hidden: Tensor, *arguments: Any, **options: Any) -> Prediction:
        from dgemma_core.backends.cpu.functions import Faster
        from dgemma_core.backends.cpu.head import CpuHead

        text = self.model.config.text
        head = CpuHead(self.model.embed_tokens.weight, text.final_logit_softcapping)
        with using(Faster()):
            return head.predict(hidden, *arguments, **options)

    def refresh(self) -> None:
        """Nothing is copied, so nothing can be out of date."""
