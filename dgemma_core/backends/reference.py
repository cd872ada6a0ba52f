"""The backend "torch": the model's own modules and head, in plain torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from dgemma_core.cache import RowCache
    from dgemma_core.head import Prediction
    from dgemma_core.model import DiffusionGemma


class Reference:
    """Runs passes by `DiffusionGemma.run` and `VocabularyHead.predict`."""

    name = "torch"

    def __init__(self, model: DiffusionGemma) -> None:
        self.model = model

    def forward(
        self, ids: Tensor, rows: Sequence[RowCache], lengths: Sequence[int], **options: Any
    ) -> Tensor:
        return self.model.run(ids, rows, lengths, **options)

    def predict(self, hidden: Tensor, *arguments: Any, **options: Any) -> Prediction:
        return self.model.head.predict(hidden, *arguments, **options)

    def refresh(self) -> None:
        """Nothing is copied, so nothing can be out of date."""


def make(model: DiffusionGemma) -> Reference:
    return Reference(model)
