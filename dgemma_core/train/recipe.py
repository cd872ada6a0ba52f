"""The settings of a training run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from dgemma_core.errors import (
    RequestError,
    check_count,
    check_number,
    finite_number,
    shown,
    whole_number,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What determines a training run, with its data. β, loss and noise are the published ones (spec §5)."""

    name: ClassVar[str] = "recipe"
    """As errors call it."""

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
        for option in ("steps", "batch_size", "pool", "micro_batches", "noisings", "end_marks"):
            check_count(self, option, low=1)
        check_count(self, "warmup", low=0)
        check_count(self, "seed", low=0, high=2**63 - 1)
        for option in ("learning_rate", "matrix_learning_rate", "clip"):
            check_number(self, option, above=0)
        for option in ("weight_decay", "autoregressive", "balance"):
            check_number(self, option)
        for option in (
            "final_learning_rate", "self_conditioning", "blanks", "drafts_from_noise", "tail",
        ):  # fmt: skip
            check_number(self, option, high=1)
        betas = check_pair(self, "betas")
        if max(betas) >= 1:
            raise RequestError(f"{self.name}: betas must be below 1, got {betas}")
        given = listed(self.drafts)
        drafts = tuple(whole_number(f"{self.name}: drafts", each, low=2) for each in given)
        object.__setattr__(self, "drafts", drafts)
        if self.batch_size % self.micro_batches:
            raise RequestError(
                f"batch_size {self.batch_size} does not divide into {self.micro_batches} micro-batches"
            )
        if self.decay is not None:
            check_count(self, "decay", low=0)
            if self.decay > self.steps - self.warmup:
                raise RequestError(
                    f"decay takes at most the {self.steps - self.warmup} steps after the warm-up, got {self.decay}"
                )

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


@dataclass(frozen=True, kw_only=True)
class Sitting:
    """How a run goes on for now: nothing that decides its numbers."""

    name: ClassVar[str] = "run"

    minutes: float | None = None
    """After which it stops; None: at the recipe's last step."""
    checkpoint_minutes: float = 5.0
    validate_every: int = 0
    """Steps between validations; 0: at the end alone."""
    workers: int | None = None
    """Parts of a batch that run side by side on a CPU; None: a part a core."""

    def __post_init__(self) -> None:
        if self.minutes is not None:
            check_number(self, "minutes")
        check_number(self, "checkpoint_minutes")
        check_count(self, "validate_every", low=0)
        if self.workers is not None:
            check_count(self, "workers", low=1)


def check_pair(owner: Any, option: str) -> tuple[float, float]:
    """Makes the option two floats of at least 0. Raises RequestError for anything else."""
    name, given = f"{owner.name}: {option}", getattr(owner, option)
    if not isinstance(given, Sequence) or isinstance(given, str) or len(given) != 2:
        raise RequestError(f"{name} must be two numbers, got {shown(given)}")
    pair = (finite_number(name, given[0]), finite_number(name, given[1]))
    object.__setattr__(owner, option, pair)
    return pair


def listed(value: Any) -> tuple[Any, ...]:
    """A list's values; a single value as the only one."""
    several = isinstance(value, Sequence) and not isinstance(value, str)
    return tuple(value) if several else (value,)
