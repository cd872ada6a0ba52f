"""What the next positions of a text must satisfy, where its request has a constraint.

A `Request` carries its constraint as an automaton over tokens (`Constraint.compile`). A loop hands the head its rows'
conditions; the head then predicts given that every text is in its language (`constraints.chain`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dgemma_core.constraints.automaton import NOWHERE
from dgemma_core.constraints.predicting import Condition, Conditions
from dgemma_core.request import DecodeState, Request, TokenState


def conditions(
    requests: Sequence[Request],
    states: Sequence[DecodeState | TokenState],
    pins: Sequence[Mapping[int, int]] | None = None,
    joint: bool = False,
) -> dict[str, Conditions]:
    """What `predict` is told of the positions behind the rows' committed tokens: nothing where no request has a
    constraint. pins: answer position → token, of each row; those of the states if None. joint: samples are one text
    even where the constraint does not ask for it."""
    if pins is None:
        pins = [getattr(state, "pins", {}) for state in states]
    found = [
        condition(request, state.committed, given, joint)
        for request, state, given in zip(requests, states, pins, strict=True)
    ]
    return {"conditions": Conditions(found)} if any(found) else {}


def conditions_each(
    requests: Sequence[Request],
    states: Sequence[TokenState],
    drafted: Sequence[Sequence[Sequence[int]]],
) -> dict[str, Conditions]:
    """As `conditions`, of T positions a row that are predicted one by one: drafted[row][place] are the tokens between
    the committed ones and that position."""
    found = [
        condition(request, (*state.committed, *tokens), {})
        for request, state, row in zip(requests, states, drafted, strict=True)
        for tokens in row
    ]
    return {"conditions": Conditions(found)} if any(found) else {}


def condition(
    request: Request, written: Sequence[int], pins: Mapping[int, int], joint: bool = False
) -> Condition | None:
    """Behind the answer tokens `written`. None without a constraint, where these begin no text of its language, or
    where no token is left."""
    automaton, remaining = request.constraint, request.max_new_tokens - len(written)
    if automaton is None or remaining < 1:
        return None
    if (state := automaton.after(written)) == NOWHERE:
        return None
    here = {place - len(written): token for place, token in pins.items() if place >= len(written)}
    return Condition(automaton, state, remaining, here, joint or automaton.joint)
