"""A language as a finite automaton over classes of tokens.

Notable:
- tokens that every state treats alike are one class, so that a step over a vocabulary of 262,144 needs some hundred
  numbers a state. Class 0 holds the tokens that stand in no text of the language;
- every state can be reached from the start, and the text can end from it;
- the last state is "ended": an end-of-sequence token leads there from an accepting state. Behind it stand further such
  tokens, as models are trained, or PAD; which of them is no matter. Paths spell this as one further symbol, K.

Axes: V vocabulary, S states, K classes, E edges, P pairs of states that edges join, U sets of symbols.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dgemma_core.errors import RequestError

Ints = NDArray[np.int32]
Bools = NDArray[np.bool_]
NOWHERE = -1
"""In place of a state: no text goes on so."""
_REMEMBERED = 512
"""Texts whose states an automaton remembers."""


class Ways(NamedTuple):
    """How a state leads to the next one, all symbols that do so taken together.

    Many edges are few ways, of fewer sets of symbols: a schema of 781 states over 262,144 tokens has 26,125 edges,
    4,435 ways and 409 sets, with 2,632 symbols in all. So sums over the edges are sums over sets, then over ways.
    """

    source: Ints
    """(P,) the state before, ascending."""
    to: Ints
    """(P,) the state behind."""
    kind: NDArray[np.int64]
    """(P,) which set of symbols leads there."""
    first: NDArray[np.int64]
    """(S,) each state's first way."""
    symbols: Ints
    """(M,) the symbols of all sets, set by set."""
    begins: NDArray[np.int64]
    """(U,) where in `symbols` each set begins."""


@dataclass(frozen=True, eq=False)
class TokenAutomaton:
    """The language of a constraint, for one vocabulary. Build it with `Constraint.compile`, or `assemble`."""

    classes: Ints
    """(V,) the class of each token. The last two are PAD's and that of the end-of-sequence tokens."""
    table: Ints
    """(S, K) the state that a token of a class leads to, or NOWHERE. The last state has no way on."""
    accepting: Bools
    """(S,) where the text may end; the last state included."""
    start: int
    eos: tuple[int, ...]
    """Tokens that end a text."""
    pad: int
    """What stands behind a text's end."""
    joint: bool = False
    """`Constraint.joint`."""
    memory: dict[Any, Any] = field(default_factory=dict, repr=False)
    """What was derived from it: the states of texts, and what others keep here."""

    @property
    def vocab_size(self) -> int:
        return len(self.classes)

    @property
    def states(self) -> int:
        """S"""
        return len(self.table)

    @property
    def class_count(self) -> int:
        """K; the symbol K stands for "after the end"."""
        return int(self.table.shape[1])

    @property
    def ended(self) -> int:
        """The state behind an end-of-sequence token."""
        return self.states - 1

    @cached_property
    def edges(self) -> tuple[Ints, Ints, Ints, NDArray[np.int64]]:
        """Of every edge its state, its symbol and where it leads, (E,) each, by state; and (S,) each state's first.

        Every state has an edge; the ended one has one, of the symbol K, to itself.
        """
        found, kinds = np.nonzero(self.table != NOWHERE)
        source = np.append(found, self.ended).astype(np.int32)
        symbol = np.append(kinds, self.class_count).astype(np.int32)
        to = np.append(self.table[found, kinds], self.ended).astype(np.int32)
        first = np.searchsorted(source, np.arange(self.states)).astype(np.int64)
        return source, symbol, to, first

    @cached_property
    def ways(self) -> Ways:
        """The edges, those between the same two states taken together."""
        source, symbol, to, _ = self.edges
        order = np.lexsort((symbol, to, source))
        source, symbol, to = source[order], symbol[order], to[order]
        new = np.flatnonzero((np.diff(source, prepend=-1) != 0) | (np.diff(to, prepend=-1) != 0))
        sets: dict[bytes, int] = {}
        kind = [sets.setdefault(part.tobytes(), len(sets)) for part in np.split(symbol, new[1:])]
        spelled = [np.frombuffer(part, symbol.dtype) for part in sets]
        return Ways(
            source=source[new],
            to=to[new],
            kind=np.array(kind),
            first=np.searchsorted(source[new], np.arange(self.states)),
            symbols=np.concatenate(spelled),
            begins=np.cumsum([0, *map(len, spelled[:-1])]),
        )

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """(V,) all tokens, class by class."""
        return np.argsort(self.classes, kind="stable")

    @cached_property
    def bounds(self) -> NDArray[np.int64]:
        """(K + 1,) where each class begins in `order`."""
        return np.searchsorted(self.classes[self.order], np.arange(self.class_count + 1))

    @cached_property
    def tokens_to_end(self) -> NDArray[np.int64]:
        """(S,) the fewest tokens, without an end-of-sequence token, after which a text may end."""
        return _fewest_tokens(self.table, self.accepting)

    def after(self, tokens: Sequence[int], state: int | None = None) -> int:
        """The state after a text's tokens, from the start or `state` on; NOWHERE where they begin no text.

        Behind the end any token stays there.
        """
        if state is None:
            return self._after_text(tuple(tokens))
        for token in tokens:
            if state in (NOWHERE, self.ended):
                break
            state = int(self.table[state, self.classes[token]])
        return state

    def _after_text(self, text: tuple[int, ...]) -> int:
        """As `after`, from the start. A loop asks for the same text, a little longer each time."""
        known = self.memory.setdefault("texts", {})
        if text not in known:
            if len(known) >= _REMEMBERED:
                known.clear()
            before = known.get(text[:-1])
            known[text] = (
                self.after(text, self.start) if before is None else self.after(text[-1:], before)
            )
        return int(known[text])

    def can_end(self, remaining: int, pins: Mapping[int, int] | None = None) -> Bools:
        """(S,) bool: states from which the text can still end within `remaining` tokens.

        pins: place among these tokens → the token that must stand there. A pin is part of the text, so the text does
        not end before it, unless the pinned token is itself an end or PAD.
        """
        pins = {place: token for place, token in (pins or {}).items() if 0 <= place < remaining}
        last = max(pins, default=-1) + 1
        possible: Bools = self.tokens_to_end <= remaining - last
        for place in reversed(range(last)):
            if place in pins:
                possible = self._before(pins[place], possible)
            else:
                possible = np.logical_or.reduceat(possible[self.ways.to], self.ways.first)
        return possible

    def _before(self, token: int, possible: Bools) -> Bools:
        """(S,) bool: states from which `token` leads to a possible one."""
        to = self.table[:, self.classes[token]].copy()
        if token in self.eos or token == self.pad:
            to[self.ended] = self.ended
        return np.where(to == NOWHERE, False, possible[to])


