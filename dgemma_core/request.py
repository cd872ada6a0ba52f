"""What is asked for and what a row of a batch knows: values without behaviour.

A `Request` names one text to write. A `DecodeState` (canvases) or `TokenState` (tokens) holds all that the next step of
one row needs: keeping one is enough to continue from it, exactly, and copying it is branching.

Axes: C canvas length, D hidden size.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from dgemma_core.cache import PrefixCache

_names = itertools.count()


@dataclass(frozen=True)
class Request:
    """One text to write.

    ids: the prompt. prefix: the cache of its first tokens, where they have been encoded before (an earlier turn).
    max_new_tokens: the limit of kept tokens. stop: strings that end the text and are not kept. pins: answer position →
    token id that it must hold. state: where to continue from, instead of the prompt's end; `ids` is then its prompt,
    the seed is the state's own, and pins are laid over the state's. id: the name that its events carry.
    """

    ids: Sequence[int]
    seed: int = 0
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    pins: Mapping[int, int] = field(default_factory=dict)
    prefix: PrefixCache | None = None
    state: DecodeState | TokenState | None = None
    id: Hashable = field(default_factory=lambda: next(_names))


@dataclass(frozen=True)
class DecodeState:
    """Everything that the next denoising step of one row needs. A value: copying it is branching."""

    ids: tuple[int, ...]
    """The prompt."""
    committed: tuple[int, ...]
    """Answer tokens of the canvases before this one."""
    cache: PrefixCache = field(repr=False)
    """Prompt and committed tokens, one row."""
    seed: int
    pins: Mapping[int, int]
    pinned: Tensor = field(repr=False)
    """(C,) bool, the pins on this canvas."""
    pin_ids: Tensor = field(repr=False)
    """(C,) their tokens."""
    canvas_index: int
    step: int
    """The next pass within the canvas."""
    canvas: Tensor = field(repr=False)
    """(C,) the tokens that the next pass reads."""
    soft_embedding: Tensor | None = field(repr=False)
    """(C, D) of the last predict pass; None before the first."""
    history: Tensor | None = field(repr=False)
    """(stability, C) of the stop rule; None where no rule is set."""
    accepted: Tensor = field(repr=False)
    """(C,) bool, accepted so far."""
    argmax: Tensor = field(repr=False)
    """(C,) of the last predict pass: what would be committed now."""
    probability: Tensor = field(repr=False)
    """(C,) float32 of that argmax."""
    entropy: Tensor = field(repr=False)
    """(C,) float32, nats."""
    finished: bool = False
    """The canvas has converged."""
    denoising_steps: int = 0
    passes: int = 0
    """Prefill, denoising steps and commits so far."""


@dataclass(frozen=True)
class TokenState:
    """Everything that the next autoregressive step of one row needs. A value."""

    ids: tuple[int, ...]
    committed: tuple[int, ...]
    cache: PrefixCache = field(repr=False)
    """Prompt and all committed tokens, one row."""
    hidden: Tensor = field(repr=False)
    """(D,) of the last token of the cache, from which the next one is predicted."""
    seed: int
    passes: int
