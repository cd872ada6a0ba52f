"""From an automaton over bytes to one over the tokens of a vocabulary.

A token is a function from states to states. All of them are computed side by side, a byte at a time; tokens of the same
function are one class.

Axes: V vocabulary, S states over bytes, n tokens at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from dgemma_core.constraints.automaton import NOWHERE, TokenAutomaton, assemble
from dgemma_core.constraints.patterns import ByteAutomaton

_NUMBERS = 2**23
"""States that are computed at a time."""


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
    size = max(1, _NUMBERS // nowhere)
    for begin in range(0, len(order), size):
        part = order[begin : begin + size]
        longest = int(lengths[part[-1]])
        letters = np.zeros((len(part), longest), np.uint8)
        for row, token in enumerate(part):
            letters[row, : lengths[token]] = np.frombuffer(spelled[token], np.uint8)
        led = np.tile(np.arange(nowhere, dtype=np.int32) * width, (len(part), 1))  # (n, S)
        alive = np.arange(len(part))
        for place in range(longest):
            alive = alive[lengths[part[alive]] > place]
            after = flat.take(
                led[alive] + column_of[letters[alive, place]].astype(np.int32)[:, None]
            )
            led[alive] = after
            alive = alive[(after != nowhere * width).any(axis=1)]
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
