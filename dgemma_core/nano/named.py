"""What a named training run is: a model's shape, its data and its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dgemma_core.config import GenerationDefaults, ModelConfig
from dgemma_core.files.text import Tokenizer, load_tokenizer
from dgemma_core.train.distillation import Teacher
from dgemma_core.train.recipe import Recipe

if TYPE_CHECKING:
    from dgemma_core.nano.replies import Replies

NANO = Path(__file__).parent / "weights"
TURN_END = "<turn|>"
"""Ends a turn, and fills a canvas behind it."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What is drawn up to a share of a run."""

    until: float
    """Share of the run's examples at which the stage ends; 1 for the last."""
    english: float
    """Share of the examples that are English (nano/english/); the others are problems of the families."""
    kinds: Mapping[str, float]
    families: Mapping[str, float]
    canonical: Mapping[str, int] = field(default_factory=dict)
    """Kinds whose replies are all written with one seed: of the many right replies to a request, one is learnt. A
    denoiser that has seen many mixes them."""


@dataclass(frozen=True)
class NamedRecipe:
    """A model's shape, its training settings, and its data: families with their shares (whole numbers), or stages."""

    config: ModelConfig
    training: Recipe
    shares: Mapping[str, int]
    generation: GenerationDefaults
    teacher: Teacher | None = None
    """For distillation: how the model that the run begins with writes what is learnt from (distillation.py)."""
    replies: Replies | None = None
    """Of a run with stages: whether the model that it begins with writes the replies that are learnt (replies.py)."""
    beside: str | None = None
    """A checkpoint whose experts stand behind those of the model that the run begins with (train/initial.py)."""
    own_steps: int = 0
    """The most denoising steps that the model makes on a canvas before it learns from it (train/own_steps.py)."""
    stages: tuple[Stage, ...] = field(default=())
    """English beside the families, in shares that change over the run; `shares` is then empty."""
    tokenizer: bool = False
    """Whether the run builds a tokenizer of its own (as large as the model's vocabulary); else it takes nano's."""
    validate_every: int = 0
    """Steps between validations; 0: none."""

    @property
    def mix(self) -> tuple[str, ...]:
        """Family names, each as often as its share says."""
        return tuple(name for name, share in self.shares.items() for _ in range(share))


def turn_end(tokenizer: Tokenizer) -> int:
    """The token that ends a turn."""
    end = tokenizer.token_id(TURN_END)
    assert end is not None, f"the tokenizer has no {TURN_END}"
    return end


def nano_tokenizer() -> Tokenizer:
    """The tokenizer that ships with the package."""
    tokenizer = load_tokenizer(NANO)
    assert tokenizer is not None, f"{NANO} ships without tokenizer.json"
    return tokenizer
