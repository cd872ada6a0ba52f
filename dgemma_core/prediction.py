"""What one pass says of every position of a canvas, as the vocabulary head (or a backend's) found it.

Axes: B batch, C canvas length, D hidden size, V vocabulary, k top tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dgemma_core.head import VocabularyHead

Reference = Literal["tempered", "raw"]
"""Which distribution entropy and soft embedding come from: softmax(logits / T), or softmax(logits)."""


class SampleDraws(Protocol):
    """What the head needs of `draws.StepDraws`."""

    @property
    def uniform(self) -> Tensor:
        """(B, C) float64 in [0, 1)."""


@dataclass(frozen=True)
class Prediction:
    """What one pass says of every position of the canvas (layout: "Types that everything shares")."""

    sample: Tensor
    """(B, C) int64, one draw from the sampling distribution (the argmax at temperature 0)."""
    sample_probability: Tensor
    """(B, C) float32, of the sample under the sampling distribution (raw at temperature 0)."""
    sample_logprob: Tensor
    """(B, C) float32, of the sample under the reference distribution."""
    argmax: Tensor
    """(B, C) int64; of equals, the lowest index."""
    argmax_probability: Tensor
    """(B, C) float32, under the reference distribution."""
    entropy: Tensor
    """(B, C) float32, nats, of the reference distribution."""
    soft_embedding: Tensor | None
    """(B, C, D): the reference distribution's mean embedding, times √D. None if not asked for."""
    logsumexp: Tensor
    """(B, C) float32: log Σ exp of the reference distribution's logits. Not finite where the hidden states are not."""
    top_ids: Tensor | None = None
    """(B, C, k), most probable first, if asked for."""
    top_logits: Tensor | None = None
    """(B, C, k): the reference distribution's logits of `top_ids`."""
    hidden: Tensor = field(repr=False, default_factory=lambda: torch.empty(0))
    head: VocabularyHead | None = field(repr=False, default=None)

    @property
    def top_probabilities(self) -> Tensor | None:
        """(B, C, k) under the reference distribution."""
        if self.top_logits is None:
            return None
        return (self.top_logits - self.logsumexp.unsqueeze(-1)).exp()

    def rows(self, row: int, positions: Tensor) -> Tensor:
        """Raw soft-capped logits (k, V), float64, of a few positions of one row, computed again."""
        assert self.head is not None
        return self.head.logits(self.hidden[row, positions]).double()

    def token_logit(self, tokens: Tensor) -> Tensor:
        """Raw soft-capped logits (B, C), float32, of the asked tokens (B, C)."""
        assert self.head is not None
        return self.head.token_logit(self.hidden, tokens)
