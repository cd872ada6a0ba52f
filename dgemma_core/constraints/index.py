"""From an automaton over bytes to one over the tokens of a vocabulary.

A token is a function from states to states. All of them are computed side by side, a byte at a time, from the states
that the bytes before lead on from; tokens of the same function are one class.

Axes: V vocabulary, S states over bytes, n tokens at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from dgemma_core.constraints.automaton import NOWHERE, TokenAutomaton, assemble
from dgemma_core.constraints.patterns import ByteAutomaton

_NUMBERS = 2**23
"""Tokens times states that are computed at a time."""


def indexed(
    language: ByteAutomaton, spelled: Sequence[bytes], *, eos: Iterable[int], pad: int
) -> TokenAutomaton:
    """The language over tokens that spell these bytes; tokens that spell nothing stand in no text.

    Raises RequestError where the tokens cannot spell any text of the language.
    """
    nowhere = len(language.delta)  # a state of its own, which every byte keeps
    columns, column_of = np.unique(language.delta, axis=1, return_inverse=True)
    column_of = column_of.reshape(-1)
    width = columns.shape[1]
    step = np.full((nowhere + 1, width), nowhere, np.int32)
    step[:-1] = np.where(columns == NOWHERE, nowhere, columns)
    flat = (step * width).ravel()  # states are told by where their row begins
    lengths = np.array([len(text) for text in spelled])
    order = np.argsort(lengths, kind="stable")[np.count_nonzero(lengths == 0) :]
    classes = np.zeros(len(spelled), np.int64)
    known: dict[bytes, int] = {np.full(nowhere, nowhere * width, np.int32).tobytes(): 0}
    column, begun = np.nonzero(
        step.T[:, :-1] != nowhere
    )  # where a text can go on from, byte by byte
    offsets = np.searchsorted(column, np.arange(width + 1))
    after = flat[begun * width + column]
    size = max(1, _NUMBERS // nowhere)
    for begin in range(0, len(order), size):
        part = order[begin : begin + size]
        longest = int(lengths[part[-1]])
        letters = np.zeros((longest, len(part)), np.uint8)
        for row, token in enumerate(part):
            letters[: lengths[token], row] = np.frombuffer(spelled[token], np.uint8)
        columns_at = column_of[letters].astype(np.int32)
        led = np.full((len(part), nowhere), nowhere * width, np.int32)  # (n, S)
        # all pairs of a token and a state that its bytes so far lead on from: a tenth of all, and fewer at each byte
        ways = np.diff(offsets)[columns_at[0]]
        token = np.arange(len(part)).repeat(ways)
        known_as = np.arange(len(token)) + (offsets[columns_at[0]] - ways.cumsum() + ways).repeat(
            ways
        )
        source, state = begun[known_as], after[known_as]
        for place in range(1, longest + 1):
            ended = int(np.searchsorted(token, np.searchsorted(lengths[part], place, "right")))
            led[token[:ended], source[:ended]] = state[:ended]  # the shortest tokens stand first
            token, source, state = token[ended:], source[ended:], state[ended:]
            if not len(token):
                break
            state = flat.take(state + columns_at[place].take(token))
            alive = np.flatnonzero(state != nowhere * width)
            token, source, state = token[alive], source[alive], state[alive]
        rows = led.view(np.dtype((np.void, led.dtype.itemsize * nowhere))).ravel()
        unlike, alike = np.unique(rows, return_inverse=True)
        names = [known.setdefault(row.tobytes(), len(known)) for row in unlike]
        classes[part] = np.array(names)[alike.reshape(-1)]
    leads = np.stack([np.frombuffer(row, np.int32) for row in known]) // width
    return assemble(
        classes,
        np.where(leads == nowhere, NOWHERE, leads),
        start=language.start,
        accepting=language.accepting,
        eos=eos,
        pad=pad,
    )
