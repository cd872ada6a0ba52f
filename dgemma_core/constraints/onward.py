"""What may come next in a state of an automaton, for readers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from dgemma_core.constraints.automaton import NOWHERE, TokenAutomaton

SHOWN = 8
"""Tokens that are named one by one; where more may follow, ranges of the characters that they begin with."""


def onward(automaton: TokenAutomaton, text: Callable[[int], str], state: int) -> dict[str, Any]:
    """JSON values: how many `tokens` may follow in a state, their `texts`, and whether the text may `end` there.

    text: of one token. Where more tokens than `SHOWN` may follow, `texts` are ranges of first characters, as "a–z".
    The first call in a large class of tokens asks for all their texts; the answer is remembered.
    """
    allowed = np.flatnonzero(automaton.table[state, :-2] != NOWHERE).tolist()
    count = sum(int(automaton.bounds[k + 1] - automaton.bounds[k]) for k in allowed)
    if count <= SHOWN:
        texts = [text(token) for k in allowed for token in _tokens(automaton, k)]
    else:
        texts = _ranges(first for k in allowed for first in _firsts(automaton, text, k))
    return {"tokens": count, "texts": texts, "end": bool(automaton.accepting[state])}


def _tokens(automaton: TokenAutomaton, k: int) -> list[int]:
    """The tokens of a class."""
    found: list[int] = automaton.order[automaton.bounds[k] : automaton.bounds[k + 1]].tolist()
    return found


def _firsts(automaton: TokenAutomaton, text: Callable[[int], str], k: int) -> frozenset[str]:
    """The first characters of a class's tokens; a token of a single byte stands whole, as "<0x0A>"."""
    known = automaton.memory.setdefault("first characters", {})
    if k not in known:
        texts = map(text, _tokens(automaton, k))
        known[k] = frozenset(t if t.startswith("<0x") else t[:1] for t in texts)
    found: frozenset[str] = known[k]
    return found


def _ranges(firsts: Iterable[str]) -> list[str]:
    """Characters in order, neighbours as ranges; at most `SHOWN`, then "…"."""
    found: list[list[str]] = []
    for first in sorted(set(firsts), key=lambda text: (len(text), text)):
        last = found[-1][-1] if found else ""
        if len(first) == len(last) == 1 and ord(first) == ord(last) + 1:
            found[-1].append(first)
        else:
            found.append([first])
    parts: list[str] = []
    for run in found:
        parts += [f"{run[0]}–{run[-1]}"] if len(run) > 2 else run
    return parts if len(parts) <= SHOWN else [*parts[:SHOWN], "…"]