def assemble(
    classes: NDArray[Any],
    leads: NDArray[Any],
    *,
    start: int,
    accepting: Bools,
    eos: Iterable[int],
    pad: int,
) -> TokenAutomaton:
    """An automaton from classes (V,) and, of each, the state it leads to from every state: leads (classes, states), or
    NOWHERE. End-of-sequence tokens and PAD lose theirs: they end the text.

    States that no text passes go, classes that are then alike become one. Raises RequestError where no text is left.
    """
    eos = tuple(sorted(set(eos)))
    leads = np.concatenate((np.full((1, leads.shape[1]), NOWHERE, leads.dtype), leads))
    classes = classes + 1
    classes[[*eos, pad]] = 0
    kept = _passed(np.ascontiguousarray(leads.T), start, accepting)
    if not kept[start]:
        raise RequestError(
            "no text satisfies this constraint: its language is empty, or the tokens cannot spell it"
        )
    names = np.full(len(kept) + 1, NOWHERE, np.int32)  # the last one is NOWHERE's
    names[:-1][kept] = np.arange(kept.sum())
    used = np.union1d(classes, 0)
    # NOWHERE sorts first, so the class that leads nowhere is number 0
    unlike, renamed = np.unique(names[leads[np.ix_(used, kept)]], axis=0, return_inverse=True)
    found = renamed.reshape(-1)[np.searchsorted(used, classes)].astype(np.int32)
    found[pad] = len(unlike)
    found[list(eos)] = len(unlike) + 1
    ended = unlike.shape[1]
    table = np.full((ended + 1, len(unlike) + 2), NOWHERE, np.int32)
    table[:-1, :-2] = unlike.T
    table[:-1, -1][accepting[kept]] = ended
    return TokenAutomaton(
        classes=found,
        table=table,
        accepting=np.append(accepting[kept], True),
        start=int(names[start]),
        eos=eos,
        pad=pad,
    )


def _fewest_tokens(table: Ints, accepting: Bools) -> NDArray[np.int64]:
    """(S,) the length of the shortest way from each state to an accepting one; far beyond any text where none is."""
    far = np.iinfo(np.int64).max // 2
    distance = np.where(accepting, 0, far)
    source, symbol = np.nonzero(table != NOWHERE)
    if not len(source):
        return distance
    to = table[source, symbol]
    while True:
        nearer = distance.copy()
        np.minimum.at(nearer, source, distance[to] + 1)
        nearer = np.minimum(nearer, far)
        if (nearer == distance).all():
            return distance
        distance = nearer


def _passed(table: Ints, start: int, accepting: Bools) -> Bools:
    """(S,) bool: states that lie on a way from the start to an accepting state."""
    source, symbol = np.nonzero(table != NOWHERE)
    pairs = np.unique(np.stack((source, table[source, symbol])), axis=1)
    reached = np.zeros(len(table), bool)
    reached[start] = True
    useful = accepting.copy()
    for marked, (come, go) in ((reached, pairs), (useful, pairs[::-1])):
        count = -1
        while count != marked.sum():
            count = marked.sum()
            marked[go[marked[come]]] = True
    return reached & useful
