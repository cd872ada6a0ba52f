"""Whether a request's constraint can be met at all, asked before any pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dgemma_core.constraints.automaton import NOWHERE, TokenAutomaton
from dgemma_core.errors import RequestError, shown

if TYPE_CHECKING:
    from dgemma_core.request import Request


def check(request: Request, vocab_size: int, eos: frozenset[int]) -> None:
    """Raises RequestError where no text can satisfy the request's constraint, before any pass."""
    automaton = request.constraint
    if automaton is None:
        return
    if not isinstance(automaton, TokenAutomaton):
        raise RequestError(
            f"constraint must be compiled for the checkpoint (Constraint.compile), got {shown(automaton)}"
        )
    if automaton.vocab_size != vocab_size or set(automaton.eos) != eos:
        raise RequestError(
            "the constraint was compiled for another checkpoint: compile it for this one"
        )
    written = () if request.state is None else request.state.committed
    pins = {**getattr(request.state, "pins", {}), **request.pins}
    state, remaining = automaton.after(written), request.max_new_tokens - len(written)
    if state == NOWHERE:
        raise RequestError(
            "the text so far is not in the constraint's language: leave the constraint out"
        )
    shortest = int(automaton.tokens_to_end[state])
    if shortest > remaining:
        raise RequestError(
            f"the shortest text of the constraint's language takes {shortest} tokens more, the limit leaves "
            f"{remaining}: raise max_new_tokens"
        )
    here = {place - len(written): token for place, token in pins.items()}
    if not automaton.can_end(remaining, here)[state]:
        raise RequestError(
            "pins and constraint contradict each other: no text of its language has these tokens at these places"
        )


def check_decided(request: Request, canvas: Sequence[int], committed: Sequence[int]) -> None:
    """Raises RequestError where a canvas that no pass follows, of a state to continue from, leaves the language."""
    automaton, left = request.constraint, request.max_new_tokens - len(committed)
    if automaton is None:
        return
    state = automaton.after((*committed, *canvas[:left]))
    if state == NOWHERE or not automaton.can_end(max(0, left - len(canvas)))[state]:
        raise RequestError(
            "the canvas of the state to continue from is decided, and not in the constraint's language: continue from "
            "an earlier step"
        )
