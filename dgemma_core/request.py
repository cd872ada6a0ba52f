"""What is asked for, and what a row of a batch knows: values.

A `Request` names one text to write. A `DecodeState` (canvases) or `TokenState` (tokens) holds all that the next step of
one row needs: keeping one is enough to continue from it, exactly, and copying it is branching.

Axes: C canvas length, D hidden size.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dgemma_core.cache import PrefixCache
from dgemma_core.errors import RequestError, shown, whole_number

if TYPE_CHECKING:
    from dgemma_core.constraints.automaton import TokenAutomaton

_names = itertools.count()


@dataclass(frozen=True)
class Request:
    """One text to write.

    ids: the prompt. prefix: the cache of its first tokens, where they have been encoded before (an earlier turn).
    max_new_tokens: the limit of kept tokens. stop: strings that end the text and are not kept. pins: answer position →
    token id that it must hold. state: where to continue from, instead of the prompt's end; `ids` is then its prompt,
    the seed is the state's own, and pins are laid over the state's. constraint: the language that the whole answer must
    be in, for the checkpoint's tokens (`Constraint.compile`). id: the name that its events carry.

    Integers of numpy and torch become Python's, one stop string becomes a tuple of one, and None for `stop` or `pins`
    means none. Raises RequestError for values of another kind; the loop checks whether the model can meet the request.
    """

    ids: Sequence[int]
    seed: int = 0
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    pins: Mapping[int, int] = field(default_factory=dict)
    prefix: PrefixCache | None = None
    state: DecodeState | TokenState | None = None
    constraint: TokenAutomaton | None = None
    id: Hashable = field(default_factory=lambda: next(_names))

    def __post_init__(self) -> None:
        values = {
            "ids": token_ids("ids", self.ids),
            "seed": whole_number("seed", self.seed, high=2**64 - 1),
            "max_new_tokens": whole_number("max_new_tokens", self.max_new_tokens, low=1),
            "stop": stop_strings(self.stop),
            "pins": _pins(self.pins),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)


def token_ids(name: str, values: Any) -> tuple[int, ...]:
    """Token ids as a tuple of Python's ints. Raises RequestError for anything else."""
    try:
        ids = None if isinstance(values, bytes) else tuple(map(operator.index, values))
    except TypeError:
        ids = None
    if ids is None or (ids and not -(2**63) <= min(ids) <= max(ids) < 2**63):
        raise RequestError(f"{name} must be token ids, whole numbers, got {shown(values)}")
    return ids


def stop_strings(stop: Any) -> tuple[str, ...]:
    """Stop strings as a tuple; one string stands for itself, None for none. Raises RequestError for anything else."""
    if isinstance(stop, str):
        return (stop,)
    try:
        strings = () if stop is None else tuple(stop)
    except (TypeError, ValueError):
        strings = (stop,)
    if not all(isinstance(string, str) for string in strings):
        raise RequestError(f"stop must be strings, got {shown(stop)}")
    return strings


def _pins(pins: Any) -> dict[int, int]:
    if pins is None:
        return {}
    if not isinstance(pins, Mapping):
        raise RequestError(f"pins must map answer positions to token ids, got {shown(pins)}")
    positions, tokens = token_ids("positions of pins", pins), token_ids("pins", pins.values())
    return dict(zip(positions, tokens, strict=True))


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

    @classmethod
    def first(
        cls, request: Request, cache: PrefixCache, noise: Tensor, history: Tensor | None
    ) -> DecodeState:
        """The request's first canvas, behind its encoded prompt: noise (C,), pins laid in; `history` of a stop rule."""
        return cls(
            ids=tuple(request.ids),
            committed=(),
            cache=cache,
            seed=request.seed,
            pins=dict(request.pins),
            canvas_index=0,
            passes=1,
            **_fresh(request.pins, 0, noise, history),
        )

    def next_canvas(
        self, tokens: tuple[int, ...], cache: PrefixCache, noise: Tensor, history: Tensor | None
    ) -> DecodeState:
        """The canvas behind this one, whose `tokens` are committed and encoded in `cache`."""
        return replace(
            self,
            committed=self.committed + tokens,
            cache=cache,
            canvas_index=self.canvas_index + 1,
            passes=self.passes + 1,
            **_fresh(self.pins, self.canvas_index + 1, noise, history),
        )

    def with_pins(self, added: Mapping[int, int], embed: Callable[[Tensor], Tensor]) -> DecodeState:
        """The state in memory of its own (another row may be writing behind the same prefix), `added` pins laid in.

        embed: ids (C,) → embeddings (C, D). Raises RequestError for a pin that contradicts a committed token.
        """
        for position, token in added.items():
            if position < len(self.committed) and self.committed[position] != token:
                raise RequestError(
                    f"pin at answer position {position}: its canvas has been committed"
                )
        pins = {**self.pins, **added}
        pinned, tokens = pins_on_canvas(pins, self.canvas_index, self.canvas)
        soft = self.soft_embedding
        if soft is not None:
            soft = torch.where(pinned.unsqueeze(1), embed(tokens).to(soft.dtype), soft)
        return replace(
            self,
            cache=self.cache.copy(),
            pins=pins,
            pinned=pinned,
            pin_ids=tokens,
            canvas=torch.where(pinned, tokens, self.canvas),
            argmax=torch.where(pinned, tokens, self.argmax),
            accepted=self.accepted & ~pinned,
            soft_embedding=soft,
        )


def _fresh(
    pins: Mapping[int, int], index: int, noise: Tensor, history: Tensor | None
) -> dict[str, Any]:
    """What a state knows of canvas number `index` before its first step."""
    pinned, tokens = pins_on_canvas(pins, index, noise)
    canvas = torch.where(pinned, tokens, noise)
    zeros = torch.zeros(len(noise), device=noise.device)
    return dict(
        pinned=pinned, pin_ids=tokens, step=0, canvas=canvas, soft_embedding=None, history=history,
        accepted=torch.zeros_like(pinned), argmax=canvas, probability=zeros, entropy=zeros, finished=False,
    )  # fmt: skip


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


def pins_on_canvas(pins: Mapping[int, int], index: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """(C,) bool and (C,) ids of the pins that fall on canvas number `index`, on the device of `like` (C,)."""
    length = len(like)
    pinned, tokens = torch.zeros(length, dtype=torch.bool), torch.zeros(length, dtype=torch.long)
    for position, token in pins.items():
        if index * length <= position < (index + 1) * length:
            pinned[position - index * length] = True
            tokens[position - index * length] = token
    return pinned.to(like.device), tokens.to(like.device)
