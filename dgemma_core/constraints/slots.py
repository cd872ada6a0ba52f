"""The language of a template's texts as an automaton, and the exact posterior of the choices in its slots.

Notable:
- choices may take different numbers of tokens: the language is that of whole texts, and what is behind a slot moves;
- behind the text stands its end, and behind that whatever the automaton allows there, so that texts of different
  lengths are compared on the same positions;
- the posterior is a sum over positions and parts, forward and backward: what the automaton's chain sums over states.

Axes: C positions, T tokens that stand in some text, A alternatives of a part.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dgemma_core.constraints.automaton import NOWHERE, TokenAutomaton, assemble
from dgemma_core.constraints.form import Part, Tokens
from dgemma_core.errors import RequestError

Floats = NDArray[np.float64]


def automaton(
    parts: Sequence[Part], vocab_size: int, eos: Sequence[int], pad: int
) -> TokenAutomaton:
    """The automaton of the texts: one alternative of each part after the other.

    Raises RequestError where two ways make the same text, for then its probability is no assignment's.
    """
    closures: list[list[tuple[int, int, int]]] = [[] for _ in parts] + [[(len(parts), 0, 0)]]
    for i in reversed(range(len(parts))):
        for a, tokens in enumerate(parts[i].alternatives):
            closures[i] += [(i, a, 0)] if tokens else closures[i + 1]
    known = {_distinct(closures[0]): 0}
    waiting = list(known)
    edges: list[tuple[int, int, int]] = []
    for state in waiting:
        onward: dict[int, list[tuple[int, int, int]]] = {}
        for i, a, k in state:
            if i == len(parts):
                continue
            tokens = parts[i].alternatives[a]
            next_items = [(i, a, k + 1)] if k + 1 < len(tokens) else closures[i + 1]
            onward.setdefault(tokens[k], []).extend(next_items)
        for token, items in onward.items():
            to = _distinct(items)
            if to not in known:
                known[to] = len(known)
                waiting.append(to)
            edges.append((known[state], token, known[to]))
    tokens_used = sorted({token for _, token, _ in edges})
    place = {token: i for i, token in enumerate(tokens_used, start=1)}
    classes = np.zeros(vocab_size, np.int64)
    classes[tokens_used] = np.arange(1, len(tokens_used) + 1)
    leads = np.full((len(tokens_used) + 1, len(known)), NOWHERE, np.int32)
    for source, token, target in edges:
        leads[place[token], source] = target
    end = (len(parts), 0, 0)
    accepting = np.array([end in state for state in waiting])
    return assemble(classes, leads, start=0, accepting=accepting, eos=eos, pad=pad)


def _distinct(items: Sequence[tuple[int, int, int]]) -> frozenset[tuple[int, int, int]]:
    found = frozenset(items)
    if len(found) < len(items):
        raise RequestError(
            "two assignments make the same text, so that no probability can tell them apart: put text between the "
            "slots, or change the choices"
        )
    return found


def held(parts: Sequence[Part], length: int, end: int) -> dict[int, int]:
    """Positions below `length` at which every text holds the same token of the template's → that token; `end` from the
    texts' end on. Never a slot's: what is given has no probability."""
    possible: list[set[int | None]] = [set() for _ in range(length)]
    starts = {0}
    for part in parts:
        reached = set()
        for tokens in part.alternatives:
            for start in starts:
                for place, token in enumerate(tokens, start):
                    if place < length:
                        possible[place].add(None if part.slots else token)
                reached.add(start + len(tokens))
        starts = reached
    for place in range(min(starts), length):
        possible[place].add(end)
    return {
        place: own
        for place, found in enumerate(possible)
        if len(found) == 1 and (own := next(iter(found))) is not None
    }


# --- the posterior


class Reading:
    """The exact posterior over a form's parts, given independent distributions of C positions.

    logp (C, T): log-probabilities of the tokens in `place`. end, after (C,): those of the text's end, and of what may
    stand behind it. Positions in `pins` are given: they count for nothing. No text is longer than C; one of C tokens
    has its end elsewhere.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        place: Mapping[int, int],
        logp: Floats,
        end: Floats,
        after: Floats,
        pins: Iterable[int] = (),
    ) -> None:
        self.parts, self.place, self.length = parts, place, len(logp)
        given = list(pins)
        self.logp, end, after = logp.copy(), end.copy(), after.copy()
        self.logp[given], end[given], after[given] = 0.0, 0.0, 0.0
        behind = np.append(after[::-1].cumsum()[::-1], 0.0)
        self.tail = np.append(end + behind[1:], 0.0)  # (C + 1,) by where the text ends

    def _weights(self, tokens: Tokens) -> Floats:
        """(C + 1 − n,): the log-weight of n tokens from each position on."""
        count = self.length + 1 - len(tokens)
        total: Floats = np.zeros(max(0, count))
        for k, token in enumerate(tokens):
            total += self.logp[k : k + len(total), self.place[token]]
        return total

    @cached_property
    def _each(self) -> list[list[Floats]]:
        return [[self._weights(tokens) for tokens in part.alternatives] for part in self.parts]

    @cached_property
    def _backward(self) -> list[Floats]:
        """Of each part, (C + 1,): the log-weight of all ways to go on from a position."""
        found = [self.tail]
        for part, weights in zip(reversed(self.parts), reversed(self._each), strict=True):
            onward = np.full(self.length + 1, -np.inf)
            for tokens, own in zip(part.alternatives, weights, strict=True):
                here = slice(0, len(own))
                ways = own + found[-1][len(tokens) :]
                onward[here] = np.logaddexp(onward[here], ways)
            found.append(onward)
        return found[::-1]

    def weights(self, part: int) -> list[float]:
        """Of each alternative of a part, the log-weight of all texts that hold it, the part standing first."""
        onward = self._backward[part + 1]
        pairs = zip(self.parts[part].alternatives, self._each[part], strict=True)
        return [float(own[0] + onward[len(tokens)]) for tokens, own in pairs]

    @property
    def log_mass(self) -> float:
        """log of the probability that independent draws of all positions make a text of the form."""
        return float(self._backward[0][0])

    def marginals(self) -> list[Floats]:
        """Of each part, (A,): the posterior probability of its alternatives."""
        found = []
        forward = np.full(self.length + 1, -np.inf)
        forward[0] = 0.0
        for part, weights, onward in zip(self.parts, self._each, self._backward[1:], strict=True):
            reached = np.full_like(forward, -np.inf)
            logs = np.full(len(weights), -np.inf)
            for a, (tokens, own) in enumerate(zip(part.alternatives, weights, strict=True)):
                ways = forward[: len(own)] + own
                to = slice(len(tokens), len(tokens) + len(own))
                reached[to] = np.logaddexp(reached[to], ways)
                logs[a] = np.logaddexp.reduce(ways + onward[to], initial=-np.inf)
            found.append(np.exp(logs - np.logaddexp.reduce(logs)))
            forward = reached
        return found

    def best(self, count: int) -> list[tuple[float, tuple[int, ...]]]:
        """The `count` most probable texts: log-probability in the posterior, and the alternative of each part."""
        # by position: the best ways to get there
        ways: dict[int, list[tuple[float, tuple[int, ...]]]] = {0: [(0.0, ())]}
        for part, weights in zip(self.parts, self._each, strict=True):
            reached: dict[int, list[tuple[float, tuple[int, ...]]]] = {}
            for a, (tokens, own) in enumerate(zip(part.alternatives, weights, strict=True)):
                for start, some in ways.items():
                    if start < len(own):
                        reached.setdefault(start + len(tokens), []).extend(
                            (weight + float(own[start]), (*way, a)) for weight, way in some
                        )
            ways = {end: heapq.nlargest(count, some) for end, some in reached.items()}
        ended = (
            (weight + float(self.tail[end]), way)
            for end, some in ways.items()
            for weight, way in some
        )
        return [(weight - self.log_mass, way) for weight, way in heapq.nlargest(count, ended)]
