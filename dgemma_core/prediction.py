"""What is asked of a pass, and what it says of every position of a canvas, as the vocabulary head found it.

Axes: B batch, C canvas length, N = B·C rows, D hidden size, V vocabulary, k top tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

from dgemma_core.draws import Filters

if TYPE_CHECKING:
    from dgemma_core.constraints.predicting import Posterior
    from dgemma_core.head import VocabularyHead

Reference = Literal["tempered", "raw"]
"""Which distribution entropy and soft embedding come from: softmax(logits / T), or softmax(logits)."""


class SampleDraws(Protocol):
    """What the head needs of `draws.StepDraws`."""

    @property
    def uniform(self) -> Tensor:
        """(B, C) float64 in [0, 1)."""


@dataclass(frozen=True)
class Asked:
    """What `VocabularyHead.predict` wants of N rows, checked."""

    temperatures: Tensor
    """(N, 1) float32, of the sampling distribution; ones where the sample is the argmax."""
    tempered: bool
    """Whether one of them is not 1."""
    uniform: Tensor | None
    """(N,) float64 in [0, 1); None: the sample is the argmax."""
    reference: Reference
    filters: Filters | None
    soft: bool
    """Compute the soft embedding."""
    top_k: int

    @property
    def two_distributions(self) -> bool:
        """Whether the sampling distribution is not the reference distribution."""
        return self.filters is not None or (self.tempered and self.reference == "raw")


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
    posterior: Posterior | None = field(repr=False, default=None)
    """Where the text is constrained; then all fields are conditioned."""

    @property
    def top_probabilities(self) -> Tensor | None:
        """(B, C, k) under the reference distribution."""
        if self.top_logits is None:
            return None
        return (self.top_logits - self.logsumexp.unsqueeze(-1)).exp()

    @property
    def settling(self) -> tuple[Tensor, Tensor]:
        """Argmax and entropy, (B, C) both, for a stop rule. Where a constrained text has a token that is not the
        likeliest at its position, positions contradict each other: no token yet, -1, and its surprise."""
        if self.posterior is None:
            return self.argmax, self.entropy
        surprise = -self.argmax_probability.log()
        torn = surprise > self.entropy + 1e-4
        return self.argmax.masked_fill(torn, -1), torch.maximum(self.entropy, surprise)

    def rows(self, row: int, positions: Tensor) -> Tensor:
        """Raw soft-capped logits (k, V), float64, of a few positions of one row, computed again; conditioned, if so."""
        assert self.head is not None
        logits = self.head.logits(self.hidden[row, positions]).double()
        return logits if self.posterior is None else logits + self.posterior.factors(row, positions)

    def token_logit(self, tokens: Tensor) -> Tensor:
        """Raw soft-capped logits (B, C), float32, of the asked tokens (B, C); conditioned, if so."""
        assert self.head is not None
        logits = self.head.token_logit(self.hidden, tokens)
        return logits if self.posterior is None else logits + self.posterior.token_factors(tokens)
