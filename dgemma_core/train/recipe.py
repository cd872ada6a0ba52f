"""The settings of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dgemma_core.errors import RequestError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What determines a training run, with its data. β, loss and noise are the published ones (spec §5)."""

    steps: int
    batch_size: int = 128
    learning_rate: float = 3e-3
    """AdamW's, at its peak: embedding, router, vectors."""
    matrix_learning_rate: float = 0.015
    """Muon's, at its peak: the matrices inside the layers (optimiser.py)."""
    final_learning_rate: float = 0.02
    """As a share of the peak, at the end of the cosine."""
    warmup: int = 200
    decay: int | None = None
    """Steps of the cosine, at the run's end; None: all after the warm-up, as published. A run that decays late can be
    taken up again from before its decay."""
    betas: tuple[float, float] = (0.95, 0.99)
    weight_decay: float = 0.05
    clip: float = 1.0
    self_conditioning: float = 0.5
    """Share of the canvases that are denoised twice."""
    noisings: int = 1
    """Canvases a text, each drawn and noised by itself: the clean text, read once, serves them all. Their t lie evenly
    spaced (each one alone is uniform), which evens out the loss."""
    drafts: tuple[int, ...] = ()
    """Lengths of drafts, one of which is drawn for every micro-batch: each of its texts is learnt from on one more
    canvas, of that length, that begins anywhere in the answer with its first token clean. Empty: no drafts."""
    drafts_from_noise: float = 0.0
    """Share of the drafts that are noise behind their first token, as speculative decoding begins one. The others are
    noised as canvases are."""
    blanks: float = 0.5
    """Share of the canvases of a text with a gap whose other answer tokens are clean."""
    end_marks: int = 8
    """End marks of a canvas that always count in the loss; those behind them count `tail` of the times."""
    tail: float = 1.0
    autoregressive: float = 1.0
    """Weight of the causal loss."""
    balance: float = 0.01
    """Weight of the experts' load-balancing loss (Switch Transformer, arXiv 2101.03961, eq. 4)."""
    micro_batches: int = 4
    """Parts of a batch, each of texts of like length, so that little is padding while every update still sees long and
    short ones."""
    pool: int = 8
    """Batches that are drawn together, to sort by length."""
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.pool, self.micro_batches, self.noisings) < 1:
            raise RequestError(
                "a recipe's steps, batch_size, pool, micro_batches and noisings are at least 1"
            )
        if self.batch_size % self.micro_batches:
            raise RequestError(
                f"batch_size {self.batch_size} does not divide into {self.micro_batches} micro-batches"
            )
        if self.decay is not None and not 0 <= self.decay <= self.steps - self.warmup:
            raise RequestError(
                f"decay takes at most the {self.steps - self.warmup} steps after the warm-up, got {self.decay}"
            )
        if any(length < 2 for length in self.drafts):
            raise RequestError(f"drafts are at least 2 tokens long, got {self.drafts}")
        if self.end_marks < 1:
            raise RequestError(f"end_marks is at least 1, got {self.end_marks}")
        for name, share in (
            ("self_conditioning", self.self_conditioning),
            ("blanks", self.blanks),
            ("drafts_from_noise", self.drafts_from_noise),
            ("tail", self.tail),
        ):
            if not 0 <= share <= 1:
                raise RequestError(f"{name} is a share from 0 to 1, got {share}")

    def noise_level(self, t: Tensor) -> Tensor:
        """The share of noise on canvases whose t are drawn from U(0, 1): as published, t itself."""
        return t

    def rate_at(self, step: int) -> float:
        """The learning rates at `step` as a share of their peaks: linear warm-up, flat, cosine to the final share."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        after = self.steps - self.warmup
        decay = after if self.decay is None else self.decay
        done = max(0.0, (step - (self.steps - decay)) / max(1, decay))
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return self.final_learning_rate + (1 - self.final_learning_rate) * cosine
